"""Builds MetaAlign's samples (`meta.py`) of item records, of preference records, of what a teacher
makes, and of what the model writes itself. Two preference records of one pair under opposite
preferences are an item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fader.data import sources, splits
from fader.data.datasheet import datasheet, table
from fader.data.meta import HARMS, PARTS, Cell, Item, Sample, annotated, item_of, matrix
from fader.data.meta_files import read_items, row_of
from fader.data.meta_own import (
    EARNED,
    LENGTH,
    SAMPLES,
    SURE,
    TEMPERATURE,
    TOP_P,
    Own,
    OwnPlan,
    Write,
    own_items,
)
from fader.data.meta_teacher import make
from fader.data.preferences import flips_of, once, plain, read_judged
from fader.data.prompts import META_PROMPTS, prompts_hash
from fader.data.questions import Plan
from fader.data.rounds import Made, Place, Prices, Tell
from fader.endpoint import Endpoint
from fader.schema import short


@dataclass(frozen=True)
class Built:
    """A set of samples, and what the sources held beside them: items that were there twice, and
    preference records without the same pair under an opposite preference."""

    samples: tuple[Sample, ...]
    items: int
    twice: int
    alone: int
    taught: Made[Item] | None = None
    """The items that a teacher made, and what that took."""
    own: Own | None = None
    """The items of the model's own answers, and what became of the others."""

    @property
    def parts(self) -> dict[str, int]:
        """How many samples there are of each part."""
        counts = Counter(sample.part for sample in self.samples)
        return {part: counts[part] for part in PARTS}

    @property
    def preferences(self) -> int:
        """How many different texts are told."""
        return len(texts_of(self.samples))

    @property
    def flip_rates(self) -> dict[str, float]:
        """By part: the share of the pairs told more than once whose order depends on what is
        told."""
        orders: dict[tuple[str, object], list[str]] = {}
        for one in self.samples:
            orders.setdefault((one.part, one.pair.key), []).append(one.pair.chosen)
        found: dict[str, float] = {}
        for part in PARTS:
            told = [had for (of, _), had in orders.items() if of == part and len(had) > 1]
            if told:
                found[part] = sum(len(set(had)) > 1 for had in told) / len(told)
        return found


OTHERS = """Items were read of files or made by a teacher model: two opposed preferences, a
question, and an answer told each of them. Nobody has read what a teacher made."""
OWN = f"""The model answered questions of items that were there, told either of their two opposed
preferences. Of its answers the one that surest follows the one preference and the one that surest
follows the other were taken, each with a probability of at least {SURE}. A classifier of words said
so, one for each family, whose probabilities fit its held-out pairs. Nobody has read the answers."""


def texts_of(samples: Iterable[Sample]) -> set[str]:
    """The different texts that are told."""
    return {
        text
        for sample in samples
        for text in (*sample.told.provider, *sample.told.user, *sample.told.facts)
    }


def gather(files: Sequence[Path | str]) -> tuple[list[Item], int]:
    """The items of item records and of preference records, and how many preference records have no
    opposite. Raises ValueError naming the record and the field that is wrong."""
    found: list[Item] = []
    poles: dict[tuple[str, str], int] = {}  # family and pole -> in which place they first came
    alone = 0
    for file in files:
        rows = list(sources.rows(file))
        if not any("preference" in row.sound for row in rows):
            found += read_items(file)
            continue
        records = read_judged(file)
        for one in records:
            poles.setdefault((one.family, one.pole), len(poles))
        for flip in flips_of(records):
            group = sorted(flip, key=lambda one: poles[one.family, one.pole])
            first = group[0]
            others = [one for one in group if one.pair.chosen != first.pair.chosen]
            same = [one for one in group if one not in others]
            if not others:
                alone += len(group)
                continue
            liked, other = (
                once(text for one in side for text in one.wordings) for side in (same, others)
            )
            if both := {*map(plain, liked)} & {*map(plain, other)}:
                raise ValueError(
                    f"{file}: {min(both)!r} likes either answer to"
                    f" {short(first.pair.messages[-1].content)}; take one of the two records out"
                )
            found.append(replace(item_of((first, others[0])), texts=(liked, other)))
    return found, alone


