"""Builds MetaAlign's samples (`meta.py`) of files: records of items, and of preference data, of
which those of one pair under two opposite preferences are an item; and of what a teacher makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fader.data import sources, splits
from fader.data.meta import PARTS, Cell, Item, Sample, annotated, item_of, matrix
from fader.data.meta_files import once, read_items, row_of
from fader.data.meta_teacher import MadeItems, Plan, make, prompts_hash
from fader.data.preferences import flips_of, read_judged
from fader.data.rounds import Place, Prices, Tell, markdown_table
from fader.endpoint import Endpoint


@dataclass(frozen=True)
class Built:
    """A set of samples, and what the sources held beside them: items that were there twice, and
    preference records without the same pair under an opposite preference."""

    samples: tuple[Sample, ...]
    items: int
    twice: int
    alone: int
    taught: MadeItems | None = None
    """What a teacher made of it, and what that took."""

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
            pair = one.pair
            key = (one.part, (pair.messages, frozenset((pair.chosen, pair.rejected))))
            orders.setdefault(key, []).append(pair.chosen)
        found: dict[str, float] = {}
        for part in PARTS:
            told = [had for (of, _), had in orders.items() if of == part and len(had) > 1]
            if told:
                found[part] = sum(len(set(had)) > 1 for had in told) / len(told)
        return found


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
    alone = 0
    for file in files:
        rows = list(sources.rows(file))
        if not any("preference" in row.sound for row in rows):
            found += read_items(file)
            continue
        for group in flips_of(read_judged(file)):
            first = group[0]
            others = [one for one in group if one.pair.chosen != first.pair.chosen]
            same = [one for one in group if one not in others]
            if not others:
                alone += len(group)
                continue
            liked, other = (
                once(text for one in side for text in one.wordings) for side in (same, others)
            )
            found.append(replace(item_of((first, others[0])), texts=(liked, other)))
    return found, alone


def built(items: Sequence[Item], alone: int = 0, seed: int = 0) -> Built:
    """The samples of some items, each item once."""
    kept = {(item.messages, frozenset(item.answers), item.harmful): item for item in items}
    samples = annotated([*kept.values()], seed)
    return Built(tuple(samples), len(kept), len(items) - len(kept), alone)


def build(
    items: Sequence[Item],
    alone: int,
    place: Place,
    seed: int = 0,
    plan: Plan | None = None,
    endpoint: Endpoint | None = None,
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
) -> Built:
    """Write the samples of some items, and of those that a teacher makes by the plan, with their
    datasheet (see `Place`). The same call goes on where it was stopped. `alone`: as `gather`
    counts.

    Raises ValueError where the endpoint refuses and for files whose changes would be lost;
    ConnectionError where it fails; OSError where files cannot be written. In each case the file is
    as it was before, and the replies so far are kept.
    """
    with place.held():
        taught = make(plan, endpoint, place, prices, tell) if plan and endpoint else None
        found = built([*items, *(taught.items if taught else ())], alone, seed)
        found = replace(found, taught=taught)
        how = _how(found, endpoint)
        place.write([row_of(one) for one in found.samples], datasheet(found, place.out.name, how))
    return found


def _how(found: Built, endpoint: Endpoint | None) -> str:
    """Where the items come from, in words."""
    taught = found.taught
    mine = found.items - (len(taught.items) if taught else 0)
    text = f"{mine} items were read of files."
    if not (taught and endpoint):
        return text
    first, last = taught.paid.days
    money = taught.paid.whole.money
    return f"""{text} {len(taught.items)} were made by a teacher: two opposed preferences, a
question, and an answer told each of them. Nobody has read these.

| | |
|---|---|
| teacher | {endpoint.model} |
| made | {first if first == last else f"{first} to {last}"} |
| prompts | fader, hash {prompts_hash()} |
| requests | {taught.paid.whole.calls} |
| tokens | {taught.paid.whole.tokens_in} read, {taught.paid.whole.tokens_out} written |
| cost | {"no prices were given" if money is None else f"{money:.4f}"} |

Items dropped after all attempts:

{markdown_table(("stage: rule", "items"), taught.dropped.items())}

Replies not used:

{markdown_table(("stage: rule", "replies"), taught.refused.items())}"""


def datasheet(found: Built, name: str, how: str) -> str:
    """The set's datasheet, in Markdown (after Gebru et al., Datasheets for Datasets, arXiv
    1803.09010)."""
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
    return f"""# Datasheet: {name}

## Motivation

Answers to the same questions, ranked under preferences in two tiers (the provider's and the
user's), to train a language model to obey them and to measure it (MetaAlign, arXiv 2410.14184).

## How it was made

{how}

The order of two answers follows by rule from the item and from what is told, by the priority matrix
where both tiers speak. Nobody has ranked them anew.

## What is in it

{len(found.samples)} samples of {found.items} items, with {found.preferences} different preference
texts. One JSON object a line: part, what is told (provider, user, facts, history), prompt, chosen,
rejected, cell, family, split. Flip rate: the share of the pairs told more than once whose order
depends on what is told.

{markdown_table(("part", *splits.NAMES, "flip rate"), parts)}

The priority matrix, and the samples of each of its cells:

{markdown_table(("query", "provider", "user", "who wins", "samples"), winners)}

Samples by family:

{markdown_table(("family", "samples"), sorted(families.items()))}

## What was left out

{found.twice} items that were there already, and {found.alone} preference records without the same
pair under an opposite preference.

## Use and limits

- Meant for teaching and measuring whose preference an answer follows, not for finding out what is
  true.
- Items of harm hold answers that no model should write; they are there to lose.
"""
