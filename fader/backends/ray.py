"""Many processes of one backend on Ray: replicas behind one server (Ray Serve), workers for files
of requests (Ray Data) and for measurements (actors). The one module that imports ray.

A replica is any backend in a process of its own; `make` is the function that makes it there. The
server in front stays one: keys, limits and OpenAI's wire know nothing of replicas.

- Requests that begin alike, under the same vectors, go to the same replica, whose memory has read
  that beginning, unless it has more to do than the others by far (`ByPrefix`).
- A replica that is lost is started anew by Ray. Its requests are asked again elsewhere: the same
  seed gives the same text, so what the client has been told already is left out, and the answer
  goes on. Where it would go on otherwise, or is lost again, it ends with `Lost`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any, TypeVar

import ray
import ray.data
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import RequestRouter
from ray.util import ActorPool

from fader.answer import Chunk, Likelihood, Result, Usage
from fader.backends import About, Backend
from fader.engine.running import Busy, Cancelled, Lost, Running
from fader.engine.stats import Stats
from fader.request import Request
from fader.schema import Invalid
from fader.shards import Answering, Shard, answers

T = TypeVar("T")
Make = Callable[[], Backend]
VERSION = "2.60"
"""The release that the routing was written for and tested with; its interface is not stable yet."""
APP = "fader"
OBJECTS = 256 << 20
"""Bytes of shared memory of a cluster that is started here. Chunks of answers need little."""
TRIES = 2
"""How often a request is asked before it is given up as lost. It may be what kills them."""
SHARD_TRIES = 4
"""The same for a shard. Those that wait for a worker which another one kills count a try, too, and
Ray may count the loss of a worker twice."""
BEGINNING = 1024
"""Characters of a prompt by which its replica is chosen."""
SPARE = 8
"""Requests that a replica may have above its share, and still get those that begin alike."""
TARGET = 32
"""Requests under way on a replica above which another one is started, where there may be more."""
GRACE_SECONDS = 30.0
"""How long a replica that could not be made says why, before it is made anew."""
ACCEPT_SECONDS = 60.0
"""How long a request waits for a replica that takes it. Ray itself waits without end."""
LOOK_SECONDS = 2.0
"""How often replicas are asked how busy they are."""
LOST_WORKERS = (
    "the workers that were asked are lost, again and again at the same work; run it again, it goes"
    " on, with more memory if that is what they lacked"
)
log = logging.getLogger("fader")


def connect(processes: int) -> bool:
    """Be part of the cluster that RAY_ADDRESS names, else of one on this machine that is started
    here; whether that was done. `processes`: how many of them the latter has to hold.

    Raises ValueError for another release of ray.
    """
    if not ray.__version__.startswith(f"{VERSION}."):
        raise ValueError(
            f"ray: {ray.__version__} is installed and {VERSION} is needed; pip install 'fader[ray]'"
        )
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address, **quiet)
        return False
    os.environ.setdefault("RAY_worker_niceness", "0")  # else they stand back for all others
    ray.init(
        "local",
        num_cpus=max(os.cpu_count() or 1, processes),
        object_store_memory=OBJECTS,
        include_dashboard=False,
        **quiet,
    )
    return True


def share(processes: int) -> dict[str, int]:
    """What one of so many processes may take of the cluster as it is: a GPU where there are any,
    and as many CPUs as each of them can have. Raises ValueError where there are too few."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if 0 < gpus < processes:
        raise ValueError(
            f"replicas: {processes} take a GPU each, and the cluster has {gpus}; ask for fewer, or"
            " say what each takes (--replica-cpus, --replica-gpus) where machines join later"
        )
    for each in range(max(cpus, default=0), 0, -1):
        if sum(one // each for one in cpus) >= processes:
            return {"num_cpus": each, "num_gpus": 1 if gpus else 0}
    raise ValueError(
        f"replicas: {processes} take a CPU each, and the cluster has {sum(cpus)}; ask for fewer, or"
        " say what each takes (--replica-cpus, --replica-gpus) where machines join later"
    )


def takes_of(given: Mapping[str, int] | None, processes: int) -> Mapping[str, int]:
    """What one of so many processes takes: `num_cpus` and `num_gpus` as they are given; of what is
    not, its share. Raises ValueError as `share`."""
    given = given or {}
    return given if len(given) == 2 else {**share(processes), **given}


def beginning(request: Request) -> str:
    """What says where a request is best read: a hash of the model, the vectors and the first
    characters of what is read, preferences before the conversation."""
    alignment = request.alignment
    prompt = request.raw if request.raw is not None else request.messages[0].content
    read = [alignment.preferences.model_dump(mode="json", exclude_defaults=True), prompt]
    parts = [request.model, sorted(alignment.vectors.items()), json.dumps(read)[:BEGINNING]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class ByPrefix(RequestRouter):  # type: ignore[misc]
    """Sends what begins alike to one replica: each beginning has its own order of the replicas, so
    that one more or less of them moves few beginnings (rendezvous hashing). A replica with more
    than its share of what is under way is passed over.

    Ray's multiplexing would do the first of these; but it holds back the second of two requests
    with a new beginning for a second or two, and sends any number to one replica.
    """

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """The replicas to be tried, in ranks."""
        given = pending_request.args if pending_request is not None else ()
        if not given or not given[0]:
            return [list(candidate_replicas)]
        lengths = {
            one.replica_id: self.replica_queue_len_cache.get(one.replica_id) or 0
            for one in candidate_replicas
        }
        most = 1.25 * sum(lengths.values()) / max(len(lengths), 1) + SPARE
        ranked = sorted(
            candidate_replicas,
            key=lambda one: (
                lengths[one.replica_id] > most,
                hashlib.sha256(f"{given[0]} {one.replica_id.unique_id}".encode()).digest(),
            ),
        )
        return [[one] for one in ranked]


@dataclass(frozen=True)
class Done:
    """The end of an answer."""

    result: Any
    usage: Usage


class Replica:
    """A backend in a process of its own. Errors are handed back as values, as they are."""

    def __init__(self, make: Make) -> None:
        self._fault: Exception | None = None
        try:
            self._backend = make()
        except (ValueError, OSError) as error:  # said to whoever asks first (`check_health`)
            self._fault = error
        self._made = time.monotonic()

    async def ask(self, beginning: str, what: str, *given: Any) -> Any:
        """The answer of one of the backend's methods, or what it is."""
        try:
            return await asyncio.to_thread(self._asked, what, given)
        except Exception as error:
            return _portable(error)

    async def stats(self) -> Stats | Exception:
        """How busy it is."""
        found: Stats | Exception = await self.ask("", "stats")
        return found

    async def answer(self, beginning: str, what: str, *given: Any) -> AsyncIterator[Any]:
        """None when the request is accepted, then lists of chunks, then `Done`; or an error."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Chunk | None]()

        def put(item: Chunk | None) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        more = (put,) if what == "submit" else ()
        starting = asyncio.ensure_future(asyncio.to_thread(self._asked, what, (*given, *more)))
        try:
            running: Running[Any] = await asyncio.shield(starting)
        except asyncio.CancelledError:  # nobody waits for it, and it may start nevertheless
            starting.add_done_callback(lambda started: started.result().cancel())
            raise
        except Exception as error:
            yield _portable(error)
            return
        running.add_done_callback(lambda _: put(None))
        try:
            yield None
            ended = False
            while not ended:
                items = [await queue.get()]
                while not queue.empty():
                    items.append(queue.get_nowait())
                ended = items[-1] is None
                if chunks := [item for item in items if item is not None]:
                    yield chunks
            yield Done(running.result(), running.usage)
        except Exception as error:
            yield _portable(error)
        finally:
            running.cancel()

    def check_health(self) -> None:
        """Asked by Ray every few seconds; an error has it started anew. One that could not be made
        is left in peace for a while, so that a server that has just begun can say why."""
        if self._fault is None:
            if fault := self._backend.fault():
                raise RuntimeError(fault)
        elif time.monotonic() - self._made > GRACE_SECONDS:
            raise self._fault

    def _asked(self, what: str, given: Sequence[Any]) -> Any:
        if self._fault is not None:
            raise self._fault
        found = getattr(self._backend, what)
        return found(*given) if callable(found) else found


def _portable(error: Exception) -> Exception:
    """An error that another process can read."""
    if isinstance(error, (ValueError, OSError, Busy, Cancelled)):
        return error
    log.error("a replica failed at a request", exc_info=error)
    return RuntimeError(f"{type(error).__name__}: {error}")


class Replicas:
    """Replicas of a backend behind Ray Serve, as one backend (see `backends.Backend`).

    `least` to `most` of them, by how much there is to do. `waiting`: requests that may wait while
    there is no replica. `takes`: the CPUs and GPUs of one (`num_cpus`, `num_gpus`); what is left
    out: its share of the cluster. Raises what `make` raises in any of them.
    """

    def __init__(
        self,
        make: Make,
        least: int,
        most: int | None = None,
        waiting: int = 256,
        takes: Mapping[str, int] | None = None,
    ) -> None:
        most = most or least
        self._own = connect(most)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fader-replicas", daemon=True
        )
        self._thread.start()
        self._stats: list[Stats] = []
        try:
            self._handle = _deployed(make, least, most, waiting, takes_of(takes, most))
            for found in self._call(self._look()):
                if isinstance(found, (ValueError, OSError)):
                    raise found
            self._models: list[str] = self._ask("models")
            self._about: dict[str, About] = {
                name: self._ask("about", name) for name in self._models
            }
            asyncio.run_coroutine_threadsafe(self._keep_looking(), self._loop)
        except BaseException:
            self.close()
            raise
        self._decoded = lru_cache(1 << 16)(partial(self._ask, "decode"))
        self._identity = lru_cache(partial(self._ask, "identity"))

    def close(self) -> None:
        """Cancel what runs and stop the replicas; also the cluster, where it was started here."""
        self._call(self._end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        with suppress(Exception):  # a cluster that is gone has stopped them
            serve.delete(APP)
        if self._own:
            with suppress(Exception):
                serve.shutdown()
            ray.shutdown()

    # What is known without a request

    @property
    def models(self) -> list[str]:
        """Names of the models that a request may ask for."""
        return self._models

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors in use on one of the replicas."""
        found: list[str] = self._ask("vectors")
        return found

    def about(self, model: str) -> About:
        """What is known of a model. Raises `Invalid` for one that is not loaded."""
        found: About = self._about.get(model) or self._ask("about", model)
        return found

    def encode(self, model: str, request: Request | str, begin: bool = True) -> list[int]:
        """Token ids of a text, or those that a request's own policy reads."""
        found: list[int] = self._ask("encode", model, request, begin)
        return found

    def decode(self, model: str, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids."""
        found: str = self._decoded(model, tuple(tokens), special)
        return found

    def identity(self, model: str) -> str:
        """A hash of all that a model's answers depend on besides the request."""
        found: str = self._identity(model)
        return found

    def needs(self, request: Request) -> Mapping[str, tuple[int, int]]:
        """Rows and positions by model."""
        found: Mapping[str, tuple[int, int]] = self._ask("needs", request)
        return found

    def check(
        self, request: Request, answers: Sequence[str | Sequence[int]] | None = None
    ) -> list[Invalid]:
        """Every fault of a request."""
        found: list[Invalid] = self._ask("check", request, answers)
        return found

    def fault(self) -> str:
        """Nothing: a replica that fails is made anew."""
        return ""

    def stats(self) -> Stats:
        """How busy the replicas are, together, as they were asked last."""
        found = self._stats or [Stats(0, 0, 0.0, 0.0, 0, 0, 0.0)]
        sums = {one.name: sum(getattr(s, one.name) for s in found) for one in fields(Stats)}
        sums["prompt_share_from_memory"] /= len(found)
        return Stats(**sums)

    # Requests

    def submit(
        self, request: Request, on_chunk: Callable[[Chunk], None] = lambda _: None
    ) -> Running[Result]:
        """Start a request. Raises `Invalid` with all its faults before anything runs."""
        return self._start(_Told(on_chunk), beginning(request), "submit", request)

    def submit_all(
        self,
        requests: Sequence[Request],
        on_chunk: Callable[[int, Chunk], None] = lambda _, __: None,
    ) -> list[Running[Result]]:
        """Start requests, each where it is best read, or none of them."""
        running: list[Running[Result]] = []
        try:
            for place, request in enumerate(requests):
                running.append(self.submit(request, partial(on_chunk, place)))
        except BaseException:
            for one in running:
                one.cancel()
            raise
        return running

    def score(
        self, request: Request, answers: Sequence[str | Sequence[int]]
    ) -> Running[list[Likelihood]]:
        """How likely given answers are. Raises `Invalid` before anything runs."""
        return self._start(_Told(), beginning(request), "score", request, answers)

    def _start(self, told: _Told, key: str, what: str, *given: Any) -> Running[Any]:
        def stop() -> None:
            self._loop.call_soon_threadsafe(task.cancel)

        running: Running[Any] = Running(stop)
        accepted: Future[None] = Future()
        task = asyncio.run_coroutine_threadsafe(
            self._run(running, accepted, told, key, what, given), self._loop
        )
        try:
            accepted.result(ACCEPT_SECONDS)
        except TimeoutError:
            if not accepted.done():
                running.cancel()
                said = f"no replica took the request in {ACCEPT_SECONDS:g} seconds"
                raise Busy(said) from None
            accepted.result()
        return running

    async def _run(
        self,
        running: Running[Any],
        accepted: Future[None],
        told: _Told,
        key: str,
        what: str,
        given: Sequence[Any],
    ) -> None:
        """Ask a replica, and another one where that is lost; ends `accepted`, then `running`."""
        try:
            for _ in range(TRIES):
                try:
                    done = await self._asked_once(accepted, told, key, what, given)
                except RayActorError:
                    log.warning("a replica is lost; its request is asked again")
                    continue
                running.usage = done.usage
                running.set_result(done.result)
                return
            raise Lost("the replicas that answered this request were lost; send it again")
        except BaseException as error:
            ended = isinstance(error, (asyncio.CancelledError, TaskCancelledError))
            found = Cancelled("the request was cancelled") if ended else error
            (running if accepted.done() else accepted).set_exception(found)

    async def _asked_once(
        self, accepted: Future[None], told: _Told, key: str, what: str, given: Sequence[Any]
    ) -> Done:
        stream = self._handle.options(stream=True).answer.remote(key, what, *given)
        told.again()
        try:
            async for item in stream:
                match item:
                    case None if not accepted.done():
                        accepted.set_result(None)
                    case list():
                        for chunk in item:
                            told.put(chunk)
                    case Done():
                        return item
                    case Exception():
                        raise item
            raise Lost("a replica ended without an answer; send the request again")
        except BackPressureError:
            raise Busy("too many requests wait for a replica; try again later") from None
        finally:
            stream.cancel()

    # The loop that speaks with Ray

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _ask(self, what: str, *given: Any) -> Any:
        """What one of the replicas says. Raises what it raises."""
        return self._call(self._said(what, given))

    async def _said(self, what: str, given: Sequence[Any]) -> Any:
        for _ in range(TRIES):
            with suppress(RayActorError):  # it changes nothing, and so may be asked again
                try:
                    async with asyncio.timeout(ACCEPT_SECONDS):
                        said = await self._handle.ask.remote("", what, *given)
                except TimeoutError:
                    raise Busy(f"no replica answered in {ACCEPT_SECONDS:g} seconds") from None
                if isinstance(said, Exception):
                    raise said
                return said
        raise Lost("the replicas that were asked are lost; try again")

    async def _end_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(Exception):  # the next look may see more
                await self._look()

    async def _look(self) -> list[Any]:
        """Ask all replicas how busy they are; what each of them says."""
        looks = self._handle.broadcast("stats")
        found = await looks.results_async(timeout_s=LOOK_SECONDS * 5, return_exceptions=True)
        self._stats = [one for one in found if isinstance(one, Stats)]
        return list(found)


def _deployed(make: Make, least: int, most: int, waiting: int, takes: Mapping[str, int]) -> Any:
    """The handle of a deployment that is up."""
    size: dict[str, Any] = {"num_replicas": least}
    if most > least:
        bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": TARGET}
        size = {"autoscaling_config": bounds}
    deployment = serve.deployment(
        name="replica",
        ray_actor_options=dict(takes),
        # the backend itself says when it has too much to do
        max_ongoing_requests=1 << 16,
        max_queued_requests=waiting,
        request_router_config=RequestRouterConfig(request_router_class=ByPrefix),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **size,
    )(Replica)
    serve.start(proxy_location="Disabled")
    return serve.run(deployment.bind(make), name=APP, route_prefix=None)


class _Told:
    """What has been said of an answer so far; when it is said again, that is left out."""

    def __init__(self, on_chunk: Callable[[Chunk], None] = lambda _: None) -> None:
        self._on_chunk = on_chunk
        self._said: dict[int, list[tuple[Any, ...]]] = {}
        self._place = Counter[int]()

    def again(self) -> None:
        """From the beginning."""
        self._place.clear()

    def put(self, chunk: Chunk) -> None:
        """Say a chunk, if it is new. Raises `Lost` where the answer is another than it was."""
        said, place = self._said.setdefault(chunk.index, []), self._place[chunk.index]
        self._place[chunk.index] += 1
        what = chunk.text, chunk.token_ids, chunk.finish_reason
        if place == len(said):
            said.append(what)
            self._on_chunk(chunk)
        elif said[place] != what:
            raise Lost(
                "the replica that wrote this answer was lost, and another one would go on"
                " otherwise; send the request again"
            )


def spread(make: Make, workers: int) -> Answering:
    """Answers shards by so many workers on Ray Data. A worker that is lost is started anew, and its
    shard answered again; nothing of it was given on."""

    def answering(some: Sequence[Shard]) -> Iterator[tuple[str, list[str]]]:
        if not some:
            return
        own = connect(workers)
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False  # whoever asks shows one
            context.print_on_execution_start = False
            answered = ray.data.from_items(
                [{"shard": pickle.dumps(shard)} for shard in some], override_num_blocks=len(some)
            ).map(
                _Worker,
                fn_constructor_args=(partial(_answering, make),),
                compute=ray.data.ActorPoolStrategy(size=workers),
                max_task_retries=SHARD_TRIES - 1,
                **share(workers),
            )
            for row in answered.iter_rows():
                yield row["key"], _sound(pickle.loads(row["answers"]))
        except RayActorError:
            raise Lost(LOST_WORKERS) from None
        finally:
            if own:
                ray.shutdown()

    return answering


def _answering(make: Make) -> Callable[[Shard], list[str]]:
    return partial(answers, make())


class Workers:
    """So many processes on Ray, in each of which `make` makes a function. One that is lost is
    started anew, and asked again for what it was doing."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], count: int) -> None:
        self.count = count
        self._own = connect(count)
        try:
            again = {"max_restarts": -1, "max_task_retries": TRIES - 1}
            worker = ray.remote(**share(count), **again)(_Worker)
            self._workers = [worker.remote(make) for _ in range(count)]
        except BaseException:
            self._disconnect()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._workers:
            ray.kill(one)
        self._disconnect()

    def each(self, given: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """What the function gives for each of some values, with its place, as soon as it is there.
        Raises what it raises, and `Lost` for a value that loses its workers."""
        pool = ActorPool(self._workers)
        for one in enumerate(given):
            pool.submit(lambda worker, placed: worker.place.remote(*placed), one)
        try:
            while pool.has_next():
                place, found = pool.get_next_unordered()
                yield place, _sound(found)
        except RayActorError:
            raise Lost(LOST_WORKERS) from None

    def _disconnect(self) -> None:
        if self._own:
            ray.shutdown()


class _Worker:
    """A function in a process of its own. Errors are handed back as values, as they are."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._fault: Exception | None = None
        try:
            self._work = make()
        except (ValueError, OSError) as error:
            self._fault = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of a shard with its answers."""
        shard: Shard = pickle.loads(row["shard"])
        return {"key": shard.key, "answers": pickle.dumps(self.place(0, shard)[1])}

    def place(self, place: int, given: Any) -> tuple[int, Any]:
        """What the function gives, and the place as it was given."""
        try:
            return place, self._fault or self._work(given)
        except Exception as error:
            return place, _portable(error)


def _sound(found: Any) -> Any:
    """What a worker gave. Raises what it raised."""
    if isinstance(found, Exception):
        raise found
    return found
