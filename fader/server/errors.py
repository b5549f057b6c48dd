"""Errors as OpenAI's error object, whatever goes wrong and wherever.

`{"error": {"message", "type", "param", "code"}}`, where `param` is the path of the field as the
client gave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fader.engine.running import Busy, Cancelled, Lost
from fader.schema import Invalid

RETRY_SECONDS = 1
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ABSENT = {
    "embeddings": "this server has no embeddings; it serves models that write",
    "images": "this server has no images; it serves models that write text",
    "audio": "this server has no audio; it serves models that write text",
    "moderations": "this server has no moderations; it serves models that write",
    "files": "this server keeps no files; give the text in the request",
    "assistants": "this server keeps no assistants; use /v1/chat/completions",
    "batches": "this server takes no batches; send the requests side by side",
}
"""What OpenAI has and this server does not, by the first part of its path."""
WIRE = {
    "sampling.": "",
    "sampling": "min_tokens",
    "raw": "prompt",
    "json_schema": "response_format",
    "prefill": "messages[-1].content",
}
"""What a request calls a field, and what the wire calls it."""


class Refused(Exception):
    """A request that is answered with an error of this status."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """As a response of its own."""
        return JSONResponse(self.body, self.status, self.headers)


def wire_path(path: str) -> str:
    """The path of a request's field under the names that a client gave the fields."""
    for inside, outside in WIRE.items():
        if path.startswith(inside):
            return outside + path.removeprefix(inside)
    return path


def on_the_wire(error: Invalid) -> list[Invalid]:
    """The faults of a request under the names that a client gave the fields."""
    return [Invalid(fault.said, wire_path(fault.path)) for fault in error.faults]


def refusal(error: BaseException) -> Refused:
    """Any error as what the client is told. One of ours goes to the log, and only that it happened
    to the client."""
    match error:
        case Refused():
            return error
        case Invalid():
            faults = on_the_wire(error)
            said = "\n".join(map(str, faults))
            if faults[0].path == "model":
                return Refused(404, said, "model", "model_not_found")
            return Refused(400, said, faults[0].path or None, "invalid_value")
        case Busy():
            return busy(str(error))
        case Cancelled():
            return Refused(503, "the request was ended: the server is shutting down")
        case Lost():
            headers = {"Retry-After": str(RETRY_SECONDS)}
            return Refused(503, str(error), code="replica_lost", headers=headers)
        case TimeoutError() | asyncio.TimeoutError():
            return Refused(
                504,
                "the request took longer than this server allows; ask for fewer tokens",
                code="timeout",
                headers={"X-Should-Retry": "false"},
            )
        case ClientDisconnect():
            return Refused(499, "the client went away")
        case HTTPException():
            return Refused(error.status_code, str(error.detail), headers=error.headers)
        case ValueError():  # found while it ran, such as scores that are no numbers
            return Refused(400, str(error), code="invalid_value")
        case _:
            logging.getLogger("fader").error("a request failed", exc_info=error)
            return Refused(500, "the server failed at this request; its log says why")


def busy(message: str) -> Refused:
    """Too much is asked at this moment."""
    return Refused(429, message, code="busy", headers={"Retry-After": str(RETRY_SECONDS)})


async def respond(request: Request, error: Exception) -> Response:
    """The one handler of errors."""
    found = refusal(error)
    if isinstance(error, HTTPException):
        path, method = request.url.path, request.method
        part = path.removeprefix("/v1/").partition("/")[0]
        if error.status_code == 404:
            found.message = ABSENT.get(part, f"there is nothing at {path[:200]}")
            found.code = "not_found"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            found.message = f"{path[:200]} does not take {method}; it takes {allowed}"
        elif found.message == HTTPStatus(error.status_code).phrase:
            found.message = f"{error.status_code}: {found.message}"
    return found.response()
