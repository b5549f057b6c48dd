"""PAD (arXiv 2410.04070): how often the answer that a preference likes is ranked first.

With a text that tells the preference p, an answer's implicit reward is

    sum over its tokens of  log pi(y | told p) - log pi_ref(y),

as the guide uses it in decoding; pi_ref is the base model, told the same (the guide's default, of
which `personalized` has its accuracy) or told nothing (`personalized-untold`, and `contrast`, which
is the base model told p over the base model). `accuracy` is the share of
pairs that it ranks right, each pair asked under either of two opposite preferences. `raw` is the
share that log pi(y | told p) per token ranks right, for which a model must overcome what it thinks
of the answers anyway. Wordings are ones that were never taught. Cases: `seen` families, and those
that were held out, by their measured nearness (`data/nearness.py`).

What the model gains where it guides what is written is measured as `gains.py` says: by itself,
beside other ways to ask for the same, and over the guide's settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.data.nearness import of_nearness
from fader.data.preferences import Judged
from fader.evaluation import asking
from fader.evaluation.aims import AIMS
from fader.evaluation.cache import Query
from fader.evaluation.gains import (
    Comparison,
    Written,
    compared,
    costs,
    gains,
    judged,
    likelihoods_of,
    text_ratios,
    written,
)
from fader.evaluation.metrics import Metric, average, paired_difference, part_over_all, share
from fader.evaluation.suite import Suite
from fader.request import Request
from fader.starter.shipped import starter_families

MOST = 12
"""Pairs of a family that are asked."""
MATCHED = 0.1
"""Two answers are equally long whose numbers of words differ by at most this share."""


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
    """How the personalised model ranks answers, and what it gains where it guides what is written,
    all aims asked for at once; beside the base model, and the base model told the same."""
    task = "personalized"
    suite.cache.fader.vector(suite.personal)  # whether there is one, before anything is measured
    yield from accuracies(suite, task)
    judges, rows = judged(suite, task)
    yield from rows
    comparison = compared(suite, task, judges)
    yield from gains(comparison, comparison.base)
    prompted = written(comparison, "prompting", asking.prompting())
    found = written(comparison, task, asking.personalized(suite.personal))
    for one, over in ((prompted, None), (found, prompted)):
        yield from gains(comparison, one, over)
        yield from text_ratios(comparison, one)


def accuracies(suite: Suite, task: str) -> Iterator[Metric]:
    """`accuracy` and `raw` of the personalised model and of the untrained one, told the same, in
    every case; how much more often the trained one is right (`accuracy_over_contrast`), and than
    the longer answer is liked (`accuracy_over_longer`).

    `accuracy_matched`: on pairs whose answers are equally long, to within `MATCHED` of the longer
    one's words; `accuracy_matched_over_all`: how much more that is than on all pairs.
    """
    seed = suite.seed
    for case, told in cases(suite).items():
        base, _ = likelihoods(suite, task, "base", told, None)
        prompts = [one.judged.pair.messages for one in told]
        words = [(_words(one.judged.pair.chosen), _words(one.judged.pair.rejected)) for one in told]
        matched = [abs(one - two) <= MATCHED * max(one, two) for one, two in words]
        right = {"longer": [one > two for one, two in words]}
        untrained, plain = likelihoods(suite, task, "contrast", told, {})
        vector = {"vectors": {suite.personal: 1.0}}
        trained, means = likelihoods(suite, task, "personalized", told, vector)
        for method, rewards in (
            ("contrast", untrained - base),
            ("personalized", trained - untrained),
            ("personalized-untold", trained - base),
        ):
            right[method] = (rewards[:, 0] > rewards[:, 1]).tolist()
        for method, found in (("contrast", plain), ("personalized", means)):
            order = (found[:, 0] > found[:, 1]).tolist()
            yield share(task, method, case, "raw", order, seed, prompts)
        for method, values in right.items():
            yield share(task, method, case, "accuracy", values, seed, prompts)
            if any(matched):
                some = list(compress(values, matched))
                alike = list(compress(prompts, matched))
                yield share(task, method, case, "accuracy_matched", some, seed, alike)
        mine = right["personalized"]
        for method in ("contrast", "longer"):
            metric = f"accuracy_over_{method}"
            yield paired_difference(
                task, "personalized", case, metric, mine, right[method], seed, prompts
            )
        if any(matched):
            metric = "accuracy_matched_over_all"
            yield part_over_all(task, "personalized", case, metric, mine, matched, seed, prompts)


def personalized_baselines(suite: Suite) -> Iterator[Metric]:
    """What other ways to ask for the same gain on the same prompts, and what each costs; gains over
    the personalised model are paired. The personalised model and prompting are also asked for each
    aim alone."""
    task, vector = "personalized-baselines", suite.personal
    for name in (vector, *AIMS):
        suite.cache.fader.vector(name)
    judges, rows = judged(suite, task)
    yield from rows
    comparison = compared(suite, task, judges)
    base = comparison.base
    yield from gains(comparison, base)
    yield from costs(comparison, base, asking.base)
    guided = asking.personalized(vector)
    methods: dict[str, asking.Asking] = {
        "personalized": guided,
        "prompting": asking.prompting(),
        "prompting-system": asking.prompting("system"),
        "few-shot": asking.few_shot(suite.seed),
        "contrast": asking.contrast(**asking.AS_PERSONALIZED),
        "contrast-preset": asking.contrast(),
        "mod": asking.mixed_models,
        "vectors": asking.mixed_vectors,
        f"best-of-{asking.CANDIDATES}": asking.best_of(vector),
    }
    first = None
    for method, asks in methods.items():
        found = written(comparison, method, asks)
        yield from gains(comparison, found, first)
        yield from text_ratios(comparison, found)
        yield from costs(comparison, found, asks)
        first = first or found
    for aim in AIMS:
        for method in ("personalized", "prompting"):
            found = written(comparison, method, methods[method], (aim,))
            yield from gains(comparison, found)
            yield from text_ratios(comparison, found)


BETAS = (0.5, 1.0, 2.0, 4.0, 8.0)
TOP_KS = (2, 5, 10, 20, 50)
APART = (1 / 3, 2 / 3, 1.0)
SWEPT = 60
"""Prompts of a sweep."""


def personalized_sweep(suite: Suite) -> Iterator[Metric]:
    """On the dev split, where settings are chosen: gains, text and implicit reward against the
    guide's weight beta and against how many candidates there are, up to where the reward goes on
    rising and the text does not; and who reads the wishes, the reference and the base (2 x 2, and
    the base as the reference)."""
    task, vector = "personalized-sweep", suite.personal
    suite.cache.fader.vector(vector)
    judges, rows = judged(suite, task)
    yield from rows
    few = replace(suite, limit=min(suite.limit or SWEPT, SWEPT))
    comparison = compared(few, task, judges, "dev")
    yield from gains(comparison, comparison.base)
    yield from rewards(comparison, comparison.base, vector)
    settings: dict[str, dict[str, Any]] = {
        **{f"beta={beta:g}": {"weight": beta} for beta in BETAS},
        **{f"k={k}": {"plausible": {"top_k": k}} for k in TOP_KS},
        **{
            f"reference={reference},base={'told' if told else 'untold'}": {
                "reference": reference,
                "tell_base": told,
            }
            for reference, told in product(("told", "untold", "base"), (False, True))
        },
        **{
            f"apart={apart:.2g},base={'told' if told else 'untold'}": {
                "apart": apart,
                "tell_base": told,
            }
            for apart, told in product(APART, (False, True))
        },
    }
    for method, setting in settings.items():
        found = written(comparison, method, asking.personalized(vector, **setting))
        yield from gains(comparison, found)
        yield from text_ratios(comparison, found)
        yield from rewards(comparison, found, vector)


def rewards(comparison: Comparison, found: Written, vector: str) -> Iterator[Metric]:
    """`reward`: how much more likely the personalised model, told the wishes, finds what was
    written than the base model does, per token; of answers that have words."""
    fields = asking.rewarded(vector, found.aims)
    told = likelihoods_of(comparison, found.method, fields, found.said)
    ratios = (told - found.means)[~np.isnan(found.means)].tolist()
    if ratios:
        yield average(
            comparison.task, found.method, found.case, "reward", ratios, comparison.suite.seed
        )


def _words(text: str) -> int:
    return len(text.split())
