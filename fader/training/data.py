"""Training and evaluation data: preference pairs and level files, read and checked.

A *pairs* record has `prompt` (text or messages), `chosen` and `rejected` (text or messages). Records whose whole conversation stands in
`chosen` and `rejected` (as in many public sets) are split at their last user turn. A *level* record has `query` and one answer for each of
the levels avoidance, generic and expert. Either may carry `split`: train, dev or test.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fader.request import Message, parse

Level = Literal["avoidance", "generic", "expert"]
LEVELS: tuple[Level, ...] = ("avoidance", "generic", "expert")
STARTER = Path(__file__).parent.parent / "starter" / "data"
DOMAINS = ("medical", "legal", "financial")
STYLES = ("concise", "formal", "warm", "humorous", "cautious", "plain")


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


def starter_levels(domain: str) -> list[LevelItem]:
    """The shipped level data of one domain."""
    return read_levels(STARTER / "levels" / f"{domain}.jsonl")


def starter_pairs(style: str) -> list[Pair]:
    """The shipped pairs of one style axis."""
    return read_pairs(STARTER / "styles" / f"{style}.jsonl")


def read_levels(file: Path | str) -> list[LevelItem]:
    """A level file. Raises ValueError naming the line and the field that is wrong."""
    items = []
    for place, row in read_rows(file):
        texts = {name: row.get(name) for name in ("query", *LEVELS)}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{file}:{place}: {name} must be a text (got {text!r})")
        items.append(LevelItem(row["query"], {level: row[level] for level in LEVELS}, row.get("split", "train"), row.get("persona", "")))
    return items


def read_pairs(file: Path | str, chosen: Level = "expert", rejected: Level = "avoidance") -> list[Pair]:
    """Pairs from a pairs file, or from a level file with `chosen` preferred to `rejected`. Raises ValueError naming line and field."""
    rows = list(read_rows(file))
    if rows and all("query" in row for _, row in rows):
        return [
            Pair((Message(role="user", content=item.query),), item.answers[chosen], item.answers[rejected], item.split) for item in read_levels(file)
        ]
    return [_pair(row, f"{file}:{place}") for place, row in rows]


def read_rows(file: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """The records of a JSONL or JSONL.gz file, each with its line number. Raises ValueError for a line that is no JSON object."""
    path = Path(file)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        rows = list(json_rows(stream, str(file)))
    if not rows:
        raise ValueError(f"{file}: no records")
    return rows


def json_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of some lines, with their line numbers; blank lines are passed over. `source` names them in errors."""
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}:{place}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{source}:{place}: must be a JSON object (got {type(row).__name__})")
        yield place, row


def split(items: Sequence[Any], name: str) -> list[Any]:
    """The items of one split."""
    found = [item for item in items if item.split == name]
    if not found:
        raise ValueError(f"split: no item is marked {name!r}; there are {sorted({item.split for item in items})}")
    return found


def shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    """The items in an order that depends on the seed alone."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def content_hash(items: Sequence[Any]) -> str:
    """A short hash of the data, for a vector's card."""
    return hashlib.sha256("\n".join(repr(item) for item in items).encode()).hexdigest()[:16]


def _pair(row: dict[str, Any], where: str) -> Pair:
    prompt, chosen, rejected = row.get("prompt", row.get("messages")), row.get("chosen"), row.get("rejected")
    if prompt is None and isinstance(chosen, list) and chosen:
        prompt = chosen[:-1]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: prompt must be a text or a list of messages (got {prompt!r})")
    turns = tuple(parse(Message, message, f"{where}: prompt.{place}") for place, message in enumerate(messages))
    return Pair(turns, _answer(chosen, f"{where}: chosen"), _answer(rejected, f"{where}: rejected"), row.get("split", "train"))


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    elif isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: must be a text, or messages that end with one (got {value!r})")
    return value
