"""What the endpoints share: the backend, and how requests are handed to it and awaited.

Chunks come from the backend's thread and go into a queue of the event loop. A client that goes away
cancels its requests: their rows are free at the next step.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from typing import Any, TypeVar

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fader.answer import Chunk, Likelihood, Result
from fader.backends import Backend
from fader.engine.running import Running
from fader.request import Alignment, Sampling
from fader.request import Request as Asked
from fader.schema import path_of, renamed
from fader.server.errors import Refused, refusal
from fader.server.guard import drain, too_large
from fader.server.keys import Key
from fader.server.limits import Limits, Underway, check_size
from fader.server.metrics import Metrics
from fader.server.wire import parse_json
from fader.server.written import Spell

T = TypeVar("T")
END = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still at it\n\n"
LAST_SECONDS = 5.0
"""How long a client may take to read that its stream has ended in an error."""


class Mark(Enum):
    """What comes between the chunks of a stream."""

    END = auto()
    """One of the requests has ended."""
    SILENCE = auto()
    """Nothing has come for a while."""


@dataclass
class Serving:
    """One server's parts."""

    backend: Backend
    limits: Limits
    metrics: Metrics
    underway: Underway
    default: Alignment = field(default_factory=Alignment)
    """The alignment of requests that say none."""
    started: int = field(default_factory=lambda: int(time.time()))
    running: set[Running[Any]] = field(default_factory=set)
    """All that is under way."""
    closing: bool = False
    """Whether the server is shutting down."""

    def end_all(self) -> None:
        """Cancel all that is under way."""
        for one in list(self.running):
            one.cancel()


def serving(request: Request) -> Serving:
    """The server that a request has come to."""
    found: Serving = request.app.state.serving
    return found


def key_of(request: Request) -> Key:
    """Whose request it is."""
    found: Key = request.state.key
    return found


def spelling(of: Serving, request: Asked) -> Spell:
    """How the tokens of a request's answer are spelled."""
    model = request.model or of.backend.models[0]

    @lru_cache(maxsize=4096)
    def spell(token: int) -> str:
        return of.backend.decode(model, [token], special=True)

    return spell


async def read_json(request: Request) -> Any:
    """A request's body. Raises `Refused` for one that is too large or too slow, `Invalid` for what
    is no JSON."""
    limits, content = serving(request).limits, bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                content += piece
                if len(content) > limits.body:
                    await drain(request.receive, limits)
                    raise too_large(limits)
    except TimeoutError:
        raise Refused(
            408,
            f"the body did not come within {limits.body_seconds:g} seconds",
            headers={"Connection": "close"},
        ) from None
    return parse_json(bytes(content))


def _needs(backend: Backend, request: Asked) -> Mapping[str, tuple[int, int]]:
    """What a request takes at one time; one without guides and search is a row for each answer, and
    is not planned twice."""
    if request.alignment.guides or request.alignment.search:
        return backend.needs(request)
    return {request.model or backend.models[0]: (request.sampling.n, 0)}


def fitted(backend: Backend, request: Asked, most: int) -> Asked:
    """A request that is given as many tokens as the models that read for it have room for, and at
    most `most`. Raises `Invalid` for one that cannot run."""
    short = shortest(request, most)
    needs, least = backend.needs(short), short.sampling.max_tokens
    room = min(backend.about(name).max_length - length for name, (_, length) in needs.items())
    return _writing(request, max(least, min(most, least + room)))


def shortest(request: Asked, most: int) -> Asked:
    """A request that is given the fewest tokens that it can do with."""
    least = max(1, request.sampling.min_tokens)
    if request.alignment.preferences.history:  # it is cut to leave room: for an answer as usual
        least = max(least, min(most, Sampling().max_tokens))
    return _writing(request, least)


def _writing(request: Asked, tokens: int) -> Asked:
    sampling = request.sampling.model_copy(update={"max_tokens": tokens})
    return request.model_copy(update={"sampling": sampling})


