"""Named alignments: where they are kept, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_config_path

from fader.files import write_whole
from fader.request import Alignment
from fader.schema import (
    parse,
    short,
)


def profile_folders() -> list[Path]:
    """Where named profiles are looked for: the project's folder, then the user's."""
    return [Path(".fader/profiles"), user_config_path("fader") / "profiles"]


def profiles() -> dict[str, Path]:
    """All named profiles: name to file. A project's profile hides the user's of the same name."""
    found: dict[str, Path] = {}
    for folder in profile_folders():
        for file in sorted(folder.glob("*")):
            if file.suffix in (".yaml", ".yml", ".json"):
                found.setdefault(file.stem, file)
    return found


def load_alignment(text: str | Mapping[str, Any] | Alignment) -> Alignment:
    """An alignment from what a person may give: JSON or YAML text, a file, or a profile's name."""
    if isinstance(text, Alignment):
        return text
    if isinstance(text, Mapping):
        return parse(Alignment, text, "alignment")
    source, content = "alignment", text
    if not text.lstrip().startswith(("{", "[")):
        file = profiles().get(text, Path(text))
        if len(text) > 1000 or not file.is_file():
            known = ", ".join(profiles()) or "none yet"
            raise ValueError(
                f"alignment: {short(text)} is neither JSON, nor a file, nor a profile (known"
                f" profiles: {known})"
            )
        source, content = str(file), file.read_text(encoding="utf-8")
    try:
        value = yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(
            f"{source}: not valid YAML or JSON{place}: {getattr(error, 'problem', error)}"
        ) from None
    return parse(Alignment, value if value is not None else {}, source)


def profile_file(name: str) -> Path:
    """Where a profile of that name is kept in the project. Raises ValueError for what is no
    name."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"profile: {name!r} is not a name; use letters, digits, - and _")
    return profile_folders()[0] / f"{name}.yaml"


def save_profile(name: str, alignment: Alignment) -> Path:
    """Write an alignment into the project's profile folder, where requests find it by name. Written
    beside its place and renamed."""
    file = profile_file(name)
    said = alignment.model_dump(mode="json", exclude_defaults=True)
    write_whole(file, yaml.safe_dump(said, sort_keys=False))
    return file
