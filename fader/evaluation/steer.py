"""What is written under preferences in tiers (MetaAlign, arXiv 2410.14184), as judges see it.

The model that was taught to obey stands beside other ways to tell the same (`tiers.py`) and, on few
prompts, has a personalised guide (PAD) or a look-ahead (DeAL) on top. What a gain is says
`gains.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fader.evaluation import asking
from fader.evaluation.aims import AIMS
from fader.evaluation.gains import (
    Comparison,
    Written,
    compared,
    costs,
    gains,
    judged,
    text_ratios,
    written,
)
from fader.evaluation.metrics import Metric
from fader.evaluation.suite import Suite
from fader.evaluation.tiers import BASE, Telling, Way, ways
from fader.request import Message, Preferences
from fader.vectors.store import available

TASK = "steer"
PROMPTS = 80
FEW = 16
"""Prompts for what is on top, which takes many rows."""
TOLD = "prompting"
"""The base model that is told the tiers. `base` is told nothing: gains are over that."""
PLAUSIBLE: Mapping[str, Any] = {"top_p": 0.8, "of": "policy"}
"""What a contrast chooses among when it writes, as the guide `contrast` does."""
SEARCH: Mapping[str, Any] = {"kind": "lookahead", "top_k": 5, "lookahead": 8, "weight": 1.0}


def steer(suite: Suite) -> Iterator[Metric]:
    """Gains, text and cost of every way to tell all aims at once, the taught model's paired with
    the base model that is told the same; each aim alone, for these two; then what is on top, paired
    with the taught model alone."""
    judges, rows = judged(suite, TASK)
    yield from rows
    asks = {
        TOLD if method == BASE else method: _asking(suite, way)
        for method, way in ways(suite, plausible=PLAUSIBLE).items()
    }
    comparison = compared(_at_most(suite, PROMPTS), TASK, judges)
    yield from gains(comparison, comparison.base)
    yield from costs(comparison, comparison.base, asking.base)
    told = written(comparison, TOLD, asks[TOLD])
    for method, ask in asks.items():
        found = written(comparison, method, ask)
        yield from _rows(comparison, found, ask, None if method == TOLD else told)
    for aim in AIMS:
        told = written(comparison, TOLD, asks[TOLD], (aim,))
        yield from _rows(comparison, told, asks[TOLD])
        found = written(comparison, "meta", asks["meta"], (aim,))
        yield from _rows(comparison, found, asks["meta"], told)
    few = compared(_at_most(suite, FEW), TASK, judges)
    alone = written(few, "meta", asks["meta"])
    for method, ask in on_top(suite).items():
        yield from _rows(few, written(few, method, ask), ask, alone)


def on_top(suite: Suite) -> dict[str, asking.Asking]:
    """The taught model, told the tiers, under a personalised guide that is told the same, where
    there is a personalised model; and in a look-ahead, whose reward is how much likelier the taught
    model, told the tiers, finds the text than the base model does."""
    vectors = {suite.meta: 1.0}

    def guided(aims: Sequence[str]) -> Mapping[str, Any]:
        told = _telling(suite, aims).told
        guide = {"kind": "personalized", "vectors": {suite.personal: 1.0}, "preferences": told}
        return {"alignment": {"preferences": told, "vectors": vectors, "guides": [guide]}}

    def searched(aims: Sequence[str]) -> Mapping[str, Any]:
        told = _telling(suite, aims).told
        reward = {
            "kind": "implicit",
            "policy": {"preferences": told, "vectors": vectors},
            "reference": {"preferences": {}, "vectors": {}},
        }
        search = {**SEARCH, "rewards": [reward]}
        return {"alignment": {"preferences": told, "vectors": vectors, "search": search}}

    found: dict[str, asking.Asking] = {"meta-pad": guided, "meta-deal": searched}
    if suite.personal not in (*suite.cache.fader.vectors, *available()):
        sys.stderr.write(f"meta-pad: left out, there is no vector {suite.personal}\n")
        del found["meta-pad"]
    return found


def _rows(
    comparison: Comparison, found: Written, ask: asking.Asking, over: Written | None = None
) -> Iterator[Metric]:
    yield from gains(comparison, found, over)
    yield from text_ratios(comparison, found)
    yield from costs(comparison, found, ask)


def _asking(suite: Suite, way: Way) -> asking.Asking:
    return lambda aims: way(_telling(suite, aims))


def _telling(suite: Suite, aims: Sequence[str]) -> Telling:
    """The aims as what the user wants, and answers that obey them, for few-shot to show."""
    told = Preferences(user=tuple(asking.WISHES[aim] for aim in aims), rendering=suite.rendering)
    shown = asking.few_shot(suite.seed)(aims)["before"]
    return Telling((), told, shown=tuple(Message(**turn) for turn in shown))


def _at_most(suite: Suite, prompts: int) -> Suite:
    return replace(suite, limit=min(suite.limit or prompts, prompts))
