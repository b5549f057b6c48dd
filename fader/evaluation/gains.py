"""What a model gains in what it writes when aims are asked for: how much oftener a judge says that
an answer is helpful, harmless or humorous than it says so of the base model's, on the same prompts.

A gain can be bought with bad text: by texts that the base model would hardly write, that repeat
themselves, or that are longer or shorter. So those ratios stand beside every gain. An answer of no
words has no aim.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fader.data.features import distinct
from fader.evaluation.aims import AIMS, AimJudge, aim_judge
from fader.evaluation.asking import Asking, base
from fader.evaluation.cache import Measurement, Query
from fader.evaluation.metrics import (
    Metric,
    average,
    exactly,
    paired_difference,
    ratio,
    share,
)
from fader.evaluation.states import Text
from fader.evaluation.suite import Suite
from fader.request import Message, Request
from fader.starter.shipped import starter_families

LENGTH = 64
"""Tokens of an answer, at most."""
PROMPTS = 160
TOGETHER = "together"
"""The case in which all aims are asked for at once."""

Numbers = NDArray[np.float64]
Turns = tuple[Message, ...]


@dataclass(frozen=True, eq=False)
class Written:
    """What a method wrote in answer to the prompts when it was asked for `aims`. `accepted`: by
    aim, 1 where its judge says that the answer has it [prompts]. `means`: the base model's
    log-probability per token of the answer, NaN for one of no words [prompts]."""

    method: str
    aims: Sequence[str]
    said: Sequence[Measurement]
    accepted: Mapping[str, Numbers]
    means: Numbers

    @property
    def case(self) -> str:
        """What is asked for, in short."""
        return TOGETHER if len(self.aims) != 1 else f"{self.aims[0]} alone"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What all methods of a task share: the prompts, the judges, and the base model's answers."""

    suite: Suite
    task: str
    prompts: Sequence[Turns]
    judges: Mapping[str, AimJudge]
    base: Written


def questions(suite: Suite, split: str | None = None) -> list[Turns]:
    """The prompts of a split (left out: the suite's own) of the families' pairs, in an order that
    depends on them alone. None of them stands in another split."""
    splits: dict[Turns, set[str]] = {}
    for family in suite.families or starter_families():
        for pair in family.pairs:
            splits.setdefault(pair.messages, set()).add(pair.split)
    found = [turns for turns, those in splits.items() if those == {split or suite.split}]
    if not found:
        raise ValueError(f"split: no family has prompts of {split or suite.split!r} alone")
    return sorted(found, key=lambda turns: hashlib.sha256(repr(turns).encode()).digest())


def judged(suite: Suite, task: str) -> tuple[dict[str, AimJudge], list[Metric]]:
    """The judge of each aim, and the rows that say how right they are and whether gains by them may
    be claimed (`judge_ok`)."""
    judges = {
        aim: aim_judge(
            aim, suite.public, suite.endpoint, suite.cache.fader.model, suite.seed, suite.limit
        )
        for aim in AIMS
    }
    rows = [row for judge in judges.values() for row in judge.quality.rows]
    return judges, [replace(row, task=task) for row in rows]


def compared(
    suite: Suite, task: str, judges: Mapping[str, AimJudge], split: str | None = None
) -> Comparison:
    """A comparison on the first prompts of a split, begun with the base model's answers."""
    prompts = questions(suite, split)[: suite.limit or PROMPTS]
    nothing = Written("", (), (), {}, np.zeros(0))
    found = Comparison(suite, task, prompts, judges, nothing)
    return replace(found, base=written(found, "base", base))


def written(
    comparison: Comparison, method: str, asking: Asking, aims: Sequence[str] = tuple(AIMS)
) -> Written:
    """What the model writes in answer to every prompt when it is asked for `aims`, as the judges
    and the base model see it."""
    suite, prompts = comparison.suite, comparison.prompts
    asked = requests(comparison, asking, aims)
    said = suite.cache.ask(
        [
            Query(comparison.task, method, " ".join(aims), str(place), request)
            for place, request in enumerate(asked)
        ]
    )
    texts = [Text(turns, one.text) for turns, one in zip(prompts, said, strict=True)]
    worded = np.array([bool(text.answer.strip()) for text in texts])
    accepted = {}
    for aim, judge in comparison.judges.items():
        found = np.zeros(len(texts))
        probable = judge.probabilities([texts[place] for place in worded.nonzero()[0]])
        found[worded] = [p is not None and p > 0.5 for p in probable]
        accepted[aim] = found
    return Written(method, aims, said, accepted, likelihoods_of(comparison, method, {}, said))


