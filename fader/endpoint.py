"""The one client of OpenAI-compatible chat endpoints; judges and teachers ask through it.

An `Endpoint` says where a model is reached and how hard it may be pressed. A `Client` sends many
requests at a time through the package openai. It tries again after failures that may pass (lost
connections, timeouts, the statuses 408, 409, 429 and 5xx, also where they come as an error with
status 200), and says on standard error when it waits long. The tries are made here and not by that
package: it takes an error with status 200 for an answer, and its timeout does not end a reply that
comes in drips.

Replies are kept by a hash of what was asked (model, messages, settings; not the address): in the
endpoint's folder, or in memory where it names none. An empty reply is not kept.

The shape of a reply is checked here, once. The caller gets a `Reply`, or one error that names the
address, the model and what came back. Code without an event loop asks through `run`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fader.files import encoding_of, write_whole

T = TypeVar("T")
Messages = Sequence[dict[str, str]]

PATIENCE = 10.0  # seconds without a reply before a word is said; then after twice as many each time
LONGEST_PAUSE = 8.0  # seconds before another try, where the endpoint asks for none
MOST_ASKED = 120.0  # seconds of pause that an endpoint may ask for; for more, there is no other try
MOST_KEPT = 100_000
_kept: dict[tuple[str, str], Reply] = {}
"""(address, hash of what was asked) -> the reply; may be dropped at any time."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is reached, and how hard it may be pressed. `url` is the base address, usually
    ending with /v1.

    Raises ValueError for a url that is no web address, and numbers out of range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    """Seconds that one try may take."""
    retries: int = 5
    """Further tries, with growing pauses or as long as the endpoint asks for."""
    concurrency: int = 8
    """How many requests it gets at the same time."""
    temperature: float | None = 0.0
    """None leaves it to the endpoint: some models know only their own."""
    most_tokens: int = 4096
    """Of one reply; room for a model that thinks before it answers."""
    folder: Path | None = None
    """Where replies are kept; None keeps them in memory."""

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ValueError(
                "endpoint.url: must be a web address such as http://localhost:8000/v1 (got"
                f" {self.url!r})"
            )
        if not self.model.strip():
            raise ValueError(
                "endpoint.model: must name the model that the endpoint serves (got nothing)"
            )
        if self.key is not None and not re.fullmatch(r"[!-~]*", self.key):
            raise ValueError(
                "endpoint.key: must be plain ASCII without spaces and line ends; look at where it"
                " was copied from"
            )
        for name, least in (
            ("timeout", 0.001),
            ("retries", 0),
            ("concurrency", 1),
            ("most_tokens", 1),
            *([] if self.temperature is None else [("temperature", 0)]),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"endpoint.{name}: must be at least {least} (got {getattr(self, name)})"
                )


@dataclass(frozen=True)
class Reply:
    """What a model said, without the thoughts before it.

    `finish` is the endpoint's reason for the end (stop, length, content_filter, ...; length too
    where only thoughts came), `asked` the day, `kept` whether it was known before.
    """

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    asked: str
    kept: bool = False

    @property
    def cut(self) -> bool:
        """Whether it ended at the limit on its tokens."""
        return self.finish == "length"

    @property
    def end(self) -> str:
        """Where it ended, in words for an error."""
        return f"after {self.text[-200:]!r}" if self.text else "before it said anything"


@dataclass(frozen=True)
class Advice:
    """For each kind of failure: the field at fault, and the fix."""

    key: tuple[str, str]
    model: tuple[str, str]
    address: tuple[str, str]
    pressed: tuple[str, str]


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


