"""The data that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fader.data.records import LevelItem, Pair, read_levels, read_pairs, read_rows

STARTER = Path(__file__).parent / "data"
DOMAINS = ("medical", "legal", "financial")
STYLES = ("concise", "formal", "warm", "humorous", "cautious", "plain")
AIMS = ("harmless", "helpful")


def starter_levels(domain: str) -> list[LevelItem]:
    """The shipped level data of one domain."""
    return read_levels(STARTER / "levels" / f"{domain}.jsonl")


def starter_pairs(name: str) -> list[Pair]:
    """The shipped pairs of one style axis, or of one aim."""
    return read_pairs(STARTER / ("aims" if name in AIMS else "styles") / f"{name}.jsonl")


def starter_rows(name: str, part: str | None = None) -> list[dict[str, Any]]:
    """The records of one of the shipped files that are neither pairs nor levels, all or those of a
    split."""
    return [
        row for _, row in read_rows(STARTER / f"{name}.jsonl") if part in (None, row.get("split"))
    ]
