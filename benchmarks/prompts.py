"""Prompts shared between requests: milliseconds to the first token, with sharing and without.

`same-system` is the mean of 32 requests that come together under one system prompt; nobody has read
it before. `next-turn` is the second turn of a conversation, whose first turn the same model wrote.
Each round has texts of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.interleave import TOPICS, chosen, main, row, text
from fader import Fader, load

TARGETS: dict[str, float | None] = {"same-system": 5.0, "next-turn": 5.0}

Messages = list[dict[str, str]]


def run(
    case: str | None = None,
    rounds: int = 5,
    requests: int = 32,
    system: int = 500,
    conversation: int = 1000,
) -> Iterator[dict[str, Any]]:
    """The cases, in milliseconds to the first token. `system`, `conversation`: about how many
    tokens the system prompt and the conversation have before what is new."""
    cases = chosen(case, TARGETS)
    model = load()
    with Fader(model) as ours, Fader(model, share_prompts=False) as theirs:
        measures: dict[str, Callable[[Fader, int], float]] = {
            "same-system": partial(_same_system, count=requests, length=system),
            "next-turn": partial(_next_turn, length=conversation),
        }
        for name, target in cases.items():
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(rounds + 1):  # the first does not count
                for fader, found in zip((ours, theirs), times, strict=True):
                    measured = measures[name](fader, turn)
                    found += [measured] if turn else []
            yield row("prompts", name, *times, target, "ms")


def _same_system(fader: Fader, turn: int, count: int, length: int) -> float:
    encode = fader.backend.backbones[fader.model].encode
    told = {"role": "system", "content": text(encode, f"Guide {turn}.", length)}
    return _to_first_tokens(
        fader, [[told, _said(f"Tell me of {TOPICS[i % len(TOPICS)]} {i}.")] for i in range(count)]
    )


def _next_turn(fader: Fader, turn: int, length: int) -> float:
    encode = fader.backend.backbones[fader.model].encode
    begun = [_said(text(encode, f"Story {turn}.", length))]
    answer = fader.generate(begun, max_tokens=16).text
    said = {"role": "assistant", "content": answer}
    return _to_first_tokens(fader, [[*begun, said, _said("What comes next?")]])


def _to_first_tokens(fader: Fader, asked: Sequence[Messages]) -> float:
    """Milliseconds to the first token, the mean of requests that come together."""
    requests = fader.requests(asked, max_tokens=1)
    start = time.perf_counter()
    ends = [time.perf_counter() for _ in fader.stream_batch(requests)]
    return sum(end - start for end in ends) / len(requests) * 1000


def _said(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


if __name__ == "__main__":
    main(run)
