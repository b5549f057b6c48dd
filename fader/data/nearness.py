"""How near two families of preferences are: what a classifier that has learned to tell the poles of
one family apart, by their words, says of the other's pairs.

    nearness(f, g) = | 2 * accuracy - 1 |,    accuracy: the share of g's pairs whose first answer
                                              scores higher, by a classifier of f

0: knowing one says nothing of the other; 1: they are the same or opposite. Few pairs make a single
classifier's direction a matter of chance, so 2 * accuracy - 1 is averaged, with its sign, over
classifiers of random halves of f's pairs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.data.features import words
from fader.data.preferences import Family
from fader.data.records import Pair

NEAR, FAR = 0.7, 0.4
"""A held-out family is near where its nearness to a seen one is above the first, far where it is
below the second for all of them."""
HALVES = 8
Two = tuple[str, str]
"""The first answer of a pair, and the second one."""


def nearness(families: Sequence[Family], seed: int = 0) -> dict[str, tuple[float, str]]:
    """Of each held-out family: its nearness to the nearest seen one, and that one's name."""
    held_out = [family for family in families if family.held_out]
    found: dict[str, tuple[float, str]] = {family.name: (0.0, "") for family in held_out}
    for seen in families:
        if held_out and not seen.held_out:
            for name, value in _signed(seen, held_out, seed).items():
                found[name] = max(found[name], (abs(value), seen.name))
    return found


def of_nearness(families: Sequence[Family], seed: int = 0) -> Mapping[str, list[Family]]:
    """The families by how near they are: `seen`, and of the held-out ones `near`, `between` and
    `far`."""
    distances = nearness(families, seed)
    groups: dict[str, list[Family]] = {"seen": [], "near": [], "between": [], "far": []}
    for family in families:
        if not family.held_out:
            groups["seen"].append(family)
            continue
        groups[near_or_far(distances[family.name][0])].append(family)
    return groups


def near_or_far(value: float) -> str:
    """What a held-out family of this nearness is: near, between or far."""
    return "near" if value > NEAR else "far" if value < FAR else "between"


def _signed(seen: Family, others: Sequence[Family], seed: int) -> dict[str, float]:
    """2 * accuracy - 1 on each of the others, averaged over classifiers of halves of `seen`."""
    dice = random.Random(seed)
    sums = dict.fromkeys((other.name for other in others), 0.0)
    for _ in range(HALVES):
        half = dice.sample(seen.pairs, len(seen.pairs) // 2)
        model = pole_classifier(_answers(half))
        right = ranked_right(model, [two for other in others for two in _answers(other.pairs)])
        ends = np.cumsum([len(other.pairs) for other in others])[:-1]
        for other, held in zip(others, np.split(right, ends), strict=True):
            sums[other.name] += (2 * float(held.mean()) - 1) / HALVES
    return sums


def _answers(pairs: Sequence[Pair]) -> list[Two]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def pole_classifier(pairs: Sequence[Two]) -> Any:
    """A classifier that is fitted to tell the first answers of some pairs (1) from their second
    ones (0), by words, word pairs and signs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(words(r"[\w']+|[^\w\s]"), LogisticRegression(C=20, max_iter=500))
    return model.fit([text for two in pairs for text in two], [1, 0] * len(pairs))


def ranked_right(classifier: Any, pairs: Sequence[Two]) -> NDArray[np.float64]:
    """Of each pair [pairs]: 1 where its first answer scores higher, 0 where the second one does;
    a tie is half right."""
    scores = classifier.decision_function([text for two in pairs for text in two]).reshape(-1, 2)
    right: NDArray[np.float64] = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
    return right
