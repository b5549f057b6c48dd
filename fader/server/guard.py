"""What every request passes before anything of it is read, and what every response gets.

A web page elsewhere must not reach a server on this machine. Browsers send its address as `Origin`,
and after DNS rebinding its name as `Host`: both must be this server's own, unless allowed. Nothing
here opens anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fader.server.errors import Refused, refusal
from fader.server.keys import Key, Keys
from fader.server.limits import Limits
from fader.server.metrics import Metrics
from fader.server.playground import files

OPEN = {"/health", "/ready", *files()}
"""What is answered without a key: the page asks for it."""
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
NOBODY = Key("", "")
"""Who asks where no keys are configured."""


@dataclass(frozen=True)
class Guard:
    """The outermost layer of the server."""

    app: ASGIApp
    keys: Keys
    limits: Limits
    metrics: Metrics
    hosts: Sequence[str] | None
    """Names that a request's `Host` may have; None: any."""
    origins: Sequence[str] = ()
    """Web pages elsewhere that may use this server, such as `https://example.org`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began, status, headers = time.perf_counter(), 0, Headers(scope=scope)
        allowed = self._allowed_origin(headers)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = MutableHeaders(raw=message["headers"])
                for name, value in SECURITY.items():
                    given.setdefault(name, value)
                if allowed:
                    given["Access-Control-Allow-Origin"] = allowed
                    given.append("Vary", "Origin")
            await send(message)

        try:
            self._check_address(headers, allowed)
            if allowed and scope["method"] == "OPTIONS":
                await _preflight(answer)
                return
            scope.setdefault("state", {})["key"] = self._key_of(scope["path"], headers)
            await self.app(scope, receive, answer)
        except Refused as error:
            if error.status == 413:
                await drain(receive, self.limits)
            await error.response()(scope, receive, answer)
        except Exception as error:
            if not status:
                await refusal(error).response()(scope, receive, answer)
        finally:
            with suppress(KeyError):
                self.metrics.count(scope, status or 499, time.perf_counter() - began)

    def _allowed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin")
        return origin if origin in self.origins else None

    def _check_address(self, headers: Headers, allowed: str | None) -> None:
        """Raises `Refused` for headers that are too large, or from a page elsewhere."""
        size = sum(len(name) + len(value) for name, value in headers.raw)
        if size > self.limits.headers:
            raise Refused(
                431, f"the headers have {size} bytes, this server reads {self.limits.headers}"
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.limits.body:
            raise too_large(self.limits)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            raise Refused(
                403,
                f"the Host {host[:100]!r} is not this server's; allow it with `fader serve"
                " --allow-host`",
                code="host",
            )
        if origin and not allowed and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(
                403,
                f"web pages of {origin[:100]!r} may not use this server; allow them with `fader"
                " serve --allow-origin`",
                code="origin",
            )

    def _key_of(self, path: str, headers: Headers) -> Key:
        """Whose request it is. Raises `Refused` without a key where one is needed."""
        if not self.keys.needed or path in OPEN:
            return NOBODY
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self.keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Refused(
                401,
                "this server needs an API key: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key


def too_large(limits: Limits) -> Refused:
    """The body has more bytes than are read."""
    return Refused(
        413,
        f"the body has more than the {limits.body} bytes that this server reads",
        code="too_large",
        headers={"Connection": "close"},
    )


async def drain(receive: Receive, limits: Limits) -> None:
    """Read what is left of a body that is too large, within reason: a connection that is closed
    before loses the answer on its way to the client."""
    left = 8 * limits.body
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b"")) or 1
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


def _name_of(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _preflight(send: Any) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-fader-profile"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