def built(items: Sequence[Item], alone: int = 0, seed: int = 0) -> Built:
    """The samples of some items, each item once, whichever of its sides comes first. Raises
    ValueError for two of consensus that contradict each other, and for answers to a question that
    stand in two splits."""
    kept: dict[object, Item] = {}
    splits_of: dict[object, str] = {}
    better: dict[object, str] = {}
    for item in items:
        pair = (item.messages, frozenset(item.answers))
        asked = short(item.messages[-1].content)
        if splits_of.setdefault(pair, item.split) != item.split:
            raise ValueError(
                f"split: the two answers to {asked} are in {splits_of[pair]} and in {item.split};"
                " take one of the items out"
            )
        if item.part == "consensus" and better.setdefault(pair, item.answers[0]) != item.answers[0]:
            raise ValueError(
                f"answers: of the two to {asked} either is the better one, whatever is told; take"
                " one of the items out"
            )
        sides = zip(item.answers, item.texts, map(item.harm, HARMS[1:]), strict=True)
        kept[item.part, pair, item.harm("query"), item.refusal, frozenset(sides)] = item
    samples = annotated([*kept.values()], seed)
    return Built(tuple(samples), len(kept), len(items) - len(kept), alone)


def build(items: Sequence[Item], alone: int, place: Place, seed: int = 0) -> Built:
    """Write the samples of some items and their datasheet (see `Place`). `alone`: as `gather`
    counts.

    Raises ValueError for files whose changes would be lost, OSError where files cannot be written:
    they are as they were before.
    """
    if not items:
        raise ValueError(
            f"data: no item can be made of its {alone} preference records; each needs one that"
            " likes the other answer under an opposite preference"
        )
    found = built(items, alone, seed)
    with place.held():
        place.write(*_written(found, place.out.name, [("seed", seed)]))
    return found


def build_own(plan: OwnPlan, model: str, write: Write, place: Place, alone: int = 0) -> Built:
    """Write the samples of items whose answers the model has written by the plan, and their
    datasheet (see `Place`). `model`: its name. `alone`: as `gather` counts.

    Raises ValueError if no item could be kept, and otherwise as `build`.
    """
    with place.held():
        own = own_items(plan, write)
        if not own.items:
            raise ValueError(
                f"own: no item of {len(plan.drawn)} could be kept (dropped: {own.dropped}; answers"
                f" not used: {own.unused}); try more, or another vector"
            )
        found = replace(built(own.items, alone, plan.seed), own=own)
        facts = [
            ("answers written by", f"{model}, with the vector {plan.vector} at strength 1"),
            (
                "sampled",
                f"{SAMPLES} answers under either text, temperature {TEMPERATURE}, top-p {TOP_P}, at"
                f" most {LENGTH} tokens",
            ),
            ("seed", plan.seed),
        ]
        place.write(*_written(found, place.out.name, facts))
    return found


def build_with_teacher(
    plan: Plan,
    endpoint: Endpoint,
    place: Place,
    items: Sequence[Item] = (),
    alone: int = 0,
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
) -> Built:
    """`build` with the items that a teacher makes by the plan, after the others. The same call goes
    on where it was stopped. Raises as `rounds.make_at` does."""
    facts = [
        ("teacher", endpoint.model),
        ("language", plan.language),
        ("asked for", f"{plan.count} items, seed {plan.seed}"),
        ("prompts", f"fader, hash {prompts_hash(META_PROMPTS)}"),
    ]

    def whole(made: Made[Item]) -> Built:
        found = built([*items, *made.items], alone, plan.seed)
        return replace(found, taught=made)

    return whole(
        make(
            plan,
            endpoint,
            place,
            lambda made: _written(whole(made), place.out.name, facts),
            prices,
            tell,
        )
    )