class Client:
    """Asks an endpoint from within an event loop: `async with Client(...) as client`.

    `say` is called when nothing has come back for long. Raises ValueError where the package openai
    is missing.
    """

    def __init__(
        self, endpoint: Endpoint, advice: Advice, say: Callable[[str], None] = say
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError(
                "asking an endpoint needs openai: pip install 'fader[data]'"
            ) from error
        self.endpoint, self.advice, self.say = endpoint, advice, say
        self._gate = _gate(asyncio.get_running_loop(), endpoint)
        self._client = openai.AsyncOpenAI(
            api_key=endpoint.key or "none", base_url=endpoint.url, timeout=None, max_retries=0
        )
        self._open, self._heard = 0, 0  # requests on their way, replies so far

    async def __aenter__(self) -> Client:
        self._watching = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        await self._client.close()

    async def ask(self, messages: Messages, **settings: int) -> Reply:
        """The reply to some messages: the kept one, or a new one, kept unless it is empty.
        `settings` only tell requests apart; other values, another reply.

        Raises what `fetch` raises.
        """
        reply = self.known(messages, **settings)
        if reply is None:
            reply = await self.fetch(messages)
            if reply.text or reply.finish in ("length", "content_filter"):
                self.keep(messages, reply, **settings)
        return reply

    def known(self, messages: Messages, **settings: int) -> Reply | None:
        """The kept reply, if there is one. Raises ValueError for a file that is none."""
        _, name = self._asked(messages, settings)
        if self.endpoint.folder is None:
            return _kept.get((self.endpoint.url, name))
        file = self.endpoint.folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            return replace(Reply(**json.loads(file.read_bytes())["reply"]), kept=True)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a kept reply ({error}); delete it") from None

    def keep(self, messages: Messages, reply: Reply, **settings: int) -> None:
        """Keep a reply for whoever asks the same again. Raises OSError where it cannot be
        written."""
        asked, name = self._asked(messages, settings)
        if self.endpoint.folder is None:
            if len(_kept) >= MOST_KEPT:
                _kept.clear()
            _kept[self.endpoint.url, name] = replace(reply, kept=True)
            return
        row = {"asked": asked, "reply": asdict(reply)}
        write_whole(self.endpoint.folder / f"{name}.json", json.dumps(row, ensure_ascii=False))

    async def fetch(self, messages: Messages) -> Reply:
        """A new reply.

        Raises ValueError where the endpoint refuses (key, model, request) or is none,
        ConnectionError where it cannot be reached or keeps failing.
        """
        asked, _ = self._asked(messages, {})
        async with self._gate:
            self._open += 1
            try:
                for number in range(1, self.endpoint.retries + 2):
                    try:
                        return await self._tried(asked)
                    except _NoAnswer as error:
                        failed = error
                    if not failed.passes or failed.pause > MOST_ASKED:
                        break
                    if number <= self.endpoint.retries:
                        growing = min(0.25 * 2.0 ** min(number, 10), LONGEST_PAUSE)
                        await asyncio.sleep(failed.pause if failed.pause > 0 else growing)
            finally:
                self._open -= 1
                self._heard += 1
        raise self._in_words(failed, number)

    async def _tried(self, asked: dict[str, Any]) -> Reply:
        """The reply of one try. Raises _NoAnswer where there is none."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(**asked)
        except openai.APIStatusError as error:
            status, response = error.status_code, error.response
            said = f"status {status}: {_error_said(_body(response.content, response.text))}"
            raise _NoAnswer(status, said, _pause(response.headers)) from error
        except TimeoutError as error:
            said = f"no reply within {self.endpoint.timeout:g} s"
            raise _NoAnswer(_UNREACHED, said) from error
        except openai.OpenAIError as error:
            raise _NoAnswer(_UNREACHED, str(error).rstrip(".")) from error
        response = raw.http_response
        return read_reply(_body(response.content, response.text))

    def _asked(self, messages: Messages, settings: dict[str, int]) -> tuple[dict[str, Any], str]:
        """All that a reply depends on, and its hash."""
        asked: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "max_completion_tokens": self.endpoint.most_tokens,
            **settings,
        }
        if self.endpoint.temperature is not None:
            asked["temperature"] = self.endpoint.temperature
        content = json.dumps(asked, sort_keys=True).encode()
        return asked, hashlib.sha256(content).hexdigest()[:32]

    async def _watch(self) -> None:
        """Says every so often that nothing has come back yet, and when it will end."""
        clock = asyncio.get_running_loop().time
        heard, since, patience = self._heard, clock(), PATIENCE
        while True:
            await asyncio.sleep(PATIENCE / 10)
            if self._heard != heard or not self._open:
                heard, since, patience = self._heard, clock(), PATIENCE
            elif (waited := clock() - since) >= patience:
                self.say(
                    f"waiting for {self.endpoint.url} (model {self.endpoint.model!r}),"
                    f" {waited:.0f} s; a try ends after {self.endpoint.timeout:g} s,"
                    f" at most {_tries(self.endpoint.retries + 1)}"
                )
                patience *= 2

    def _in_words(self, failed: _NoAnswer, number: int) -> Exception:
        """What came instead of an answer, as ValueError where the endpoint refuses, as
        ConnectionError where it may be well later. `number`: the tries made."""
        url, model, status = self.endpoint.url, self.endpoint.model, failed.status
        said, tries = _clipped(failed.said), _tries(number)
        if status == _UNREACHED:
            field, fix = self.advice.address
            return ConnectionError(
                f"{field}: {url} cannot be reached or does not answer ({said}, {tries}, model"
                f" {model!r}); {fix}"
            )
        if status in (401, 403):
            field, fix = self.advice.key
            return ValueError(f"{field}: {url} refuses the key ({said}; model {model!r}); {fix}")
        if status == 404:
            field, fix = self.advice.model
            return ValueError(
                f"{field}: {url} finds no model {model!r} ({said}); {fix}, or correct"
                " the address, which usually ends with /v1"
            )
        if status == _NO_CHAT:
            return ValueError(
                f"{self.advice.address[0]}: {url} does not speak chat completions, it said"
                f" {said!r} for model {model!r}; the address usually ends with /v1"
            )
        if failed.passes:
            field, fix = self.advice.pressed
            said += f"; it asks to wait {failed.pause:.0f} s" * (failed.pause > MOST_ASKED)
            return ConnectionError(
                f"{field}: {url} keeps failing ({said}; model {model!r}, {tries}); {fix}"
            )
        return ValueError(
            f"{self.advice.address[0]}: {url} refuses the request for model {model!r} ({said})"
        )


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that asks endpoints, from a thread with or without an event loop.
    What ends the wait (Ctrl-C) ends the requests first."""
    ended = threading.Event()

    async def ending() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(ending(), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        ended.wait(5)
        raise


async def together(asked: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; if one fails, the others are ended first, so that nothing is written
    afterwards."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop for all calls of `run`. Its thread does not keep a program from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fader-endpoint", daemon=True).start()
    return loop


@lru_cache(maxsize=64)
def _gate(loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> asyncio.Semaphore:
    """Lets `concurrency` requests of an endpoint through at a time, whoever makes them."""
    return asyncio.Semaphore(endpoint.concurrency)


_NO_CHAT, _UNREACHED, _LATER = 0, 1, 2
"""What stands for a status where there is none: no chat endpoint; none at all; one that may be well
again."""
_NAMED = {"invalid_api_key": 401, "model_not_found": 404, "invalid_request_error": 400}


class _NoAnswer(Exception):
    """What came instead of an answer. `status`: that of the response, or the one that would have
    told it; `pause`: for how many seconds the endpoint asks, or 0."""

    def __init__(self, status: int, said: str, pause: float = 0.0) -> None:
        super().__init__(said)
        self.status, self.said, self.pause = status, said, pause

    @property
    def passes(self) -> bool:
        """Whether another try may go well."""
        return self.status in (_UNREACHED, _LATER, 408, 409, 429) or self.status >= 500


def _body(content: bytes, text: str) -> str:
    """The text of a response: as its byte order mark says, without the mark; else `text`, which is
    read as its headers say."""
    encoding = encoding_of(content)
    return text if encoding == "utf-8" else content.decode(encoding, "replace")


def read_reply(body: str) -> Reply:
    """The body of a chat completion as a `Reply`, in any of the shapes that servers send: the text
    as one string, as a number or in parts; a refusal or a filter's silence in its place.

    Raises _NoAnswer for an error object, for what is cut off or silent, and for what is no chat
    completion.
    """
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        if not body.strip() or body.lstrip().startswith("{"):
            raise _NoAnswer(_LATER, f"half a reply with status 200: {body}") from None
        raise _NoAnswer(_NO_CHAT, body) from None
    if not isinstance(row, dict):
        raise _NoAnswer(_NO_CHAT, body)
    if error := _error(row):
        raise _NoAnswer(_status(error), f"an error with status 200: {_error_said(body)}")
    if "choices" not in row:
        raise _NoAnswer(_NO_CHAT, body)
    choice = _choice(row)
    text, finish = _text(choice.get("message")), choice.get("finish_reason")
    if text is None and finish in ("length", "content_filter"):
        text = ""
    if text is None:
        raise _NoAnswer(_LATER, f"a reply without a text with status 200: {body}")
    finish = finish if isinstance(finish, str) else ""
    spoken, thinking = _without_thoughts(text.encode("utf-8", "replace").decode("utf-8"))
    usage = row.get("usage")
    return Reply(
        spoken,
        "length" if thinking else finish,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        datetime.now(UTC).date().isoformat(),
    )


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    """The first choice of a reply, or nothing."""
    choices = row.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _text(message: object) -> str | None:
    """What a message says; None where it says nothing, not even an empty text."""
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") in ("text", "output_text")]
        content = "".join(text for text in texts if isinstance(text, str)) if texts else None
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
    return content if isinstance(content, str) else None


def _without_thoughts(text: str) -> tuple[str, bool]:
    """A text without the thoughts before it, and whether it is thoughts alone."""
    text = re.sub(r"^.*?</think(ing)?>", "", text, flags=re.DOTALL).strip()
    thinking = re.match(r"<think(ing)?>", text) is not None
    return ("" if thinking else text), thinking


def _status(error: object) -> int:
    """The status that an error object stands for; one that may pass where it does not say."""
    if not isinstance(error, dict):
        return _LATER
    for said in (error.get("code"), error.get("status"), error.get("type")):
        if str(said) in _NAMED:
            return _NAMED[str(said)]
        if re.fullmatch(r"[45]\d\d", str(said)):
            return int(str(said))
    return _LATER


def _error(row: dict[str, Any]) -> Any:
    """The error that a body holds, wherever servers put it."""
    return row.get("error") or _choice(row).get("error") or (row.get("object") == "error" and row)


def _error_said(body: str) -> str:
    """The message of the error that a body holds; where there is none, the body."""
    try:
        error = _error(json.loads(body))
    except (ValueError, RecursionError, AttributeError):
        return body
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else body


def _count(usage: object, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _pause(headers: Mapping[str, str]) -> float:
    """For how many seconds a response asks in its header Retry-After (seconds or a date), or 0."""
    asked = headers.get("retry-after", "0")
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0  # ValueError for a port that is none
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and not re.search(r"\s", url)


def _tries(number: int) -> str:
    return "one try" if number == 1 else f"{number} tries"


def _clipped(text: str, most: int = 200) -> str:
    """A text as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "..."
