"""Preference data: two answers to a question, and in words what somebody wants who likes the first
of them better. PAD (arXiv 2410.04070) and MetaAlign (arXiv 2410.14184) are both taught with it.

A record has `preference` (a text, or a list of wordings of it), a pair in any of the forms that
`conversations.py` lists, and may have `family` (what the preference is about), `pole` (which end of
it) and `source`. In a *family* every pair is taught both ways round: one preference chooses the
first answer, its opposite the second. So nothing but the preference says which answer is liked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fader.data import sources, splits
from fader.data.conversations import NoPreference, refuse_misspelt, unknown
from fader.data.records import LevelItem, Pair, pair_of, read
from fader.schema import at, short, whole_characters

FIELDS = ("preference", "family", "pole", "source")
"""What a record has beside the fields of a pair."""
FAMILY_FIELDS = ("family", "poles", "wordings", "unseen", "source", "held_out")
"""What a file of families says of each."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A pair whose first answer is liked by whoever has the preference."""

    pair: Pair
    wordings: tuple[str, ...]
    """The preference, said in one way or several."""
    family: str = ""
    pole: str = ""
    source: str = ""

    @property
    def split(self) -> str:
        """The split of its pair."""
        return self.pair.split


Flip = tuple[Judged, Judged]
"""A pair under either of two opposite preferences."""
Records = TypeVar("Records", bound=tuple[Judged, ...])
"""Records of one pair, such as a flip."""


@dataclass(frozen=True)
class Family:
    """Two opposite preferences and pairs between which they decide."""

    name: str
    poles: tuple[str, str]
    wordings: tuple[tuple[str, ...], tuple[str, ...]]
    """Of each pole, those that may be taught."""
    unseen: tuple[tuple[str, ...], tuple[str, ...]]
    """Of each pole, those that are kept for measuring."""
    pairs: tuple[Pair, ...]
    """The first pole likes their chosen answers, the second their rejected ones."""
    held_out: bool = False
    """Kept from training as a whole."""
    source: str = "shipped"
    """Where its pairs come from."""

    def flips(self, split: str, unseen: bool = False) -> list[Flip]:
        """Each pair of a split under either pole, with the wordings that may be taught, or with
        the unseen ones."""
        texts = self.unseen if unseen else self.wordings
        found = []
        for pair in self.pairs:
            if pair.split == split:
                first, second = (
                    Judged(side, texts[pole], self.name, self.poles[pole], self.source)
                    for pole, side in enumerate((pair, pair.swapped))
                )
                found.append((first, second))
        return found

    def records(self) -> list[Judged]:
        """All its pairs under either pole: those of train with the wordings that may be taught,
        the others with the unseen ones."""
        return [
            judged
            for split in splits.NAMES
            for flip in self.flips(split, unseen=split != "train")
            for judged in flip
        ]


def read_judged(source: Path | str) -> list[Judged]:
    """The records of a file. Raises ValueError naming the record and the field that is wrong."""
    return [judged for _, judged in numbered(source)]


def numbered(source: Path | str) -> list[tuple[int, Judged]]:
    """The records of a file, each with its line, or its number from 1. Columns that nothing is
    taken from are named once, in a warning. Raises as `read_judged`."""
    found: list[tuple[int, Judged]] = []
    ignored: dict[str, None] = {}
    for row in sources.rows(source):
        found.append((row.place, _judged(row)))
        ignored |= dict.fromkeys(unknown(_pair_fields(row)))
    if not found:
        raise ValueError(f"{source}: no records")
    if ignored:
        log.warning("%s: columns that are ignored: %s", source, ", ".join(ignored))
    return found


def is_judged(source: Path | str) -> bool:
    """Whether the first sound record of a file says a preference."""
    return next(("preference" in row.fields for row in sources.rows(source) if row.fields), False)


def lists_families(source: Path | str) -> bool:
    """Whether the first sound record of a file describes a family, as `read_families` reads it."""
    fields = next((row.fields for row in sources.rows(source) if row.fields), {})
    return {"family", "poles", "wordings"} <= fields.keys()