def requests(comparison: Comparison, asking: Asking, aims: Sequence[str]) -> list[Request]:
    """The requests for `aims`, one for each prompt."""
    fields = {"max_tokens": LENGTH, "seed": comparison.suite.seed, **asking(aims)}
    before = fields.pop("before", ())
    return [
        Request.of({"messages": [*before, *(turn.model_dump() for turn in turns)]}, **fields)
        for turns in comparison.prompts
    ]


def likelihoods_of(
    comparison: Comparison, method: str, fields: Mapping[str, Any], said: Sequence[Measurement]
) -> Numbers:
    """The log-probability per token of what was written, under a request with these fields; NaN
    for an answer of no words [prompts]."""
    found = np.full(len(said), np.nan)
    places = [place for place, one in enumerate(said) if one.text.strip()]
    queries = []
    for place in places:
        messages = [turn.model_dump() for turn in comparison.prompts[place]]
        request = Request.of({"messages": messages}, **fields)
        queries.append(
            Query(comparison.task, method, "", f"{place}:read", request, said[place].text)
        )
    found[places] = [one.mean for one in comparison.suite.cache.ask(queries)]
    return found


def gains(comparison: Comparison, found: Written, over: Written | None = None) -> Iterator[Metric]:
    """Of what a method wrote: the share of the answers that have each aim, and how much more that
    is than of the base model's (`gain_<aim>`); `gain_mean` over the aims that were asked for, where
    there are several. `over`: what another method wrote, and how much more than that
    (`gain_<aim>_over_<method>`)."""
    task, seed, prompts = comparison.task, comparison.suite.seed, len(comparison.prompts)
    for aim, accepted in found.accepted.items():
        held = [bool(one) for one in accepted]
        yield share(task, found.method, found.case, f"share_{aim}", held, seed)
    for other in filter(None, (comparison.base, over)):
        ending = "" if other is comparison.base else f"_over_{other.method}"
        mean = {"mean": _mean(found, found.aims)} if len(found.aims) > 1 else {}
        beside = {**other.accepted, "mean": _mean(other, found.aims)}
        for name, values in {**found.accepted, **mean}.items():
            metric = f"gain_{name}{ending}"
            if found is other:
                yield exactly(task, found.method, found.case, metric, 0.0, seed, prompts)
            else:
                yield paired_difference(
                    task,
                    found.method,
                    found.case,
                    metric,
                    values.tolist(),
                    beside[name].tolist(),
                    seed,
                )


def text_ratios(comparison: Comparison, found: Written) -> Iterator[Metric]:
    """What gains cost the text, as ratios to the base model's answers: `ppl_ratio`, of the
    perplexities per token that the base model gives (the geometric mean over answers of words),
    `distinct2_ratio`, and `length_ratio` in tokens."""
    task, seed, own = comparison.task, comparison.suite.seed, comparison.base
    worded = ~np.isnan(found.means) & ~np.isnan(own.means)
    if worded.any():
        less = paired_difference(
            task,
            found.method,
            found.case,
            "ppl_ratio",
            own.means[worded].tolist(),
            found.means[worded].tolist(),
            seed,
        )
        value, low, high = (round(math.exp(one), 4) for one in (less.value, less.low, less.high))
        yield replace(less, value=value, low=low, high=high)
    else:
        sys.stderr.write(f"{found.method}, {found.case}: no words to compare with the base's\n")
    for metric, measure in (("distinct2_ratio", _distinct), ("length_ratio", _length)):
        mine, others = ([measure(one) for one in said] for said in (found.said, own.said))
        yield ratio(task, found.method, found.case, metric, mine, others, seed)


def costs(comparison: Comparison, found: Written, asking: Asking) -> Iterator[Metric]:
    """What an answer costs: `rows_per_token` that are read, `tokens_per_second` while the other
    answers of its batch are written too, and `kv_positions`, which its rows hold in memory at one
    time."""
    task, method, case = comparison.task, found.method, found.case
    seed, said = comparison.suite.seed, found.said
    tokens, rows = [float(one.tokens) for one in said], [float(one.rows) for one in said]
    yield ratio(task, method, case, "rows_per_token", rows, tokens, seed)
    seconds = [one.seconds for one in said]
    yield ratio(task, method, case, "tokens_per_second", tokens, seconds, seed)
    backend = comparison.suite.cache.fader.backend
    held = [
        float(sum(backend.backbones[name].memory.area(needed) for name, needed in needs.items()))
        for request in requests(comparison, asking, found.aims)
        for needs in (backend.needs(request),)
    ]
    yield average(task, method, case, "kv_positions", held, seed)


def _mean(found: Written, aims: Sequence[str]) -> Numbers:
    mean: Numbers = np.mean([found.accepted[aim] for aim in aims], axis=0)
    return mean


def _distinct(said: Measurement) -> float:
    return distinct(said.text)


def _length(said: Measurement) -> float:
    return float(said.tokens)
