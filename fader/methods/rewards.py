"""The rewards that ship, and the one table of their names.

A reward is `score(prompts, texts) -> list[float]`: one float per text, higher is better, each text judged by itself so that a batch equals
its members. To add one: a function here that makes it from its settings, its settings in `request.py`, and one line in `REWARDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fader.engine.program import Reward
from fader.request import KeywordsSpec, LengthSpec, RewardSpec


def keywords(spec: KeywordsSpec) -> Reward:
    """Share of the words that stand in the text as whole words, in [0, 1]; case is ignored."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in spec.words]

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [sum(bool(pattern.search(text)) for pattern in patterns) / len(patterns) for text in texts]

    return score


def length(spec: LengthSpec) -> Reward:
    """1 up to `at_most` words, `at_most` / words beyond, in (0, 1]."""

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [min(1.0, spec.at_most / max(1, len(text.split()))) for text in texts]

    return score


REWARDS: Mapping[type, Callable[[Any], Reward]] = {KeywordsSpec: keywords, LengthSpec: length}


def weighted_sum(specs: Sequence[RewardSpec]) -> Reward:
    """The sum of the rewards times their weights."""
    parts = [(spec.weight, REWARDS[type(spec)](spec)) for spec in specs]

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        columns = [[weight * value for value in reward(prompts, texts)] for weight, reward in parts]
        return [sum(values) for values in zip(*columns, strict=True)]

    return score
