"""/v1/models: what a request's `model` may say, each profile as `base:profile`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.engine import builtin
from fader.profiles import SHIPPED, is_name, profiles
from fader.server.aligned import model_of
from fader.server.errors import Refused
from fader.server.serving import Serving, serving


async def models(request: Request) -> Response:
    """All of them."""
    of = serving(request)
    rows = [
        _row(of, base, profile)
        for base in of.backend.models
        for profile in (None, *filter(is_name, _profiles_for(base)))
    ]
    return JSONResponse({"object": "list", "data": rows})


async def model(request: Request) -> Response:
    """One of them."""
    of, name = serving(request), request.path_params["id"]
    base, profile = model_of(name, of.backend.models)
    if profile is not None and (profile not in profiles() or not is_name(profile)):
        raise Refused(
            404, f"there is no profile {profile[:100]!r}", param="model", code="model_not_found"
        )
    return JSONResponse(_row(of, base, profile))


def _profiles_for(base: str) -> list[str]:
    """The profiles that a model may be asked under: those that ship are for the built-in one."""
    return [
        name for name, file in profiles().items() if file.parent != SHIPPED or base == builtin.NAME
    ]


def _row(of: Serving, base: str, profile: str | None) -> dict[str, Any]:
    longest = of.backend.about(base).max_length
    return {
        "id": base if profile is None else f"{base}:{profile}",
        "object": "model",
        "created": of.started,
        "owned_by": "fader",
        "root": base,
        "parent": None if profile is None else base,
        "max_model_len": longest,
        "context_length": longest,
    }
