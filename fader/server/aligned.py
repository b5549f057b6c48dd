"""Which model answers a request, and under which alignment.

The highest of these that is given counts, as a whole: the body's `alignment` (or, in its place,
`vllm_xargs.alignment` as JSON text, or llama.cpp's `lora` list), the model's name `base:profile`,
the header `X-Fader-Profile`, the server's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fader.profiles import find_profile
from fader.request import Alignment
from fader.schema import Invalid, at, parse
from fader.server.wire import Asked, parse_json
from fader.vectors.store import available

HEADER = "X-Fader-Profile"


def vector_ids() -> list[tuple[str, Path]]:
    """The vectors that a request may name, each with its folder; the place in the list is its id in
    llama.cpp's `lora`."""
    return sorted(available().items())


def model_of(name: str | None, models: Sequence[str]) -> tuple[str, str | None]:
    """The model and the profile that a model's name says. Raises `Invalid` for others."""
    if not name:
        return models[0], None
    if name in models:
        return name, None
    base, colon, profile = name.rpartition(":")
    if not colon or base not in models:
        raise Invalid(f"{name[:200]!r} is not loaded; loaded: {', '.join(models)}", "model")
    return base, profile


def alignment_of(
    body: Asked, profile: str | None, header: str | None, default: Alignment
) -> Alignment:
    """The alignment of a request: of the channels above the highest that is given. Raises `Invalid`
    for a name that there is not, and for two channels of the body at once."""
    found = _of_body(body)
    if found is not None:
        return found
    if profile is not None:
        with at("model"):
            return find_profile(profile)
    if header:
        with at(f"header {HEADER}"):
            return find_profile(header)
    return default


def _of_body(body: Asked) -> Alignment | None:
    text = body.vllm_xargs.alignment if body.vllm_xargs else None
    given = {
        "alignment": body.alignment is not None,
        "vllm_xargs.alignment": text is not None,
        "lora": body.lora is not None,
    }
    names = [name for name, there in given.items() if there]
    if len(names) > 1:
        raise Invalid(f"an alignment is given by {' and '.join(names)}; give one", names[1])
    if body.alignment is not None:
        return parse(Alignment, body.alignment, "alignment")
    if text is not None:
        with at("vllm_xargs.alignment"):
            value = parse_json(text.encode("utf-8", "surrogatepass"))
        return parse(Alignment, value, "vllm_xargs.alignment")
    if body.lora is None:
        return None
    known, strengths = vector_ids(), dict[str, float]()
    for place, one in enumerate(body.lora):
        if one.id >= len(known):
            raise Invalid(
                f"there is no vector of the id {one.id}; /v1/vectors lists them", f"lora[{place}]"
            )
        strengths[known[one.id][0]] = one.scale
    return Alignment(vectors=strengths)
