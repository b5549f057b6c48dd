"""Trains what is missing of the starter set: `python -m recipes.starter [NAME ...]`. To
train one again, delete its folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fader.cli import train
from fader.data.records import Item, split
from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.evaluation.cache import ResultCache
from fader.evaluation.effect import note_effect
from fader.evaluation.personal import accuracies
from fader.evaluation.suite import Suite
from fader.fader import Fader
from fader.starter.shipped import (
    AIMS,
    DOMAINS,
    STARTER,
    STYLES,
    TOLD,
    starter_levels,
    starter_pairs,
)
from fader.training.lessons import Lesson, cotrain, from_levels, from_pairs
from fader.training.vector import Recipe, train_vector, train_vectors
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import Vector

FOLDER = STARTER.parent / "vectors"
NAMES = (*DOMAINS, *STYLES, *AIMS, *TOLD)
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


def train_told(name: str, folder: Path) -> None:
    """A vector that makes the model obey what it is told, as its command trains it; of PAD's the
    accuracy on dev goes onto the card."""
    if name == "meta":
        train.meta(name, out=str(folder), stages=train.TrainingStages.preferences, start="personal")
    else:
        train.personal(name, out=str(folder))
        note_accuracies(Vector.load(folder), folder)


def note_accuracies(vector: Vector, folder: Path) -> Vector:
    """Measure how a personalised model ranks the pairs of dev, and write it into its card in
    `folder`. Returns the vector with that card."""
    with Fader(dtype=quick_dtype()) as fader:
        fader.add_vector(vector, "personal")
        suite = Suite(ResultCache(fader), split="dev", personal="personal")
        found = [asdict(metric) for metric in accuracies(suite, "personalized")]
    effect = {"vector": vector.digest, "base": vector.base, "split": "dev", "metrics": found}
    noted = replace(vector, card={**vector.card, "effect": effect})
    noted.save(folder)
    return noted


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Train the named starter vectors, all by default; the domains' are trained together if any of
    them is wanted and missing."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{name}: not a starter vector; those are {', '.join(NAMES)}")
    missing = [name for name in names or NAMES if not _done(name, folder / name)]
    if any(name in DOMAINS for name in missing):
        train_domains(folder)
    for name in missing:
        if name in TOLD:
            train_told(name, folder / name)
        elif name not in DOMAINS:
            vector = train_vector(
                name, from_pairs(split(starter_pairs(name), "train")), folder / name
            )
            note_effect(vector, folder / name, split(starter_pairs(name), "dev"))


def _done(name: str, folder: Path) -> bool:
    """Whether a vector is trained, and measured where its recipe does that."""
    return (folder / CONFIG).is_file() and (name == "meta" or "effect" in Vector.load(folder).card)


if __name__ == "__main__":
    main(sys.argv[1:])
