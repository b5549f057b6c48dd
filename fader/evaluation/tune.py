"""Finds the strengths at which each domain has the level asked for (Alignment Vectors, arXiv
2410.19206, section on multidomain alignment).

The paper searches a grid. Here the search goes from coarse to fine. First each vector is searched
by itself on the questions of its domain, all points of the grid as rows of shared batches. Then all
vectors are mixed; where one domain falls off its level, its strength is searched again with the
others in place. Nothing is merged or reloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from fader.data.records import LEVELS, Level, content_hash
from fader.evaluation.general import neutral
from fader.evaluation.metrics import Metric, average
from fader.evaluation.suite import Matrix, Suite, Trial, mixed, named

COARSE = (-1.8, -1.5, -1.2, -0.9, -0.6, -0.45, -0.3, -0.15, 0.0, 0.4, 0.8, 1.2, 1.5)
FINE = (-0.08, 0.08)
AGAIN = (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4)
REACHED = 0.8
"""The bar for combinations: a level is reached in a domain if its answer ranks first in this share
of the questions. It is ours; the paper does not state the one of its 22 of 27."""
AIMED = 0.85
"""A search goes on below this share. It is above `REACHED`, so that other questions than those of
the dev split reach the level too."""
GENTLY = 0.75
"""A mixture starts from this part of the strengths for avoidance and expert: a smaller strength
disturbs the other domains less."""
NEARLY = 0.03
SOFT = 0.2  # nats per token by which a margin counts as clear

Point = tuple[str, float]
"""A domain and the strength of its vector."""


def top1(means: Matrix, level: Level) -> list[float]:
    """Preference accuracy, item by item: 1 where the level's answer has the highest log-probability
    per token [items, levels], else 0."""
    return [float(place == LEVELS.index(level)) for place in means.argmax(axis=1)]


def soft_accuracy(means: Matrix, level: Level) -> float:
    """Preference accuracy with a soft edge: the mean of sigmoid(margin over the best other answer /
    0.2 nats per token)."""
    wanted = LEVELS.index(level)
    margin = means[:, wanted] - np.delete(means, wanted, axis=1).max(axis=1)
    return float((1 / (1 + np.exp(-margin / SOFT))).mean())


@dataclass(frozen=True)
class Tuned:
    """The result of a search: the strength of each vector by name, and for each domain the share of
    its questions at the level asked for."""

    strengths: dict[str, float]
    reached: dict[str, float]


def curves(suite: Suite, task: str, points: Iterable[Point], part: str) -> dict[Point, Matrix]:
    """For each point, the domain's questions with its own vector at that strength and the others at
    0: log-probabilities [items, levels]. All points share batches."""
    wanted = sorted(set(points))
    trials = [
        trial(suite, {suite.vectors[domain]: strength}, domain, part) for domain, strength in wanted
    ]
    return dict(zip(wanted, suite.ranked(task, trials), strict=True))


def trial(suite: Suite, strengths: Mapping[str, float], domain: str, part: str) -> Trial:
    """One domain's questions under a mixture."""
    return Trial(named(strengths), domain, suite.items(domain, part), mixed(strengths))


def alone(suite: Suite, task: str) -> dict[tuple[str, Level], float]:
    """For every domain and level the strength of the domain's own vector at which the level is
    clearest on the dev split, the others at 0."""
    found = curves(
        suite, task, [(domain, strength) for domain in suite.vectors for strength in COARSE], "dev"
    )
    near = [
        (domain, round(_clearest(found, domain, level) + step, 3))
        for domain in suite.vectors
        for level in LEVELS
        for step in FINE
    ]
    found |= curves(suite, task, near, "dev")
    return {
        (domain, level): _clearest(found, domain, level)
        for domain in suite.vectors
        for level in LEVELS
    }


def strengths(suite: Suite, task: str) -> dict[tuple[str, Level], float]:
    """`alone` on the dev split. Where a vector's card has the result already, for the same vector,
    model and questions, it is taken from there."""
    found: dict[tuple[str, Level], float] = {}
    for domain, name in suite.vectors.items():
        vector = suite.cache.fader.vector(name)
        noted = vector.card.get("effect", {})
        same = {
            "vector": vector.digest,
            "base": vector.base,
            "data": content_hash(suite.items(domain, "dev")),
            "seen_in_training": None,
        }
        if "levels" in noted and all(noted.get(key) == value for key, value in same.items()):
            found |= {(domain, level): noted["levels"][level] for level in LEVELS}
        else:
            found |= alone(replace(suite, vectors={domain: name}), task)
    return found


def tune(suite: Suite, wanted: Mapping[str, Level], rounds: int = 3) -> Tuned:
    """The strengths that bring every domain of `wanted` to its level, found on the dev split of its
    questions.

    The vectors of other domains stay at 0. Raises ValueError for a domain without a
    vector.
    """
    for domain in wanted:
        if domain not in suite.vectors:
            raise ValueError(
                f"{domain}: no vector moves this domain; known: {', '.join(suite.vectors)}"
            )
    picks = strengths(
        replace(suite, vectors={domain: suite.vectors[domain] for domain in wanted}), "tune"
    )
    (mixture,) = together(suite, "tune", picks, [wanted], rounds)
    return Tuned(mixture, _reached(suite, mixture, wanted))


