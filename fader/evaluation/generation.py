"""The level of generated answers as a judge sees it, for vectors and for prompting, and what an
answer costs."""

from __future__ import annotations

from collections.abc import Iterator

from fader.data.records import LEVELS, Level
from fader.evaluation.baselines import BASELINES, fields
from fader.evaluation.cache import Query
from fader.evaluation.judge import LevelJudge, classifier
from fader.evaluation.metrics import Metric, average, distinct
from fader.evaluation.suite import RequestFields, Suite, mixed, question
from fader.evaluation.tune import strengths

TASK = "generation"
LENGTH = 110  # tokens, about as long as the written expert answers


def generation(suite: Suite) -> Iterator[Metric]:
    """For each method, domain and level the share of greedy answers at that level, their
    distinct-2, and the tokens of an answer.

    `judge_accuracy`: how often the judge is right on the data's own answers to the same questions.
    The other metrics are no more reliable than that.
    """
    judge = suite.judge or classifier()
    for domain in suite.vectors:
        written = [
            (item.query, item.answers[level], level)
            for item in suite.items(domain)
            for level in LEVELS
        ]
        seen = judge([query for query, _, _ in written], [answer for _, answer, _ in written])
        right = [float(a == level) for a, (_, _, level) in zip(seen, written, strict=True)]
        yield average(TASK, "judge", domain, "judge_accuracy", right, suite.seed)
    picks = strengths(suite, TASK)
    for domain in suite.vectors:
        for level in LEVELS:
            yield from _judged(
                suite,
                judge,
                "vectors",
                domain,
                level,
                mixed({suite.vectors[domain]: picks[domain, level]}),
            )
            yield from _judged(suite, judge, "base", domain, level, mixed({}))
            for method in BASELINES:
                yield from _judged(
                    suite, judge, method, domain, level, fields(suite, method, domain, level)
                )


def _judged(
    suite: Suite, judge: LevelJudge, method: str, domain: str, level: Level, how: RequestFields
) -> Iterator[Metric]:
    items = suite.items(domain)
    limits = {"sampling": {"max_tokens": LENGTH}}
    asked = [
        Query(TASK, method, domain, str(place), question(item.query, {**limits, **how(item)}))
        for place, item in enumerate(items)
    ]
    said = suite.cache.ask(asked)
    seen = judge([item.query for item in items], [one.text for one in said])
    yield average(
        TASK,
        method,
        domain,
        f"generated_{level}",
        [float(found == level) for found in seen],
        suite.seed,
    )
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
