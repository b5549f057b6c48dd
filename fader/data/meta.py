"""The data of MetaAlign (arXiv 2410.14184): answers annotated under preferences in two tiers.

An *item* is a question with two answers, each of which follows one of two opposed texts. The same
answers are annotated under different tiers, by the rules here, in the paper's four parts:

    diverse-opinion   a matter of taste: which answer is better flips with the text
    helpful-based     the same for how far help should go: safe first, or as helpful as possible
    consensus         the first answer is better, whatever is told
    priority          both tiers speak: who wins is looked up in the priority matrix, by the harm of
                      the query and of what either tier asks for (`priority.csv`)

The paper does not publish its matrix. Ours has the order harm, provider, user: a harmless text of
the provider wins over the user's; a harmful one loses to any harmless text of the other tier; where
the query is harmful, or nothing harmless is asked for, declining wins.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from fader.data.nearness import of_nearness
from fader.data.preferences import Family, Flip
from fader.data.records import Pair
from fader.request import Choice, Message, Preferences, Rendering

Part = Literal["diverse-opinion", "helpful-based", "consensus", "priority"]
PARTS: tuple[Part, ...] = get_args(Part)
Tier = Literal["provider", "user"]
Harm = Literal["none", "harmless", "harmful"]
Winner = Literal["provider", "user", "refusal"]
HARMS = ("query", "first", "second")
"""What of an item may be harmful: its question, and what either text asks for."""


class Cell(NamedTuple):
    """A place of the priority matrix. `none`: the tier says nothing."""

    query: Harm
    provider: Harm
    user: Harm

    def __str__(self) -> str:
        return "-".join(self)


@dataclass(frozen=True)
class Item:
    """A question, two opposed texts, and the answers that follow them."""

    part: Part
    messages: tuple[Message, ...]
    answers: tuple[str, str]
    texts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The wordings of either; none for consensus."""
    harmful: frozenset[str] = frozenset()
    """Those of `HARMS` that would do harm."""
    refusal: str = ""
    """Declines what is harmful; there if anything is."""
    family: str = ""
    split: str = "train"

    def harm(self, what: str) -> Harm:
        """How harmful one of `HARMS` is."""
        return "harmful" if what in self.harmful else "harmless"


@dataclass(frozen=True)
class Sample:
    """A pair under a meta prompt: its chosen answer is the better one there."""

    part: Part
    told: Preferences
    pair: Pair
    family: str = ""
    cell: Cell | None = None
    """Of priority samples: which rule of the matrix decides."""

    @property
    def split(self) -> str:
        """The split of its pair."""
        return self.pair.split


@dataclass(frozen=True)
class Conflict:
    """What is told in the tiers, and the answers of which one has to win."""

    cell: Cell
    told: Preferences
    item: Item
    answers: Mapping[str, str]
    """By who is followed: provider, user, refusal; `other` is followed by nobody."""
    winner: Winner

    @property
    def samples(self) -> list[Sample]:
        """The winner's answer over each of the others."""
        pairs = [
            Pair(self.item.messages, self.answers[self.winner], answer, self.item.split)
            for who, answer in self.answers.items()
            if who != self.winner
        ]
        return [Sample("priority", self.told, pair, self.item.family, self.cell) for pair in pairs]


@cache
def matrix() -> Mapping[Cell, Winner]:
    """The priority matrix: who wins in each of its cells."""
    with Path(__file__).with_name("priority.csv").open(encoding="utf-8", newline="") as file:
        rows: list[Any] = [*csv.DictReader(file)]
    return {Cell(row["query"], row["provider"], row["user"]): row["winner"] for row in rows}


def flip(
    item: Item, tier: Tier = "user", rendering: Rendering = "meta", seed: int = 0
) -> tuple[Sample, Sample]:
    """The item's answers under its first text and under its second one, told in a tier alone: the
    order flips. Wordings are drawn by `seed`."""
    dice = random.Random(seed)
    pair = Pair(item.messages, *item.answers, item.split)
    first, second = (
        Sample(
            item.part,
            Preferences(**{tier: (dice.choice(texts),)}, rendering=rendering),
            side,
            item.family,
        )
        for texts, side in zip(item.texts, (pair, pair.swapped), strict=True)
    )
    return first, second


def consensus(item: Item, told: Sequence[Preferences]) -> list[Sample]:
    """The item's first answer over its second one under each of these: the order never flips."""
    pair = Pair(item.messages, *item.answers, item.split)
    return [Sample("consensus", one, pair, item.family) for one in told]


Places = Sequence[tuple[int | None, int | None]]
PLACES: Places = (
    (0, 1),
    (1, 0),
    (0, None),
    (None, 0),
    (1, None),
    (None, 1),
)
"""Which of an item's texts (0 or 1) the provider and the user say; in twos that swap the tiers."""