def together(
    suite: Suite,
    task: str,
    picks: Mapping[tuple[str, Level], float],
    wanted: Sequence[Mapping[str, Level]],
    rounds: int,
) -> list[dict[str, float]]:
    """The mixture for each of some combinations of levels. It starts from `picks`, the strengths of
    each vector by itself, times `GENTLY` for avoidance and expert. Where a domain has less than
    `AIMED` on the dev split, its strength is searched again with the others in place, in up to
    `rounds` rounds. All combinations share batches."""
    mixtures = [
        {
            suite.vectors[domain]: round(
                picks[domain, level] * (1.0 if len(choice) == 1 or level == "generic" else GENTLY),
                3,
            )
            for domain, level in choice.items()
        }
        for choice in wanted
    ]
    asked = [
        (place, domain)
        for place, choice in enumerate(wanted)
        for domain in choice
        if len(choice) > 1
    ]
    for _ in range(rounds if asked else 0):
        found = suite.ranked(
            task, [trial(suite, mixtures[place], domain, "dev") for place, domain in asked]
        )
        behind = [
            (place, domain)
            for (place, domain), means in zip(asked, found, strict=True)
            if np.mean(top1(means, wanted[place][domain])) < AIMED
        ]
        if not behind:
            break
        tried = [
            trial(
                suite,
                {
                    **mixtures[place],
                    suite.vectors[domain]: mixtures[place][suite.vectors[domain]] + step,
                },
                domain,
                "dev",
            )
            for place, domain in behind
            for step in AGAIN
        ]
        clear = iter(suite.ranked(task, tried))
        for place, domain in behind:
            worth = {step: soft_accuracy(next(clear), wanted[place][domain]) for step in AGAIN}
            mixtures[place][suite.vectors[domain]] += max(AGAIN, key=worth.__getitem__)
        mixtures = [
            {name: round(strength, 3) for name, strength in mixture.items()} for mixture in mixtures
        ]
        asked = [
            (place, domain)
            for place in sorted({place for place, _ in behind})
            for domain in wanted[place]
        ]
    return mixtures


def grid_search(
    suite: Suite, task: str, wanted: Sequence[Mapping[str, Level]], axis: Sequence[float]
) -> list[dict[str, float]]:
    """The mixture for each of some combinations of levels, found as in the paper: of all points of
    a grid the one whose least accuracy over the domains is the highest on the dev split, the least
    soft accuracy where several tie. One grid serves all combinations."""
    domains = list(suite.vectors)
    points = [
        dict(zip(suite.vectors.values(), point, strict=True))
        for point in product(axis, repeat=len(domains))
    ]
    trials = [trial(suite, point, domain, "dev") for point in points for domain in domains]
    found = iter(suite.ranked(task, trials))
    means = [{domain: next(found) for domain in domains} for _ in points]

    def worth(place: int, choice: Mapping[str, Level]) -> tuple[float, float]:
        reached = [float(np.mean(top1(means[place][d], level))) for d, level in choice.items()]
        clear = [soft_accuracy(means[place][d], level) for d, level in choice.items()]
        return min(reached), min(clear)

    return [
        points[max(range(len(points)), key=lambda place: worth(place, choice))] for choice in wanted
    ]


def consequences(suite: Suite, tuned: Tuned, wanted: Mapping[str, Level]) -> Iterator[Metric]:
    """What the strengths do on the suite's split: `reached` in the domains of `wanted`, `moved` and
    `drift` in the others (see `spillover_metrics`), and the perplexity of neutral text with its
    ratio to the base model's."""
    method = named(tuned.strengths)
    free = [domain for domain in (*suite.levels, "other") if domain not in wanted]
    found = suite.ranked(
        "tune", [trial(suite, tuned.strengths, domain, suite.split) for domain in (*wanted, *free)]
    )
    for (domain, level), means in zip(wanted.items(), found, strict=False):
        yield average("tune", method, domain, f"reached_{level}", top1(means, level), suite.seed)
    before = suite.ranked("tune", [trial(suite, {}, domain, suite.split) for domain in free])
    for domain, old, new in zip(free, before, found[len(wanted) :], strict=True):
        yield from spillover_metrics("tune", method, domain, old, new, suite.seed)
    yield from neutral(suite, "tune", tuned.strengths)


def spillover_metrics(
    task: str, method: str, case: str, before: Matrix, after: Matrix, seed: int
) -> list[Metric]:
    """`moved`: the share of questions whose first-ranked answer changed; `drift`: the mean change
    of log-probability per token, either way."""
    moved = [
        float(a != b) for a, b in zip(before.argmax(axis=1), after.argmax(axis=1), strict=True)
    ]
    drift = [float(change) for change in np.abs(after - before).mean(axis=1)]
    return [
        average(task, method, case, "moved", moved, seed),
        average(task, method, case, "drift", drift, seed),
    ]


def _clearest(found: Mapping[Point, Matrix], domain: str, level: Level) -> float:
    """The middle of the strengths at which a level is within `NEARLY` of its best soft accuracy:
    there it is farthest from where another level begins."""
    points = {
        strength: soft_accuracy(means, level)
        for (where, strength), means in found.items()
        if where == domain
    }
    best = max(points.values())
    clear = sorted(strength for strength, value in points.items() if value >= best - NEARLY)
    return clear[len(clear) // 2]


def _reached(
    suite: Suite, mixture: Mapping[str, float], wanted: Mapping[str, Level]
) -> dict[str, float]:
    found = suite.ranked("tune", [trial(suite, mixture, domain, "dev") for domain in wanted])
    return {
        domain: float(np.mean(top1(means, wanted[domain])))
        for domain, means in zip(wanted, found, strict=True)
    }
