"""What OpenAI's clients send, made into a `fader.request.Request`.

A field may be null everywhere. Fields that are not known are accepted and named in the response
header `X-Fader-Ignored`; those that would change the answer, and cannot, are refused.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field

from fader.files import repeated
from fader.request import Alignment, Request, Token, is_greedy
from fader.schema import Finite, Frozen, Invalid, Seed, at, parse, path_of, short

IGNORED = "X-Fader-Ignored"
TEMPERATURE = 1.0
"""OpenAI's, where a request gives none."""

UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "this server calls no tools; leave them out"),
    "functions": (([],), "this server calls no functions; leave them out"),
    "tool_choice": (("none", "auto"), "this server calls no tools; leave it out"),
    "function_call": (("none", "auto"), "this server calls no functions; leave it out"),
    "audio": ((), "this server writes no audio; leave it out"),
    "modalities": ((["text"],), "this server writes text alone; leave it out"),
    "prediction": ((), "predicted output is not supported; leave it out"),
    "web_search_options": ((), "this server searches no web; leave it out"),
    "presence_penalty": ((0,), "is not supported; use repetition_penalty"),
    "frequency_penalty": ((0,), "is not supported; use repetition_penalty"),
    "suffix": (("",), "is not supported: the model writes from left to right"),
    "best_of": ((1,), "is not supported; use alignment.search with the kind best-of-n"),
    "use_beam_search": ((False,), "is not supported; use alignment.search"),
    "stop_token_ids": (([],), "is not supported; give the token's text in `stop`"),
    "allowed_token_ids": (([],), "is not supported; use logit_bias"),
    "bad_words": (([],), "is not supported; use logit_bias"),
    "response_format": (({"type": "text"},), "is for /v1/chat/completions; leave it out"),
    "structured_outputs": ((), "is not supported; use response_format in a chat"),
    "guided_json": ((), "is not supported; use response_format in a chat"),
    "guided_regex": ((), "is not supported; use alignment.search with the reward regex"),
    "guided_choice": ((), "is not supported; use response_format in a chat"),
    "guided_grammar": ((), "is not supported; use response_format in a chat"),
    "include_stop_str_in_output": ((False,), "is not supported; add the stop string yourself"),
    "skip_special_tokens": ((True,), "is not supported; use return_token_ids and /detokenize"),
    "truncate_prompt_tokens": ((), "is not supported; send the prompt that is to be read"),
    "chat_template": ((), "is the model's own; use /v1/completions for another"),
}
"""Fields that would change the answer: the values that change nothing, and what is said of
others."""


class Body(Frozen):
    """What bodies share: open to fields that are not listed."""

    model_config = ConfigDict(extra="allow")

    @property
    def ignored(self) -> list[str]:
        """The paths of fields that say something and are not read."""
        extra = self.model_extra or {}
        found = [name for name, value in extra.items() if value not in (None, [], {}, "")]
        for name in type(self).model_fields:
            value = getattr(self, name)
            for place, one in enumerate(value) if isinstance(value, list) else [("", value)]:
                if isinstance(one, Body):
                    found += [path_of(name, place, inner) for inner in one.ignored]
        return found


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool = False


class JsonText(Body):
    """vLLM's own channel for what it does not know."""

    alignment: str | None = None
    """An alignment as JSON text."""


class Adapter(Frozen):
    """llama.cpp's way to say a vector's strength."""

    id: int = Field(ge=0)
    """As listed at /v1/vectors."""
    scale: Finite


class Asked(Body):
    """What all requests for text have in common."""

    model: str | None = None
    """A model, or `model:profile`."""
    alignment: dict[str, Any] | None = None
    """An `Alignment`."""
    vllm_xargs: JsonText | None = None
    lora: tuple[Adapter, ...] | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """-1 and 0 are off."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=128)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    logit_bias: dict[Token, Finite] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    def check(self) -> None:
        """Raises `Invalid` for fields that would change the answer and cannot."""
        for name, (harmless, said) in UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise Invalid(said, name)

    @property
    def streams(self) -> bool:
        """Whether the answer is to be streamed."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class Part(Body):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Turn(Body):
    """A message as OpenAI's clients write it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    token_ids: tuple[Token, ...] | None = None
    """Of a final assistant message that is continued: the answer so far, instead of content."""
    continue_: bool = Field(False, alias="continue")
    """Of a final assistant message: whether the answer goes on from it."""


class Chat(Asked):
    """The body of /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    continue_final_message: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def open_ended(self) -> bool:
        """Whether it does not say how many tokens are written."""
        return self.max_tokens is None and self.max_completion_tokens is None


Ids = list[Token]


class Completion(Asked):
    """The body of /v1/completions."""

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=100)
    echo: bool | None = None


AnyBody = TypeVar("AnyBody", bound=Body)


def read(schema: type[AnyBody], value: Any) -> AnyBody:
    """A body as its schema. Raises `Invalid` with the path of each field that cannot be used."""
    body = parse(schema, value)
    if isinstance(body, Asked):
        body.check()
    return body


def ignored(body: Body) -> dict[str, str]:
    """The header that names what was not read; none where everything was."""
    names = [name for name in body.ignored if re.fullmatch(r"[\w.[\]-]{1,64}", name, re.ASCII)]
    names = [name for name in names if name not in UNSUPPORTED]
    return {IGNORED: ", ".join(names[:32])} if names else {}