def row_of(judged: Judged) -> dict[str, Any]:
    """The record that is read as this."""
    return {
        "preference": judged.wordings[0] if len(judged.wordings) == 1 else list(judged.wordings),
        **{name: value for name in FIELDS[1:] if (value := getattr(judged, name))},
        **splits.row_of(judged.pair),
    }


def read_families(file: Path, folder: Path) -> list[Family]:
    """The families that a file lists, each with the pairs of the file of its name, or of the files
    in `folder` that its `source` names.

    Raises ValueError naming the file, the line and the field that is wrong.
    """
    return [family for _, family in numbered_families(file, folder)]


def numbered_families(file: Path, folder: Path) -> list[tuple[int, Family]]:
    """`read_families`, each with its line. Raises as it does."""
    return [(row.place, _family(row, file.parent, folder)) for row in sources.rows(file)]


def flips_of(records: Iterable[Judged]) -> list[tuple[Judged, ...]]:
    """The records by pair: those of a family and a split that compare the same two answers to the
    same messages stand together, whichever of the answers each of them likes."""
    found: dict[object, list[Judged]] = {}
    for judged in records:
        found.setdefault((judged.family, judged.split, judged.pair.key), []).append(judged)
    return [tuple(group) for group in found.values()]


def families_of(records: Iterable[Judged]) -> list[Family]:
    """The families that records make up, of those that have two poles. One without a record of the
    split train is held out."""
    named: dict[str, list[Judged]] = {}
    for judged in records:
        named.setdefault(judged.family, []).append(judged)
    found = []
    for name, group in named.items():
        poles = tuple(dict.fromkeys(judged.pole for judged in group))
        if len(poles) == 2:
            found.append(_made_of(name, (poles[0], poles[1]), group))
    return found


def _made_of(name: str, poles: tuple[str, str], records: Sequence[Judged]) -> Family:
    def both(taught: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        first, second = (
            tuple(
                dict.fromkeys(
                    text
                    for judged in records
                    if judged.pole == pole and (judged.split == "train") == taught
                    for text in judged.wordings
                )
            )
            for pole in poles
        )
        return first, second

    pairs = [
        judged.pair if judged.pole == poles[0] else judged.pair.swapped
        for judged, *_ in flips_of(records)
    ]
    held_out = all(judged.split != "train" for judged in records)
    source = records[0].source
    return Family(name, poles, both(True), both(False), tuple(pairs), held_out, source)


def plain(text: str) -> str:
    """A wording by what it says: without what differs in letter case, spaces or the last mark
    alone."""
    return " ".join(text.lower().split()).rstrip(".!")


def once(texts: Iterable[str]) -> tuple[str, ...]:
    """The wordings, each that says the same once."""
    return tuple({plain(text): text for text in reversed([*texts])}.values())[::-1]


def unflipped(records: Iterable[Judged]) -> list[str]:
    """The answers that are chosen more or less often than they are rejected: from those a model
    could learn what is liked without reading a preference."""
    counts: Counter[str] = Counter()
    for judged in records:
        counts[judged.pair.chosen] += 1
        counts[judged.pair.rejected] -= 1
    return [text for text, more in counts.items() if more]


def apart(flips: Sequence[Records]) -> list[Records]:
    """The flips without those whose question another split holds too, or nearly: of train none that
    dev or test holds, of dev none that test holds."""
    train, dev, test = ([flip for flip in flips if flip[0].split == name] for name in splits.NAMES)
    return [*without_leaks(train, [*dev, *test]), *without_leaks(dev, test), *test]


def without_leaks(
    taught: Iterable[Records],
    kept: Iterable[tuple[Judged, ...]],
    size: int = 20,
    share: float = 0.5,
) -> list[Records]:
    """The taught flips whose question is none of the `kept` ones, nor nearly so: less than `share`
    of a kept question's pieces of `size` characters stand in it."""
    pieces = [_pieces(question, size) for question in dict.fromkeys(map(_question, kept))]
    holders: dict[str, list[int]] = {}
    for place, question in enumerate(pieces):
        for piece in question:
            holders.setdefault(piece, []).append(place)

    def leaks(question: str) -> bool:
        shared = Counter(
            place for piece in _pieces(question, size) for place in holders.get(piece, ())
        )
        return any(count >= share * len(pieces[place]) for place, count in shared.items())

    return [flip for flip in taught if not leaks(_question(flip))]


def _question(flip: tuple[Judged, ...]) -> str:
    return flip[0].pair.messages[-1].content


def _pieces(text: str, size: int) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[place : place + size] for place in range(max(1, len(text) - size + 1))}


