"""What is really written: the level of generated answers as a judge sees it, for vectors and for
asking in words, with what an answer costs."""

from __future__ import annotations

from collections.abc import Iterator

from fader.evaluation.baselines import BASELINES, wish
from fader.evaluation.figures import Figure, average, distinct
from fader.evaluation.judge import Judge, classifier
from fader.evaluation.lab import Lab, Wish, mixed, question
from fader.evaluation.ledger import Asked
from fader.evaluation.tune import amounts
from fader.training.data import LEVELS, Level

TASK = "generation"
LENGTH = 110  # tokens, about as long as the written expert answers


def generation(lab: Lab) -> Iterator[Figure]:
    """For each method, domain and wanted level the share of greedy answers at that level, their
    distinct-2, and the tokens of an answer.

    `judge_accuracy`: how the judge does on the written answers of the same questions, which bounds
    what can be read from it.
    """
    judge = lab.judge or classifier()
    for domain in lab.vectors:
        written = [
            (item.query, item.answers[level], level)
            for item in lab.items(domain)
            for level in LEVELS
        ]
        seen = judge([query for query, _, _ in written], [answer for _, answer, _ in written])
        right = [float(a == level) for a, (_, _, level) in zip(seen, written, strict=True)]
        yield average(TASK, "judge", domain, "judge_accuracy", right, lab.seed)
    picks = amounts(lab, TASK)
    for domain in lab.vectors:
        for level in LEVELS:
            yield from _judged(
                lab,
                judge,
                "vectors",
                domain,
                level,
                mixed({lab.vectors[domain]: picks[domain, level]}),
            )
            yield from _judged(lab, judge, "base", domain, level, mixed({}))
            for method in BASELINES:
                yield from _judged(
                    lab, judge, method, domain, level, wish(lab, method, domain, level)
                )


def _judged(
    lab: Lab, judge: Judge, method: str, domain: str, level: Level, how: Wish
) -> Iterator[Figure]:
    items = lab.items(domain)
    limits = {"sampling": {"max_tokens": LENGTH}}
    asked = [
        Asked(TASK, method, domain, str(place), question(item.query, {**limits, **how(item)}))
        for place, item in enumerate(items)
    ]
    said = lab.ledger.ask(asked)
    seen = judge([item.query for item in items], [one.text for one in said])
    yield average(
        TASK,
        method,
        domain,
        f"generated_{level}",
        [float(found == level) for found in seen],
        lab.seed,
    )
    yield average(
        TASK,
        method,
        f"{domain} {level}",
        "distinct_2",
        [distinct(one.text) for one in said],
        lab.seed,
    )
    yield average(
        TASK,
        method,
        f"{domain} {level}",
        "prompt_tokens",
        [one.prompt_tokens for one in said],
        lab.seed,
    )
    yield average(
        TASK, method, f"{domain} {level}", "answer_tokens", [one.tokens for one in said], lab.seed
    )
