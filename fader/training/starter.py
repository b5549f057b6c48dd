"""Trains the starter set: `python -m fader.training.starter [NAME ...]`. Skips vectors that are there already."""

from __future__ import annotations

import sys
from pathlib import Path

from fader.methods.vector import CONFIG
from fader.training.data import DOMAINS, STARTER, STYLES, read_pairs, split
from fader.training.vector import Recipe, train_vector

FOLDER = STARTER.parent / "vectors"


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Train each named starter vector (all by default) on the training split of its shipped data."""
    for name in names or [*DOMAINS, *STYLES]:
        file = STARTER / ("levels" if name in DOMAINS else "styles") / f"{name}.jsonl"
        if not (folder / name / CONFIG).is_file():
            train_vector(name, split(read_pairs(file), "train"), folder / name, Recipe())


if __name__ == "__main__":
    main(sys.argv[1:])
