"""MetaAlign (arXiv 2410.14184): a model that obeys the preferences in its prompt, as a vector.

The paper fine-tunes on the better answers (SFT), then prefers them to the others (DPO), under meta
prompts; its one-stage variant is SFT alone. Here each stage trains the same LoRA, from where the
one before ended. As for the personalised model (`personal.py`) what belongs together stands in one
batch, and the preferences begin with both orders of a flip in one sigmoid: a pair under two opposed
texts, or the same two texts with their tiers swapped (`told.py` says why). Then each order counts
for itself, by SimPO: what is wanted is that the model itself finds the better answer likelier, not
that it moves towards it, so no reference is subtracted. In all stages the better answer's own
likelihood is in the loss, which holds the text together. Lessons are made of items
(`data/meta.py`):

    one text      told by the user or the provider, as a fact, or by past choices; often with others
                  beside it from which nothing follows
    two tiers     opposed texts in both, then swapped
    harm          declining, or the harmless answer, whoever asks for harm
    consensus     the better answer under either of two texts that do not matter; an answer on other
                  subjects, rather than declining
    retained      pairs told nothing, or an idle fact, and pairs on other subjects: each token's
                  distribution is to stay the base model's, which keeps what the model can do

The rule for conflicts is told in all lessons, in none, or in every other one, so that the model
and not the sentence decides who wins.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fader.data.meta import (
    HALF,
    PLACES,
    Item,
    Places,
    Sample,
    Tier,
    by_facts,
    by_history,
    conflicts,
    consensus,
    flip,
    half,
    item_of,
)
from fader.data.preferences import Family, without_leaks
from fader.data.records import Item as Other
from fader.data.records import as_pairs
from fader.request import Preferences, Rendering
from fader.training.lessons import Lesson
from fader.training.personal import FIRST_RATE, PERSONAL
from fader.training.told import JOINT, NEUTRAL, neutral, taught_flips
from fader.training.vector import Recipe, Stage, train_stages
from fader.vectors.vector import Vector, compress

Stages = Literal["one", "two", "preferences"]
Rule = Literal["always", "never", "mixed"]
CONFLICTS = 0.4
"""For each opposed item: how often it is taught in both tiers too."""
GENERAL = 0.05
"""For each lesson that teaches: pairs on other subjects, each as two retained lessons."""
ANSWERED = 0.05
"""For each lesson that teaches: pairs on other subjects, each under two opposed texts that say
nothing of it: there an answer is better than to decline."""
SHORT = 100
"""Words of both answers of a past choice that is told."""
META = replace(
    PERSONAL,
    rank=14,
    alpha=28,
    loss="simpo",
    beta=5.0,
    length_normalized=True,
    sft_weight=0.2,
    retain="divergence",
    retain_weight=2.0,
    learning_rate=8e-4,
)
"""The settings of the preferences; the vector has 2.9 MB. Without the likelihood of the better
answer in the loss, all text becomes unlikely (CPO, arXiv 2401.08417, adds it for the same)."""
META_DPO = replace(META, loss="dpo", beta=PERSONAL.beta, length_normalized=False)
"""The same by equation (9) of PAD, DPO as in the paper."""
SUPERVISED = replace(META, loss="sft", learning_rate=FIRST_RATE)
"""The settings of the first stage."""
FLIPS = replace(META_DPO, loss="flip")
"""Those of the first preferences."""
SUPERVISED_SHARE = 0.12
"""The first lessons, which are taught supervised."""
FLIPPED_SHARE = 0.4
"""Of all lessons: those after these, which are taught with both orders in one sigmoid."""
_FLIPPED = ("flips", ".{}-flips", FLIPS, FLIPPED_SHARE)
PARTS: dict[Stages, list[tuple[str, str, Recipe, float]]] = {
    "one": [],
    "two": [("one-stage", "{}-one-stage", SUPERVISED, SUPERVISED_SHARE), _FLIPPED],
    "preferences": [_FLIPPED],
}
"""What is trained before the last part: what its vector and its folder are called, how it is
trained, and on which share of the lessons."""
SHARED = ("rank", "alpha", "batch", "max_length", "seed")
"""The settings that all parts have from the recipe."""


def taught_items(families: Sequence[Family], written: Sequence[Item], seed: int = 0) -> list[Item]:
    """What is taught of the shipped families and items: the training pairs of families that are not
    held out (of `HALF` the first pole), and the written items twice, since they are few."""
    held_out = [pair for one in families if one.held_out for pair in one.flips("train")]
    items = [item_of(pair) for pair in without_leaks(taught_flips(families, seed), held_out)]
    mine = [item for item in written if item.split == "train"]
    return [*(half(one) if one.family in HALF else one for one in items), *mine, *mine]


def meta_lessons(
    items: Sequence[Item],
    idle: Sequence[str],
    general: Sequence[Other] = (),
    rule: Rule = "mixed",
    seed: int = 0,
) -> list[Lesson]:
    """One pass through the items in an order, in tiers and in wordings drawn by `seed`; an even
    number of lessons, those that belong together side by side. `idle`: facts about a user from
    which nothing follows. `general`: pairs on other subjects."""
    dice = random.Random(seed)
    opposed = [one for one in items if one.part in ("diverse-opinion", "helpful-based")]
    lessons: list[Lesson] = []
    for item in dice.sample(items, len(items)):
        rendering: Rendering = _rendering(rule, dice)
        if item.part == "consensus":
            _teach(lessons, consensus(item, _whatever(opposed, rendering, dice)))
        elif item.part == "priority":
            for places in (PLACES[:2], dice.choice((PLACES[2:4], PLACES[4:]))):
                _teach(lessons, _in_tiers(item, places, rendering, dice))
        else:
            _teach(lessons, _one_text(item, opposed, idle, rendering, dice))
            if dice.random() < CONFLICTS:
                _teach(lessons, _in_tiers(item, PLACES[:2], _rendering(rule, dice), dice))
        if dice.random() < 2 * NEUTRAL:
            lessons += neutral(lessons[-1], idle, rendering, dice)
    pairs = [Lesson(one.messages, one.chosen, one.rejected, (1.0,)) for one in as_pairs(general)]
    taught = len(lessons)
    for lesson in dice.sample(pairs, min(len(pairs), round(GENERAL * taught))):
        lessons += neutral(lesson, idle, _rendering(rule, dice), dice)
    for lesson in dice.sample(pairs, min(len(pairs), round(ANSWERED * taught))):
        told = _whatever(opposed, _rendering(rule, dice), dice)
        lessons += [replace(lesson, told=one) for one in told]
    twos = [lessons[place : place + 2] for place in range(0, len(lessons), 2)]
    return [lesson for two in dice.sample(twos, len(twos)) for lesson in two]


def _teach(lessons: list[Lesson], samples: Sequence[Sample]) -> None:
    for sample in samples:
        pair = sample.pair
        lessons.append(Lesson(pair.messages, pair.chosen, pair.rejected, (1.0,), told=sample.told))


def _rendering(rule: Rule, dice: random.Random) -> Rendering:
    told = rule == "always" or (rule == "mixed" and dice.random() < 0.5)
    return "meta" if told else "tiers"


def _in_tiers(
    item: Item, places: Places, rendering: Rendering, dice: random.Random
) -> list[Sample]:
    """The samples of an item in two places, those of the same two answers side by side."""
    found = conflicts(item, rendering, dice.randrange(2**32), places)
    samples = [sample for one in found for sample in one.samples]
    pairs = [one.pair.key for one in samples]
    return sorted(samples, key=lambda one: pairs.index(one.pair.key))


def _whatever(
    opposed: Sequence[Item], rendering: Rendering, dice: random.Random
) -> list[Preferences]:
    """Two opposed texts of one of the items, or nothing twice where there is none."""
    if not opposed:
        return [Preferences(rendering=rendering)] * 2
    tier: Tier = "provider" if dice.random() < 0.5 else "user"
    told = flip(dice.choice(opposed), tier, rendering, dice.randrange(2**32))
    return [one.told for one in told]


def _one_text(
    item: Item,
    opposed: Sequence[Item],
    idle: Sequence[str],
    rendering: Rendering,
    dice: random.Random,
) -> Sequence[Sample]:
    """An item under either of its texts, told in one of the ways in which a preference is told."""
    seed = dice.randrange(2**32)
    (way,) = dice.choices(("user", "provider", "facts", "history"), (50, 20, 20, 10))
    found = None
    if way == "facts":
        found = by_facts(item, rendering, seed)
    if way == "history":
        past = [one for one in opposed if len(" ".join(one.answers).split()) <= SHORT]
        found = by_history(item, past, rendering, seed)
    if found is None:
        found = flip(item, "provider" if way == "provider" else "user", rendering, seed)
    if dice.random() >= JOINT:
        return found
    others = [one for one in opposed if one.family != item.family]
    beside = [
        dice.choice(dice.choice(one.texts))
        for one in dice.sample(others, min(len(others), dice.choice((1, 2))))
    ]
    tier, last = dice.choice(("provider", "user")), dice.random() < 0.5
    return [replace(one, told=_beside(one.told, tier, beside, last)) for one in found]


def _beside(told: Preferences, tier: str, texts: Sequence[str], last: bool) -> Preferences:
    """The preferences with further texts in a tier, after its own or before them."""
    own = getattr(told, tier)
    return told.model_copy(update={tier: (*own, *texts) if last else (*texts, *own)})


def sample_lessons(
    samples: Sequence[Sample], idle: Sequence[str], rule: Rule = "mixed", seed: int = 0
) -> list[Lesson]:
    """One pass through samples of a file, those of a pair side by side, in an order drawn by
    `seed`. Where their number is odd the first is taught twice, so that all stay in step with the
    batches."""
    dice = random.Random(seed)
    groups: dict[object, list[Sample]] = {}
    for one in samples:
        groups.setdefault(one.pair.key, []).append(one)
    lessons: list[Lesson] = []
    for group in dice.sample([*groups.values()], len(groups)):
        rendering = _rendering(rule, dice)
        told = [
            replace(one, told=one.told.model_copy(update={"rendering": rendering})) for one in group
        ]
        _teach(lessons, [*told, *told[: len(told) % 2]])
        if dice.random() < 2 * NEUTRAL:
            lessons += neutral(lessons[-1], idle, rendering, dice)
    return lessons


def train_meta(
    name: str,
    lessons: Sequence[Lesson],
    folder: Path,
    stages: Stages = "two",
    recipe: Recipe = META,
    start: Sequence[Vector] = (),
    **settings: Any,
) -> Vector:
    """Train the model and write it to its folder as a vector: with it at strength 1 the model obeys
    what it is told. Lessons come two by two, as `meta_lessons` makes them.

    `two`: supervised on the first lessons, written beside the folder as NAME-one-stage, then
    preferences on the others, both orders of a flip together at first, which is written to a hidden
    folder; `one`: supervised alone, on all; `preferences`: these alone. `start`: a vector to go on
    from, such as the personalised model; one of higher rank is cut to the recipe's. Resumable, and
    raises ValueError, as `train_vectors`, which says what `settings` there are.
    """
    start = [compress(one, recipe.rank)[0] if one.rank > recipe.rank else one for one in start]
    if stages == "one":
        recipe = replace(recipe, loss="sft")
    planned, at = [], 0
    for named, place, settled, share in PARTS[stages]:
        batches = max(1, round(share * len(lessons) / recipe.batch))
        end = at + batches * recipe.batch
        if end >= len(lessons):
            raise ValueError(
                f"data: {len(lessons)} lessons are too few for the stages {stages!r}, each of which"
                f" has a batch of {recipe.batch} at least; give more, or the stages 'one'"
            )
        part = Stage(
            f"{name}-{named}",
            folder.with_name(place.format(folder.name)),
            lessons[at:end],
            replace(settled, **{key: getattr(recipe, key) for key in SHARED}),
        )
        planned.append(part)
        at = end
    last = Stage(name, folder, lessons[at:], recipe)
    return train_stages([*planned, last], start=start, **settings)
