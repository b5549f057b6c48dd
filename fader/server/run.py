"""Runs the application on a socket: who may be let in, slow clients, and an orderly end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fader.backends import Backend
from fader.request import Alignment
from fader.schema import Invalid
from fader.server.app import create_app
from fader.server.keys import Keys
from fader.server.limits import Limits
from fader.server.serving import Serving

LOCAL = ("localhost", "127.0.0.1", "::1")
REQUEST_SECONDS = 30.0
"""How long a client may take for the head of a request."""
UNREAD_SECONDS = 60.0
"""How long a client may read nothing of what is sent to it."""


def run(
    backend: Backend,
    host: str,
    port: int,
    keys: Keys,
    default: Alignment,
    limits: Limits,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> None:
    """Serve until a signal ends it: running requests then have `limits.grace` seconds.

    `hosts`: names that a request's `Host` may have beside this machine's own. Raises ValueError
    for an address that others can reach where no key is needed, OSError for one that is taken.
    """
    check_address(host, keys)
    named = [*LOCAL, host.lower(), *(name.lower() for name in hosts)]
    app, serving = create_app(
        backend, keys, default, limits, named if is_local(host) or hosts else None, origins
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    server(app, serving).run([listening])


def server(app: Any, serving: Serving) -> uvicorn.Server:
    """uvicorn, set up for the application."""
    limits = serving.limits
    config = uvicorn.Config(
        app,
        http=_Patient,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=2 * limits.headers,
        timeout_graceful_shutdown=int(limits.grace) + 5,
    )
    return _Server(config, serving)


def check_address(host: str, keys: Keys) -> None:
    """Raises `Invalid` for an address that others can reach, where no key is needed."""
    if not is_local(host) and not (keys.needed and keys.known()):
        raise Invalid(
            f"{host!r} can be reached from other machines, and no API key is needed; make one with"
            " `fader keys add NAME`, or leave --host out",
            "host",
        )


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """Ends what still runs when the grace is over, so that streams are told so."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving.closing = True
        end = self._serving.end_all
        timer = asyncio.get_running_loop().call_later(self._serving.limits.grace, end)
        await super().shutdown(sockets)
        timer.cancel()


def prepare(connection: socket.socket) -> None:
    """Send every piece at once (left to itself TCP holds a small one back until the one before it
    is acknowledged, which takes 40 milliseconds), and give up on who does not read."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        unread = int(UNREAD_SECONDS * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread)


class _Patient(H11Protocol):
    """A connection that is closed if the head of a request does not come in time, or if what is
    sent is not read: a byte a second keeps nothing open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        prepare(transport.get_extra_info("socket"))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._late.cancel()
        self._await_head()
        super().on_response_complete()  # which may begin the next request

    def _await_head(self) -> None:
        self._late = self.loop.call_later(REQUEST_SECONDS, self._close_if_silent, self.cycle)

    def _close_if_silent(self, before: object) -> None:
        if self.cycle is before:  # no request has begun since
            self.transport.close()
