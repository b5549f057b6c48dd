"""Figures: a measured value with its 95% interval, and the statistics that make one from the values
of single items.

Shares have Wilson's interval, which says what n allows: all of 30 is .89 to 1. Other means are
resampled; where several items stand under one prompt, whole prompts are drawn, since such items are
no independent witnesses. Two methods on the same items are compared item by item.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959964  # of the normal distribution, 95% lie within so many standard deviations


First = dict[tuple[str, str], tuple[str, Sequence[float]]]
"""By case and metric: the method that came first, and its items' values."""


@dataclass(frozen=True)
class Metric:
    """One measured value. `low` and `high`: the ends of its 95% interval over the `n` items; `seed`
    drew the resamples where there were any."""

    task: str
    method: str
    """What was done to the model: an alignment in short, or a baseline's name."""
    case: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int


def average(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[float],
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
) -> Metric:
    """The mean of the items' values, with its interval: a `share`'s where all are 0 or 1, else from
    resamples. `prompts`: of each item, where one prompt may have several items."""
    found = np.asarray(values, dtype=float)
    if not found.size:
        raise ValueError(f"{task}: no items for {case} {metric}")
    if np.isin(found, (0, 1)).all():
        return share(task, method, case, metric, [bool(one) for one in found], seed, prompts)
    low, high = _resampled(found, seed, prompts)
    return _metric(task, method, case, metric, found.mean(), low, high, found.size, seed)


def share(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[bool],
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
) -> Metric:
    """The share of items that hold, with Wilson's interval. Where prompts repeat, resampled by
    prompt instead; if all prompts agree, then Wilson's of as many items as there are prompts."""
    found = np.asarray(values, dtype=float)
    if not found.size:
        raise ValueError(f"{task}: no items for {case} {metric}")
    counted = len(set(prompts)) if prompts is not None else found.size
    low, high = wilson(round(found.mean() * counted), counted)
    if counted < found.size:
        drawn = _resampled(found, seed, prompts)
        low, high = drawn if drawn[0] < drawn[1] else (low, high)
    return _metric(task, method, case, metric, found.mean(), low, high, found.size, seed)


def exactly(
    task: str, method: str, case: str, metric: str, value: float, seed: int = 0, n: int = 1
) -> Metric:
    """A number that is no mean over drawn items (a strength, a bound, a time): no interval, both
    ends are the number."""
    return _metric(task, method, case, metric, value, value, value, n, seed)


def paired_difference(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[float],
    others: Sequence[float],
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
) -> Metric:
    """How much more the mean of `values` is than that of `others`, two methods on the same items in
    the same order. An interval that holds 0 shows no difference.

    Where both are 0 or 1, it is Bonett and Price's (2012): of the items on which the two differ,
    with one more on either side. Else differences are resampled.
    """
    one, two = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    if one.size != two.size or not one.size:
        raise ValueError(
            f"{task}: {case} {metric} needs the same items twice (got {one.size} and {two.size})"
        )
    difference = one - two
    repeated = prompts is not None and len(set(prompts)) < one.size
    if np.isin([one, two], (0, 1)).all() and not (repeated and difference.any()):
        count = len(set(prompts)) if prompts is not None else one.size
        more, less = (
            (float((difference * side > 0).mean()) * count + 1) / (count + 2) for side in (1, -1)
        )
        half = Z * math.sqrt((more + less - (more - less) ** 2) / (count + 2))
        low, high = max(-1.0, more - less - half), min(1.0, more - less + half)
    else:
        low, high = _resampled(difference, seed, prompts)
    return _metric(task, method, case, metric, difference.mean(), low, high, one.size, seed)


def ratio(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[float],
    others: Sequence[float],
    seed: int = 0,
) -> Metric:
    """The mean of `values` over that of `others`: two measures of the same items in the same order,
    which are drawn together. `others` must be above 0."""
    one, two = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    if one.size != two.size or not one.size:
        raise ValueError(
            f"{task}: {case} {metric} needs the same items twice (got {one.size} and {two.size})"
        )
    draws = np.random.default_rng(seed).integers(0, one.size, (RESAMPLES, one.size))
    low, high = np.quantile(one[draws].mean(axis=1) / two[draws].mean(axis=1), [0.025, 0.975])
    return _metric(task, method, case, metric, one.mean() / two.mean(), low, high, one.size, seed)


def part_over_all(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[float],
    part: Sequence[bool],
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
) -> Metric:
    """How much more the mean of some items is than that of all. `part`: which; at least one, and
    `n` counts them. Whole prompts are drawn where they are given."""
    found, inside = np.asarray(values, dtype=float), np.asarray(part, dtype=float)
    named = range(found.size) if prompts is None else prompts
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(named))}
    of_each = np.array([places[prompt] for prompt in named])
    counts = np.array(
        [np.bincount(of_each, one) for one in (found * inside, inside, found, np.ones(found.size))]
    )  # [4, prompts]
    draws = np.random.default_rng(seed).integers(0, len(places), (RESAMPLES, len(places)))
    sums = counts[:, draws].sum(axis=2)  # [4, resamples]
    sums = sums[:, sums[1] > 0]
    low, high = np.quantile(sums[0] / sums[1] - sums[2] / sums[3], [0.025, 0.975])
    value = found[inside > 0].mean() - found.mean()
    return _metric(task, method, case, metric, value, low, high, int(inside.sum()), seed)


def beside_first(
    task: str,
    method: str,
    case: str,
    metric: str,
    values: Sequence[float],
    first: First,
    seed: int = 0,
) -> Iterator[Metric]:
    """A mean, and its paired difference from that of the method that came first on the same items,
    as `<metric>_over_<first method>`. `first` is filled here; begin with an empty one."""
    yield average(task, method, case, metric, values, seed)
    if (case, metric) not in first:
        first[case, metric] = method, values
        return
    name, others = first[case, metric]
    yield paired_difference(task, method, case, f"{metric}_over_{name}", values, others, seed)


