"""Moving a knob: time to the first token of a request whose lambda was never used before, against
the same request with lambda unchanged.

Both read the prompt anew, so the difference is what the change itself costs. `ours` and `theirs`
are milliseconds with and without a change, `extra_ms` their difference, which should be at most
`target_ms`, and the ratio is, as everywhere, our speed over theirs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.interleave import chosen, main, random_vector, row
from benchmarks.vectors import NAMES
from fader import Fader

TARGETS: dict[str, float | None] = {"change": None}
TARGET_MS = 10


def run(case: str | None = None, rounds: int = 25) -> Iterator[dict[str, Any]]:
    """The one case, in milliseconds to the first token."""
    (name,) = chosen(case, TARGETS)
    with Fader(share_prompts=False) as fader:
        for seed, vector in enumerate(NAMES):
            fader.add_vector(random_vector(vector, fader, seed))

        def first_token(strength: float) -> float:
            start = time.perf_counter()
            fader.generate(
                "What is a lighthouse?",
                max_tokens=1,
                alignment={"vectors": {"one": strength, "two": 0.5, "three": -strength}},
            )
            return (time.perf_counter() - start) * 1000

        first_token(0.5)
        changed, same = [], []
        for turn in range(rounds):
            changed.append(first_token(0.5 + (turn + 1) / 1000))
            same.append(first_token(0.5))
        extra = statistics.median(a - b for a, b in zip(changed, same, strict=True))
        found = row("knob", name, changed, same, None, "ms")
        yield {**found, "extra_ms": round(extra, 2), "target_ms": TARGET_MS}


if __name__ == "__main__":
    main(run)
