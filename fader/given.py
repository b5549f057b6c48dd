"""What a person gives, made into requests: profiles, files, and folders of vectors and models.

A `Request` names things and opens nothing. Here, for the command line and for Python's `Fader`, an
alignment may be a profile's name, a file or JSON text, and what is named may be a folder or a file:
each of these gets a name, which the request then holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fader.files import is_file
from fader.profiles import load_alignment
from fader.request import Alignment, Request, RequestLike
from fader.schema import Invalid, at, parse, path_of, short, within
from fader.vectors.peft_folder import CONFIG
from fader.vectors.store import available

_MODELS = ("model", "tuned", "untuned")
_DECLARED = ("classifier", "similarity")  # rewards whose `model` is the name of something declared


@dataclass(frozen=True)
class Names:
    """The names of what was given by folder or file, and where it lies."""

    is_one: Callable[[Path], bool]
    """Whether there is such a thing at a place."""
    places: dict[str, Path] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Names of what is loaded otherwise: they stay, whatever they look like."""

    def of(self, given: Any) -> Any:
        """The name of what was given by name or by place. A new place gets a name that nothing
        else has."""
        if not isinstance(given, str) or given in self.taken or not self.is_one(Path(given)):
            return given
        place = Path(given).resolve()
        for name, known in self.places.items():
            if known == place:
                return name
        name = place.stem if place.is_file() else place.name
        if name in self.places or name in self.taken or name in available():
            name += "-" + hashlib.sha256(str(place).encode()).hexdigest()[:8]
        self.places[name] = place
        return name


@dataclass(frozen=True)
class Places:
    """What was given by place so far."""

    vectors: Names = field(default_factory=lambda: Names(_is_vector))
    models: Names = field(default_factory=lambda: Names(is_model))


def resolve(prompts: Iterable[RequestLike], places: Places, **fields: Any) -> list[Request]:
    """Requests from what a person gives; what is given by place is noted in `places`, and named in
    the requests. Needs no model. Raises `Invalid`; a fault names the request it is in."""
    if isinstance(prompts, str | Mapping | Request):
        raise Invalid("takes several prompts, and this is one; use `generate`", "prompts")
    if not isinstance(prompts, Iterable):
        raise Invalid(f"must be a list of prompts (got {short(prompts)})", "prompts")
    prompts, found = list(prompts), []
    fields = _named(fields, places)
    for place, prompt in enumerate(prompts):
        with naming(place, len(prompts)):
            found.append(Request.of(_named(prompt, places), **fields))
    return found


def _named(given: Any, places: Places) -> Any:
    """A request's fields with everything by name."""
    if not isinstance(given, Mapping):
        return given
    try:
        return _fields_named(given, places)
    except RecursionError:
        raise Invalid("nested too deeply, or within itself", "alignment") from None


def _fields_named(given: Mapping[str, Any], places: Places) -> dict[str, Any]:
    named = dict(given)
    if named.get("model") is not None:
        named["model"] = places.models.of(named["model"])
    given_alignment = named.get("alignment")
    if isinstance(given_alignment, str | Path | Mapping | Alignment):
        said = str(given_alignment) if isinstance(given_alignment, Path) else given_alignment
        alignment = load_alignment(said)
        value = alignment.model_dump(exclude_unset=True)
        renamed = _renamed(value, places)
        named["alignment"] = (
            alignment if renamed == value else parse(Alignment, renamed, "alignment")
        )
    return named


def _renamed(value: Any, places: Places, path: str = "alignment") -> Any:
    if isinstance(value, list | tuple):
        return [_renamed(inner, places, path_of(path, i)) for i, inner in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    found = {}
    for key, inner in value.items():
        inside = path_of(path, str(key))
        if key == "vectors" and isinstance(inner, Mapping):
            with at(inside):
                found[key] = _by_name(inner, places)
        elif key in _MODELS and value.get("kind") not in _DECLARED:
            found[key] = places.models.of(inner)
        else:  # `of` is a JSON Schema: what stands there is data
            found[key] = inner if key == "of" else _renamed(inner, places, inside)
    return found


def _by_name(strengths: Mapping[Any, Any], places: Places) -> dict[Any, Any]:
    """The strengths of vectors by their names. Raises `Invalid` for one that is given twice."""
    found: dict[Any, Any] = {}
    for given, strength in strengths.items():
        name = places.vectors.of(given)
        if name in found:
            raise Invalid("is given twice, by other paths or names; give it once", name)
        found[name] = strength
    return found


def _is_vector(place: Path) -> bool:
    return is_file(place / CONFIG) and str(place) not in available()


def is_model(place: Path) -> bool:
    """Whether a model's folder or GGUF file lies there."""
    return is_file(place / "config.json") or (place.suffix == ".gguf" and is_file(place))


@contextmanager
def naming(place: int, count: int) -> Iterator[None]:
    """Puts the number of the request before its faults, where there are several."""
    if count == 1:
        yield
        return
    with within(f"request {place + 1}"):
        yield
