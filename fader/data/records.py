"""Training and evaluation data: preference pairs and level files, read and checked.

A *pairs* record has `prompt` (text or messages), `chosen` and `rejected` (text or messages).
Records whose whole conversation stands in `chosen` and `rejected` (as in many public sets), as
messages or as a transcript of turns that begin with "Human:" and "Assistant:", are split before
their last answer. A *level* record has `query` and one answer for each of the levels avoidance,
generic and expert. Either may carry `split`: train, dev or test.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fader.request import Message
from fader.schema import parse

Level = Literal["avoidance", "generic", "expert"]
LEVELS: tuple[Level, ...] = ("avoidance", "generic", "expert")


@dataclass(frozen=True)
class Pair:
    """A conversation and two answers to it, the first preferred."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    split: str = "train"

    @property
    def swapped(self) -> Pair:
        """The same with the preference reversed."""
        return Pair(self.messages, self.rejected, self.chosen, self.split)


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


def read_any(source: Path | str) -> list[Item]:
    """Level items or pairs, whichever `source` holds. Raises ValueError naming the record and the
    field that is wrong."""
    rows = read_rows(source)
    return (
        [_level(row, f"{source}:{place}") for place, row in rows]
        if _are_levels(rows)
        else [pair_of(row, f"{source}:{place}") for place, row in rows]
    )


def read_levels(source: Path | str) -> list[LevelItem]:
    """Level items. Raises ValueError naming the record and the field that is wrong."""
    return [_level(row, f"{source}:{place}") for place, row in read_rows(source)]


def read_pairs(
    source: Path | str, chosen: Level = "expert", rejected: Level = "avoidance"
) -> list[Pair]:
    """Pairs, or level items as pairs with `chosen` preferred to `rejected`. Raises ValueError
    naming the record and the field that is wrong."""
    return [
        item.pair(chosen, rejected) if isinstance(item, LevelItem) else item
        for item in read_any(source)
    ]


def read_rows(source: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """The records of a JSONL or JSONL.gz file, or of a data set on the hub or in a folder, each
    with its number from 1.

    A data set is read by `datasets`, its split behind a colon (`owner/name:train_prefs`; left out:
    train). Raises ValueError for what cannot be read and for a line that is no JSON object.
    """
    path = Path(source)
    if path.is_file():
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as stream:
            rows = list(json_rows(stream, str(source)))
    else:
        rows = _data_set(str(source))
    if not rows:
        raise ValueError(f"{source}: no records")
    return rows


def _data_set(source: str) -> list[tuple[int, dict[str, Any]]]:
    name, _, part = source.partition(":")
    known = (
        "give a .jsonl or .jsonl.gz file, a folder that `datasets` reads, or a data set's hub id"
    )
    if source.endswith((".jsonl", ".jsonl.gz", ".json")):
        raise ValueError(f"{source}: no such file; {known}")
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ModuleNotFoundError:
        raise ValueError(
            f"{source}: no such file, and data sets need `datasets`: pip install 'fader[train]'"
        ) from None
    disable_progress_bar()
    try:
        return list(enumerate(load_dataset(name, split=part or "train"), 1))
    except Exception as error:  # the hub client has no common kind of error
        raise ValueError(
            f"{source}: could not be read ({str(error).splitlines()[0]}); {known}"
        ) from error


def json_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of some lines, with their line numbers; blank lines are passed over.
    `source` names them in errors."""
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}:{place}: not valid JSON: {error}") from None
        except RecursionError:
            raise ValueError(f"{source}:{place}: nested too deeply") from None
        if not isinstance(row, dict):
            raise ValueError(f"{source}:{place}: must be a JSON object (got {type(row).__name__})")
        yield place, row


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


def _are_levels(rows: Sequence[tuple[int, dict[str, Any]]]) -> bool:
    return all("query" in row for _, row in rows)


def _level(row: dict[str, Any], where: str) -> LevelItem:
    for name in ("query", *LEVELS):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{where}: {name} must be a text (got {row.get(name)!r})")
    return LevelItem(
        row["query"],
        {level: row[level] for level in LEVELS},
        row.get("split", "train"),
        row.get("persona", ""),
    )


def pair_of(row: Mapping[str, Any], where: str) -> Pair:
    """A record as a pair. Raises ValueError naming `where` and the field that is wrong."""
    prompt, chosen, rejected = (
        row.get("prompt", row.get("messages")),
        _turns(row.get("chosen")),
        _turns(row.get("rejected")),
    )
    if prompt is None and isinstance(chosen, list) and chosen:
        prompt = chosen[:-1]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: prompt must be a text or a list of messages (got {prompt!r})")
    turns = tuple(
        parse(Message, message, f"{where}: prompt.{place}")
        for place, message in enumerate(messages)
    )
    return Pair(
        turns,
        _answer(chosen, f"{where}: chosen"),
        _answer(rejected, f"{where}: rejected"),
        row.get("split", "train"),
    )


def _turns(value: Any) -> Any:
    """The messages of a transcript; anything else as it is."""
    if not (isinstance(value, str) and value.startswith("\n\nHuman:")):
        return value
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in re.findall(
            r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", value, re.S
        )
    ]


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    elif isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: must be a text, or messages that end with one (got {value!r})")
    return value
