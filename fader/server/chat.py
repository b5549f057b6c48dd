"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.answer import Chunk
from fader.request import Request as Asked
from fader.server.aligned import HEADER, alignment_of, model_of
from fader.server.serving import (
    END,
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
from fader.server.wire import Chat, chat_request, ignored, read, resolved
from fader.server.written import Spell, chat_logprobs, finish_reason, new_id, search_report, usage


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    of = serving(request)
    body = read(Chat, await read_json(request))
    asked = asked_by(of, body, request.headers.get(HEADER))
    if body.open_ended:
        asked = await to_thread.run_sync(fitted, of.backend, asked, of.limits.max_tokens)
    head = {
        "id": new_id("chatcmpl"),
        "created": int(time.time()),
        "model": body.model or of.backend.models[0],
    }
    with Jobs(of, key_of(request)) as jobs:
        await unless_gone(request, jobs.submit([asked]))
        if body.streams:
            return jobs.stream(_events(of, jobs, asked, body, head), ignored(body))
        [result] = await unless_gone(request, jobs.results())
    spell = spelling(of, asked)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None if answer.logprobs is None else chat_logprobs(answer.logprobs, spell),
            "finish_reason": finish_reason(answer.finish_reason),
            **({"token_ids": list(answer.token_ids)} if body.return_token_ids else {}),
            **search_report(answer),
        }
        for index, answer in enumerate(result.answers)
    ]
    answered = {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": usage([result]),
        **resolved(asked),
    }
    return JSONResponse(answered, headers=ignored(body))


def asked_by(of: Serving, body: Chat, header: str | None) -> Asked:
    """The request that a chat's body is. Raises `Invalid`."""
    model, profile = model_of(body.model, of.backend.models)
    alignment = alignment_of(body, profile, header, of.default)
    return chat_request(body, model, alignment, of.limits.max_tokens)


async def _events(
    of: Serving, jobs: Jobs, asked: Asked, body: Chat, head: dict[str, Any]
) -> AsyncIterator[bytes]:
    """The frames of a stream: the role first, the finish reason last."""
    spell = spelling(of, asked)

    def frame(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return data({**head, "object": "chat.completion.chunk", "choices": choices, **more})

    for index in range(asked.sampling.n):
        delta = {"role": "assistant", "content": ""}
        yield frame([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
    async for found in jobs.chunks():
        if found is None:
            yield KEEP_ALIVE
            continue
        _, chunk = found
        if chunk.text or chunk.logprobs or body.return_token_ids:
            yield frame([_choice(chunk, body, spell)])
        if chunk.finish_reason is not None:
            reason = finish_reason(chunk.finish_reason)
            last = {"index": chunk.index, "delta": {}, "logprobs": None, "finish_reason": reason}
            yield frame([last], **resolved(asked))
    if body.wants_usage:
        yield frame([], usage=usage(await jobs.results()), **resolved(asked))
    yield END


def _choice(chunk: Chunk, body: Chat, spell: Spell) -> dict[str, Any]:
    return {
        "index": chunk.index,
        "delta": {"content": chunk.text},
        "logprobs": chat_logprobs(chunk.logprobs, spell) if chunk.logprobs else None,
        "finish_reason": None,
        **({"token_ids": list(chunk.token_ids)} if body.return_token_ids else {}),
    }
