"""A contrast guide of three policies (base, told, told the opposite) against plain decoding on the
same engine. Target at batch 1: 0.75."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.interleave import compare, main, prompts
from fader import Fader

GUIDE = {
    "kind": "contrast",
    "principle": "Answer like a pirate.",
    "against": "Answer like a lawyer.",
    "weight": 1.0,
}


def run(tokens: int = 64, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Cases batch-1 and batch-8, in tokens per second."""
    with Fader() as fader:
        for size in (1, 8):
            asked = prompts(size)

            def write(alignment: dict[str, Any], asked: list[str] = asked) -> float:
                results = fader.batch(asked, max_tokens=tokens, alignment=alignment)
                return float(sum(len(result.answers[0].token_ids) for result in results))

            yield compare(
                "guide",
                f"batch-{size}",
                partial(write, {"guides": [GUIDE]}),
                partial(write, {}),
                rounds,
            )


if __name__ == "__main__":
    main(run())
