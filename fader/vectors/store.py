"""Where vectors are found by name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from fader.schema import Invalid, at
from fader.vectors.peft_folder import CONFIG, WEIGHTS
from fader.vectors.vector import CARD, Vector

NAME = r"\w[\w.-]*"  # letters, digits, points, hyphens and underscores


def user_folder() -> Path:
    """The user's own vectors."""
    return Path(user_data_path("fader")) / "vectors"


def vector_folder(name: str, out: str | None, field: str) -> Path:
    """Where a new vector is written: `out`, or a folder of its name among the user's. Raises
    ValueError, under `field`, for what is no name, and for an empty `out`."""
    if not re.fullmatch(NAME, name):
        raise ValueError(
            f"{field}: {name!r} must be letters, digits, points, hyphens and underscores; a folder"
            " goes into --out"
        )
    if out == "":
        raise ValueError("--out: is empty; give a folder, or leave it out")
    return user_folder() / name if out is None else Path(out)


def folders() -> list[Path]:
    """Where named vectors are looked for: FADER_VECTORS, the project's folder, the user's, and the
    starter set."""
    given = [Path(part) for part in os.environ.get("FADER_VECTORS", "").split(os.pathsep) if part]
    return [
        *given,
        Path(".fader/vectors"),
        user_folder(),
        Path(__file__).parent.parent / "starter" / "vectors",
    ]


def available() -> dict[str, Path]:
    """All vectors that a request may name: name to folder."""
    found: dict[str, Path] = {}
    for folder in folders():
        for config in sorted(folder.glob(f"[!.]*/{CONFIG}")):
            found.setdefault(config.parent.name, config.parent)
    return found


def find(name: str) -> Vector:
    """The vector of that name in one of the folders, for a request from anywhere: paths, addresses
    and links that lead out of the folders are no names, and nothing of them is opened. Raises
    ValueError naming the known vectors."""
    known = available()
    if name in known and not re.fullmatch(NAME, name):
        raise Invalid(
            "no request can name it so; call its folder by letters, digits, points, hyphens and"
            " underscores",
            f"vectors.{name}",
        )
    if name not in known or not is_inside(known[name]):
        raise Invalid(f"no such vector; known: {', '.join(known) or 'none'}", f"vectors.{name}")
    with at("vectors", name):
        return Vector.load(known[name], name)


def open_vector(source: str) -> Vector:
    """The vector of that name, or in that folder, for the command line and Python, whose caller may
    read any file anyway. Raises ValueError naming the known vectors."""
    known = available()
    if source not in known and not (Path(source) / CONFIG).is_file():
        raise Invalid(
            f"no such vector; known: {', '.join(known) or 'none'}; or give a PEFT LoRA folder",
            f"vectors.{source}",
        )
    return Vector.load(known.get(source, Path(source)), source)


def is_inside(folder: Path) -> bool:
    """Whether a vector's folder and its files lie where their names say, not behind links that
    lead out."""
    root = folder.parent.resolve()
    return all(
        (folder / file).resolve().is_relative_to(root) for file in (".", CONFIG, WEIGHTS, CARD)
    )
