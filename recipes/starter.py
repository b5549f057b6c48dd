"""Trains what is missing of the starter set: `python -m recipes.starter [NAME ...]`. To
train one again, delete its folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fader.data.records import Item, split
from fader.engine import builtin
from fader.evaluation.effect import note_effect
from fader.starter.shipped import AIMS, DOMAINS, STARTER, STYLES, starter_levels, starter_pairs
from fader.training.lessons import Lesson, cotrain, from_levels, from_pairs
from fader.training.vector import Recipe, train_vector, train_vectors
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import Vector

FOLDER = STARTER.parent / "vectors"
SMOOTHER = Recipe(learning_rate=6e-4)
"""The domains' later passes: at the usual rate a few large drifts of retained lessons throw back
what one of the vectors has learned."""
CAUTION = (
    "The base is a small model: at the expert end it writes figures, doses, paragraphs and names"
    " that it invents. The vector moves the manner of an answer, not what the model knows."
)
"""What the cards of the domains' vectors say."""


@dataclass(frozen=True)
class Stage:
    """Some passes through the domains' lessons; each draws its own strengths."""

    passes: Sequence[int]
    recipe: Recipe = SMOOTHER
    meeting: bool = False
    """See `lessons.panel`."""


DOMAIN_STAGES = (Stage((0, 1), Recipe()), Stage((2,)), Stage((3, 4), meeting=True))


def domain_lessons(stage: Stage) -> list[Lesson]:
    """What the domains' vectors are taught, side by side, from the training splits: each its levels
    whatever the others do, and to leave further subjects and everyday questions alone."""
    others: list[Item] = [*split(starter_levels("other"), "train")]
    others += [pair for style in STYLES for pair in split(starter_pairs(style), "train")[:8]]
    taught = [split(starter_levels(domain), "train") for domain in DOMAINS]
    return [
        one
        for seed in stage.passes
        for one in cotrain(
            [from_levels(items, seed) for items in taught], others, seed, stage.meeting
        )
    ]


def train_domains(
    folder: Path, stages: Sequence[Stage] = DOMAIN_STAGES, model: str = builtin.NAME
) -> list[Vector]:
    """The domains' vectors, trained together, each stage from where the one before it ended, and
    measured; a stopped run goes on at the stage it was in."""
    vectors: list[Vector] = []
    scratch: list[Path] = []
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        places = {
            domain: folder / (domain if last else f".{domain}.stage{number}") for domain in DOMAINS
        }
        vectors = train_vectors(
            places, domain_lessons(stage), stage.recipe, model, start=vectors, force=True
        )
        scratch += [] if last else places.values()
    noted = []
    for vector in vectors:
        cautious = replace(vector, card={**vector.card, "caution": CAUTION})
        items = split(starter_levels(vector.name), "dev")
        noted.append(note_effect(cautious, folder / vector.name, items, model))
    for place in scratch:
        shutil.rmtree(place)
    return noted


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Train the named starter vectors, all by default; the domains' are trained together if any of
    them is wanted and missing."""
    for name in names:
        if name not in (*DOMAINS, *STYLES, *AIMS):
            raise ValueError(
                f"{name}: not a starter vector; those are {', '.join((*DOMAINS, *STYLES, *AIMS))}"
            )
    missing = [
        name for name in names or [*DOMAINS, *STYLES, *AIMS] if "effect" not in _card(folder / name)
    ]
    if any(name in DOMAINS for name in missing):
        train_domains(folder)
    for name in missing:
        if name not in DOMAINS:
            vector = train_vector(
                name, from_pairs(split(starter_pairs(name), "train")), folder / name
            )
            note_effect(vector, folder / name, split(starter_pairs(name), "dev"))


def _card(folder: Path) -> Mapping[str, Any]:
    return Vector.load(folder).card if (folder / CONFIG).is_file() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