class Jobs:
    """The requests of one client that were handed to the backend together.

    Use in a `with` block: leaving it cancels what still runs, unless a stream has taken over.
    Raises `Refused` for a client that has too many under way.
    """

    def __init__(self, of: Serving, key: Key) -> None:
        if of.closing:
            raise Refused(503, "the server is shutting down")
        self._of = of
        self._slot = ExitStack()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Chunk] | Mark] = asyncio.Queue()
        self._began = time.perf_counter()
        self._deadline = self._loop.time() + of.limits.seconds
        self._last: dict[tuple[int, int], float] = {}
        self._heard = self._loop.time()
        self._closed = self._streams = False
        self.running: list[Running[Result]] = []
        self.likelihoods: list[Running[list[Likelihood]]] = []
        self._slot.enter_context(of.underway.one(key.name))

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._streams:
            self.close()

    def close(self) -> None:
        """Cancel what still runs, and let the client start others."""
        self._closed = True
        for one in self.running:
            one.cancel()
        for other in self.likelihoods:
            other.cancel()
        self._slot.close()

    def stream(
        self,
        events: AsyncIterator[bytes],
        headers: dict[str, str],
        failed: Callable[[Refused], bytes] = lambda error: data(error.body) + END,
    ) -> Response:
        """The response that sends these events, and then closes the jobs; `failed` says what is
        sent for an error."""
        self._streams = True
        return Events(self, events, headers, failed)

    @property
    def in_time(self) -> asyncio.Timeout:
        """Around what is awaited: raises TimeoutError when the request has taken too long."""
        return asyncio.timeout_at(self._deadline)

    async def submit(self, requests: Sequence[Asked]) -> None:
        """Start requests. Raises `Invalid` for one that cannot run or is too large for this server,
        `Busy` where too many wait."""
        await to_thread.run_sync(self._submit, requests)

    def _submit(self, requests: Sequence[Asked]) -> None:
        needs = [_needs(self._of.backend, request) for request in requests]
        check_size(self._of.limits, requests, needs)
        for place, request in enumerate(requests):
            with _numbered(place, len(requests)):
                running = self._of.backend.submit(request, self._put(place))
            self.running.append(self._watched(running))
            self._of.metrics.begun(request.alignment)

    async def score(self, asked: Sequence[tuple[Asked, Sequence[int]]]) -> None:
        """Start to score answers, given as token ids. Raises as `submit` does."""

        def start() -> None:
            for request, ids in asked:
                self.likelihoods.append(self._watched(self._of.backend.score(request, [ids])))

        await to_thread.run_sync(start)

    def _watched(self, running: Running[T]) -> Running[T]:
        if self._closed:  # the client went away meanwhile
            running.cancel()
        self._loop.call_soon_threadsafe(self._of.running.add, running)
        running.add_done_callback(lambda done: self._done(running))
        return running

    def _done(self, running: Running[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._of.running.discard, running)
            self._loop.call_soon_threadsafe(self._queue.put_nowait, Mark.END)

    def _put(self, place: int) -> Callable[[Chunk], None]:
        def put(chunk: Chunk) -> None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._note, place, chunk)

        return put

    def _note(self, place: int, chunk: Chunk) -> None:
        now, of = time.perf_counter(), (place, chunk.index)
        if of in self._last:
            self._of.metrics.between_tokens.observe(now - self._last[of])
        else:
            self._of.metrics.first_token.observe(now - self._began)
        self._last[of] = now
        self._heard = self._loop.time()
        self._queue.put_nowait((place, chunk))

    def _watch(self) -> None:
        """Note a silence when one is over, and look again later: one timer for all chunks."""
        now, pause = self._loop.time(), self._of.limits.keep_alive
        if now >= self._heard + pause:
            self._heard = now
            if self._queue.empty():  # else it is the client that is slow
                self._queue.put_nowait(Mark.SILENCE)
        self._watching = self._loop.call_at(self._heard + pause, self._watch)

    async def results(self) -> list[Result]:
        """What all requests came to. Raises the first error of any."""
        async with self.in_time:
            return list(await asyncio.gather(*map(asyncio.wrap_future, self.running)))

    async def scores(self) -> list[Likelihood]:
        """What all answers that were to be scored came to."""
        async with self.in_time:
            found = await asyncio.gather(*map(asyncio.wrap_future, self.likelihoods))
        return [one for [one] in found]

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk] | None]:
        """The chunks of all requests as they are decided, each with its request's place; None after
        a silence."""
        left = len(self.running)
        self._watch()
        try:
            while left:
                found = await self._queue.get()
                if found is Mark.END:
                    left -= 1
                else:
                    yield None if found is Mark.SILENCE else found
        finally:
            self._watching.cancel()
        await self.results()


def _numbered(place: int, count: int) -> AbstractContextManager[None]:
    """Around one of several prompts: its faults say which it is."""
    own = path_of("prompt", place)
    return renamed(lambda path: path if count == 1 else re.sub("^raw", own, path))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; it is cancelled when the client goes away. Then raises
    ClientDisconnect."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for one in (working, gone):
            one.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """A stream of server-sent events. An error is an event: the response has begun."""

    media_type = "text/event-stream"

    def __init__(
        self,
        jobs: Jobs,
        events: AsyncIterator[bytes],
        headers: dict[str, str],
        failed: Callable[[Refused], bytes],
    ) -> None:
        super().__init__(None, 200, headers)
        del self.headers["content-length"]
        self.headers["X-Accel-Buffering"] = "no"  # a proxy must not hold events back
        self._jobs, self._events, self._failed = jobs, events, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI response."""
        writing = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._jobs.close()
            for one in (writing, gone):
                one.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async with self._jobs.in_time:
                async for event in self._events:
                    await write(event)
                await write(b"", more=False)
        except Exception as error:
            with suppress(TimeoutError):  # a client that reads nothing is not waited for
                async with asyncio.timeout(LAST_SECONDS):
                    await write(self._failed(refusal(error)))
                    await write(b"", more=False)


def data(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
