"""Trains the starter set: `python -m fader.training.starter [NAME ...]`. Skips vectors that are there already."""

from __future__ import annotations

import sys
from pathlib import Path

from fader.evaluation.effect import note_effect
from fader.methods.vector import CONFIG
from fader.training.data import DOMAINS, STARTER, STYLES, Item, split, starter_levels, starter_pairs
from fader.training.lessons import Lesson, from_levels, from_pairs, panel
from fader.training.vector import train_vector, train_vectors

FOLDER = STARTER.parent / "vectors"


def domain_lessons() -> list[Lesson]:
    """What the domains' vectors are taught, side by side, from the training splits: each its levels whatever the others do, and to leave further
    subjects and everyday questions alone."""
    others: list[Item] = [*split(starter_levels("other"), "train")]
    others += [pair for style in STYLES for pair in split(starter_pairs(style), "train")[:8]]
    return panel([from_levels(split(starter_levels(domain), "train")) for domain in DOMAINS], others)


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Train the named starter vectors, all by default; the domains' are trained together if any of them is wanted and missing."""
    for name in names:
        if name not in (*DOMAINS, *STYLES):
            raise ValueError(f"{name}: not a starter vector; those are {', '.join((*DOMAINS, *STYLES))}")
    missing = [name for name in names or [*DOMAINS, *STYLES] if not (folder / name / CONFIG).is_file()]
    if any(name in DOMAINS for name in missing):
        for vector in train_vectors({domain: folder / domain for domain in DOMAINS}, domain_lessons()):
            note_effect(vector, folder / vector.name, split(starter_levels(vector.name), "dev"))
    for name in missing:
        if name in STYLES:
            vector = train_vector(name, from_pairs(split(starter_pairs(name), "train")), folder / name)
            note_effect(vector, folder / name, split(starter_pairs(name), "dev"))


if __name__ == "__main__":
    main(sys.argv[1:])
