"""Training and evaluation data: preference pairs and level files, read and checked.

A *pairs* record is a conversation with a preferred and another answer, in any of the forms that
`conversations.py` lists. A *level* record has `query` and one answer for each of the levels
avoidance, generic and expert. Either may carry `split`: train, dev or test, by any of their usual
names. Nothing is dropped in silence: a `Reading` says what was read, left out and ignored.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fader.data import conversations, sources
from fader.data.conversations import Comparison, NoPreference, Rated
from fader.data.sources import Row
from fader.request import Message
from fader.schema import at, whole_characters

Level = Literal["avoidance", "generic", "expert"]
LEVELS: tuple[Level, ...] = ("avoidance", "generic", "expert")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A conversation and two answers to it, the first preferred."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    split: str = "train"

    @property
    def key(self) -> tuple[tuple[Message, ...], frozenset[str]]:
        """Tells the pair from others, whichever answer is preferred."""
        return self.messages, frozenset((self.chosen, self.rejected))

    @property
    def swapped(self) -> Pair:
        """The same with the preference reversed."""
        return Pair(self.messages, self.rejected, self.chosen, self.split)


def showing(turns: Iterable[tuple[Sequence[Message], str]]) -> tuple[Message, ...]:
    """Questions and their answers as turns."""
    found: list[Message] = []
    for messages, answer in turns:
        found += [*messages, Message(role="assistant", content=answer)]
    return tuple(found)


@dataclass(frozen=True)
class LevelItem:
    """A question with its answers at the three levels of Alignment Vectors."""

    query: str
    answers: dict[Level, str]
    split: str = "train"
    persona: str = ""

    def pair(self, chosen: Level = "expert", rejected: Level = "avoidance") -> Pair:
        """Its answers at two of the levels, the first preferred."""
        return Pair(
            (Message(role="user", content=self.query),),
            self.answers[chosen],
            self.answers[rejected],
            self.split,
        )


Item = LevelItem | Pair


@dataclass(frozen=True)
class Reading:
    """What was read of a file or data set."""

    source: str
    records: int
    """Those that there are, whatever became of them."""
    items: tuple[Item, ...]
    places: tuple[int, ...]
    """Of each item its line, or the number of its record."""
    left_out: Mapping[str, Sequence[int]]
    """Why records teach nothing, and the places of those."""
    ignored: tuple[str, ...]
    """Columns that nothing was taken from."""
    unrated: tuple[int, ...]
    """Of each answer that was left out since nobody has rated it, its place."""
    bad: tuple[str, ...]
    """What is wrong with the lines that were passed over."""

    @property
    def splits(self) -> dict[str, int]:
        """How many items there are of each split."""
        return dict(Counter(item.split for item in self.items))

    def notes(self) -> list[str]:
        """What a reader of the file should know beside the counts: a sentence each."""
        found = [f"{line} (passed over)" for line in self.bad]
        if self.ignored:
            found.append(f"{self.source}: columns that are ignored: {', '.join(self.ignored)}")
        for why, places in self.left_out.items():
            found.append(f"{self.source}: {len(places)} left out: {why} ({_few(places)})")
        if self.unrated:
            places = tuple(dict.fromkeys(self.unrated))
            found.append(
                f"{self.source}: {len(self.unrated)} answers left out: they have no rating"
                f" ({_few(places)})"
            )
        return found

    def summary(self) -> str:
        """The counts in one sentence."""
        parts = [f"{count} {name}" for name, count in self.splits.items()]
        gone = sum(map(len, self.left_out.values()))
        parts += [f"{gone} left out"] if gone else []
        parts += [f"{len(self.unrated)} answers unrated"] if self.unrated else []
        parts += [f"{len(self.bad)} passed over"] if self.bad else []
        kind = "level items" if isinstance(self.items[0], LevelItem) else "pairs"
        return (
            f"{self.source}: {self.records} records read, {len(self.items)} {kind}:"
            f" {', '.join(parts)}"
        )


def read(source: Path | str, rating: str | None = None, skip_bad: int = 0) -> Reading:
    """Level items or pairs, whichever `source` holds, and what became of the rest.

    `rating`: the column that says which of several answers is better, for data that has ratings
    instead of a chosen answer. `skip_bad`: at most this many records may be wrong, and are passed
    over. Raises ValueError naming the record and the field that is wrong, and where nothing is
    left.
    """
    rows = list(sources.rows(source))
    if not rows:
        raise ValueError(f"{source}: no records")
    levels = any(_has_levels(row.fields) for row in rows if row.fields is not None)
    if levels and rating is not None:
        raise ValueError(f"{source}: {rating}: level data has no ratings; leave --rating out")
    found: list[tuple[int, Item]] = []
    groups: dict[tuple[object, str], tuple[int, Rated]] = {}
    left_out: dict[str, list[int]] = {}
    ignored: dict[str, None] = {}
    unrated: list[int] = []
    bad: list[str] = []
    for row in rows:
        try:
            fields = row.sound
            if levels:
                found.append((row.place, _level(fields, row.where)))
                ignored |= dict.fromkeys(name for name in fields if name not in _LEVEL_FIELDS)
                continue
            ignored |= dict.fromkeys(
                name for name in conversations.unknown(fields) if name != rating
            )
            mark = sources.split_name(fields.get("split"), row.where)
            if not conversations.is_rated(fields):
                compared = conversations.comparison(fields, row.where, rating)
                found.append((row.place, _pair(compared, mark)))
                continue
            rated = conversations.rated(fields, row.where, rating)
            unrated += [row.place] * rated.unrated
            place, before = groups.get((rated.messages, mark), (row.place, None))
            answers = (*(before.answers if before else ()), *rated.answers)
            groups[rated.messages, mark] = (place, replace(rated, answers=answers))
        except NoPreference as why:
            left_out.setdefault(str(why), []).append(row.place)
        except ValueError as error:
            bad_record(bad, error, skip_bad)
    for (_, mark), (place, rated) in groups.items():
        try:
            found.append((place, _pair(conversations.best_and_worst(rated), mark)))
        except NoPreference as reason:
            left_out.setdefault(str(reason), []).append(place)
    if not found:
        reasons = [*(f"{reason} ({_few(places)})" for reason, places in left_out.items()), *bad]
        raise ValueError(f"{source}: no records are left of {len(rows)}: {'; '.join(reasons)}")
    return Reading(
        str(source),
        len(rows),
        tuple(item for _, item in found),
        tuple(place for place, _ in found),
        left_out,
        tuple(ignored),
        tuple(unrated),
        tuple(bad),
    )


def _few(places: Sequence[int]) -> str:
    first = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
    return f"record{'s' * (len(places) > 1)} {first}"


def bad_record(bad: list[str], error: ValueError, skip_bad: int) -> None:
    """Add what is wrong with a record to `bad`. Raises ValueError where these are more than
    `skip_bad`."""
    bad.append(str(error).replace("\n", "; "))
    if len(bad) > skip_bad:
        more = f"; it is bad record {len(bad)}, --skip-bad passes over {skip_bad}"
        raise ValueError(bad[-1] + (more if skip_bad else "")) from None


def read_any(source: Path | str, rating: str | None = None, skip_bad: int = 0) -> list[Item]:
    """The items of `read`; what it left out or ignored is logged as a warning."""
    found = read(source, rating, skip_bad)
    for note in found.notes():
        log.warning("%s", note)
    return list(found.items)


def read_levels(source: Path | str) -> list[LevelItem]:
    """Level items. Raises ValueError naming the record and the field that is wrong."""
    found = read_any(source)
    if not all(isinstance(item, LevelItem) for item in found):
        raise ValueError(f"{source}: must hold levels: query, {', '.join(LEVELS)}")
    return [item for item in found if isinstance(item, LevelItem)]


def read_pairs(
    source: Path | str, chosen: Level = "expert", rejected: Level = "avoidance"
) -> list[Pair]:
    """Pairs, or level items as pairs with `chosen` preferred to `rejected`. Raises ValueError
    naming the record and the field that is wrong."""
    return as_pairs(read_any(source), chosen, rejected)


def as_pairs(
    items: Iterable[Item], chosen: Level = "expert", rejected: Level = "avoidance"
) -> list[Pair]:
    """The items as pairs, the answers of level items at `chosen` preferred to those at
    `rejected`."""
    return [item.pair(chosen, rejected) if isinstance(item, LevelItem) else item for item in items]


def read_rows(source: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """The records of a file or data set as they are, each with its line, or its number from 1.
    Raises ValueError for what cannot be read and for a line that is no JSON object."""
    return [(row.place, dict(row.sound)) for row in _some(sources.rows(source), source)]


def _some(rows: Iterable[Row], source: Path | str) -> list[Row]:
    found = list(rows)
    if not found:
        raise ValueError(f"{source}: no records")
    return found


def split(items: Sequence[Any], name: str) -> list[Any]:
    """The items of one split."""
    found = [item for item in items if item.split == name]
    if not found:
        raise ValueError(
            f"split: no item is marked {name!r}; there are {sorted({item.split for item in items})}"
        )
    return found


def shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    """The items in an order that depends on the seed alone."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def content_hash(items: Sequence[Any]) -> str:
    """A short hash of the data, for a vector's card."""
    return hashlib.sha256("\n".join(repr(item) for item in items).encode()).hexdigest()[:16]