def wilson(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The ends of Wilson's interval for the share `count` of `n`."""
    found: Any = binomtest(count, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def perplexity(
    task: str, method: str, case: str, means: Sequence[float], counts: Sequence[int], seed: int = 0
) -> Metric:
    """exp of the negative log-probability per token over several texts, with its interval over the
    texts. `means`: per token, of each text."""
    sums, tokens = np.asarray(means) * np.asarray(counts), np.asarray(counts)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    found = np.exp(-sums[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = np.quantile(found, [0.025, 0.975])
    value = math.exp(-sums.sum() / tokens.sum())
    return _metric(task, method, case, "perplexity", value, low, high, len(sums), seed)


def perplexity_ratio(
    task: str,
    method: str,
    case: str,
    means: Sequence[float],
    base: Sequence[float],
    counts: Sequence[int],
    seed: int = 0,
) -> Metric:
    """Perplexity per token of several texts over the base model's of the same texts, with its
    interval over the texts."""
    return replace(
        perplexity(task, method, case, np.subtract(means, base).tolist(), counts, seed),
        metric="perplexity_ratio",
    )


def worst_case(
    task: str, method: str, case: str, metric: str, groups: Sequence[Sequence[float]], seed: int = 0
) -> Metric:
    """The least of several groups' shares. Its interval holds all groups' true shares together:
    Wilson's of each, at a level that leaves every group its part of the 5% (Bonferroni)."""
    level = 1 - (1 - LEVEL) / len(groups)
    ends = [wilson(round(sum(values)), len(values), level) for values in groups]
    return _metric(
        task,
        method,
        case,
        metric,
        min(float(np.mean(values)) for values in groups),
        min(low for low, _ in ends),
        min(high for _, high in ends),
        min(map(len, groups)),
        seed,
    )


def how_many(
    task: str,
    method: str,
    case: str,
    metric: str,
    combinations: Sequence[Sequence[Sequence[float]]],
    bar: float,
    seed: int = 0,
) -> Metric:
    """In how many combinations every group's share reaches a bar. `combinations`: of each
    combination, of each group (a domain), 0 or 1 for each of the group's questions, which are the
    same in all combinations.

    The interval is of resampled questions: drawn once a resample for all combinations, since one
    odd question counts in all of them. To each group one question is added that always holds and
    one that never does, so that few questions that agree are not taken for certainty.
    """
    dice = np.random.default_rng(seed)
    least = np.ones((RESAMPLES, len(combinations)))
    for group in zip(*combinations, strict=True):
        held = np.array([[*values, 0.0, 1.0] for values in group])  # [combinations, questions + 2]
        count = held.shape[1] - 2
        draws = dice.multinomial(count, [1 / (count + 2)] * (count + 2), RESAMPLES)
        least = np.minimum(least, draws @ held.T / count)
    counts = (least >= bar - 1e-9).sum(axis=1)
    value = sum(
        min(float(np.mean(values)) for values in groups) >= bar - 1e-9 for groups in combinations
    )
    low, high = np.quantile(counts, [0.025, 0.975])
    return _metric(
        task,
        method,
        case,
        metric,
        value,
        min(low, value),
        max(high, value),
        len(combinations),
        seed,
    )


def mean_of_groups(
    task: str,
    method: str,
    case: str,
    metric: str,
    groups: Sequence[Sequence[float]],
    prompts: Sequence[Sequence[Hashable]],
    least: float = 0.0,
    seed: int = 0,
) -> Metric:
    """The mean of several groups' means, each group counted once however many items it has.
    `prompts`: of each item of each group; a prompt may have items in several groups. `least`: what
    an item may be at least (1 is the most): 0, or -1 for differences.

    Prompts are resampled by exponential weights (the Bayesian bootstrap), which leave no group
    empty. To each group one item of either extreme is added, so that few items that agree are not
    taken for certainty.
    """
    drawn = dict.fromkeys(one for some in prompts for one in some)
    names = {name: place for place, name in enumerate(drawn)}
    dice = np.random.default_rng(seed)
    weights = dice.exponential(size=(RESAMPLES, len(names)))
    found = np.zeros(RESAMPLES)
    for values, named in zip(groups, prompts, strict=True):
        extremes = dice.exponential(size=(RESAMPLES, 2))
        own = np.hstack([weights[:, [names[one] for one in named]], extremes])
        held = np.array([*values, least, 1.0])
        found += own @ held / own.sum(axis=1) / len(groups)
    low, high = np.quantile(found, [0.025, 0.975])
    value = float(np.mean([np.mean(values) for values in groups]))
    return _metric(
        task,
        method,
        case,
        metric,
        value,
        min(low, value),
        max(high, value),
        sum(map(len, groups)),
        seed,
    )


def _resampled(
    values: NDArray[np.float64], seed: int, prompts: Sequence[Hashable] | None
) -> tuple[float, float]:
    """Ends of a bootstrap interval of the mean; whole prompts are drawn where they are given."""
    named = range(values.size) if prompts is None else prompts
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(named))}
    of_each = np.array([places[prompt] for prompt in named])
    sums, counts = np.bincount(of_each, values), np.bincount(of_each)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _metric(
    task: str,
    method: str,
    case: str,
    metric: str,
    value: float,
    low: float,
    high: float,
    n: int,
    seed: int,
) -> Metric:
    value, low, high = (round(float(one), 4) for one in (value, low, high))
    return Metric(task, method, case, metric, value, low, high, n, seed)
