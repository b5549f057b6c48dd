"""Ways to tell a model preferences in two tiers (MetaAlign, arXiv 2410.14184), and how likely it
then finds given answers.

    base             the base model, told the tiers
    system           the base model, told the same in a plain system prompt
    few-shot         the base model, told the tiers, and shown answers that obey them
    contrast         the base model told the tiers, twice, against itself not told
    meta             the model that was taught to obey, told the tiers
    meta-one-stage   the same after the first stage of training, where there is one
    meta-contrast    the contrast with the taught model
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.evaluation.cache import Query
from fader.evaluation.suite import Suite
from fader.request import Message, Preferences, Request

BASE = "base"
SHOWN = 2
"""Answers that few-shot shows."""
CONTRAST = 2.0
"""The guide's weight: log p = 2 log p(told) - log p(untold), less a constant for each position."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Telling:
    """A question under preferences. `shown`: turns that show to other questions what an answer is
    like that obeys."""

    messages: tuple[Message, ...]
    told: Preferences
    answers: tuple[str, ...] = ()
    shown: tuple[Message, ...] = ()


Way = Callable[[Telling], Mapping[str, Any]]
"""way(telling): the fields of a request, without its question. `before` among them: turns above
the question."""


def ways(
    suite: Suite, without: Iterable[str] = (), plausible: Mapping[str, Any] | None = None
) -> dict[str, Way]:
    """All of them, the base model first. `plausible`: the tokens that contrasts choose among; None:
    all. Raises ValueError where a vector is not there."""
    found: dict[str, Way] = {
        BASE: prompted(),
        "system": in_system_prompt,
        "few-shot": few_shot,
        "contrast": contrast(plausible=plausible),
        "meta": prompted(suite.meta),
    }
    if suite.one_stage:
        found["meta-one-stage"] = prompted(suite.one_stage)
    found["meta-contrast"] = contrast(suite.meta, plausible)
    for vector in filter(None, (suite.meta, suite.one_stage)):
        suite.cache.fader.vector(vector)
    return {name: way for name, way in found.items() if name not in (*without,)}


def untold(telling: Telling) -> Mapping[str, Any]:
    """The base model, told nothing."""
    return {}


def prompted(vector: str = "") -> Way:
    """Told the tiers: the base model, or it with a vector."""
    vectors = _vectors(vector)
    return lambda telling: {"alignment": {**vectors, "preferences": telling.told}}


def in_system_prompt(telling: Telling) -> Mapping[str, Any]:
    """The base model, told the same in a plain system prompt."""
    told = telling.told.model_copy(update={"rendering": "system"})
    return {"alignment": {"preferences": told}}


def few_shot(telling: Telling) -> Mapping[str, Any]:
    """The base model, told the tiers, and shown answers that obey them."""
    return {**prompted()(telling), "before": telling.shown}


def contrast(vector: str = "", plausible: Mapping[str, Any] | None = None) -> Way:
    """The model told the tiers against itself not told: the base model, or it with a vector."""
    vectors = _vectors(vector)
    guide = {"kind": "ratio", "weight": CONTRAST, "plausible": plausible}
    return lambda telling: {
        "alignment": {**vectors, "guides": [{**guide, "policy": {"preferences": telling.told}}]}
    }


def asked(telling: Telling, way: Way, **fields: Any) -> Request:
    """The telling's question, asked in this way. `fields`: of the request, besides."""
    found = {**fields, **way(telling)}
    return Request.of({"messages": [*found.pop("before", ()), *telling.messages]}, **found)


def means(
    suite: Suite, task: str, method: str, way: Way, tellings: Sequence[Telling]
) -> list[list[float]]:
    """The log-probability per token of every answer of each telling, asked in this way."""
    queries = []
    for place, telling in enumerate(tellings):
        request = asked(telling, way)
        queries += [
            Query(task, method, "", f"{place}:{number}", request, answer)
            for number, answer in enumerate(telling.answers)
        ]
    found = iter([one.mean for one in suite.cache.ask(queries)])
    return [[next(found) for _ in telling.answers] for telling in tellings]


def _vectors(vector: str) -> dict[str, Any]:
    return {"vectors": {vector: 1.0}} if vector else {}
