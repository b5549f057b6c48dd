"""The weight that keeps a bound, found from samples of the base (one-shot dualization, arXiv
2405.19544).

Of all policies under which the mean of a reward g is at least b, the one with the most of another
reward r (less beta times the divergence from the base) is base * exp((r + w g) / beta), with one
weight w for all prompts. The weight is found by reweighting samples of the base; nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FARTHEST = 1e4


def reached(r: ArrayLike, g: ArrayLike, weight: float, beta: float = 1.0) -> float:
    """The mean of g under base * exp((r + weight * g) / beta), from samples of the base [prompts,
    samples]."""
    return float(np.mean(tilted(r, g, weight, beta)))


def tilted(r: ArrayLike, g: ArrayLike, weight: float, beta: float = 1.0) -> NDArray[np.float64]:
    """The mean of g of each prompt [prompts] under the same."""
    rewards, safety = np.asarray(r, dtype=float), np.asarray(g, dtype=float)
    tilt = (rewards + weight * safety) / beta
    shares = np.exp(tilt - tilt.max(axis=1, keepdims=True))
    of_each: NDArray[np.float64] = (shares * safety).sum(axis=1) / shares.sum(axis=1)
    return of_each


def weight_for(
    r: Sequence[Sequence[float]], g: Sequence[Sequence[float]], bound: float, beta: float = 1.0
) -> float:
    """The least weight w >= 0 of g beside r at which the mean of g is at least `bound`; r and g:
    rewards of base samples [prompts, samples].

    Raises ValueError where no weight reaches it: the base then has no good enough sample for enough
    of the prompts.
    """
    if reached(r, g, 0.0, beta) >= bound:
        return 0.0
    best = reached(r, g, FARTHEST, beta)
    if best < bound:
        raise ValueError(
            f"bound: {bound:g} is out of reach of these samples, the best of which give {best:.3f};"
            " lower it, or draw more samples"
        )
    low, high = 0.0, FARTHEST
    while high - low > 1e-6 * max(1.0, high):  # the mean of g never falls as its weight grows
        middle = (low + high) / 2
        low, high = (low, middle) if reached(r, g, middle, beta) >= bound else (middle, high)
    return high
