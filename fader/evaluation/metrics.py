"""`Metric`: a measured value with its interval, and the statistics that make one from the values of
single items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 2000
Z = 1.959964  # of the normal distribution, 95% lie within so many standard deviations


@dataclass(frozen=True)
class Metric:
    """One measured value. `low` and `high`: 95% bootstrap interval over the `n` items; `seed` drew
    the resamples."""

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
    task: str, method: str, case: str, metric: str, values: Sequence[float], seed: int = 0
) -> Metric:
    """The mean of the items' values, with its interval."""
    found = np.asarray(values, dtype=float)
    if not found.size:
        raise ValueError(f"{task}: no items for {case} {metric}")
    means = np.random.default_rng(seed).choice(found, (RESAMPLES, found.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Metric(
        task,
        method,
        case,
        metric,
        _round(found.mean()),
        _round(low),
        _round(high),
        len(found),
        seed,
    )


def share(
    task: str, method: str, case: str, metric: str, values: Sequence[bool], seed: int = 0
) -> Metric:
    """The share of true values, with Wilson's 95% interval: 18 of 18 give 0.82 to 1."""
    count = len(values)
    if not count:
        raise ValueError(f"{task}: no items for {case} {metric}")
    found = sum(values) / count
    spread = Z * Z / count
    middle = (found + spread / 2) / (1 + spread)
    half = Z * math.sqrt((found * (1 - found) + spread / 4) / count) / (1 + spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Metric(task, method, case, metric, _round(found), _round(low), _round(high), count, seed)


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
    return Metric(
        task, method, case, "perplexity", _round(value), _round(low), _round(high), len(sums), seed
    )


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
    """The least of several groups' means. Its interval is that of the least mean over resamples of
    every group."""
    dice = np.random.default_rng(seed)
    draws = [
        dice.choice(np.asarray(values, dtype=float), (RESAMPLES, len(values))).mean(axis=1)
        for values in groups
    ]
    low, high = np.quantile(np.min(draws, axis=0), [0.025, 0.975])
    value = min(float(np.mean(values)) for values in groups)
    return Metric(
        task,
        method,
        case,
        metric,
        _round(value),
        _round(low),
        _round(high),
        min(map(len, groups)),
        seed,
    )


def distinct(text: str, size: int = 2) -> float:
    """distinct-n: the share of a text's word n-grams that are different (1 for texts shorter than n
    words). Low: it repeats itself."""
    words = text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _round(value: float) -> float:
    return round(float(value), 4)
