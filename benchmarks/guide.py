"""A contrast guide of three policies (base, told, told the opposite) against plain decoding on the
same engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.interleave import chosen, compare, main, prompts
from fader import Fader

GUIDE = {
    "kind": "contrast",
    "principle": "Answer like a pirate.",
    "against": "Answer like a lawyer.",
    "weight": 1.0,
}


TARGETS: dict[str, float | None] = {"batch-1": 0.75, "batch-8": 0.6}


def run(case: str | None = None, tokens: int = 64, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Answers in batches of 1 and 8, in tokens per second."""
    cases = chosen(case, TARGETS)
    with Fader(share_prompts=False) as fader:
        for name, target in cases.items():
            asked = prompts(int(name.removeprefix("batch-")))

            def write(alignment: dict[str, Any], asked: list[str] = asked) -> float:
                results = fader.batch(asked, max_tokens=tokens, alignment=alignment)
                return float(sum(len(result.answers[0].token_ids) for result in results))

            yield compare(
                "guide",
                name,
                partial(write, {"guides": [GUIDE]}),
                partial(write, {}),
                target,
                rounds,
            )


if __name__ == "__main__":
    main(run)