def _judged(row: sources.Row) -> Judged:
    fields = row.sound
    refuse_misspelt(fields, row.where, FIELDS)
    wordings = _texts(fields.get("preference"), f"{row.where}: preference")
    about = {name: fields.get(name) or "" for name in FIELDS[1:]}
    for name, value in about.items():
        if not isinstance(value, str):
            raise ValueError(f"{row.where}: {name} must be a text (got {value!r})")
    try:
        pair = pair_of(_pair_fields(row), row.where)
    except NoPreference as why:
        raise ValueError(f"{row.where}: {why}; take the record out") from None
    return Judged(pair, wordings, **about)


def _pair_fields(row: sources.Row) -> dict[str, Any]:
    return {name: value for name, value in row.sound.items() if name not in FIELDS}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and texts and all(_is_text(text) for text in texts)):
        raise ValueError(f"{where} must be a text or a list of wordings (got {value!r})")
    with at(where):
        for text in texts:
            whole_characters(text)
    return tuple(texts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _family(row: sources.Row, beside: Path, folder: Path) -> Family:
    fields = row.sound
    refuse_misspelt(fields, row.where, FAMILY_FIELDS)
    if surplus := [name for name in fields if name not in FAMILY_FIELDS]:
        raise ValueError(
            f"{row.where}: {surplus[0]}: no field of a family is called so; take it out"
        )
    name = fields.get("family")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{row.where}: family must be a text (got {name!r})")

    def both(field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        value = fields.get(field)
        if not isinstance(value, Mapping) or value.keys() != {"a", "b"}:
            raise ValueError(
                f"{row.where}: {field} must be an object with `a` and `b`, one for each pole"
                f" (got {short(value)})"
            )
        first, second = (_texts(value[pole], f"{row.where}: {field}.{pole}") for pole in "ab")
        return first, second

    (first, *_), (second, *_) = both("poles")
    wordings = both("wordings")
    shared = fields.get("source")
    if shared:
        pairs = _shared(folder, _texts(shared, f"{row.where}: source"), name, row.where)
    else:
        pairs = _own(beside / f"{name}.jsonl")
    if not isinstance(held_out := fields.get("held_out", False), bool):
        raise ValueError(f"{row.where}: held_out must be true or false (got {short(held_out)})")
    return Family(
        name,
        (first, second),
        wordings,
        both("unseen") if "unseen" in fields else wordings,
        tuple(pairs),
        held_out,
    )


def _own(file: Path) -> Iterator[Pair]:
    """The pairs of a family's own file, whose answers are called `a` and `b`."""
    for row in sources.rows(file):
        said = row.sound
        for name in ("prompt", "a", "b"):
            if not _is_text(said.get(name)):
                raise ValueError(
                    f"{row.where}: {name} must be a text (got {short(said.get(name))})"
                )
        answers = {"chosen": said["a"], "rejected": said["b"]}
        rest = {"prompt": said["prompt"], "split": said.get("split")}
        try:
            yield pair_of({**rest, **answers}, row.where)
        except NoPreference as why:
            raise ValueError(f"{row.where}: {why}; take the record out") from None


LEVELS_OF: Mapping[str, tuple[Any, Any]] = {
    "expertise": ("expert", "generic"),
    "referral": ("avoidance", "generic"),
}
"""Which answers of level data the poles of a family like."""


def _shared(folder: Path, names: Sequence[str], name: str, where: str) -> Iterator[Pair]:
    """Pairs of data that ships for other purposes too."""
    for file in names:
        for item in read(folder / f"{file}.jsonl").items:
            if isinstance(item, LevelItem) and name not in LEVELS_OF:
                raise ValueError(
                    f"{where}: source: {file} holds level data, of which only the families"
                    f" {' and '.join(LEVELS_OF)} are made; give pairs"
                )
            yield item if isinstance(item, Pair) else item.pair(*LEVELS_OF[name])
