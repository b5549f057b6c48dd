"""A budget for guides, with a guarantee: how rarely they may touch an answer that was fine already.

A guide with a threshold (`When.advantage`) leaves an answer as the base greedily writes it unless,
at one of its tokens, another one scores higher by more than that. So of the base's own answer the
largest advantage decides, and a threshold for it is a quantile of what was seen on other questions:
split conformal prediction. With n answers that were fine, the ceil((n + 1) * (1 - alpha))-th
smallest of their largest advantages is exceeded by the next such answer with a probability of at
most alpha, whatever the distribution, if the n and the next are exchangeable (drawn alike). That
holds on average over draws of the n; it says nothing about answers that were not fine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fader.answer import Answer

SILENT = 1e9
"""A threshold, in nats, that no advantage exceeds: an answer written with it is the base's own,
and its report says what the guide would have done."""


def largest_advantage(answer: Answer) -> float:
    """The most by which the guides would have preferred another token, in nats. Of a greedy answer
    with `logprobs`, written with the threshold `SILENT`. Raises ValueError without a report."""
    if answer.logprobs is None:
        raise ValueError("logprobs: the answer has none; ask for them, such as with logprobs=0")
    return max(token.advantage for token in answer.logprobs)


def threshold(advantages: Sequence[float], alpha: float) -> float:
    """The least threshold at which at most a share `alpha` of answers that were fine is touched,
    from the largest advantage of each of some answers that were fine (nats).

    Infinite where they are too few for that share: at least 1 / alpha - 1 are needed. Raises
    ValueError for a share outside 0 to 1, and for advantages that are no numbers.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha} must be between 0 and 1, such as 0.1")
    if wrong := [value for value in advantages if not value >= 0]:
        raise ValueError(f"advantages: {wrong[0]} is no advantage; they are 0 or more")
    # not ceil((n + 1) * (1 - alpha)): 1 - 0.1 is a little more than 0.9
    rank = len(advantages) + 1 - math.floor((len(advantages) + 1) * alpha + 1e-9)
    return sorted(advantages)[rank - 1] if rank <= len(advantages) else math.inf
