"""Marks items as train, dev or test: exact shares, and no question in two of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fader.data.records import Item, LevelItem

NAMES = ("train", "dev", "test")
Marked = TypeVar("Marked", bound=Item)


def marked(items: Sequence[Marked], shares: Sequence[float]) -> list[Marked]:
    """The items with their splits, which depend on the questions alone, not on their order.

    Raises ValueError for shares that are no three parts of a whole, and for items that are marked
    already.
    """
    if len(shares) != len(NAMES) or min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(
            f"splits: must be three shares (train, dev, test) that sum to 1 (got {list(shares)})"
        )
    if any(item.split != "train" for item in items):
        raise ValueError("split: the items are marked already; take the column out to draw anew")
    questions = sorted({_question(item) for item in items}, key=_hash)
    ends = [round(sum(shares[: place + 1]) * len(questions)) for place in range(len(shares))]
    found = {
        question: next(name for name, end in zip(NAMES, ends, strict=True) if place < end)
        for place, question in enumerate(questions)
    }
    return [replace(item, split=found[_question(item)]) for item in items]


def row_of(item: Item) -> dict[str, Any]:
    """The record that is read as this item."""
    if isinstance(item, LevelItem):
        persona = {"persona": item.persona} if item.persona else {}
        answers = {str(level): text for level, text in item.answers.items()}
        return {**persona, "query": item.query, **answers, "split": item.split}
    turns = [{"role": turn.role, "content": turn.content} for turn in item.messages]
    prompt = turns[0]["content"] if len(turns) == 1 else turns
    return {
        "prompt": prompt,
        "chosen": item.chosen,
        "rejected": item.rejected,
        "split": item.split,
    }


def _question(item: Item) -> str:
    return item.query if isinstance(item, LevelItem) else item.messages[-1].content


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
