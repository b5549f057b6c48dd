"""Lessons under preferences, as PAD (arXiv 2410.04070) and MetaAlign (arXiv 2410.14184) teach them:
a preference is told, and the answer that it likes is preferred.

Every pair is taught under either of two opposite preferences, so that the answers alone predict
nothing. The two lessons stand next to each other, to be taught in one batch (`Recipe.in_order`):
what moves an answer whatever is told cancels, and what depends on the preference is left. Taught in
batches apart, a model learns to like each answer that it has just seen liked, and gets worse than
chance. A share of the lessons tells several preferences at once, of which one decides. Another
share tells nothing, or a fact from which nothing follows: there both answers are to stay as likely
as the base model finds them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from fader.data.preferences import Family, Flip, without_leaks
from fader.request import Preferences, Rendering
from fader.training.lessons import Lesson

JOINT = 0.3
"""The share of the lessons that tell two or three preferences."""
NEUTRAL = 0.075
"""For each lesson that teaches a preference: how many tell nothing, and as many an idle fact."""
MOST = 60
"""Pairs of a family in a pass: the large families do not drown the small ones."""


def told_lessons(
    families: Sequence[Family],
    irrelevant: Sequence[str],
    rendering: Rendering,
    seed: int = 0,
    share: float = 1.0,
) -> list[Lesson]:
    """One pass through the training pairs of the families that are not held out, each under either
    pole, in wordings drawn by `seed`. `share`: of the pairs of each family, for comparisons."""
    dice = random.Random(seed)
    seen = [family for family in families if not family.held_out]
    kept = [
        flip for family in families for split in ("dev", "test") for flip in family.flips(split)
    ]
    of_family: dict[str, list[Flip]] = {}
    for flip in without_leaks([one for family in seen for one in family.flips("train")], kept):
        of_family.setdefault(flip[0].family, []).append(flip)
    flips: list[Flip] = []
    for taught in of_family.values():
        count = max(1, round(min(MOST, len(taught)) * share))
        flips += dice.sample(taught, count)
    dice.shuffle(flips)
    lessons: list[Lesson] = []
    for flip in flips:
        others = [one for one in seen if one.name != flip[0].family]
        count = dice.choice((1, 2)) if dice.random() < JOINT else 0
        beside = [
            dice.choice(one.wordings[dice.randrange(2)])
            for one in dice.sample(others, min(count, len(others)))
        ]
        place = dice.randint(0, len(beside))
        for judged in flip:
            texts = beside.copy()
            texts.insert(place, dice.choice(judged.wordings))
            told = Preferences(user=tuple(texts), rendering=rendering)
            pair = judged.pair
            lessons.append(Lesson(pair.messages, pair.chosen, pair.rejected, (1.0,), told=told))
        if dice.random() < 2 * NEUTRAL:
            lessons += _neutral(lessons[-1], irrelevant, rendering, dice)
    return lessons


def _neutral(
    lesson: Lesson, irrelevant: Sequence[str], rendering: Rendering, dice: random.Random
) -> list[Lesson]:
    """The lesson told nothing, and told a fact from which nothing follows."""
    fact = Preferences(user=(dice.choice(irrelevant),), rendering=rendering)
    return [replace(lesson, told=told, retained=True) for told in (None, fact)][
        : 2 if irrelevant else 1
    ]
