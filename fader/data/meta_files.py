"""Files of MetaAlign's data (`meta.py`): items are read, samples are written and read, and a set is
built of them offline.

An item record has `part`, `prompt` (a text, or messages), `answers` (two), `texts` (two, each a
wording or several, of which either answer follows one; none for consensus), and may have `harmful`
(which of query, first, second), `refusal`, `family` and `split`. A sample record has `part`,
`provider`, `user`, `facts`, `history`, `prompt`, `chosen`, `rejected`, and may have `cell`,
`family` and `split`. What a file holds is seen by its fields. Preference records
(`preferences.py`) are read too: those of one pair under two opposite preferences are an item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, get_args

from fader.data import sources, splits
from fader.data.conversations import NoPreference, refuse_misspelt
from fader.data.meta import (
    HARMS,
    PARTS,
    SAFETY,
    Cell,
    Harm,
    Item,
    Sample,
    annotated,
    item_of,
    matrix,
)
from fader.data.preferences import flips_of, read_judged
from fader.data.records import pair_of
from fader.data.rounds import Place, markdown_table
from fader.request import Preferences
from fader.schema import parse, short

FIELDS = ("part", "family", "prompt", "texts", "answers", "harmful", "refusal", "split")
TOLD = ("provider", "user", "facts", "history")
SAMPLE_FIELDS = ("part", "cell", "family", *TOLD)


def read_items(source: Path | str) -> list[Item]:
    """The items of a file of item records. Raises ValueError naming the record and the field that
    is wrong."""
    found = [_item(row.sound, row.where) for row in sources.rows(source)]
    if not found:
        raise ValueError(f"{source}: no records")
    return found


def read_samples(source: Path | str) -> list[Sample]:
    """The samples of a file. Raises ValueError naming the record and the field that is wrong."""
    found = [_sample(row.sound, row.where) for row in sources.rows(source)]
    if not found:
        raise ValueError(f"{source}: no records")
    return found


def row_of(sample: Sample) -> dict[str, Any]:
    """The record that is read as this sample."""
    told = sample.told.model_dump(include=set(TOLD), exclude_defaults=True)
    return {
        "part": sample.part,
        **({"cell": str(sample.cell)} if sample.cell else {}),
        **({"family": sample.family} if sample.family else {}),
        **{name: [*value] for name, value in told.items()},
        **splits.row_of(sample.pair),
    }


def _part(fields: Mapping[str, Any], where: str) -> Any:
    if (part := fields.get("part")) not in PARTS:
        raise ValueError(f"{where}: part must be one of {', '.join(PARTS)} (got {short(part)})")
    return part


def _item(fields: Mapping[str, Any], where: str) -> Item:
    refuse_misspelt(fields, where, FIELDS)
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"{where}: {unknown[0]}: no field of an item is called so; take it out")
    part = _part(fields, where)
    answers = fields.get("answers")
    if not _are_texts(answers) or len(answers) != 2:
        raise ValueError(f"{where}: answers must be two texts (got {short(answers)})")
    texts = fields.get("texts") or [[], []]
    if not isinstance(texts, list) or len(texts) != 2:
        raise ValueError(f"{where}: texts must be two opposed ones (got {short(texts)})")
    sides = [[text] if isinstance(text, str) else text for text in texts]
    if part == "consensus":
        if any(sides):
            raise ValueError(
                f"{where}: texts: consensus holds whatever is told; take them out (got"
                f" {short(texts)})"
            )
    elif not all(map(_are_texts, sides)):
        raise ValueError(f"{where}: texts must be two, and none empty (got {short(texts)})")
    if set(map(_plain, sides[0])) & set(map(_plain, sides[1])):
        raise ValueError(f"{where}: texts: both sides say the same (got {short(texts)})")
    harmful = fields.get("harmful") or []
    if not isinstance(harmful, list) or not set(harmful) <= set(HARMS):
        raise ValueError(
            f"{where}: harmful must be a list of some of {', '.join(HARMS)} (got {short(harmful)})"
        )
    if harmful and part != "priority":
        raise ValueError(f"{where}: part must be priority where something is harmful (got {part})")
    refusal = fields.get("refusal") or ""
    if harmful and not _are_texts([refusal]):
        raise ValueError(
            f"{where}: refusal must be a text that declines what is harmful (got {short(refusal)})"
        )
    pair = _pair(fields, answers, where)
    return Item(
        part,
        pair.messages,
        (pair.chosen, pair.rejected),
        (_once(sides[0]), _once(sides[1])),
        frozenset(harmful),
        refusal,
        _name(fields, where),
        pair.split,
    )


def _pair(fields: Mapping[str, Any], answers: Sequence[str], where: str) -> Any:
    rest = {name: fields[name] for name in ("prompt", "split") if name in fields}
    try:
        return pair_of({**rest, "chosen": answers[0], "rejected": answers[1]}, where)
    except NoPreference:
        raise ValueError(
            f"{where}: answers: the two are equal (got {short(answers[0])}); take the record out"
        ) from None


def _sample(fields: Mapping[str, Any], where: str) -> Sample:
    part = _part(fields, where)
    named = fields.get("cell") or ""
    known = {str(cell): cell for cell in matrix()}
    if named and named not in known:
        raise ValueError(
            f"{where}: cell must be of the priority matrix, such as {next(iter(matrix()))} (got"
            f" {short(named)}); its places are {', '.join(get_args(Harm))}"
        )
    told = parse(Preferences, {name: fields[name] for name in TOLD if fields.get(name)}, where)
    if told.empty:
        raise ValueError(f"{where}: one of {', '.join(TOLD)} must say something")
    rest = {name: value for name, value in fields.items() if name not in SAMPLE_FIELDS}
    try:
        pair = pair_of(rest, where)
    except NoPreference as why:
        raise ValueError(f"{where}: {why}; take the record out") from None
    return Sample(part, told, pair, _name(fields, where), known.get(named))


def _name(fields: Mapping[str, Any], where: str) -> str:
    family = fields.get("family") or ""
    if not isinstance(family, str):
        raise ValueError(f"{where}: family must be a text (got {short(family)})")
    return family


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and text.strip() for text in value)
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!")


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    """The wordings, those that differ in letter case, spaces or the last mark alone once."""
    return tuple({_plain(text): text for text in reversed([*texts])}.values())[::-1]


@dataclass(frozen=True)
class Built:
    """A set of samples, and what the sources held beside them: items that were there twice, and
    preference records without the same pair under an opposite preference."""

    samples: tuple[Sample, ...]
    items: int
    twice: int
    alone: int

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
            item = item_of((first, others[0]))
            part = "helpful-based" if first.family in SAFETY else "diverse-opinion"
            texts = tuple(
                _once(text for one in side for text in one.wordings) for side in (same, others)
            )
            found.append(
                item if item.harmful else replace(item, part=part, texts=texts)  # type: ignore[arg-type]
            )
    return found, alone


def built(items: Sequence[Item], alone: int = 0, seed: int = 0) -> Built:
    """The samples of some items, each item once."""
    once = {(item.messages, frozenset(item.answers), item.harmful): item for item in items}
    samples = annotated([*once.values()], seed)
    return Built(tuple(samples), len(once), len(items) - len(once), alone)


def write(found: Built, out: Path, made_from: str, force: bool = False) -> None:
    """Write the samples and their datasheet (see `Place`). Raises ValueError for files whose
    changes would be lost; OSError where they cannot be written."""
    place = Place(out, force)
    with place.held():
        place.write([row_of(one) for one in found.samples], datasheet(found, out.name, made_from))


def datasheet(found: Built, name: str, made_from: str) -> str:
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

{made_from}

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
