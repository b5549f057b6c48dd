"""Lessons: what is taught where on the line theta + lambda * AV.

Alignment Vectors (arXiv 2410.19206) trains at lambda = 1 and hopes for the rest of the line. On
small models that hope fails: DPO is content once the rejected answers are unlikely, so nothing is
learned of writing them and a negative lambda only spoils the text; and nothing makes the middle of
the line a level of its own. Here every lesson says at which strength its preference is to hold, and
a vector is trained along its line:

    pairs    chosen over rejected at lambda > 0, rejected over chosen at lambda < 0
    levels   expert first around 1, avoidance first around -1, generic first around -0.35 (models
             start with expert the likeliest of the three)
    held     answers to other subjects, whose likelihood is to stay what it is at any lambda
    panel    several vectors side by side: each lesson at its own strength, and at any strengths of
             the
             others, or at those that the others are taught at
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fader.data.records import Item, Level, LevelItem, Pair
from fader.request import Message

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
    """One of each vector that is trained; of a single one mostly."""
    retained: bool = False


def lessons_of(items: Sequence[Item], others: Sequence[Item] = (), seed: int = 0) -> list[Lesson]:
    """The lessons of a data set along the line, and as many that hold `others` in place as there
    are items."""
    levels = [item for item in items if isinstance(item, LevelItem)]
    pairs = [item for item in items if isinstance(item, Pair)]
    return [
        *from_levels(levels, seed),
        *from_pairs(pairs, seed),
        *retained(others, len(items), seed),
    ]


def at_one(items: Sequence[Item]) -> list[Lesson]:
    """The paper's lessons: one an item, chosen over rejected (expert over avoidance) at strength
    1."""
    pairs = [item.pair() if isinstance(item, LevelItem) else item for item in items]
    return [Lesson(pair.messages, pair.chosen, pair.rejected, (1.0,)) for pair in pairs]


def from_pairs(pairs: Sequence[Pair], seed: int = 0) -> list[Lesson]:
    """Two lessons a pair, one on each side of 0."""
    dice = random.Random(seed)
    taught = [(pair, dice.uniform(*LIKED)) for pair in pairs] + [
        (pair.swapped, -dice.uniform(*LIKED)) for pair in pairs
    ]
    return [
        Lesson(pair.messages, pair.chosen, pair.rejected, (strength,)) for pair, strength in taught
    ]


def from_levels(items: Sequence[LevelItem], seed: int = 0) -> list[Lesson]:
    """Six lessons an item, two for each level; for avoidance, the farthest from what models write,
    twice over its neighbour."""
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
    """`count` lessons in leaving other subjects alone, each with two of an item's answers."""
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
    """The lessons of several vectors that are trained side by side, so that each keeps to its own
    subject: every lesson of a part is to hold whatever the strengths of the other vectors are, and
    `others` (once each) are to stay whatever all of them are. `meeting`: the other vectors stand
    mostly where their own lessons put them, as they do in mixtures."""
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
    """An strength for a vector that a lesson is not about; now and then it is not there at all."""
    return 0.0 if dice.random() < 0.25 else dice.uniform(*ANYWHERE)


def _taught(part: Sequence[Lesson], dice: random.Random) -> float:
    """An strength for a vector that a lesson is not about: one that it is taught at, seldom
    none."""
    return 0.0 if dice.random() < 0.1 else dice.choice(part).strengths[0]


def _round(items: Sequence[Item], count: int, dice: random.Random) -> Iterator[Item]:
    """`count` of the items, every one before any comes again."""
    taken = 0
    while taken < count:
        for item in dice.sample(list(items), min(len(items), count - taken)):
            yield item
            taken += 1
