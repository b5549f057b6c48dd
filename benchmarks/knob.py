"""Moving a knob: time to the first token of a request whose lambda was never used before, against
the same request with lambda unchanged.

Both read the prompt anew, so the difference is what the change itself costs. `ours` and `theirs`
are milliseconds with and without a change, `extra_ms` their difference (target: at most 10), and
the ratio is, as everywhere, our speed over theirs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.interleave import main
from benchmarks.vectors import NAMES, random_vector
from fader import Fader


def run(rounds: int = 25) -> Iterator[dict[str, Any]]:
    """Case change, in milliseconds to the first token."""
    with Fader() as fader:
        for seed, name in enumerate(NAMES):
            fader.add_vector(random_vector(name, fader, seed))

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
        ours, theirs = statistics.median(changed), statistics.median(same)
        extra = statistics.median(a - b for a, b in zip(changed, same, strict=True))
        row = {
            "name": "knob",
            "case": "change",
            "ratio": round(theirs / ours, 3),
            "ours": round(ours, 2),
            "theirs": round(theirs, 2),
            "unit": "ms",
        }
        yield {**row, "n": rounds, "extra_ms": round(extra, 2)}


if __name__ == "__main__":
    main(run())
