"""/v1/alignment, /v1/vectors and /v1/profiles: what can be asked for, whether it can run, and what
it would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.files import is_file
from fader.profiles import find_profile, is_name, profile_file, profiles, save_profile
from fader.request import Alignment
from fader.schema import Faults, Invalid, parse
from fader.server.aligned import HEADER, vector_ids
from fader.server.chat import asked_by
from fader.server.errors import Refused, on_the_wire
from fader.server.limits import check_size, explored_at_most
from fader.server.serving import Serving, fitted, key_of, read_json, serving, shortest
from fader.server.wire import Body, Chat, Turn, read
from fader.vectors.store import is_inside
from fader.vectors.vector import CARD

QUESTION = "Hello."
"""What is asked in a check that asks nothing."""


class Check(Chat):
    """The body of /v1/alignment/check: that of a chat, whose messages may be left out."""

    messages: list[Turn] = Field([Turn(role="user", content=QUESTION)], min_length=1)


class ProfileBody(Body):
    """The body of /v1/profiles."""

    id: str | None = None
    alignment: dict[str, Any]


async def schema(request: Request) -> Response:
    """The JSON Schema of an alignment."""
    return JSONResponse(Alignment.model_json_schema())


async def check(request: Request) -> Response:
    """Every fault of a request at once, each with its path and the fix, and what it would take.
    Runs nothing."""
    of, value = serving(request), await read_json(request)
    header = request.headers.get(HEADER)
    return JSONResponse(await to_thread.run_sync(_checked, of, value, header))


def _checked(of: Serving, value: Any, header: str | None) -> dict[str, Any]:
    faults, body, asked = Faults(), None, None
    with faults.at():
        body = read(Check, value)
    if body is not None:
        with faults.at():
            asked = asked_by(of, body, header)
    elif isinstance(value, dict):  # the alignment's own faults are told as well
        with faults.at():
            alignment = value.get("alignment")
            parse(Alignment, {} if alignment is None else alignment, "alignment")
    answer: dict[str, Any] = {}
    if body is not None and asked is not None:
        most = of.limits.max_tokens
        faults.found += of.backend.check(shortest(asked, most) if body.open_ended else asked)
        if body.open_ended and not faults.found:
            asked = fitted(of.backend, asked, most)
    if asked is not None and not faults.found:
        needs = of.backend.needs(asked)
        with faults.at():
            check_size(of.limits, [asked], [needs])
        answer = {
            "needs": {name: {"rows": r, "positions": p} for name, (r, p) in needs.items()},
            "rows": sum(rows for rows, _ in needs.values()),
            "search_tokens_at_most": explored_at_most(asked),
            "alignment": asked.alignment.model_dump(mode="json"),
        }
    told = [on_the_wire(fault)[0] for fault in faults.found]
    return {
        "ok": not told,
        "faults": [{"path": fault.path, "message": fault.said} for fault in told],
        **answer,
    }


async def vectors(request: Request) -> Response:
    """The vectors that a request may name, with their cards."""
    rows = [
        {"id": place, "object": "vector", "name": name, "card": _card(folder)}
        for place, (name, folder) in enumerate(vector_ids())
        if is_inside(folder)
    ]
    return JSONResponse({"object": "list", "data": rows})


def _card(folder: Path) -> Any:
    """A vector's card without its training curve, which is most of it; null where it has none that
    can be read."""
    try:
        card = json.loads((folder / CARD).read_text()) if is_file(folder / CARD) else {}
    except (OSError, ValueError):
        return None
    return {key: value for key, value in card.items() if key != "curve"} or None


async def list_profiles(request: Request) -> Response:
    """All profiles."""
    rows = [row for name in profiles() if is_name(name) for row in _rows(name)]
    return JSONResponse({"object": "list", "data": rows})


def _rows(name: str) -> list[dict[str, Any]]:
    """A profile's row; none for one that cannot be read."""
    try:
        alignment = find_profile(name)
    except (ValueError, OSError):
        return []
    said = alignment.model_dump(mode="json", exclude_defaults=True)
    return [{"id": name, "object": "profile", "alignment": said}]


async def get_profile(request: Request) -> Response:
    """One profile."""
    return JSONResponse(_rows(_known(request))[0])


async def add_profile(request: Request) -> Response:
    """Save a new profile."""
    _admin(request)
    body = read(ProfileBody, await read_json(request))
    if body.id is None or not is_name(body.id):
        raise Invalid("must be letters, digits, - and _", "id")
    if body.id in profiles():
        raise Refused(409, f"there is a profile {body.id!r} already; PUT replaces it", "id")
    return _saved(body.id, body, 201)


async def put_profile(request: Request) -> Response:
    """Save a profile, or replace it."""
    _admin(request)
    name = request.path_params["id"]
    if not is_name(name):
        raise Invalid("must be letters, digits, - and _", "id")
    return _saved(name, read(ProfileBody, await read_json(request)), 200)


async def delete_profile(request: Request) -> Response:
    """Forget a profile of the project's folder."""
    _admin(request)
    name, file = _known(request), profile_file(request.path_params["id"])
    if not is_file(file):
        raise Refused(
            409, f"the profile {name!r} is not in the server's own folder; remove its file there"
        )
    file.unlink()
    return JSONResponse({"id": name, "object": "profile", "deleted": True})


def _saved(name: str, body: ProfileBody, status: int) -> Response:
    save_profile(name, parse(Alignment, body.alignment, "alignment"))
    return JSONResponse(_rows(name)[0], status)


def _known(request: Request) -> str:
    name: str = request.path_params["id"]
    try:
        find_profile(name)
    except Invalid as error:
        raise Refused(404, str(error), "id", "not_found") from None
    return name


def _admin(request: Request) -> None:
    if not key_of(request).admin:
        raise Refused(
            403, "profiles are written with the admin key alone; `fader keys add NAME --admin`"
        )
