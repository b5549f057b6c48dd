"""The level of generated answers as a judge sees it, for vectors and for prompting, and what an
answer costs."""

from __future__ import annotations

from collections.abc import Iterator

from fader.data.features import distinct
from fader.data.records import LEVELS, Level
from fader.evaluation.baselines import BASELINES, fields
from fader.evaluation.cache import Query
from fader.evaluation.judge import (
    Labelled,
    LevelJudge,
    classifier,
    judge_accuracy,
    level_namings,
)
from fader.evaluation.metrics import First, Metric, average, beside_first
from fader.evaluation.suite import RequestFields, Suite, mixed, question
from fader.evaluation.tune import strengths

TASK = "generation"
LENGTH = 110  # tokens, about as long as the written expert answers


def generation(suite: Suite) -> Iterator[Metric]:
    """For each method, domain and level the share of greedy answers at that level, their
    distinct-2, and the tokens of an answer.

    Method `judge`: how right the judge is on the written answers of the same questions, which
    bounds what can be read from it (see `judge_accuracy`).
    """
    judge = suite.judge or classifier()
    namings = level_namings(judge)
    for domain in suite.vectors:
        written = [
            Labelled(item.query, item.answers[level], level)
            for item in suite.items(domain)
            for level in LEVELS
        ]
        yield from judge_accuracy(TASK, domain, written, namings, suite.seed)
    picks = strengths(suite, TASK)
    first: First = {}
    for domain in suite.vectors:
        for level in LEVELS:
            yield from _judged(
                suite,
                judge,
                "vectors",
                domain,
                level,
                mixed({suite.vectors[domain]: picks[domain, level]}),
                first,
            )
            yield from _judged(suite, judge, "base", domain, level, mixed({}), first)
            for method in BASELINES:
                yield from _judged(
                    suite, judge, method, domain, level, fields(suite, method, domain, level), first
                )


def _judged(
    suite: Suite,
    judge: LevelJudge,
    method: str,
    domain: str,
    level: Level,
    how: RequestFields,
    first: First,
) -> Iterator[Metric]:
    items = suite.items(domain)
    limits = {"sampling": {"max_tokens": LENGTH}}
    asked = [
        Query(TASK, method, domain, str(place), question(item.query, {**limits, **how(item)}))
        for place, item in enumerate(items)
    ]
    said = suite.cache.ask(asked)
    seen = judge([item.query for item in items], [one.text for one in said])
    at_level = [float(found == level) for found in seen]
    yield from beside_first(TASK, method, domain, f"generated_{level}", at_level, first, suite.seed)
    yield average(
        TASK,
        method,
        f"{domain} {level}",
        "distinct_2",
        [distinct(one.text) for one in said],
        suite.seed,
    )
    yield average(
        TASK,
        method,
        f"{domain} {level}",
        "prompt_tokens",
        [one.prompt_tokens for one in said],
        suite.seed,
    )
    yield average(
        TASK, method, f"{domain} {level}", "answer_tokens", [one.tokens for one in said], suite.seed
    )
