"""Lessons: what is taught at which point of the line theta + λ * AV.

Alignment Vectors (arXiv 2410.19206) trains at λ = 1 and hopes for the rest of the line. On small
models that fails. DPO has reached its aim once the rejected answers are unlikely, so the model does
not learn to write them, and a negative strength only spoils the text. And nothing makes the middle
of the line a level of its own. Here every lesson says at which strength its preference is to hold,
and a vector is trained along its line:

    pairs      chosen over rejected at λ > 0, rejected over chosen at λ < 0
    levels     expert first around 1, avoidance first around -1, generic first around -0.35 (at 0
               models mostly rank expert first)
    retained   answers to other subjects, whose likelihood is to stay the same at any λ
    cotrain    several vectors side by side: each lesson at its own strength, and at any strengths
               of the others, or at those at which the others are taught
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fader.data.records import Item, Level, LevelItem, Pair
from fader.request import Message, Preferences

PLACES: Mapping[Level, tuple[float, float]] = {
    "avoidance": (-1.5, -0.9),
    "generic": (-0.5, -0.25),
    "expert": (0.5, 1.3),
}
"""Between which strengths each level is taught."""
COMPARED: Sequence[tuple[Level, Level]] = (
    ("avoidance", "generic"),
    ("avoidance", "generic"),
    ("generic", "avoidance"),
    ("generic", "expert"),
    ("expert", "generic"),
    ("expert", "avoidance"),
)
LIKED = (0.5, 1.3)
"""Between which strengths the chosen side of a pair is taught; the rejected side between the
negatives."""
ANYWHERE = (-1.5, 1.3)


@dataclass(frozen=True)
class Lesson:
    """At these strengths of the vectors in training `chosen` is to be likelier than `rejected`; or,
    if `retained`, both as likely as at 0."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    strengths: tuple[float, ...]
    """One for each vector in training; mostly there is one."""
    retained: bool = False
    told: Preferences | None = None
    """The preferences under which it is taught, if any."""


@dataclass(frozen=True)
class Demonstrated(Lesson):
    """A lesson that a teacher reads behind answers to other questions that do what is told."""

    shown: tuple[Message, ...] = ()
    """These questions and answers, in turns."""


def lessons_of(items: Sequence[Item], others: Sequence[Item] = (), seed: int = 0) -> list[Lesson]:
    """The lessons of a data set along the line, and as many retained lessons of `others` as there
    are items."""
    levels = [item for item in items if isinstance(item, LevelItem)]
    pairs = [item for item in items if isinstance(item, Pair)]
    return [
        *from_levels(levels, seed),
        *from_pairs(pairs, seed),
        *retained(others, len(items), seed),
    ]


def at_one(items: Sequence[Item]) -> list[Lesson]:
    """The paper's lessons: one for each item, chosen over rejected (expert over avoidance) at
    strength 1."""
    pairs = [item.pair() if isinstance(item, LevelItem) else item for item in items]
    return [Lesson(pair.messages, pair.chosen, pair.rejected, (1.0,)) for pair in pairs]


def from_pairs(pairs: Sequence[Pair], seed: int = 0) -> list[Lesson]:
    """Two lessons for each pair, one on each side of 0."""
    dice = random.Random(seed)
    taught = [(pair, dice.uniform(*LIKED)) for pair in pairs] + [
        (pair.swapped, -dice.uniform(*LIKED)) for pair in pairs
    ]
    return [
        Lesson(pair.messages, pair.chosen, pair.rejected, (strength,)) for pair, strength in taught
    ]


def from_levels(items: Sequence[LevelItem], seed: int = 0) -> list[Lesson]:
    """Six lessons for each item, two for each level. Both of avoidance compare it with generic: it
    is the farthest from what models write."""
    dice = random.Random(seed)
    compared = [
        (item.pair(first, second), dice.uniform(*PLACES[first]))
        for item in items
        for first, second in COMPARED
    ]
    return [
        Lesson(pair.messages, pair.chosen, pair.rejected, (strength,))
        for pair, strength in compared
    ]


def retained(items: Sequence[Item], count: int, seed: int = 0) -> list[Lesson]:
    """`count` retained lessons, each with two answers of an item."""
    if not items:
        return []
    dice = random.Random(seed)
    lessons = []
    for item in _round(items, count, dice):
        pair = (
            item.pair(*dice.sample(list(item.answers), 2)) if isinstance(item, LevelItem) else item
        )
        lessons.append(
            Lesson(
                pair.messages, pair.chosen, pair.rejected, (dice.uniform(*ANYWHERE),), retained=True
            )
        )
    return lessons


def cotrain(
    parts: Sequence[Sequence[Lesson]],
    others: Sequence[Item] = (),
    seed: int = 0,
    meeting: bool = False,
) -> list[Lesson]:
    """The lessons of several co-trained vectors, one part for each, so that each vector keeps to
    its own subject. A lesson of a part is to hold at any strengths of the other vectors; `others`
    (once each) are retained at any strengths of all of them. `meeting`: the other vectors mostly
    have strengths at which their own lessons are taught, as in mixtures."""
    dice = random.Random(seed)
    lessons = []
    for place, part in enumerate(parts):
        for lesson in part:
            strengths = [_taught(beside, dice) if meeting else _anywhere(dice) for beside in parts]
            strengths[place] = lesson.strengths[0]
            lessons.append(replace(lesson, strengths=tuple(strengths)))
    stay = retained(others, len(others), seed)
    return [
        *lessons,
        *(replace(lesson, strengths=tuple(_anywhere(dice) for _ in parts)) for lesson in stay),
    ]


def _anywhere(dice: random.Random) -> float:
    """A strength for a vector that a lesson is not about; 0 in a quarter of the cases."""
    return 0.0 if dice.random() < 0.25 else dice.uniform(*ANYWHERE)


def _taught(part: Sequence[Lesson], dice: random.Random) -> float:
    """A strength for a vector that a lesson is not about: one at which it is taught, or 0 in a
    tenth of the cases."""
    return 0.0 if dice.random() < 0.1 else dice.choice(part).strengths[0]


def _round(items: Sequence[Item], count: int, dice: random.Random) -> Iterator[Item]:
    """`count` of the items, every one before any comes again."""
    taken = 0
    while taken < count:
        for item in dice.sample(list(items), min(len(items), count - taken)):
            yield item
            taken += 1