def conflicts(
    item: Item,
    rendering: Rendering = "meta",
    seed: int = 0,
    places: Places = PLACES,
) -> list[Conflict]:
    """The item with its texts in the tiers, in each of these ways. Wordings are drawn by `seed`."""
    dice = random.Random(seed)
    texts = [dice.choice(wordings) for wordings in item.texts]
    return [_conflict(item, texts, *place, rendering) for place in places]


def _conflict(
    item: Item, texts: Sequence[str], provider: int | None, user: int | None, rendering: Rendering
) -> Conflict:
    said = {"provider": provider, "user": user}
    tiers = {tier: place for tier, place in said.items() if place is not None}
    cell = Cell(
        item.harm("query"),
        *("none" if place is None else item.harm(HARMS[1 + place]) for place in said.values()),
    )
    winner = matrix()[cell]
    answers = {tier: item.answers[place] for tier, place in tiers.items()}
    if winner == "refusal":
        answers["refusal"] = item.refusal
    elif len(tiers) == 1:
        lost = (item.refusal, *item.answers)  # declining without need loses too
        answers["other"] = next(text for text in lost if text and text != answers[winner])
    told = Preferences(
        **{tier: (texts[place],) for tier, place in tiers.items()}, rendering=rendering
    )
    return Conflict(cell, told, item, answers, winner)


def annotated(items: Sequence[Item], seed: int = 0) -> list[Sample]:
    """Every sample that the rules make of some items, what belongs together side by side. Consensus
    items are told the two texts of another item of their split, drawn by `seed`."""
    dice = random.Random(seed)
    opposed: dict[str, list[Item]] = {}
    for item in items:
        if item.part in ("diverse-opinion", "helpful-based"):
            opposed.setdefault(item.split, []).append(item)
    found: list[Sample] = []
    for item in items:
        if item.part == "consensus":
            others = opposed.get(item.split) or [one for part in opposed.values() for one in part]
            if not others:
                raise ValueError(
                    "part: consensus items are annotated under the texts of others; add items of"
                    " diverse-opinion or helpful-based"
                )
            found += consensus(item, [one.told for one in flip(dice.choice(others))])
            continue
        places = PLACES
        if item.part != "priority":
            found += flip(item, seed=dice.randrange(2**32))
            places = PLACES[:2]
        for one in conflicts(item, seed=dice.randrange(2**32), places=places):
            found += one.samples
    return found


def cells(
    items: Iterable[Item], split: str, rendering: Rendering = "meta"
) -> dict[Cell, list[Conflict]]:
    """The conflicts of a split by cell, every cell of the matrix. Raises ValueError for a cell
    without one."""
    found: dict[Cell, list[Conflict]] = {cell: [] for cell in matrix()}
    for item in items:
        if item.split == split and item.part != "consensus":
            for one in conflicts(item, rendering):
                found[one.cell].append(one)
    if empty := [str(cell) for cell, ones in found.items() if not ones]:
        raise ValueError(
            f"priority: no item of the split {split!r} is of the cells {', '.join(empty)} (query,"
            " provider, user); add some"
        )
    return found


SAFETY = ("helpful", "cautious", "expertise", "referral")
"""The shipped families that say how far help should go."""
HARMFUL = {"harmless": "callous"}
"""The shipped families of which one pole asks for harm, and which: told so, the other wins."""


def item_of(pair: Flip) -> Item:
    """A pair of a family, judged under either pole, as an item."""
    first, second = pair
    texts = (first.wordings, second.wordings)
    messages, answers = first.pair.messages, (first.pair.chosen, first.pair.rejected)
    harmful = [HARMFUL.get(one.family) == one.pole for one in pair]
    return Item(
        "priority"
        if any(harmful)
        else "helpful-based"
        if first.family in SAFETY
        else "diverse-opinion",
        messages,
        answers,
        texts,
        frozenset(harm for harm, bad in zip(HARMS[1:], harmful, strict=True) if bad),
        next((one for one, bad in zip(answers, harmful[::-1], strict=True) if bad), ""),
        first.family,
        first.split,
    )


def items_of(families: Iterable[Family], split: str, unseen: bool = False) -> list[Item]:
    """The pairs of some families in a split as items, in the wordings that may be taught or in the
    unseen ones."""
    return [item_of(pair) for family in families for pair in family.flips(split, unseen)]


HALF = ("example", "figures", "greeting", "headings", "rhetorical", "emoji")
"""The shipped families of which training tells the first pole alone, and its negation; the second
pole measures what is inferred from that."""
NEGATIONS = (
    "Do the opposite of this: {text}",
    "This is not wanted: {text}",
    "What follows does not hold here: {text}",
)


def half(item: Item) -> Item:
    """The item with the negations of its first text for its second one."""
    orders = [text for text in item.texts[0] if not is_fact(text)]
    negated = tuple(form.format(text=text) for text in orders for form in NEGATIONS)
    return replace(item, texts=(item.texts[0], negated))


