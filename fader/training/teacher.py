"""A teacher: a model behind any OpenAI-compatible chat endpoint, asked with bounded concurrency,
every reply kept.

A reply is kept in a file named by a hash of what was asked (model, messages, settings; not the
endpoint), written beside its place and renamed. So a run that was killed asks only for what is
missing, and a run that is repeated asks nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import openai
from filelock import FileLock, Timeout
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from fader.endpoint import Advice, in_words
from fader.files import write_whole

MOST_TOKENS = 4096  # of one reply; room for a model that thinks before it answers


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is reached, and how hard it may be pressed.

    `url` is the base address, usually ending with /v1. `retries` are those of the client, with
    growing pauses, for lost connections, timeouts and the statuses 408, 409, 429 and 5xx. Raises
    ValueError for a url that is no web address, and numbers out of range.
    """

    url: str
    model: str
    key: str | None = None
    key_name: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5

    def __post_init__(self) -> None:
        if not re.match(r"https?://\w", self.url):
            raise ValueError(
                "endpoint: must be a web address such as http://localhost:8000/v1 (got"
                f" {self.url!r})"
            )
        if not self.model.strip():
            raise ValueError("teacher: must name the model that the endpoint serves (got nothing)")
        if self.concurrency < 1:
            raise ValueError(f"concurrency: must be at least 1 (got {self.concurrency})")
        if self.retries < 0:
            raise ValueError(f"retries: must be at least 0 (got {self.retries})")


@dataclass(frozen=True)
class Reply:
    """What a teacher said. `finish` is the endpoint's reason for the end (stop, length, ...),
    `asked` the day."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    asked: str


class Teacher:
    """Asks an endpoint and keeps the replies in `folder`. One process at a time: a second one is
    refused.

    `used` are all replies that were handed out, `fresh` those of them that were paid for now.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint, self.folder = endpoint, folder
        self.used: list[Reply] = []
        self.fresh: list[Reply] = []
        self._gate = asyncio.Semaphore(endpoint.concurrency)
        self._lock = FileLock(folder / "lock", timeout=0)
        self._client = openai.AsyncOpenAI(
            api_key=endpoint.key or "none", base_url=endpoint.url, max_retries=endpoint.retries
        )

    async def __aenter__(self) -> Teacher:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"out: another run is writing into {self.folder}; wait for it or choose another"
                " file"
            ) from None
        for scratch in self.folder.glob("*.tmp"):
            scratch.unlink()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()
        self._lock.release()

    async def ask(self, messages: Sequence[dict[str, str]], **settings: int) -> Reply:
        """The reply to some messages: the kept one, or a new one. `settings` only tell requests
        apart; other values, another reply.

        Raises ValueError where the endpoint refuses (key, model, request), ConnectionError where it
        cannot be reached or keeps failing.
        """
        asked = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "max_completion_tokens": MOST_TOKENS,
            **settings,
        }
        file = (
            self.folder
            / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]}.json"
        )
        if file.is_file():
            reply = Reply(**json.loads(file.read_text(encoding="utf-8"))["reply"])
        else:
            async with self._gate:
                reply = await self._fetch(messages)
            write_whole(
                file,
                json.dumps({"asked": asked, "reply": asdict(reply)}, ensure_ascii=False),
                self.folder,
            )
            self.fresh.append(reply)
        self.used.append(reply)
        return reply

    async def _fetch(self, messages: Sequence[Any]) -> Reply:
        turns: list[ChatCompletionMessageParam] = list(messages)
        try:
            answer = await self._client.chat.completions.create(
                model=self.endpoint.model, messages=turns, max_completion_tokens=MOST_TOKENS
            )
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise in_words(
                error,
                self.endpoint.url,
                self.endpoint.model,
                self.endpoint.retries,
                _advice(self.endpoint),
            ) from error
        if not isinstance(answer, ChatCompletion):
            raise ValueError(
                f"endpoint: {self.endpoint.url} does not speak chat completions; the address"
                " usually ends with /v1"
            )
        choice = answer.choices[0] if answer.choices else None
        text = (choice.message.content if choice else None) or ""
        usage = answer.usage
        return Reply(
            bare(text),
            choice.finish_reason if choice else "empty",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            datetime.now(UTC).date().isoformat(),
        )


def _advice(endpoint: Endpoint) -> Advice:
    kept = "Replies so far are kept: the same command goes on from here"
    return Advice(
        key=(
            "key-env",
            (
                f"put a valid key into the environment variable {endpoint.key_name}, or name"
                " another variable with --key-env"
            ),
        ),
        model=("teacher", "name one that it serves"),
        address=("endpoint", f"start the server or correct --endpoint. {kept}"),
        pressed=("endpoint", f"lower --concurrency or wait. {kept}"),
    )


def bare(text: str) -> str:
    """A reply without the thoughts before it, the quotation marks around it and the spaces at its
    ends."""
    text = re.sub(r"^.*?</think>", "", text, flags=re.DOTALL).strip()
    if (
        len(text) > 1
        and text[0] + text[-1] in ('""', "“”", "«»", "„“")
        and text[0] not in text[1:-1]
    ):
        text = text[1:-1].strip()
    return text
