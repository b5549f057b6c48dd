"""/v1/completions: texts or token ids that the model continues as they are, and their scores.

With `echo` and `logprobs` the prompt itself is scored under the aligned policy, as harnesses do
that compare likelihoods: every token but the first, which nothing stands before.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.answer import Answer, Likelihood, Result, TokenLogprob
from fader.request import Request as Asked
from fader.schema import Invalid, path_of, renamed
from fader.server.aligned import HEADER, alignment_of, model_of
from fader.server.serving import (
    END,
    KEEP_ALIVE,
    Jobs,
    Serving,
    data,
    key_of,
    read_json,
    serving,
    spelling,
    unless_gone,
)
from fader.server.wire import Completion, ignored, made, read, resolved, sampling
from fader.server.written import (
    Spell,
    completion_logprobs,
    finish_reason,
    new_id,
    search_report,
    usage,
)

TOKENS = 16
"""OpenAI's, where a request says no number."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a completion."""

    request: Asked
    ids: tuple[int, ...]
    """Its token ids, without those of preferences."""
    text: str


async def complete(request: Request) -> Response:
    """Continue prompts, or score them."""
    of = serving(request)
    body = read(Completion, await read_json(request))
    prompts = await to_thread.run_sync(prompts_of, of, body, request.headers.get(HEADER))
    scores = bool(body.echo) and body.logprobs is not None
    writes = body.max_tokens != 0
    if not writes and not body.echo:
        raise Invalid("0 writes nothing; set it higher, or `echo` to get the prompt", "max_tokens")
    if body.streams and (scores or not writes):
        raise Invalid("scores of a prompt are not streamed; leave it out", "stream")
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or of.backend.models[0],
    }
    with Jobs(of, key_of(request)) as jobs:
        if writes:
            await unless_gone(request, jobs.submit([prompt.request for prompt in prompts]))
        if body.streams:
            return jobs.stream(_events(of, jobs, prompts, body, head), ignored(body))
        if scores:
            scored = [(_before(prompt), prompt.ids[1:]) for prompt in prompts if prompt.ids[1:]]
            await unless_gone(request, jobs.score(scored))
        results = await unless_gone(request, jobs.results())
        found = iter(await unless_gone(request, jobs.scores()))
    spell = spelling(of, prompts[0].request)
    choices: list[dict[str, Any]] = []
    for place, prompt in enumerate(prompts):
        known = next(found) if scores and prompt.ids[1:] else None
        for answer in results[place].answers if writes else [None]:
            choices.append(_choice(len(choices), prompt, answer, known, body, spell))
    cost = usage(results, None if writes else sum(len(prompt.ids) for prompt in prompts))
    answered = {**head, "choices": choices, "usage": cost, **resolved(prompts[0].request)}
    return JSONResponse(answered, headers=ignored(body))


def prompts_of(of: Serving, body: Completion, header: str | None) -> list[Prompt]:
    """The prompts of a body, each as a request. Raises `Invalid`."""
    model, profile = model_of(body.model, of.backend.models)
    alignment = alignment_of(body, profile, header, of.default)
    if body.echo and body.logprobs is not None and alignment.search is not None:
        raise Invalid(
            "chooses what is written and defines no distribution, so that a prompt cannot be"
            " scored; leave it out, or `echo`",
            "alignment.search",
        )
    given = body.prompt
    several = not isinstance(given, str) and any(not isinstance(one, int) for one in given)
    prompts: Any = given if several else [given]
    if len(prompts) > of.limits.prompts:
        raise Invalid(f"are {len(prompts)}, this server allows {of.limits.prompts}", "prompt")
    how = {
        **sampling(body, alignment),
        "max_tokens": max(body.max_tokens or 1, 1) if body.max_tokens is not None else TOKENS,
        "logprobs": body.logprobs,
    }
    found = []
    for place, prompt in enumerate(prompts):
        path = path_of("prompt", *([place] if several else []))
        if not prompt:
            raise Invalid("must not be empty", path)
        ids = of.backend.encode(model, prompt) if isinstance(prompt, str) else prompt
        text = prompt if isinstance(prompt, str) else _spelled(of, model, ids, path)
        fields = {"raw": ids, "model": model, "alignment": alignment, "sampling": how}
        found.append(Prompt(made(fields), tuple(ids), text))
    return found


def _spelled(of: Serving, model: str, ids: Sequence[int], path: str) -> str:
    """The text of a prompt that came as token ids. Raises `Invalid` under its path."""
    with renamed(lambda _: path):
        return of.backend.decode(model, ids, special=True)


def _before(prompt: Prompt) -> Asked:
    """The request that reads a prompt's first token: what the others are scored after."""
    return prompt.request.model_copy(update={"raw": prompt.ids[:1]})


def _choice(
    index: int,
    prompt: Prompt,
    answer: Answer | None,
    scored: Likelihood | None,
    body: Completion,
    spell: Spell,
) -> dict[str, Any]:
    text = (prompt.text if body.echo else "") + (answer.text if answer else "")
    logprobs = None
    if body.logprobs is not None:
        first: list[TokenLogprob | int] = [prompt.ids[0]] if body.echo else []
        read = scored.details if scored else ()
        logprobs = completion_logprobs(
            [*first, *read, *(answer.logprobs or () if answer else ())], spell
        )
    ids = {
        "prompt_token_ids": list(prompt.ids),
        "token_ids": list(answer.token_ids if answer else ()),
    }
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(answer.finish_reason) if answer else "length",
        **(ids if body.return_token_ids else {}),
        **(search_report(answer) if answer else {}),
    }


async def _events(
    of: Serving, jobs: Jobs, prompts: list[Prompt], body: Completion, head: dict[str, Any]
) -> AsyncIterator[bytes]:
    """The frames of a stream; the answers of the second prompt are numbered after the first's."""
    samples, spell = prompts[0].request.sampling.n, spelling(of, prompts[0].request)
    offsets = Counter[int]()

    def frame(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return data({**head, "choices": choices, **more})

    def choice(index: int, text: str, **more: Any) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}

    if body.echo:
        for place, prompt in enumerate(prompts):
            for sample in range(samples):
                yield frame([choice(place * samples + sample, prompt.text)])
    async for found in jobs.chunks():
        if found is None:
            yield KEEP_ALIVE
            continue
        place, chunk = found
        index = place * samples + chunk.index
        logprobs = None
        if chunk.logprobs:
            logprobs = completion_logprobs(chunk.logprobs, spell, offsets[index])
            offsets[index] += sum(map(len, logprobs["tokens"]))
        more: dict[str, Any] = {"token_ids": list(chunk.token_ids)} if body.return_token_ids else {}
        reason = finish_reason(chunk.finish_reason)
        if chunk.text or logprobs or more or reason:
            last = choice(index, chunk.text, logprobs=logprobs, finish_reason=reason, **more)
            yield frame([last], **(resolved(prompts[place].request) if reason else {}))
    if body.wants_usage:
        results: list[Result] = await jobs.results()
        yield frame([], usage=usage(results), **resolved(prompts[0].request))
    yield END