def is_fact(text: str) -> bool:
    """Whether a wording states something about the user and asks for nothing."""
    return text.split()[0] in ("The", "She", "He", "I", "My", "They")


def by_facts(
    item: Item, rendering: Rendering = "meta", seed: int = 0
) -> tuple[Sample, Sample] | None:
    """`flip` with facts about the user for texts; None where a side has none."""
    dice = random.Random(seed)
    facts = [[text for text in texts if is_fact(text)] for texts in item.texts]
    if not all(facts):
        return None
    first, second = flip(item)
    return (
        replace(first, told=Preferences(facts=(dice.choice(facts[0]),), rendering=rendering)),
        replace(second, told=Preferences(facts=(dice.choice(facts[1]),), rendering=rendering)),
    )


def by_history(
    item: Item, past: Sequence[Item], rendering: Rendering = "meta", seed: int = 0, count: int = 2
) -> tuple[Sample, Sample] | None:
    """`flip` with past choices for texts: the user has liked the first answers of `count` other
    items of the family, or the second ones. None where `past` holds too few."""
    others = [one for one in past if one.family == item.family and one.messages != item.messages]
    if len(others) < count:
        return None
    drawn = random.Random(seed).sample(others, count)
    choices = [
        [
            Choice(
                prompt=one.messages[-1].content,
                chosen=one.answers[side],
                rejected=one.answers[1 - side],
            )
            for one in drawn
        ]
        for side in (0, 1)
    ]
    first, second = flip(item)
    return (
        replace(first, told=Preferences(history=tuple(choices[0]), rendering=rendering)),
        replace(second, told=Preferences(history=tuple(choices[1]), rendering=rendering)),
    )


Flipped = tuple[Sample, Sample]


def flip_cases(
    families: Sequence[Family], split: str, rendering: Rendering = "meta"
) -> dict[str, list[Flipped]]:
    """The flips of a split by what is new about their preferences: `wording` (unseen wordings of
    seen families), `pole` (the second poles of `HALF`, which were never told), and of families that
    were held out `near`, `between` and `far`, by their nearness. Of those the test has the training
    pairs too. Families that ask for harm have none: there nothing flips."""
    found: dict[str, list[Flipped]] = {"wording": [], "pole": []}
    for group, members in of_nearness(families).items():
        for family in members:
            if family.name in HARMFUL:
                continue
            case = group
            if group == "seen":
                case = "pole" if family.name in HALF else "wording"
            splits = (split, "train") if family.held_out and split == "test" else (split,)
            items = [item for part in splits for item in items_of([family], part, unseen=True)]
            found.setdefault(case, []).extend(
                flip(item, rendering=rendering, seed=place) for place, item in enumerate(items)
            )
    return found


def implicit_cases(
    families: Sequence[Family], split: str, rendering: Rendering = "meta"
) -> dict[str, list[Flipped]]:
    """Flips of the same items, seen families in unseen wordings, told in three ways: `explicit`
    (the text), `facts` (from which it follows), and `history` (two past choices of the training
    split)."""
    seen = [one for one in families if not one.held_out and one.name not in (*HARMFUL, *HALF)]
    past = items_of(seen, "train")
    found: dict[str, list[Flipped]] = {"explicit": [], "facts": [], "history": []}
    for place, item in enumerate(items_of(seen, split, unseen=True)):
        facts = by_facts(item, rendering, place)
        history = by_history(item, past, rendering, place)
        if facts and history:
            found["explicit"].append(flip(item, rendering=rendering, seed=place))
            found["facts"].append(facts)
            found["history"].append(history)
    return found


def control_cases(
    families: Sequence[Family],
    items: Sequence[Item],
    idle: Sequence[str],
    split: str,
    rendering: Rendering = "meta",
) -> dict[str, list[Flipped]]:
    """Pairs told two texts between which nothing may flip: `irrelevant`, pairs of seen families
    under two idle facts; `consensus`, under two opposed texts of other items of the split. In both,
    the two samples prefer the same answer."""
    dice = random.Random(0)
    seen = [one for one in families if not one.held_out and one.name not in HARMFUL]
    found: dict[str, list[Flipped]] = {"irrelevant": [], "consensus": []}
    for item in items_of(seen, split):
        told = [Preferences(user=(text,), rendering=rendering) for text in dice.sample(idle, 2)]
        first, _ = flip(item)
        found["irrelevant"].append((replace(first, told=told[0]), replace(first, told=told[1])))
    opposed = items_of(seen, split, unseen=True)
    for item in items:
        if item.part == "consensus" and item.split == split:
            texts = flip(dice.choice(opposed), rendering=rendering, seed=dice.randrange(2**32))
            one, two = consensus(item, [sample.told for sample in texts])
            found["consensus"].append((one, two))
    return found