_LEVEL_FIELDS = ("query", *LEVELS, "split", "persona")


def _has_levels(row: Mapping[str, Any]) -> bool:
    return "chosen" not in row and any(level in row for level in LEVELS)


def _level(row: Mapping[str, Any], where: str) -> LevelItem:
    conversations.refuse_misspelt(row, where, _LEVEL_FIELDS)
    for name in ("query", *LEVELS):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{where}: {name} must be a text (got {row.get(name)!r})")
    for name in ("query", *LEVELS, "persona"):
        with at(f"{where}: {name}"):
            whole_characters(str(row.get(name)))
    for name in conversations.SYSTEMS:
        if row.get(name):
            raise ValueError(
                f"{where}: {name}: level data has no system turns; take the column out"
            )
    persona = row.get("persona")
    if persona is not None and not isinstance(persona, str):
        raise ValueError(f"{where}: persona must be a text (got {persona!r})")
    return LevelItem(
        row["query"],
        {level: row[level] for level in LEVELS},
        sources.split_name(row.get("split"), where),
        persona or "",
    )


def _pair(compared: Comparison, split: str) -> Pair:
    return Pair(compared.messages, compared.chosen, compared.rejected, split)


def pair_of(row: Mapping[str, Any], where: str) -> Pair:
    """A record as a pair. Raises ValueError naming `where` and the field that is wrong."""
    mark = sources.split_name(row.get("split"), where)
    return _pair(conversations.comparison(row, where), mark)
