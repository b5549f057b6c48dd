"""`Fader`: the front. Takes what a person gives, hands requests to a backend and its answers out.

child = {"preferences": {"user": "Explain as to a child."}}
Fader().generate("What is a bond?", alignment=child).text
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from fader.answer import Chunk, Likelihood, Result
from fader.backends import EngineName
from fader.backends.local import Local
from fader.backends.vllm import VLLM
from fader.engine import builtin
from fader.engine.protocols import Backbone
from fader.files import is_file
from fader.given import Places, naming, resolve
from fader.request import Request, RequestLike
from fader.rewards.reward import NOTHING, Resources
from fader.schema import Faults, Invalid, short
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import Vector


class Fader:
    """A model, or several with one vocabulary, ready to answer requests with their own preferences,
    many at once.

    `engine`: who runs the model, see docs/backbones.md. The other settings are those of
    `backends.local.Local`. In place of all of them `model` may be a backend that is there, such as
    a `backends.vllm.VLLM`, which has more settings. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: str | Backbone | Local = builtin.NAME,
        *,
        models: Mapping[str, str | Path | Backbone] | None = None,
        vectors: Mapping[str, str | Path] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        kv_bytes: int | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
        resources: Resources = NOTHING,
        engine: EngineName = "torch",
    ) -> None:
        self.backend: Local
        if isinstance(model, Local):
            self.backend = model
        elif engine == "vllm":
            for name, given in (("models", models), ("device", device)):
                if given:
                    raise Invalid(
                        "vLLM serves one model, on the device that it was built for; leave it out",
                        name,
                    )
            self.backend = VLLM(
                model, vectors, dtype, kv_bytes, token_budget, share_prompts, resources
            )
        else:
            self.backend = Local(
                model,
                models,
                vectors,
                device,
                dtype,
                kv_bytes,
                512 if token_budget is None else token_budget,
                share_prompts=share_prompts,
                resources=resources,
                engine=engine,
            )
        self._places = Places()  # what requests gave by place
        self._stamps: dict[str, int] = {}  # when the folders of vectors were written
        self._loading = threading.RLock()

    def __enter__(self) -> Fader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free what is held."""
        self.backend.close()

    @property
    def model(self) -> str:
        """The name of the model that answers where a request names none."""
        return self.backend.models[0]

    # Vectors, while requests run

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors in use so far; others are found by name when first asked for."""
        return self.backend.vectors

    def vector(self, name: str) -> Vector:
        """The vector that requests get under that name. Raises ValueError if there is none, or if
        it does not fit the model."""
        return self.backend.vector(name)

    def add_vector(self, vector: Vector, name: str | None = None) -> None:
        """Make a vector known under its name, or another. One of the same name is replaced for new
        requests; running ones keep theirs."""
        if not isinstance(vector, Vector):
            raise Invalid(f"must be a Vector; read a folder by Vector.load (got {short(vector)})")
        self.backend.add_vector(vector, name)
        self._places.vectors.places.pop(name or vector.name, None)

    def remove_vector(self, name: str) -> None:
        """Forget a vector: new requests that name it look it up anew, running ones keep it."""
        self.backend.remove_vector(name)
        self._places.vectors.places.pop(name, None)

    # Answers

    def generate(self, prompt: RequestLike, **fields: Any) -> Result:
        """The answer to one request: a prompt, a list of messages, a mapping of request fields, or
        a `Request`.

        Keyword arguments are fields of the request (`alignment`, `prefill`, ...) or of its sampling
        (`max_tokens`, `seed`, ...). Raises `Invalid` naming the field, the value and the fix.
        """
        return self.batch([prompt], **fields)[0]

    def batch(
        self,
        prompts: Iterable[RequestLike],
        on_result: Callable[[Result], None] | None = None,
        **fields: Any,
    ) -> list[Result]:
        """The answers to several requests, run together; `fields` apply to those that do not say
        otherwise. In order.

        `on_result` is called with each result as soon as it and those before it are there.
        """
        running = self._submit(prompts, fields)
        results: list[Result] = []
        try:
            for future in running:
                with naming(len(results), len(running)):
                    results.append(future.result())
                if on_result is not None:
                    on_result(results[-1])
        finally:
            for future in running[len(results) :]:
                future.cancel()
        return results

    def stream(
        self,
        prompt: RequestLike,
        on_result: Callable[[Result], None] | None = None,
        **fields: Any,
    ) -> Iterator[Chunk]:
        """The answer's chunks as they are decided; `on_result` is called with the result after
        them. Closing the iterator cancels the request."""
        return (chunk for _, chunk in self.stream_batch([prompt], on_result, **fields))

    def stream_batch(
        self,
        prompts: Iterable[RequestLike],
        on_result: Callable[[Result], None] | None = None,
        **fields: Any,
    ) -> Iterator[tuple[int, Chunk]]:
        """The chunks of several requests run together, as they are decided, each with its request's
        place in `prompts`; after all of them `on_result` is called with each result, in order."""
        chunks: queue.SimpleQueue[tuple[int, Chunk] | None] = queue.SimpleQueue()

        def put(place: int, chunk: Chunk) -> None:
            chunks.put((place, chunk))

        running = self._submit(prompts, fields, put)
        for future in running:
            future.add_done_callback(lambda _: chunks.put(None))

        def flow() -> Iterator[tuple[int, Chunk] | None]:
            try:
                yield None  # so that it has begun, and closing it comes to `finally`
                left = len(running)
                while left:
                    found = chunks.get()
                    if found is None:
                        left -= 1
                    else:
                        yield found
                for place, future in enumerate(running):
                    with naming(place, len(running)):
                        result = future.result()
                    if on_result is not None:
                        on_result(result)
            finally:
                for future in running:
                    future.cancel()

        flowing = flow()
        next(flowing)
        return cast("Iterator[tuple[int, Chunk]]", flowing)

    async def agenerate(self, prompt: RequestLike, **fields: Any) -> Result:
        """`generate` for asyncio; cancelling the task cancels the request."""
        return (await self.abatch([prompt], **fields))[0]

    async def abatch(self, prompts: Iterable[RequestLike], **fields: Any) -> list[Result]:
        """`batch` for asyncio."""
        running = self._submit(prompts, fields)

        async def result(place: int) -> Result:
            with naming(place, len(running)):
                return await asyncio.wrap_future(running[place])

        try:
            return await asyncio.gather(*map(result, range(len(running))))
        finally:
            for future in running:
                future.cancel()

    async def astream(self, prompt: RequestLike, **fields: Any) -> AsyncIterator[Chunk]:
        """`stream` for asyncio."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(chunk: Chunk | None) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        (future,) = self._submit([prompt], fields, lambda _, chunk: put(chunk))
        future.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await asyncio.wrap_future(future)
        finally:
            future.cancel()

    def score(self, prompt: RequestLike, answer: str, **fields: Any) -> Likelihood:
        """How likely `answer` is under the request's guided policy. One forward pass."""
        return self.score_batch([(prompt, answer)], **fields)[0]

    def score_batch(
        self, pairs: Iterable[tuple[RequestLike, str]], **fields: Any
    ) -> list[Likelihood]:
        """`score` of several (prompt, answer) pairs, run together. In order. Answers to the same
        request share one reading of its prompt."""
        if isinstance(pairs, str | Mapping) or not isinstance(pairs, Iterable):
            raise Invalid(f"must be a list of (prompt, answer) (got {short(pairs)})", "pairs")
        pairs = list(pairs)
        for place, pair in enumerate(pairs):
            if isinstance(pair, str | Mapping) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise Invalid(f"must be (prompt, answer) (got {short(pair)})", f"pairs[{place}]")
        requests = self.requests([prompt for prompt, _ in pairs], **fields)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.model_dump_json(), []).append(place)
        asked = [(requests[p[0]], [pairs[one][1] for one in p]) for p in groups.values()]
        for places, (request, answers) in zip(groups.values(), asked, strict=True):
            if len(pairs) == 1 or not self.backend.check(request, answers):
                continue
            for place, answer in zip(places, answers, strict=True):
                with naming(place, len(pairs)):
                    Faults(found=self.backend.check(request, [answer])).raise_any()
        running: list[Future[list[Likelihood]]] = []
        found: dict[int, Likelihood] = {}
        try:
            for request, answers in asked:
                running.append(self.backend.score(request, answers))
            for places, future in zip(groups.values(), running, strict=True):
                with naming(places[0], len(pairs)):
                    found.update(zip(places, future.result(), strict=True))
        finally:
            for future in running:
                future.cancel()
        return [found[place] for place in range(len(pairs))]

    # From what a person gives to a request

    def check(self, prompt: RequestLike, **fields: Any) -> list[Invalid]:
        """Every fault for which a request would be refused, with its path. Runs nothing."""
        return self.backend.check(self.request(prompt, **fields))

    def request(self, prompt: RequestLike, **fields: Any) -> Request:
        """`Request.of`, where an alignment may also be a profile's name, a file or JSON text, and a
        key of `vectors` a folder, which is then loaded and named."""
        return self.requests([prompt], **fields)[0]

    def requests(self, prompts: Iterable[RequestLike], **fields: Any) -> list[Request]:
        """`request` for several; a fault names the request it is in."""
        with self._loading:  # two threads may give the same place, or two of one name, at once
            vectors, models = self._places.vectors, self._places.models
            vectors.taken.update({*self.vectors} - vectors.places.keys())
            models.taken.update({*self.backend.models} - models.places.keys())
            requests = resolve(prompts, self._places, **fields)
            for name, folder in [*vectors.places.items()]:
                with _forgotten_if_refused(vectors.places, name):
                    self._read(name, folder)
            for name, source in [*models.places.items()]:
                if name not in self.backend.models:
                    with _forgotten_if_refused(models.places, name):
                        self.backend.add_model(name, source)
        return requests

    def _read(self, name: str, folder: Path) -> None:
        """Load a vector from its folder if it is new, or written anew; what was loaded of one that
        is gone by now stays."""
        if is_file(folder / CONFIG):
            stamp = (folder / CONFIG).stat().st_mtime_ns
            if self._stamps.get(name) != stamp:
                self.backend.add_vector(Vector.load(folder, name))
                self._stamps[name] = stamp

    def _submit(
        self,
        prompts: Iterable[RequestLike],
        fields: dict[str, Any],
        on_chunk: Callable[[int, Chunk], None] = lambda _, __: None,
    ) -> Sequence[Future[Result]]:
        """All requests started, or none: a fault in one is found before any runs, and names it."""
        requests = self.requests(prompts, **fields)
        if len(requests) > 1:
            for place, request in enumerate(requests):
                with naming(place, len(requests)):
                    Faults(found=self.backend.check(request)).raise_any()
        return self.backend.submit_all(requests, on_chunk)


@contextmanager
def _forgotten_if_refused(places: dict[str, Path], name: str) -> Iterator[None]:
    """Around loading what lies at a place: if it cannot be, later requests do not meet it."""
    try:
        yield
    except (ValueError, OSError):
        places.pop(name, None)
        raise
