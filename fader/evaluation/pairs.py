"""Your own preference pairs against a vector's strength: how often the chosen answer is the
likelier one, and by how much.

The splits dev and test are measured, each by itself. Where all pairs are of the split train, that
one is measured, and the case says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from fader.evaluation.metrics import Metric, average, share
from fader.evaluation.suite import Suite

STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


def pairs(suite: Suite, strengths: Sequence[float] = STRENGTHS) -> Iterator[Metric]:
    """For each held-out split and each strength of each vector: `accuracy`, the share of pairs
    whose chosen answer has the higher log-probability per token, and `margin`, by how much in nats
    per token."""
    if not suite.pairs:
        raise ValueError("pairs: there are none to measure; give --data")
    held_out = [split for split in ("dev", "test") if any(p.split == split for p in suite.pairs)]
    for split in held_out or ["train"]:
        case = split if held_out else "train (seen in training)"
        found = [pair for pair in suite.pairs if pair.split == split][: suite.limit]
        prompts = [pair.messages for pair in found]  # pairs of one prompt are drawn together
        for name, strength in product(suite.vectors.values(), strengths):
            method = f"{name}={strength:g}"
            alignment = {"vectors": {name: strength} if strength else {}}
            margins = suite.margins("pairs", method, case, found, alignment).tolist()
            right = [margin > 0 for margin in margins]
            yield share("pairs", method, case, "accuracy", right, suite.seed, prompts)
            yield average("pairs", method, case, "margin", margins, suite.seed, prompts)
