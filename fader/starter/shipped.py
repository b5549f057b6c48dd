"""The data that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fader.data.meta import PARTS, Item
from fader.data.meta_files import read_items
from fader.data.preferences import Family, read_families
from fader.data.records import LevelItem, Pair, read, read_rows

STARTER = Path(__file__).parent / "data"
DOMAINS = ("medical", "legal", "financial")
STYLES = ("concise", "formal", "warm", "humorous", "cautious", "plain")
AIMS = ("harmless", "helpful")
TOLD = ("personal", "meta")
"""The vectors that make the model obey what it is told: PAD's and MetaAlign's."""


def starter_levels(domain: str) -> list[LevelItem]:
    """The shipped level data of one domain."""
    found = read(STARTER / "levels" / f"{domain}.jsonl").items
    return [item for item in found if isinstance(item, LevelItem)]


def starter_pairs(name: str) -> list[Pair]:
    """The shipped pairs of one style axis, or of one aim."""
    found = read(STARTER / ("aims" if name in AIMS else "styles") / f"{name}.jsonl").items
    return [item for item in found if isinstance(item, Pair)]


def starter_rows(name: str, part: str | None = None) -> list[dict[str, Any]]:
    """The records of one of the shipped files that are neither pairs nor levels, all or those of a
    split."""
    return [
        row for _, row in read_rows(STARTER / f"{name}.jsonl") if part in (None, row.get("split"))
    ]


def starter_families() -> list[Family]:
    """The shipped families of preferences."""
    return read_families(STARTER / "preferences" / "families.jsonl", STARTER)


def starter_items() -> list[Item]:
    """The shipped items of MetaAlign: conflicts, consensus, and how far help should go."""
    return [item for part in PARTS for item in read_items(STARTER / "meta" / f"{part}.jsonl")]
