"""The levels of Alignment Vectors (arXiv 2410.19206): can each domain be brought to avoidance,
generic and expert, alone and in all 27 combinations?

Preference accuracy is the paper's: of an item's three answers the one with the highest
log-probability per token ranks first. The amounts are chosen on the dev split; the figures are of
the lab's split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from fader.evaluation.baselines import BASELINES, wish
from fader.evaluation.figures import Figure, average, least
from fader.evaluation.lab import Lab, Trial, mixed, named
from fader.evaluation.tune import REACHED, Point, amounts, curves, firsts, spill, together, trial
from fader.training.data import LEVELS, Level

TASK = "levels"
SEARCHED = 9  # dev questions a domain by which the combinations are searched
AXIS = tuple(np.linspace(-1.5, 1.5, 13).tolist())


def levels(lab: Lab) -> Iterator[Figure]:
    """For each domain `best_<level>` at the best lambda and `lambda_<level>`, the bare model beside
    it; then the 27 combinations."""
    picks = amounts(lab, TASK)
    points = [(domain, picks[domain, level]) for domain in lab.vectors for level in LEVELS]
    found = curves(lab, TASK, [*points, *((domain, 0.0) for domain in lab.vectors)], lab.split)
    for domain in lab.vectors:
        for level in LEVELS:
            amount = picks[domain, level]
            yield average(
                TASK,
                "vectors",
                domain,
                f"best_{level}",
                firsts(found[domain, amount], level),
                lab.seed,
            )
            yield average(TASK, "vectors", domain, f"lambda_{level}", [amount], lab.seed)
            yield average(
                TASK, "base", domain, f"best_{level}", firsts(found[domain, 0.0], level), lab.seed
            )
    yield from combinations(lab, picks)


def combinations(lab: Lab, picks: dict[tuple[str, Level], float]) -> Iterator[Figure]:
    """Every choice of a level per domain, its mixture searched on the dev split: the least accuracy
    over the domains, and in how many of them it is at least 0.8 everywhere (`low` and `high`: in
    how many its interval's ends are)."""
    domains = list(lab.vectors)
    wanted = [
        dict(zip(domains, choice, strict=True)) for choice in product(LEVELS, repeat=len(domains))
    ]
    few = SEARCHED if lab.limit is None else min(lab.limit, SEARCHED)
    mixtures = together(replace(lab, limit=few), TASK, picks, wanted, rounds=1)
    found = iter(
        lab.ranked(
            TASK,
            [trial(lab, mixture, domain, lab.split) for mixture in mixtures for domain in domains],
        )
    )
    figures: list[Figure] = []
    for choice, mixture in zip(wanted, mixtures, strict=True):
        case = ",".join(f"{domain}={level}" for domain, level in choice.items())
        ranks = [firsts(next(found), choice[domain]) for domain in domains]
        figures.append(least(TASK, named(mixture), case, "least_accuracy", ranks, lab.seed))
        yield figures[-1]
    low, value, high = (
        float(sum(getattr(one, bound) >= REACHED for one in figures))
        for bound in ("low", "value", "high")
    )
    yield Figure(
        TASK, "vectors", "all", "combinations_reached", value, low, high, len(figures), lab.seed
    )


def curve(lab: Lab, axis: Sequence[float] = AXIS) -> Iterator[Figure]:
    """Accuracy of every level and the log-probability of its answers against lambda, for each
    domain's own vector."""
    points: list[Point] = [(domain, amount) for domain in lab.vectors for amount in axis]
    for (domain, amount), means in curves(lab, "curve", points, lab.split).items():
        for place, level in enumerate(LEVELS):
            method = f"{lab.vectors[domain]}={amount:g}"
            yield average("curve", method, domain, f"first_{level}", firsts(means, level), lab.seed)
            yield average(
                "curve", method, domain, f"logprob_{level}", means[:, place].tolist(), lab.seed
            )


def prompting(lab: Lab) -> Iterator[Figure]:
    """The same accuracy when the level is asked for in words instead: told, or shown by examples
    (few-shot)."""
    cases = [
        (method, domain, level)
        for method in BASELINES
        for domain in lab.vectors
        for level in LEVELS
    ]
    trials = [
        Trial(method, domain, lab.items(domain), wish(lab, method, domain, level))
        for method, domain, level in cases
    ]
    for (method, domain, level), means in zip(cases, lab.ranked("prompting", trials), strict=True):
        yield average("prompting", method, domain, f"best_{level}", firsts(means, level), lab.seed)


def spillover(lab: Lab) -> Iterator[Figure]:
    """What each domain's vector does to the questions of every domain, at its avoidance and its
    expert end: `moved` and `drift` (see `spill`)."""
    picks = amounts(lab, "spillover")
    subjects = {
        **{domain: lab.items(domain) for domain in lab.vectors},
        "other": lab.items("other"),
    }
    bare = dict(
        zip(
            subjects,
            lab.ranked(
                "spillover",
                [Trial("base", name, items, mixed({})) for name, items in subjects.items()],
            ),
            strict=True,
        )
    )
    ends: tuple[Level, ...] = ("avoidance", "expert")
    cases = [
        (domain, level, subject) for domain in lab.vectors for level in ends for subject in subjects
    ]
    trials = []
    for domain, level, subject in cases:
        mixture = {lab.vectors[domain]: picks[domain, level]}
        trials.append(Trial(named(mixture), subject, subjects[subject], mixed(mixture)))
    for (domain, level, subject), asked, means in zip(
        cases, trials, lab.ranked("spillover", trials), strict=True
    ):
        yield from spill(
            "spillover",
            asked.method,
            f"{domain} {level} on {subject}",
            bare[subject],
            means,
            lab.seed,
        )
