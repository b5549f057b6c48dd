"""The shape of the memory of keys and values: 15 short requests beside one of 8,000 tokens, against
the same 15 beside a short one.

The long prompt has been read before the clock starts, and its answer goes on meanwhile. `ours` and
`theirs` are tokens per second of the 15, `first_ms` their mean time to the first token (waiting for
memory counts), `kv_bytes` what is set aside for all 16 rows; the last two as [ours, theirs].
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.interleave import chosen, main, prompts, row, text
from fader import Chunk, Fader

TARGETS: dict[str, float | None] = {"beside-long": None}


def run(
    case: str | None = None,
    rounds: int = 3,
    tokens: int = 64,
    long: int = 8000,
    answer: int = 128,
    requests: int = 15,
) -> Iterator[dict[str, Any]]:
    """The one case. `long`: about how many tokens the prompt of the long request has; `answer`: how
    many its answer may take; `tokens`: those of each short answer."""
    (name,) = chosen(case, TARGETS)
    speeds: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    reserved = [0, 0]
    for _ in range(rounds):
        for side, length in enumerate((long, 32)):
            with Fader() as fader:  # a new one: memory that has grown does not shrink
                speed, first, reserved[side] = _beside(
                    fader, length, answer, prompts(requests), tokens
                )
            speeds[side].append(speed)
            firsts[side].append(first)
    measured = row("shape", name, *speeds, TARGETS[name])
    first_ms = [round(statistics.median(found), 1) for found in firsts]
    yield {**measured, "first_ms": first_ms, "kv_bytes": reserved}


def _beside(
    fader: Fader, length: int, answer: int, asked: list[str], tokens: int
) -> tuple[float, float, int]:
    """Tokens per second of some short requests beside one of `length` tokens, their milliseconds to
    the first token, and the bytes set aside."""
    backend, begun = fader.backend, threading.Event()
    encode = backend.backbones[fader.model].encode
    long = fader.request(text(encode, "A story.", length), max_tokens=answer)
    beside = backend.submit(long, lambda _: begun.set())
    begun.wait()  # its prompt has been read
    first: dict[int, float] = {}
    requests = fader.requests(asked, max_tokens=tokens)
    start = time.perf_counter()

    def note(place: int, _: Chunk) -> None:
        first.setdefault(place, time.perf_counter() - start)

    running = [
        backend.submit(request, partial(note, place)) for place, request in enumerate(requests)
    ]
    written = sum(len(one.result().answers[0].token_ids) for one in running)
    seconds = time.perf_counter() - start
    reserved = backend.stats().kv_reserved
    beside.cancel()
    return written / seconds, statistics.mean(first.values()) * 1000, reserved


if __name__ == "__main__":
    main(run)
