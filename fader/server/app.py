"""The server as one ASGI application: endpoints, errors, and the guard around all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from fader.backends import Backend
from fader.engine.running import Busy, Cancelled, Lost
from fader.request import Alignment
from fader.schema import Invalid
from fader.server import alignment, chat, completions, models, playground, responses, tokens
from fader.server.errors import Refused, respond
from fader.server.guard import Guard
from fader.server.keys import Keys
from fader.server.limits import Limits, Underway
from fader.server.metrics import Metrics
from fader.server.serving import Serving, serving
from fader.server.wire import Body, Chat, Completion

ENDPOINTS: Sequence[tuple[str, str, Callable[..., Any], type[Body] | None]] = (
    ("POST", "/v1/chat/completions", chat.chat, Chat),
    ("POST", "/v1/completions", completions.complete, Completion),
    ("POST", "/v1/responses", responses.respond, responses.Answered),
    ("POST", "/tokenize", tokens.tokenize, tokens.Tokenize),
    ("POST", "/detokenize", tokens.detokenize, tokens.Detokenize),
    ("GET", "/tokenizer_info", tokens.tokenizer_info, None),
    ("GET", "/v1/alignment/schema", alignment.schema, None),
    ("POST", "/v1/alignment/check", alignment.check, alignment.Check),
    ("GET", "/v1/vectors", alignment.vectors, None),
    ("GET", "/v1/profiles", alignment.list_profiles, None),
    ("POST", "/v1/profiles", alignment.add_profile, alignment.ProfileBody),
    ("GET", "/v1/profiles/{id}", alignment.get_profile, None),
    ("PUT", "/v1/profiles/{id}", alignment.put_profile, alignment.ProfileBody),
    ("DELETE", "/v1/profiles/{id}", alignment.delete_profile, None),
    ("GET", "/v1/models", models.models, None),
    ("GET", "/v1/models/{id:path}", models.model, None),
)
"""What is served: method, path, handler, and the schema of its body."""


REFERENCE = "#/components/schemas/{model}"


def create_app(
    backend: Backend,
    keys: Keys,
    default: Alignment | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = ("localhost", "127.0.0.1", "::1"),
    origins: Sequence[str] = (),
) -> tuple[ASGIApp, Serving]:
    """The application, and the server that it belongs to.

    `default`: the alignment of requests that say none. `hosts`: names that a request's `Host` may
    have; None: any. `origins`: web pages elsewhere that may use the server.
    """
    limits = limits or Limits()
    metrics = Metrics(backend.stats)
    app = FastAPI(title="fader", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.serving = Serving(backend, limits, metrics, Underway(limits), default or Alignment())
    for method, path, handler, schema in (*OWN, *ENDPOINTS):
        body = {} if schema is None else _documented(schema)
        app.add_api_route(
            path,
            handler,
            methods=[method],
            openapi_extra=body,
            response_class=JSONResponse,
            response_model=None,
        )
    app.router.routes.extend(playground.ROUTES)
    described = app.openapi()
    described.setdefault("components", {}).setdefault("schemas", {}).update(_components())
    handled = (HTTPException, RequestValidationError, Refused, Invalid, Busy, Cancelled, Lost)
    for kind in (*handled, TimeoutError, ValueError, Exception):
        app.add_exception_handler(kind, respond)
    return Guard(app, keys, limits, metrics, hosts, origins), app.state.serving


def _documented(schema: type[Body]) -> dict[str, Any]:
    """How OpenAPI says a body's schema: by its name among the components."""
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def _components() -> dict[str, Any]:
    """The schemas of all bodies by name."""
    found: dict[str, Any] = {}
    for _, _, _, schema in ENDPOINTS:
        if schema is not None:
            said = schema.model_json_schema(ref_template=REFERENCE)
            found |= {**said.pop("$defs", {}), schema.__name__: said}
    return found


def _refuse_fault(request: Request) -> None:
    if serving(request).backend.fault():  # which is in the log: here anybody may ask
        raise Refused(503, "the engine has failed; the server has to be started anew")


async def _health(request: Request) -> Response:
    """Whether the process can answer, now or after what is under way."""
    _refuse_fault(request)
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Whether it takes requests."""
    if serving(request).closing:
        raise Refused(503, "the server is shutting down")
    _refuse_fault(request)
    return JSONResponse({"status": "ready", "models": serving(request).backend.models})


async def _metrics(request: Request) -> Response:
    """What Prometheus reads."""
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return Response(serving(request).metrics.text(), media_type=kind)


OWN: Sequence[tuple[str, str, Callable[..., Any], type[Body] | None]] = (
    ("GET", "/health", _health, None),
    ("GET", "/ready", _ready, None),
    ("GET", "/metrics", _metrics, None),
)
