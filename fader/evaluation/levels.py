"""The levels of Alignment Vectors (arXiv 2410.19206): can each domain be brought to avoidance,
generic and expert, alone and in all 27 combinations?

Preference accuracy follows the paper: of an item's three answers the one with the highest
log-probability ranks first. That it is per token is ours. The strengths are chosen on the dev
split; the figures are of the lab's split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from fader.data.records import LEVELS, Level
from fader.evaluation.baselines import BASELINES, fields
from fader.evaluation.metrics import (
    Metric,
    average,
    exactly,
    how_many,
    paired_difference,
    worst_case,
)
from fader.evaluation.suite import Suite, Trial, mixed, named
from fader.evaluation.tune import (
    REACHED,
    Point,
    curves,
    spillover_metrics,
    strengths,
    together,
    top1,
    trial,
)

TASK = "levels"
SEARCHED = 9  # dev questions a domain by which mixtures are searched
AXIS = tuple(np.linspace(-1.5, 1.5, 13).tolist())


def levels(suite: Suite) -> Iterator[Metric]:
    """For each domain and level `best_<level>`, the accuracy at the best strength,
    `lambda_<level>`, that strength, and the base model's accuracy; then the 27 combinations."""
    picks = strengths(suite, TASK)
    points = [(domain, picks[domain, level]) for domain in suite.vectors for level in LEVELS]
    found = curves(
        suite, TASK, [*points, *((domain, 0.0) for domain in suite.vectors)], suite.split
    )
    for domain in suite.vectors:
        for level in LEVELS:
            strength = picks[domain, level]
            best = top1(found[domain, strength], level)
            yield average(TASK, "vectors", domain, f"best_{level}", best, suite.seed)
            yield exactly(TASK, "vectors", domain, f"lambda_{level}", strength, suite.seed)
            base = top1(found[domain, 0.0], level)
            yield average(TASK, "base", domain, f"best_{level}", base, suite.seed)
            yield paired_difference(
                TASK,
                "vectors",
                domain,
                f"best_{level}_over_base",
                best,
                base,
                suite.seed,
            )
    wanted = every_combination(suite)
    mixtures = together(few(suite), TASK, picks, wanted, rounds=1)
    yield from combinations(suite, TASK, wanted, mixtures)


def every_combination(suite: Suite) -> list[dict[str, Level]]:
    """Every choice of a level per domain: 27 of three domains."""
    domains = list(suite.vectors)
    return [
        dict(zip(domains, choice, strict=True)) for choice in product(LEVELS, repeat=len(domains))
    ]


def few(suite: Suite) -> Suite:
    """The same with as many questions a domain as combinations are searched by."""
    return replace(suite, limit=min(SEARCHED, suite.limit or SEARCHED))


def combinations(
    suite: Suite,
    task: str,
    wanted: Sequence[Mapping[str, Level]],
    mixtures: Sequence[Mapping[str, float]],
) -> Iterator[Metric]:
    """Of each wanted combination of levels, under its mixture: the least accuracy over the domains.
    Then in how many of them it is at least `REACHED` everywhere, a bar of ours: the paper that has
    22 of 27 does not state its own."""
    domains = list(suite.vectors)
    found = iter(
        suite.ranked(
            task,
            [
                trial(suite, mixture, domain, suite.split)
                for mixture in mixtures
                for domain in domains
            ],
        )
    )
    ranks: list[list[list[float]]] = []
    for choice, mixture in zip(wanted, mixtures, strict=True):
        case = ",".join(f"{domain}={level}" for domain, level in choice.items())
        ranks.append([top1(next(found), choice[domain]) for domain in domains])
        yield worst_case(task, named(mixture), case, "worst_case_accuracy", ranks[-1], suite.seed)
    yield how_many(task, "vectors", "all", "combinations_reached", ranks, REACHED, suite.seed)


def curve(suite: Suite, axis: Sequence[float] = AXIS) -> Iterator[Metric]:
    """Accuracy of every level and the log-probability of its answers against the strength of each
    domain's own vector."""
    points: list[Point] = [(domain, strength) for domain in suite.vectors for strength in axis]
    for (domain, strength), means in curves(suite, "curve", points, suite.split).items():
        for place, level in enumerate(LEVELS):
            method = f"{suite.vectors[domain]}={strength:g}"
            yield average("curve", method, domain, f"first_{level}", top1(means, level), suite.seed)
            yield average(
                "curve", method, domain, f"logprob_{level}", means[:, place].tolist(), suite.seed
            )


def prompting(suite: Suite) -> Iterator[Metric]:
    """The same accuracy where a prompt asks for the level instead, zero-shot or few-shot."""
    cases = [
        (method, domain, level)
        for method in BASELINES
        for domain in suite.vectors
        for level in LEVELS
    ]
    trials = [
        Trial(method, domain, suite.items(domain), fields(suite, method, domain, level))
        for method, domain, level in cases
    ]
    for (method, domain, level), means in zip(
        cases, suite.ranked("prompting", trials), strict=True
    ):
        yield average("prompting", method, domain, f"best_{level}", top1(means, level), suite.seed)


def spillover(suite: Suite) -> Iterator[Metric]:
    """What each domain's vector does to the questions of every domain, at its avoidance and its
    expert end: `moved` and `drift` (see `spillover_metrics`)."""
    picks = strengths(suite, "spillover")
    subjects = {
        **{domain: suite.items(domain) for domain in suite.vectors},
        "other": suite.items("other"),
    }
    base = dict(
        zip(
            subjects,
            suite.ranked(
                "spillover",
                [Trial("base", name, items, mixed({})) for name, items in subjects.items()],
            ),
            strict=True,
        )
    )
    ends: tuple[Level, ...] = ("avoidance", "expert")
    cases = [
        (domain, level, subject)
        for domain in suite.vectors
        for level in ends
        for subject in subjects
    ]
    trials = []
    for domain, level, subject in cases:
        mixture = {suite.vectors[domain]: picks[domain, level]}
        trials.append(Trial(named(mixture), subject, subjects[subject], mixed(mixture)))
    for (domain, level, subject), asked, means in zip(
        cases, trials, suite.ranked("spillover", trials), strict=True
    ):
        yield from spillover_metrics(
            "spillover",
            asked.method,
            f"{domain} {level} on {subject}",
            base[subject],
            means,
            suite.seed,
        )
