"""PAD (arXiv 2410.04070): how often the answer that a preference likes is ranked first.

With a text that tells the preference p, an answer's implicit reward is

    sum over its tokens of  log pi(y | told p) - log pi_ref(y),

as the guide uses it in decoding; pi_ref is the base model, told nothing. `accuracy` is the share of
pairs that it ranks right, each pair asked under either of two opposite preferences. `raw` is the
share that log pi(y | told p) per token ranks right, for which a model must overcome what it thinks
of the answers anyway. Wordings are ones that were never taught. Cases: `seen` families, and those
that were held out, by their measured nearness (`data/nearness.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.data.nearness import of_nearness
from fader.data.preferences import Judged
from fader.evaluation.cache import Query
from fader.evaluation.metrics import Metric, paired_difference, share
from fader.evaluation.suite import Suite
from fader.request import Request
from fader.starter.shipped import starter_families

MOST = 12
"""Pairs of a family that are asked."""


@dataclass(frozen=True)
class Told:
    """A pair under a preference, in one wording."""

    judged: Judged
    text: str


def cases(suite: Suite) -> dict[str, list[Told]]:
    """The pairs of each case in the suite's split, each under either pole. Of families that were
    held out as a whole, the test has the training pairs too."""
    found: dict[str, list[Told]] = {}
    for case, group in of_nearness(suite.families or starter_families()).items():
        for family in group:
            splits = [suite.split]
            if family.held_out and suite.split == "test":
                splits.append("train")
            flips = [flip for split in splits for flip in family.flips(split, unseen=True)]
            most = MOST * (1 if not family.held_out else 3)
            for flip in flips[: min(most, suite.limit or most)]:
                found.setdefault(case, []).extend(Told(judged, _drawn(judged)) for judged in flip)
    return found


def _drawn(judged: Judged) -> str:
    """One of its wordings, the same in every run."""
    number = int(hashlib.sha256(judged.pair.chosen.encode()).hexdigest(), 16)
    return judged.wordings[number % len(judged.wordings)]


Sides = NDArray[np.float64]


def likelihoods(
    suite: Suite, task: str, method: str, told: Sequence[Told], alignment: Mapping[str, Any] | None
) -> tuple[Sides, Sides]:
    """Log-probability of the chosen and of the rejected answers [pairs, 2], as a sum and per token.
    `alignment`: what is asked beside the preference; None asks the base model, told nothing."""
    queries = []
    for place, one in enumerate(told):
        messages = [turn.model_dump() for turn in one.judged.pair.messages]
        fields = (
            {}
            if alignment is None
            else {
                "alignment": {
                    "preferences": {"user": [one.text], "rendering": "principle"},
                    **alignment,
                }
            }
        )
        request = Request.of({"messages": messages}, **fields)
        queries += [
            Query(task, method, "", f"{place}:{side}", request, getattr(one.judged.pair, side))
            for side in ("chosen", "rejected")
        ]
    found = suite.cache.ask(queries)
    means = np.array([one.mean for one in found]).reshape(-1, 2)
    counts = np.array([one.tokens for one in found]).reshape(-1, 2)
    return means * counts, means


def personalized(suite: Suite) -> Iterator[Metric]:
    """`accuracy` and `raw` of the personalised model and of the untrained one, told the same, in
    every case; and how much more often the trained one is right (`accuracy_over_contrast`)."""
    methods: dict[str, dict[str, Any]] = {
        "contrast": {},
        "personalized": {"vectors": {suite.personal: 1.0}},
    }
    for case, told in cases(suite).items():
        base, _ = likelihoods(suite, "personalized", "base", told, None)
        prompts = [one.judged.pair.messages for one in told]
        right: dict[str, list[bool]] = {}
        for method, alignment in methods.items():
            sums, means = likelihoods(suite, "personalized", method, told, alignment)
            rewards = sums - base
            right[method] = (rewards[:, 0] > rewards[:, 1]).tolist()
            order = (means[:, 0] > means[:, 1]).tolist()
            for metric, values in (("accuracy", right[method]), ("raw", order)):
                yield share("personalized", method, case, metric, values, suite.seed, prompts)
        yield paired_difference(
            "personalized",
            "personalized",
            case,
            "accuracy_over_contrast",
            right["personalized"],
            right["contrast"],
            suite.seed,
            prompts,
        )
        longer = [
            len(one.judged.pair.chosen.split()) > len(one.judged.pair.rejected.split())
            for one in told
        ]
        yield share("personalized", "longer", case, "accuracy", longer, suite.seed, prompts)
