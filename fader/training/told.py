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

from fader.data.preferences import Family, Flip, Judged, without_leaks
from fader.data.records import Pair, showing
from fader.request import Preferences, Rendering
from fader.training.lessons import Demonstrated, Lesson

JOINT = 0.3
"""The share of the lessons that tell two or three preferences."""
NEUTRAL = 0.075
"""For each lesson that teaches a preference: how many tell nothing, and as many an idle fact."""
MOST = 60
"""Pairs of a family in a pass: the large families do not drown the small ones."""


def taught_flips(families: Sequence[Family], seed: int = 0, share: float = 1.0) -> list[Flip]:
    """The training pairs of the families that are not held out, `MOST` of each, but none whose
    question is nearly one that is measured. `share`: of each family's, for comparisons."""
    dice = random.Random(seed)
    kept = [
        flip for family in families for split in ("dev", "test") for flip in family.flips(split)
    ]
    seen = [flip for family in families if not family.held_out for flip in family.flips("train")]
    of_family: dict[str, list[Flip]] = {}
    for flip in without_leaks(seen, kept):
        of_family.setdefault(flip[0].family, []).append(flip)
    found: list[Flip] = []
    for flips in of_family.values():
        found += dice.sample(flips, max(1, round(min(MOST, len(flips)) * share)))
    return found


def told_lessons(
    flips: Sequence[Sequence[Judged]],
    idle: Sequence[str],
    rendering: Rendering,
    seed: int = 0,
    examples: int = 0,
) -> list[Lesson]:
    """One pass through the flips in an order, and in wordings, drawn by `seed`. `idle`: facts about
    a user from which nothing follows. A pair told an odd number of times is told once more, so that
    all stay in step with the batches. `examples`: how many answers that do what is told a teacher
    is shown, to other questions of the family."""
    dice = random.Random(seed)
    wordings: dict[str, dict[str, Sequence[str]]] = {}
    liked: dict[tuple[str, str], list[Pair]] = {}
    for flip in flips:
        for judged in flip:
            wordings.setdefault(judged.family, {})[judged.pole] = judged.wordings
            liked.setdefault((judged.family, judged.pole), []).append(judged.pair)
    lessons: list[Lesson] = []
    for flip in dice.sample(flips, len(flips)):
        others = [family for family in wordings if family != flip[0].family]
        count = dice.choice((1, 2)) if dice.random() < JOINT else 0
        beside = [
            dice.choice(dice.choice(list(wordings[family].values())))
            for family in dice.sample(others, min(count, len(others)))
        ]
        place = dice.randint(0, len(beside))
        for judged in (*flip, *flip[: len(flip) % 2]):
            texts = [*beside[:place], dice.choice(judged.wordings), *beside[place:]]
            told = Preferences(user=tuple(texts), rendering=rendering)
            pair = judged.pair
            lesson = Lesson(pair.messages, pair.chosen, pair.rejected, (1.0,), told=told)
            if examples:
                lesson = demonstrated(lesson, liked[judged.family, judged.pole], examples, dice)
            lessons.append(lesson)
        if dice.random() < 2 * NEUTRAL:
            lessons += neutral(lessons[-1], idle, rendering, dice)
    return lessons


def demonstrated(
    lesson: Lesson, liked: Sequence[Pair], examples: int, dice: random.Random
) -> Demonstrated:
    """The lesson behind the chosen answers of so many of these pairs, on other questions."""
    others = [one for one in liked if one.messages != lesson.messages]
    some = dice.sample(others, min(examples, len(others)))
    shown = showing((one.messages, one.chosen) for one in some)
    return Demonstrated(**vars(lesson), shown=shown)


def neutral(
    lesson: Lesson, idle: Sequence[str], rendering: Rendering, dice: random.Random
) -> list[Lesson]:
    """The lesson told nothing, and told a fact from which nothing follows (nothing again, where
    there are no facts: flips stay in step with the batches)."""
    fact = Preferences(user=(dice.choice(idle),), rendering=rendering) if idle else None
    return [replace(lesson, told=told, retained=True) for told in (None, fact)]
