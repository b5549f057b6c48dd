"""`Suite`: the model, the vectors and the data that all tasks measure with, and the measurements
that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.data.meta import Item
from fader.data.preferences import Family
from fader.data.records import LEVELS, LevelItem, Pair, split
from fader.endpoint import Endpoint
from fader.evaluation.cache import Measurement, Query, ResultCache
from fader.evaluation.judge import LevelJudge
from fader.evaluation.metrics import Metric, average
from fader.request import Rendering, Request
from fader.starter.shipped import DOMAINS, STYLES, starter_levels

Matrix = NDArray[np.float64]
RequestFields = Callable[[LevelItem], Mapping[str, Any]]
"""For one item: the fields of a request, without its question."""


@dataclass(frozen=True)
class Suite:
    """A result cache to ask, the level data of each domain, and the vector that moves each
    domain."""

    cache: ResultCache
    levels: Mapping[str, Sequence[LevelItem]] = field(
        default_factory=lambda: {domain: starter_levels(domain) for domain in DOMAINS}
    )
    vectors: Mapping[str, str] = field(
        default_factory=lambda: {domain: domain for domain in DOMAINS}
    )
    styles: Sequence[str] = STYLES
    pairs: Sequence[Pair] = ()
    """The pairs that the task `pairs` measures."""
    families: Sequence[Family] = ()
    """The families of preferences that the task `personalized` measures; left out: the shipped."""
    personal: str = "personal"
    """The vector of the personalised reward model."""
    meta: str = "meta"
    """The vector of the model that obeys preferences in tiers."""
    one_stage: str = ""
    """That vector after the first stage of training; empty: it is not measured."""
    rendering: Rendering = "meta"
    """How tiers are told: with the rule for conflicts, or without it."""
    tier_items: Sequence[Item] = ()
    """The items of conflicts and of consensus; left out: the shipped."""
    judge: LevelJudge | None = None
    """Says which level a generated answer has; left out: the shipped classifier."""
    public: Path | None = None
    """A folder of public data, for judges of aims; left out: the one that FADER_DATA names."""
    endpoint: Endpoint | None = None
    """A model that judges aims; left out: classifiers."""
    split: str = "test"
    seed: int = 0
    limit: int | None = None
    """At most this many items of each kind; for a quick look."""

    def items(self, domain: str, part: str | None = None) -> list[LevelItem]:
        """The level items of one domain in the split `part`; left out: the suite's own."""
        return split(
            self.levels[domain] if domain in self.levels else starter_levels(domain),
            part or self.split,
        )[: self.limit]

    def ends(self) -> list[dict[str, float]]:
        """Each domain's vector by itself, at strength -1 and at 1."""
        return [{name: strength} for name in self.vectors.values() for strength in (-1.0, 1.0)]

    def ranked(self, task: str, trials: Sequence[Trial]) -> list[Matrix]:
        """For each trial, the log-probability per token of every item's three answers [items,
        levels]. All trials share batches."""
        asked = [
            Query(
                task,
                trial.method,
                trial.case,
                f"{place}:{level}",
                question(item.query, trial.fields(item)),
                item.answers[level],
            )
            for trial in trials
            for place, item in enumerate(trial.items)
            for level in LEVELS
        ]
        means = np.array([said.mean for said in self.cache.ask(asked)]).reshape(-1, len(LEVELS))
        return np.split(means, np.cumsum([len(trial.items) for trial in trials])[:-1])

    def preferred(
        self, task: str, method: str, case: str, pairs: Sequence[Pair], alignment: Mapping[str, Any]
    ) -> Matrix:
        """The log-probability per token of both answers of each pair [pairs, 2], the preferred one
        first."""
        asked = [
            Query(
                task,
                method,
                case,
                f"{place}:{side}",
                Request.of(
                    {"messages": [turn.model_dump() for turn in pair.messages]}, alignment=alignment
                ),
                text,
            )
            for place, pair in enumerate(pairs)
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
        return np.array([said.mean for said in self.cache.ask(asked)]).reshape(-1, 2)

    def margins(
        self, task: str, method: str, case: str, pairs: Sequence[Pair], alignment: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """By how much, per token, each pair's preferred answer is the likelier one [pairs]."""
        both = self.preferred(task, method, case, pairs, alignment)
        return both[:, 0] - both[:, 1]

    def wrote(
        self, task: str, method: str, requests: Sequence[Mapping[str, Any]]
    ) -> list[Measurement]:
        """What the model writes in answer to each request, noted under a method."""
        return self.cache.ask(
            [
                Query(task, method, "", str(place), Request.of(dict(request)))
                for place, request in enumerate(requests)
            ]
        )

    def metric(
        self, task: str, method: str, case: str, metric: str, values: Sequence[float]
    ) -> Metric:
        """A mean with its interval."""
        return average(task, method, case, metric, values, self.seed)

    def costs(
        self, task: str, method: str, case: str, said: Sequence[Measurement]
    ) -> Iterator[Metric]:
        """What the answers cost. The seconds of an answer include those of the answers in its
        batch."""
        for metric in ("rows", "tokens", "seconds"):
            yield self.metric(task, method, case, metric, [getattr(one, metric) for one in said])


@dataclass(frozen=True)
class Trial:
    """Some level items asked in one way."""

    method: str
    case: str
    items: Sequence[LevelItem]
    fields: RequestFields


def mixed(strengths: Mapping[str, float]) -> RequestFields:
    """The same mixture of vectors for every item."""
    return lambda _: {
        "alignment": {
            "vectors": {name: strength for name, strength in strengths.items() if strength}
        }
    }


def named(strengths: Mapping[str, float]) -> str:
    """A mixture in short, as in `medical=0.5,legal=-1`; `base` where all strengths are 0."""
    return (
        ",".join(f"{name}={strength:g}" for name, strength in strengths.items() if strength)
        or "base"
    )


def question(query: str, fields: Mapping[str, Any]) -> Any:
    """A request for one question. `before` in the fields: turns above it (few-shot examples)."""
    fields = dict(fields)
    turns = [*fields.pop("before", ()), {"role": "user", "content": query}]
    return Request.of({"messages": turns, **fields})
