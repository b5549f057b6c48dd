"""What it saves to ask the personalised model at fewer tokens, and what that loses; on the dev
split, where settings are chosen.

Settings of the guide (`Guide.when`): at every n-th token, only where the base is unsure, only where
a bound shows that the choice can change (exact: `same` is 1 beside the same guide without the
bound). And the budget of `methods/budget.py`: with a threshold that is calibrated on the first half
of the prompts, `touched` is the share of the second half's answers that were fine already and are
changed all the same. One half may be unlike the other by chance: what should be at most the case's
alpha is `touched_on_average`, over many random halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.evaluation import asking
from fader.evaluation.aims import AIMS
from fader.evaluation.gains import (
    Comparison,
    Written,
    compared,
    costs,
    gains,
    judged,
    requests,
    text_ratios,
    written,
)
from fader.evaluation.metrics import Metric, exactly, share
from fader.evaluation.suite import Suite
from fader.methods.budget import SILENT, largest_advantage, threshold

TASK = "personalized-economies"
CLIP = 2.0  # nats
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "guided": {},
    "every=2": {"when": {"every": 2}},
    "every=4": {"when": {"every": 4}},
    "base at most 0.9": {"when": {"base_at_most": 0.9}},
    "base at most 0.7": {"when": {"base_at_most": 0.7}},
    "base at most 0.5": {"when": {"base_at_most": 0.5}},
    "clip": {"clip": CLIP},
    "clip, bound": {"clip": CLIP, "when": {"base_at_most": 1.0}},
}
BESIDE = {"clip, bound": "clip"}
"""What a setting is to write the same answers as; the others: as the guide at every token."""
AIM = "helpful"
"""What the budget's guide is asked for; an answer is fine that its judge accepts."""
ALPHAS = (0.1, 0.2)
HALVINGS = 1000


def personalized_economies(suite: Suite) -> Iterator[Metric]:
    """Gains, text and cost under each setting, and the share of answers that are the `same`; then
    the budgets."""
    suite.cache.fader.vector(suite.personal)
    judges, rows = judged(suite, TASK)
    yield from rows
    comparison = compared(suite, TASK, judges, "dev")
    yield from gains(comparison, comparison.base)
    found: dict[str, Written] = {}
    for method, setting in SETTINGS.items():
        asks = asking.personalized(suite.personal, **setting)
        found[method] = written(comparison, method, asks, tuple(AIMS))
        yield from gains(comparison, found[method])
        yield from text_ratios(comparison, found[method])
        yield from costs(comparison, found[method], asks)
        other = found[BESIDE.get(method, "guided")]
        same = [
            one.text == two.text for one, two in zip(found[method].said, other.said, strict=True)
        ]
        yield share(TASK, method, found[method].case, "same", same, suite.seed)
    yield from budgets(comparison)


def budgets(comparison: Comparison) -> Iterator[Metric]:
    """What each budget touches of the answers that were fine, and what it gains."""
    suite, seed = comparison.suite, comparison.suite.seed
    base = comparison.base
    fine = base.accepted[AIM] == 1
    silent = asking.personalized(suite.personal, when={"advantage": SILENT})
    asked = requests(comparison, lambda aims: {**silent(aims), "logprobs": 0}, (AIM,))
    most = np.array(
        [largest_advantage(result.answers[0]) for result in suite.cache.fader.batch(asked)]
    )
    half = len(most) // 2
    seen, later = most[:half][fine[:half]], most[half:][fine[half:]]
    second = _part(comparison, slice(half, None))
    for alpha in ALPHAS:
        method, edge = f"alpha={alpha:g}", threshold(seen.tolist(), alpha)
        yield exactly(TASK, method, AIM, "threshold", min(edge, SILENT), seed, len(seen))
        if len(later):
            touched = [bool(one > edge) for one in later]
            yield share(TASK, method, AIM, "touched", touched, seed)
            yield touched_on_average(method, most[fine], alpha, seed)
        when: dict[str, Any] = {"when": {"advantage": min(edge, SILENT)}}
        asks = asking.personalized(suite.personal, **when)
        found = written(second, method, asks, (AIM,))
        yield from gains(second, found)
        yield from costs(second, found, asks)


def touched_on_average(
    method: str, advantages: NDArray[np.float64], alpha: float, seed: int
) -> Metric:
    """The share of one half of the answers that were fine, from the largest advantage of each
    (nats) [answers], that is touched with the threshold of the other half; the mean over random
    halves, which is what a budget promises. `low` and `high` hold 95% of the halves."""
    dice, found = np.random.default_rng(seed), list[float]()
    for _ in range(HALVINGS):
        mixed = dice.permutation(advantages)
        half = len(mixed) // 2
        edge = threshold(mixed[:half].tolist(), alpha)
        found.append(float((mixed[half:] > edge).mean()))
    low, high = (float(one) for one in np.quantile(found, (0.025, 0.975)))
    mean = float(np.mean(found))
    return Metric(TASK, method, AIM, "touched_on_average", mean, low, high, len(advantages), seed)


def _part(comparison: Comparison, places: slice) -> Comparison:
    """The comparison on some of its prompts."""
    base = comparison.base
    return replace(
        comparison,
        prompts=comparison.prompts[places],
        base=replace(
            base,
            said=base.said[places],
            accepted={aim: values[places] for aim, values in base.accepted.items()},
            means=base.means[places],
        ),
    )
