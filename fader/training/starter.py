"""Trains the starter set: `python -m fader.training.starter [NAME ...]`. Skips vectors that are there already."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fader.evaluation.effect import note_effect
from fader.methods.vector import CONFIG
from fader.training.data import DOMAINS, STARTER, STYLES, Item, split, starter_levels, starter_pairs
from fader.training.lessons import Lesson, lessons_of
from fader.training.vector import train_vector

FOLDER = STARTER.parent / "vectors"


def starter_lessons(name: str) -> list[Lesson]:
    """What a starter vector is taught, from the training splits of the shipped data."""
    if name in STYLES:
        return lessons_of(split(starter_pairs(name), "train"))
    if name in DOMAINS:
        return lessons_of(split(starter_levels(name), "train"), others(name))
    raise ValueError(f"{name}: not a starter vector; those are {', '.join((*DOMAINS, *STYLES))}")


def others(domain: str) -> list[Item]:
    """Questions that a domain's vector is to leave alone: of the other domains, of further subjects, and everyday ones."""
    levels = [item for name in (*DOMAINS, "other") if name != domain for item in split(starter_levels(name), "train")]
    return [*levels, *(pair for style in STYLES for pair in split(starter_pairs(style), "train")[:8])]


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Train each named starter vector (all by default)."""
    for name in names or [*DOMAINS, *STYLES]:
        if not (folder / name / CONFIG).is_file():
            data: Sequence[Item] = starter_levels(name) if name in DOMAINS else starter_pairs(name)
            note_effect(train_vector(name, starter_lessons(name), folder / name), folder / name, split(data, "dev"))


if __name__ == "__main__":
    main(sys.argv[1:])