def sampling(body: Asked, alignment: Alignment) -> dict[str, Any]:
    """The fields of a `Sampling`, less how many tokens are written and reported."""
    given = body.temperature
    return {
        "temperature": usual_temperature(alignment) if given is None else given,
        "top_p": body.top_p or None,
        "top_k": body.top_k if body.top_k and body.top_k > 0 else None,
        "min_p": body.min_p or None,
        "repetition_penalty": body.repetition_penalty,
        "seed": seed(body.seed),
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
        "n": body.n,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "logit_bias": body.logit_bias,
    }


def usual_temperature(alignment: Alignment) -> float:
    """The temperature of a request that says none."""
    return 0.0 if is_greedy(alignment.search) else TEMPERATURE


def seed(given: int | None) -> int:
    """A seed; without one, another each time. Negative ones are others' word for none."""
    if given is None or given < 0:
        return secrets.randbelow(2**31)
    return int(parse(_Seeded, {"seed": given}).seed)


class _Seeded(Frozen):
    seed: Seed


def chat_request(body: Chat, model: str, alignment: Alignment, tokens: int) -> Request:
    """The request of a chat; `tokens`: how many are written where it does not say. Raises
    `Invalid`."""
    if body.top_logprobs and not body.logprobs:
        raise Invalid("needs `logprobs`: true", "top_logprobs")
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise Invalid(
            "differs from max_tokens, which means the same; give one", "max_completion_tokens"
        )
    messages, prefill = conversation(body)
    fields = {
        "messages": messages,
        "prefill": prefill,
        "model": model,
        "alignment": alignment,
        "json_schema": json_schema(body.response_format),
        "sampling": {
            **sampling(body, alignment),
            "max_tokens": given.pop() if given else max(tokens, body.min_tokens or 0),
            "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        },
    }
    return made(fields)


def json_schema(form: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON Schema that a response format asks for; None for text. Raises `Invalid`."""
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case {"type": "json_schema", "schema": dict(schema)}:  # as /v1/responses has it
            return schema
    raise Invalid(
        f"must be text, json_object, or json_schema with a schema (got {short(form)})",
        "response_format",
    )


def made(fields: Mapping[str, Any]) -> Request:
    """A request from its fields, where None is not given. Raises `Invalid`."""
    how = {name: value for name, value in fields["sampling"].items() if value is not None}
    return parse(Request, {**fields, "sampling": how})


def resolved(asked: Request) -> dict[str, Any]:
    """The alignment as it was resolved, and the seed: with these the answer can be had again."""
    return {
        "alignment": asked.alignment.model_dump(mode="json"),
        "seed": asked.sampling.seed,
    }


def conversation(body: Chat) -> tuple[list[dict[str, str]], str | tuple[int, ...] | None]:
    """The messages, and the beginning of an answer that is continued."""
    turns = list(body.messages)
    prefill: str | tuple[int, ...] | None = None
    last = turns[-1]
    continued = last.continue_ or bool(body.continue_final_message)
    for number, turn in enumerate(turns):
        with at("messages", number):
            _check_beginning(turn, continued and turn is last)
    if continued:
        place = path_of("messages", len(turns) - 1)
        if last.role != "assistant":
            raise Invalid(f"only an assistant's message is continued (got {last.role!r})", place)
        prefill = last.token_ids or text_of(last, len(turns) - 1)
        turns.pop()
        if not turns:
            raise Invalid("give the message that is answered too", "messages")
    return [
        {"role": _role(turn, place), "content": text_of(turn, place)}
        for place, turn in enumerate(turns)
    ], prefill


def _check_beginning(turn: Turn, continued: bool) -> None:
    """Raises `Invalid` where a message says of its continuation what would go unread."""
    if turn.continue_ and not continued:
        raise Invalid("only the last message is continued; leave it out", "continue")
    if turn.token_ids is not None and not continued:
        raise Invalid("are for a last message that is continued; give `content`", "token_ids")
    if turn.token_ids is not None and turn.content:
        raise Invalid("stand for `content`, which is given too; give one of the two", "token_ids")


def _role(turn: Turn, place: int) -> str:
    if turn.role in ("tool", "function") or (turn.model_extra or {}).get("tool_calls"):
        raise Invalid("this server calls no tools; leave the message out", f"messages[{place}]")
    return "system" if turn.role == "developer" else turn.role


def text_of(turn: Turn, place: int) -> str:
    """A message's text, which may come in parts. Raises `Invalid` for parts of another kind."""
    if turn.content is None:
        raise Invalid("must be a text", f"messages[{place}].content")
    if isinstance(turn.content, str):
        return turn.content
    for index, part in enumerate(turn.content):
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            raise Invalid(
                f"this server reads text alone; leave out what is no text (got {part.type!r})",
                f"messages[{place}].content[{index}]",
            )
    return "".join(part.text or "" for part in turn.content)


def parse_json(content: bytes) -> Any:
    """The value of JSON text. Raises `Invalid` for what is none."""

    def constant(name: str) -> Any:
        raise Invalid(f"the body is not valid JSON: {name} is no JSON")

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twin := repeated(name for name, _ in pairs)) is not None:
            raise Invalid(f"{short(twin)} is given twice in one object; give it once")
        return dict(pairs)

    try:
        text = content.decode("utf-8")
        return json.loads(text, parse_constant=constant, object_pairs_hook=whole)
    except Invalid:
        raise
    except RecursionError:
        raise Invalid("the body is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not valid JSON in UTF-8: {error}") from None
