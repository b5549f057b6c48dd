"""Named alignments: where they are kept, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_config_path

from fader.files import is_file, read_text, repeated, write_whole
from fader.request import Alignment
from fader.schema import Invalid, at, parse, short

SHIPPED = Path(__file__).parent / "starter" / "profiles"
"""The profiles that ship, for the built-in model."""
ENDINGS = (".json", ".yaml", ".yml")


def profile_folders() -> list[Path]:
    """Where a person's named profiles are: the project's folder, then the user's."""
    return [Path(".fader/profiles"), user_config_path("fader") / "profiles"]


def profiles() -> dict[str, Path]:
    """All named profiles: name to file. A project's profile hides the user's of the same name, and
    either hides one that ships."""
    found: dict[str, Path] = {}
    for folder in (*profile_folders(), SHIPPED):
        for file in sorted(folder.glob("*")):
            if file.suffix in ENDINGS and is_file(file):
                found.setdefault(file.stem, file)
    return found


def _one_file(name: str) -> Path | None:
    """The file of a named profile; None where there is none. Raises `Invalid` where its folder has
    two files of that name, of which one would never be read."""
    file = profiles().get(name)
    if file is not None and len(found := _files(file.parent, name)) > 1:
        names = " and ".join(one.name for one in found)
        raise Invalid(f"the profile {name!r} is there twice, as {names}; remove one")
    return file


def _files(folder: Path, name: str) -> list[Path]:
    return [file for ending in ENDINGS if (file := folder / f"{name}{ending}").exists()]


def load_alignment(text: str | Mapping[str, Any] | Alignment) -> Alignment:
    """An alignment from JSON text, a JSON or YAML file, or a profile's name. What is JSON is read
    as JSON, since YAML would read some of it differently.

    A profile's name may also stand where a guide has `preferences`: the guide is told that
    profile's. Raises `Invalid`."""
    if isinstance(text, Alignment):
        return text
    source, value = _read_alignment(text)
    return parse(Alignment, _told_by_name(value, source), source)


def _read_alignment(text: str | Mapping[str, Any]) -> tuple[str, Any]:
    """What an alignment is called in errors, and its fields as they were given."""
    if isinstance(text, Mapping):
        return "alignment", text
    source, content, yaml_too = "alignment", text, False
    if not text.lstrip().startswith(("{", "[")):
        with at("alignment"):
            file = _one_file(text) or Path(text)
        if len(text) > 1000 or not is_file(file):
            known = ", ".join(profiles()) or "none yet"
            raise Invalid(
                f"{short(text)} is neither JSON, nor a file, nor a profile (known profiles:"
                f" {known})",
                "alignment",
            )
        source, yaml_too = str(file), file.suffix != ".json"
        content = read_text(file.read_bytes(), source)
    value = _json_or_yaml(content, source, yaml_too)
    return source, value if value is not None else {}


def _told_by_name(value: Any, source: str) -> Any:
    """An alignment's fields, with the preferences of a profile where a guide names one."""
    guides = value.get("guides") if isinstance(value, Mapping) else None
    if not isinstance(guides, list | tuple):
        return value
    return {**value, "guides": [_named(guide, source, i) for i, guide in enumerate(guides)]}


def _named(guide: Any, source: str, place: int) -> Any:
    name = guide.get("preferences") if isinstance(guide, Mapping) else None
    if not isinstance(name, str):
        return guide
    with at(source, "guides", place, str(guide.get("kind", "")), "preferences"):
        if (file := _one_file(name)) is None:
            known = ", ".join(profiles()) or "none yet"
            raise Invalid(f"there is no profile {short(name)} (known profiles: {known})")
        _, said = _read_alignment(str(name))
        said = said.get("preferences") if isinstance(said, Mapping) else None
        if not said:
            raise Invalid(f"the profile {name!r} has no preferences to tell ({file})")
    return {**guide, "preferences": said}


def _json_or_yaml(content: str, source: str, yaml_too: bool) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        fault = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        raise Invalid("nested too deeply", source) from None
    except ValueError as error:
        raise Invalid(str(error), source) from None
    if not yaml_too:
        raise Invalid(fault, source)
    try:
        return yaml.load(content, _Yaml)
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        raise Invalid(f"not valid YAML: {error}", source) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid(
            f"not valid YAML or JSON{place}: {getattr(error, 'problem', error)}", source
        ) from None


class _Yaml(yaml.SafeLoader):
    """YAML in which a key that is given twice is a fault, as in JSON: it would lose the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                said = f"{key.value!r} is given twice in one object; give it once"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return node


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if (twin := repeated(name for name, _ in pairs)) is not None:
        raise ValueError(f"{twin!r} is given twice in one object; give it once")
    return dict(pairs)


def profile_file(name: str) -> Path:
    """Where a profile of that name is kept in the project. Raises ValueError for what is no
    name."""
    if not is_name(name):
        raise ValueError(f"profile: {name!r} is not a name; use letters, digits, - and _")
    return profile_folders()[0] / f"{name}.yaml"


def profile_place(name: str) -> Path:
    """Where a profile of that name may be written. Raises `Invalid` where the folder has one in a
    file with another ending, and ValueError for what is no name."""
    file = profile_file(name)
    if other := [one for one in _files(file.parent, name) if one != file]:
        raise Invalid(f"{other[0]} is a profile of that name already; remove it", "profile")
    return file


def save_profile(name: str, alignment: Alignment) -> Path:
    """Write an alignment into the project's profile folder, where requests find it by name. Written
    beside its place and renamed. Raises as `profile_place`."""
    file = profile_place(name)
    said = alignment.model_dump(mode="json", exclude_defaults=True)
    write_whole(file, yaml.safe_dump(said, sort_keys=False))
    return file


def find_profile(name: str) -> Alignment:
    """The profile of that name, for a request from anywhere: paths and links that lead out of the
    folders are no names, and nothing of them is opened. Raises `Invalid` naming those there are."""
    known = profiles()
    if name not in known or not is_name(name) or not _inside(known[name]):
        there = ", ".join(known) or "none yet"
        raise Invalid(f"there is no profile {short(name)}; there are: {there}")
    _one_file(name)
    _, value = _read_alignment(name)
    return parse(Alignment, _told_by_name(value, name), name)


def is_name(name: str) -> bool:
    """Whether a profile may be called so."""
    return re.fullmatch(r"[\w-]+", name) is not None


def _inside(file: Path) -> bool:
    """Whether a file lies where its name says, not behind a link that leads out."""
    return file.resolve().is_relative_to(file.parent.resolve())