def _written(
    found: Built, name: str, facts: Sequence[tuple[str, object]]
) -> tuple[list[dict[str, Any]], str]:
    """The records and the datasheet, for a file called `name`."""
    return [row_of(one) for one in found.samples], _datasheet(found, name, facts)


def _datasheet(found: Built, name: str, facts: Sequence[tuple[str, object]]) -> str:
    of_split: dict[str, Counter[str]] = {}
    cells: Counter[Cell] = Counter()
    families: Counter[str] = Counter()
    for one in found.samples:
        of_split.setdefault(one.part, Counter())[one.split] += 1
        families[one.family or "none named"] += 1
        if one.cell:
            cells[one.cell] += 1
    parts = [
        (
            part,
            *(of_split.get(part, Counter())[split] for split in splits.NAMES),
            f"{found.flip_rates[part]:.2f}" if part in found.flip_rates else "none told twice",
        )
        for part in PARTS
    ]
    winners = [(*cell, winner, cells[cell]) for cell, winner in matrix().items()]
    made = len(found.taught.items) if found.taught else 0
    own = found.own
    counted: list[tuple[str, object]] = [
        ("items read of files", found.items - made),
        ("items made by a teacher", made),
    ]
    if own:
        counted = [("items tried", len(own.plan.drawn)), ("items kept", len(own.items))]
    return datasheet(
        name,
        motivation="""Answers to the same questions, ranked under preferences in two tiers (the
provider's and the user's), to train a language model to obey them and to measure it (MetaAlign,
arXiv 2410.14184).""",
        how=f"""{OWN if own else OTHERS} The order of two answers follows by rule from the item and
from what is told, by the priority matrix where both tiers speak. Nobody has ranked them anew.""",
        facts=[*counted, *facts],
        made=found.taught,
        content=f"""{len(found.samples)} samples of {found.items} items, with {found.preferences}
different preference texts. One JSON object a line: part, what is told (provider, user, facts,
history), prompt, chosen, rejected, cell, family, split. Flip rate: the share of the pairs told more
than once whose order depends on what is told.

{table(("part", *splits.NAMES, "flip rate"), parts)}

The priority matrix, and the samples of each of its cells:

{table(("query", "provider", "user", "who wins", "samples"), winners)}

Samples by family:

{table(("family", "samples"), sorted(families.items()))}{_judges(own) if own else ""}""",
        lost=f"""{found.twice} items that were there already, and {found.alone} preference records
without the same pair under an opposite preference.{_given_up(own) if own else ""}""",
        limits=(
            "Meant for teaching and measuring whose preference an answer follows, not for finding"
            " out what is true.",
            "Items of harm hold answers that no model should write; they are there to lose.",
            *(("The teacher's terms of use may restrict training on its output.",) if made else ()),
        ),
    )


def _judges(own: Own) -> str:
    """How right the judges are, and what came of their families."""
    tried = Counter((one.part, one.family) for one in own.plan.drawn)
    kept = Counter((one.part, one.family) for one in own.items)
    left_out = [one for one in own.plan.judges.values() if not one.earned]
    rows = [
        (
            one.family,
            one.part,
            one.held_out,
            f"{one.accuracy:.2f}" if one.held_out else "too few questions to tell",
            "yes" if one.earned else "no",
            tried[of],
            kept[of],
        )
        for of, one in sorted(own.plan.judges.items())
    ]
    head = ("family", "part", "held-out pairs", "accuracy", "has its say", "tried", "kept")
    return f"""

The judges, each tested on pairs of its family that it was not fitted to. Those that rank fewer than
{EARNED} of them right have no say, and their families are left out: {len(left_out)} of {len(rows)}.

{table(head, rows)}"""


def _given_up(own: Own) -> str:
    """Items that were dropped and answers that were not used, by reason."""
    return f"""

{table(("reason", "items"), own.dropped.items())}

Answers that were never a choice:

{table(("fault", "answers"), own.unused.items())}"""
