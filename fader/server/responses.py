"""/v1/responses, without a memory: every request holds its whole conversation."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from anyio import to_thread
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.answer import Answer, FinishReason, Result, TokenLogprob
from fader.request import Request as Written
from fader.schema import Invalid, renamed
from fader.server.aligned import HEADER, alignment_of, model_of
from fader.server.errors import Refused, wire_path
from fader.server.serving import (
    KEEP_ALIVE,
    Jobs,
    Serving,
    data,
    fitted,
    key_of,
    read_json,
    serving,
    spelling,
    unless_gone,
)
from fader.server.wire import Asked, Body, Chat, Turn, chat_request, ignored, read, resolved
from fader.server.written import Spell, chat_logprobs, new_id, search_report, usage

LOGPROBS = "message.output_text.logprobs"
STATELESS = {
    "previous_response_id": "this server keeps no answers; give the whole conversation as `input`",
    "conversation": "this server keeps no conversations; give the whole of it as `input`",
    "background": "this server runs nothing in the background; leave it out",
    "prompt": "this server keeps no prompts; give the text as `input`",
}


class Item(Turn):
    """One item of the input: a message, which may be one that was answered."""

    type: str | None = None
    id: str | None = None
    status: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_message(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") not in (None, "message"):
            raise ValueError("this server reads messages alone; leave out what is none")
        return value


class Text(Body):
    """What the text of the answer is to be like."""

    format: dict[str, Any] | None = None


class Answered(Asked):
    """The body of /v1/responses."""

    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: Text = Text()
    store: bool | None = None
    metadata: dict[str, Any] | None = None


async def respond(request: Request) -> Response:
    """Answer a conversation."""
    of, value = serving(request), await read_json(request)
    body = read(Answered, value)
    with renamed(partial(_input_path, first=1 if body.instructions else 0)):
        asked = _request(of, body, request.headers.get(HEADER))
        if body.max_output_tokens is None:
            asked = await to_thread.run_sync(fitted, of.backend, asked, of.limits.max_tokens)
        frame = _Frame(body, asked, body.model or of.backend.models[0], spelling(of, asked))
        with Jobs(of, key_of(request)) as jobs:
            await unless_gone(request, jobs.submit([asked]))
            if body.streams:
                return jobs.stream(_events(jobs, frame), ignored(body), frame.failed)
            [result] = await unless_gone(request, jobs.results())
    return JSONResponse(frame.ended(result), headers=ignored(body))


def _request(of: Serving, body: Answered, header: str | None) -> Written:
    for name, fix in STATELESS.items():
        if (body.model_extra or {}).get(name) not in (None, False):
            raise Invalid(fix, name)
    if body.store:
        raise Invalid("this server keeps no answers; set it to false", "store")
    if body.n not in (None, 1):
        raise Invalid("a response is one answer; leave it out", "n")
    said = body.input
    turns: list[Turn] = [Turn(role="user", content=said)] if isinstance(said, str) else [*said]
    if body.instructions:
        turns = [Turn(role="system", content=body.instructions), *turns]
    if not turns:
        raise Invalid("must hold at least one message", "input")
    model, profile = model_of(body.model, of.backend.models)
    alignment = alignment_of(body, profile, header, of.default)
    reported = LOGPROBS in (body.include or ()) or body.top_logprobs is not None
    asked = Chat(
        messages=turns,
        max_tokens=body.max_output_tokens,
        logprobs=reported,
        top_logprobs=body.top_logprobs or 0,
        response_format=body.text.format,
        **{name: getattr(body, name) for name in Asked.model_fields},
    )
    return chat_request(asked, model, alignment, of.limits.max_tokens)


def _input_path(path: str, first: int) -> str:
    """The path of a chat's field under the name that it has here; `first`: the place of the input's
    first message in the chat."""

    def place(found: re.Match[str]) -> str:
        number = int(found[1]) - first
        return "instructions" if number < 0 else f"input[{number}]{found[2]}"

    path = re.sub("^response_format", "text.format", wire_path(path))
    path = re.sub("^max_tokens", "max_output_tokens", path)
    path = re.sub(r"^messages\[(\d+)\](.*)", place, path)
    return re.sub(r"^messages", "input", path)


class _Frame:
    """The response object, and its events as they are numbered."""

    def __init__(self, body: Answered, asked: Written, model: str, spell: Spell) -> None:
        self.body, self.asked, self.spell = body, asked, spell
        self.id, self.item_id = new_id("resp"), new_id("msg")
        self.model, self.created = model, int(time.time())
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event."""
        number, self._number = self._number, self._number + 1
        value = {"type": kind, "sequence_number": number, **fields}
        return f"event: {kind}\n".encode() + data(value)

    def response(self, status: str, **fields: Any) -> dict[str, Any]:
        """The response object."""
        sampling = self.asked.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": self.body.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": self.body.text.format or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            **resolved(self.asked),
            **fields,
        }

    def item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The message that is written."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": parts,
        }

    def part(self, text: str, tokens: tuple[TokenLogprob, ...] = ()) -> dict[str, Any]:
        """The message's text."""
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": self.logprobs(tokens),
        }

    def logprobs(self, tokens: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        """The reports on tokens; half of a character has no bytes of its own."""
        found: list[dict[str, Any]] = chat_logprobs(tokens, self.spell)["content"]
        for one in found:
            for entry in (one, *one["top_logprobs"]):
                entry["bytes"] = entry["bytes"] or []
        return found

    def ended(self, result: Result) -> dict[str, Any]:
        """The response object at the end."""
        [answer] = result.answers
        cost = usage([result])
        # of all policies together, where OpenAI's are part of the one prompt
        cached = min(cost["alignment"]["cached_tokens"], cost["prompt_tokens"])
        why = None if answer.finish_reason == "stop" else {"reason": "max_output_tokens"}
        return self.response(
            _status(answer.finish_reason),
            incomplete_details=why,
            output=[self.item(_status(answer.finish_reason), [self._whole(answer)])],
            usage={
                "input_tokens": cost["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": cost["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": cost["total_tokens"],
                "alignment": cost["alignment"],
            },
            **search_report(answer),
        )

    def _whole(self, answer: Answer) -> dict[str, Any]:
        return self.part(answer.text, answer.logprobs or ())

    def failed(self, error: Refused) -> bytes:
        """The events of an error after the stream has begun."""
        said = error.body["error"]
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self.response("failed", error={"code": code, "message": error.message})
        return self.event(
            "error", message=error.message, code=said["code"], param=said["param"]
        ) + self.event("response.failed", response=response)

    def opening(self) -> Iterator[bytes]:
        """The events before the first word."""
        for kind in ("created", "in_progress"):
            yield self.event(f"response.{kind}", response=self.response("in_progress"))
        item = self.item("in_progress", [])
        yield self.event("response.output_item.added", output_index=0, item=item)
        yield self.event("response.content_part.added", **self._place(), part=self.part(""))

    def delta(self, text: str, tokens: tuple[TokenLogprob, ...]) -> bytes:
        """A piece of the text."""
        logged = self.logprobs(tokens)
        return self.event(
            "response.output_text.delta", **self._place(), delta=text, logprobs=logged
        )

    def closing(self, result: Result) -> Iterator[bytes]:
        """The events after the last word."""
        response = self.ended(result)
        [item] = response["output"]
        [part] = item["content"]
        said = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self.event("response.output_text.done", **self._place(), **said)
        yield self.event("response.content_part.done", **self._place(), part=part)
        yield self.event("response.output_item.done", output_index=0, item=item)
        yield self.event(f"response.{response['status']}", response=response)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}


def _status(reason: FinishReason) -> str:
    return "completed" if reason == "stop" else "incomplete"


async def _events(jobs: Jobs, frame: _Frame) -> AsyncIterator[bytes]:
    for event in frame.opening():
        yield event
    async for found in jobs.chunks():
        if found is None:
            yield KEEP_ALIVE
        elif found[1].text or found[1].logprobs:
            yield frame.delta(found[1].text, found[1].logprobs)
    [result] = await jobs.results()
    for event in frame.closing(result):
        yield event
