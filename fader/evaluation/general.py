"""What vectors must leave as it is, fluency on neutral text and general ability; and whether style
axes are monotone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from fader.data.features import distinct
from fader.data.records import read_rows, split
from fader.evaluation.cache import Measurement, Query
from fader.evaluation.metrics import (
    Metric,
    average,
    exactly,
    paired_difference,
    perplexity,
    perplexity_ratio,
)
from fader.evaluation.suite import Suite, named
from fader.request import Request
from fader.starter.shipped import STARTER, starter_pairs

NEUTRAL = "Write a short paragraph."
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def neutral(suite: Suite, task: str, strengths: Mapping[str, float]) -> list[Metric]:
    """Perplexity per token of the shipped neutral paragraphs under a mixture, and its ratio to the
    base model's."""
    texts = (STARTER / "neutral.txt").read_text(encoding="utf-8").splitlines()[: suite.limit]

    def read(mixture: Mapping[str, float]) -> list[Measurement]:
        request = Request.of(NEUTRAL, alignment={"vectors": dict(mixture)})
        return suite.cache.ask(
            [
                Query(task, named(mixture), "neutral", str(place), request, text)
                for place, text in enumerate(texts)
            ]
        )

    base, said = read({}), read(strengths)
    means, counts = [one.mean for one in said], [one.tokens for one in said]
    return [
        perplexity(task, named(strengths), "neutral", means, counts, suite.seed),
        perplexity_ratio(
            task, named(strengths), "neutral", means, [one.mean for one in base], counts, suite.seed
        ),
    ]


def fluency(suite: Suite) -> Iterator[Metric]:
    """Perplexity per token of neutral paragraphs, its ratio to the base model's, and distinct-2 of
    answers to general questions."""
    queries = [item.query for item in suite.items("other")][:12]
    for strengths in _mixtures(suite):
        method, fields = named(strengths), {"alignment": {"vectors": strengths}, "max_tokens": 80}
        yield from neutral(suite, "fluency", strengths)
        written = suite.cache.ask(
            [
                Query("fluency", method, "written", str(i), Request.of(query, **fields))
                for i, query in enumerate(queries)
            ]
        )
        yield average(
            "fluency",
            method,
            "written",
            "distinct_2",
            [distinct(one.text) for one in written],
            suite.seed,
        )


def ability(suite: Suite) -> Iterator[Metric]:
    """Share of simple multiple-choice questions whose right choice has the highest log-probability
    per token."""
    for strengths in _mixtures(suite):
        right = answered(suite, "ability", named(strengths), strengths)
        yield average("ability", named(strengths), "all", "accuracy", right, suite.seed)


def meta_ability(suite: Suite) -> Iterator[Metric]:
    """What the model that obeys preferences does when it is told none: the same questions, paired
    with the base model (`accuracy_over_base`), and neutral text (`perplexity_ratio`)."""
    task, seed = "meta-ability", suite.seed
    vectors = {"meta": suite.meta, "meta-one-stage": suite.one_stage}
    for name in filter(None, vectors.values()):
        suite.cache.fader.vector(name)
    base = answered(suite, task, "base", {})
    yield average(task, "base", "all", "accuracy", base, seed)
    for method, name in vectors.items():
        if name:
            right = answered(suite, task, method, {name: 1.0})
            yield average(task, method, "all", "accuracy", right, seed)
            metric = "accuracy_over_base"
            yield paired_difference(task, method, "all", metric, right, base, seed)
            for metric_of_text in neutral(suite, task, {name: 1.0}):
                yield replace(metric_of_text, method=method)


def answered(suite: Suite, task: str, method: str, strengths: Mapping[str, float]) -> list[float]:
    """Of each simple multiple-choice question 1 where the right choice has the highest
    log-probability per token under a mixture."""
    rows = [row for _, row in read_rows(STARTER / "ability.jsonl")][: suite.limit]
    fields = {"alignment": {"vectors": dict(strengths)}}
    asked = [
        Query(
            task, method, "all", f"{place}:{choice}", Request.of(row["question"], **fields), choice
        )
        for place, row in enumerate(rows)
        for choice in row["choices"]
    ]
    means = iter([said.mean for said in suite.cache.ask(asked)])
    return [
        float(int(np.argmax([next(means) for _ in row["choices"]])) == row["answer"])
        for row in rows
    ]


def styles(suite: Suite) -> Iterator[Metric]:
    """For each style the margin per token of the styled answer over the other, at five strengths,
    and whether it grows from each to the next."""
    for name in suite.styles:
        pairs = split(starter_pairs(name), suite.split)[: suite.limit]
        margins = []
        for strength in STEPS:
            alignment: dict[str, Any] = {"vectors": {name: strength} if strength else {}}
            margins.append(
                suite.margins("styles", f"{name}={strength:g}", name, pairs, alignment).tolist()
            )
            yield average("styles", f"{name}={strength:g}", name, "margin", margins[-1], suite.seed)
            yield average(
                "styles",
                f"{name}={strength:g}",
                name,
                "preferred",
                [float(margin > 0) for margin in margins[-1]],
                suite.seed,
            )
        means = [float(np.mean(margin)) for margin in margins]
        grows = float(all(a < b for a, b in pairwise(means)))
        yield exactly("styles", name, name, "monotone", grows, suite.seed)


def _mixtures(suite: Suite) -> list[dict[str, float]]:
    return [{}, *suite.ends()]
