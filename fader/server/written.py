"""What has been written, in the shapes of OpenAI's answers: log-probabilities, usage, what a search
found."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from fader.answer import Answer, FinishReason, Result, TokenLogprob

LEAST = -9999.0
"""OpenAI's number for minus infinity."""
Spell = Callable[[int], str]
"""The text of a token id, control tokens spelled."""


def new_id(kind: str) -> str:
    """An id that nothing else has."""
    return f"{kind}-{secrets.token_hex(12)}"


def finish_reason(reason: FinishReason | None) -> str | None:
    """OpenAI's word; a search that has used up its budget ended at a length."""
    return "length" if reason == "budget" else reason


def finite(value: float) -> float:
    """A log-probability as JSON can hold it."""
    return value if math.isfinite(value) else LEAST


def chat_logprobs(tokens: Sequence[TokenLogprob], spell: Spell) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {"content": [_entry(one, spell) for one in tokens], "refusal": None}


def _entry(one: TokenLogprob, spell: Spell) -> dict[str, Any]:
    return {
        **_named(spell(one.id), one.logprob),
        "id": one.id,
        "top_logprobs": [{**_named(spell(i), value), "id": i} for i, value in one.top],
        "fader": {"base": finite(one.base), "guides": one.guides},
    }


def _named(token: str, logprob: float) -> dict[str, Any]:
    # half of a character has no text of its own
    text = None if "\ufffd" in token else list(token.encode())
    return {"token": token, "logprob": finite(logprob), "bytes": text}


def completion_logprobs(
    tokens: Sequence[TokenLogprob | int], spell: Spell, offset: int = 0
) -> dict[str, Any]:
    """`logprobs` of a completion's choice. A token of which nothing is known, as the first of a
    prompt, is its id, and has null."""
    found: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for one in tokens:
        token = one if isinstance(one, int) else one.id
        text = spell(token)
        found["tokens"].append(text)
        found["text_offset"].append(offset)
        offset += len(text)
        known = None if isinstance(one, int) else one
        found["token_logprobs"].append(known and finite(known.logprob))
        found["top_logprobs"].append(known and _top(known, spell))
    return found


def _top(one: TokenLogprob, spell: Spell) -> dict[str, float]:
    """The likeliest tokens by their texts, with the token's own; one whose text another has is
    named by its id."""
    found: dict[str, float] = {spell(one.id): finite(one.logprob)}
    for token, value in one.top:
        text = spell(token)
        if token != one.id:
            found[f"token_id:{token}" if text in found else text] = finite(value)
    return found


def usage(results: Sequence[Result], read: int | None = None) -> dict[str, Any]:
    """What answers cost. `read`: tokens of their prompts, where these are not the results'."""
    prompt = sum(result.prompt_tokens for result in results) if read is None else read
    answers = [answer for result in results for answer in result.answers]
    written = sum(len(answer.token_ids) for answer in answers)
    searches = [answer.search for answer in answers if answer.search is not None]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "alignment": {
            "rows": sum(result.usage.rows for result in results),
            "forward_passes": sum(result.usage.forward_passes for result in results),
            "tokens_read": sum(result.usage.tokens_read for result in results),
            "cached_tokens": sum(result.usage.cached_tokens for result in results),
            "lookahead_tokens": sum(found.explored for found in searches),
            "reward_calls": sum(result.usage.reward_calls for result in results),
            "dropped_choices": sum(result.dropped_choices for result in results),
            "rewards": [
                found.reward if math.isfinite(found.reward) else None for found in searches
            ],
            "seconds": max((result.usage.seconds for result in results), default=0.0),
        },
    }


def search_report(answer: Answer) -> dict[str, Any]:
    """How a search found an answer; nothing where none did."""
    if answer.search is None:
        return {}
    report = dataclasses.asdict(answer.search)
    report["reward"] = report["reward"] if math.isfinite(report["reward"]) else None
    return {"search": report}
