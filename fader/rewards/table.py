"""The one table of rewards, and their weighted sum."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fader.rewards.json_schema import json_schema
from fader.rewards.reward import NOTHING, Interval, Resources, Reward
from fader.rewards.specs import (
    ClassifierSpec,
    ForbiddenSpec,
    JsonSchemaSpec,
    JudgeSpec,
    KeywordsSpec,
    LengthSpec,
    PythonSpec,
    ReadabilitySpec,
    RegexSpec,
    SentimentSpec,
    SimilaritySpec,
)
from fader.rewards.text import (
    classifier,
    forbidden,
    judge,
    keywords,
    length,
    pattern,
    python,
    readability,
    sentiment,
    similarity,
)

REWARDS: Mapping[type, Callable[[Any, Resources], Reward]] = {
    KeywordsSpec: keywords,
    ForbiddenSpec: forbidden,
    LengthSpec: length,
    RegexSpec: pattern,
    JsonSchemaSpec: json_schema,
    ReadabilitySpec: readability,
    SentimentSpec: sentiment,
    SimilaritySpec: similarity,
    ClassifierSpec: classifier,
    JudgeSpec: judge,
    PythonSpec: python,
}


_MAKING = threading.Lock()


def make(spec: Any, resources: Resources = NOTHING) -> Reward:
    """The reward of some settings; equal settings share one reward. It proposes only where the
    settings say so. Raises ValueError for what is not declared, not installed or of no use."""
    settings = spec.model_copy(update={"weight": 1.0}).model_dump_json()
    reward = resources.made.get(settings)
    if reward is None:
        reward = replace(REWARDS[type(spec)](spec, resources), name=_name(spec))
        if not getattr(spec, "propose", False):
            reward = replace(reward, propose=None)
        with (
            _MAKING
        ):  # of two that were made at once, one serves both; nobody waits while a model loads
            reward = resources.made.setdefault(settings, reward)
    return reward


def _name(spec: Any) -> str:
    """A reward as errors name it: its kind, and what it asks."""
    asked = (getattr(spec, field, None) for field in ("model", "judge", "name"))
    of = next(filter(None, asked), None)
    return f"rewards.{spec.kind}" + (f" ({of})" if of else "")


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """The sum of rewards times their weights. It proposes what any of them does."""

    terms: tuple[tuple[float, Reward], ...]

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """One float per text."""
        return self.total([reward.score(prompts, texts) for _, reward in self.terms], len(texts))

    def total(self, columns: Sequence[Sequence[float]], count: int) -> list[float]:
        """The sums for `count` texts, from what each reward gives them. Raises ValueError, naming
        the reward, where one is no finite number."""
        for (weight, reward), column in zip(self.terms, columns, strict=True):
            for value in column:
                if not math.isfinite(weight * value):
                    times = f" times its weight {weight:g}" if math.isfinite(value) else ""
                    raise ValueError(
                        f"{reward.name}: gave {value!r}{times}, which is no finite number, so"
                        " nothing can be compared by it; mend the reward or leave it out"
                    )
        sums = [
            sum(
                (
                    weight * column[i]
                    for (weight, _), column in zip(self.terms, columns, strict=True)
                ),
                0.0,
            )
            for i in range(count)
        ]
        if not all(map(math.isfinite, sums)):
            raise ValueError("rewards: their sum is no finite number; take smaller weights")
        return sums

    @property
    def bounds(self) -> Interval:
        """Of any text."""
        return self._between([reward.bounds for _, reward in self.terms])

    def prefix_bounds(self, text: str) -> Interval:
        """Of any text that begins with this one."""
        return self._between([reward.prefix_bounds(text) for _, reward in self.terms])

    def propose(self, text: str) -> list[str]:
        """Texts by which this unfinished one might well go on."""
        return list(
            dict.fromkeys(
                proposal
                for _, reward in self.terms
                if reward.propose
                for proposal in reward.propose(text)
            )
        )

    def _between(self, intervals: Sequence[Interval]) -> Interval:
        weights = [weight for weight, _ in self.terms]
        ends = [
            sorted((weight * low, weight * high))
            for weight, (low, high) in zip(weights, intervals, strict=True)
        ]
        return sum((low for low, _ in ends), 0.0), sum((high for _, high in ends), 0.0)


def weighted_sum(specs: Sequence[Any], resources: Resources = NOTHING) -> WeightedSum:
    """The weighted sum of the rewards of these settings; those of weight 0 are off."""
    made = [
        (spec.weight, make(spec, resources)) for spec in specs
    ]  # all: a fault is one at any weight
    return WeightedSum(tuple((weight, reward) for weight, reward in made if weight))
