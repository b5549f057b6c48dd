"""`Fader`: the door. Checks a request, turns it into a program, and hands the engine's answers out.

fader = Fader()
child = {"preferences": {"user": "Explain as to a child."}}
fader.generate("What is a bond?", alignment=child).text
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from fader.answer import Answer, Chunk, Likelihood, Result, TokenLogprob
from fader.engine import builtin
from fader.engine.backbone import Backbone, load
from fader.engine.loop import Cancelled, Engine, Job
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import Program, together
from fader.methods.decode import Task, decode, token_logprobs
from fader.methods.guidance import GuidedPolicy, next_scores, sequence_scores, terms
from fader.methods.objective import Objective, objective
from fader.methods.prompt import prompt_ids
from fader.methods.search import rows, search
from fader.methods.tokens import stop_tokens, text_ids
from fader.profiles import load_alignment
from fader.request import Lookahead, PolicySpec, Preferences, Request, Sampling, Search
from fader.rewards.reward import NOTHING, Resources
from fader.schema import parse
from fader.vectors.store import find
from fader.vectors.vector import Vector, mixture

RequestLike = str | Mapping[str, Any] | Request


@dataclass(frozen=True)
class _Plan:
    """A request made ready: its policy, and the program's surroundings."""

    request: Request
    guided: GuidedPolicy
    backbone: Backbone
    task: Task
    objective: Objective | None = None
    """What the request's search is after."""

    def needs(self, length: int, samples: int) -> dict[str, tuple[int, int]]:
        """Rows and positions on each backbone, for `samples` answers of `length` tokens."""
        found: dict[str, tuple[int, int]] = {}
        judges = self.objective.policies if self.objective else []
        for policy, count in [
            *((policy, samples) for policy in self.guided.policies),
            *((policy, 2 * samples) for policy in judges),
        ]:
            rows, longest = found.get(policy.backbone, (0, 0))
            found[policy.backbone] = rows + count, max(longest, len(policy.prompt) + length)
        return found


class Fader:
    """A model, or several with one vocabulary, ready to answer requests with their own wishes, many
    at once.

    `model`: the built-in model's name, a folder, a GGUF file, a hub id, or a loaded `Backbone`.
    `models`: others by name, for guides. `vectors`: folders of vectors by name, beside those found
    in the usual places. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: str | Backbone = builtin.NAME,
        *,
        models: Mapping[str, str | Backbone] | None = None,
        vectors: Mapping[str, str | Path] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        kv_bytes: int | None = None,
        token_budget: int = 512,
        resources: Resources = NOTHING,
    ) -> None:
        def loaded(source: str | Backbone, name: str) -> Backbone:
            backbone = (
                source if isinstance(source, Backbone) else load(source, device, dtype, kv_bytes)
            )
            backbone.name = name
            return backbone

        self.model = model.name if isinstance(model, Backbone) else model
        self.backbones = {
            name: loaded(source, name)
            for name, source in {self.model: model, **(models or {})}.items()
        }
        self.engine = Engine(self.backbones, token_budget)
        self.resources = resources
        self._vectors: dict[str, Vector] = {}
        for name, folder in (vectors or {}).items():
            self.add_vector(Vector.load(folder, name))

    def __enter__(self) -> Fader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free the engine's thread."""
        self.engine.close()

    # Vectors, while requests run

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors in use so far; others are found by name when first asked for."""
        return sorted(self._vectors)

    def vector(self, name: str, backbone: Backbone | None = None) -> Vector:
        """The vector that requests get under that name. Raises ValueError if there is none, or if
        it does not fit the model."""
        vector = self._vectors.get(name)
        if vector is None:
            vector = self._vectors.setdefault(name, find(name))
        vector.check(backbone or self.backbones[self.model])
        return vector

    def add_vector(self, vector: Vector, name: str | None = None) -> None:
        """Make a vector known under its name, or another. One of the same name is replaced for new
        requests; running ones keep theirs."""
        vector = vector.named(name) if name else vector
        if not any(_fits(vector, backbone) for backbone in self.backbones.values()):
            vector.check(self.backbones[self.model])
        if vector.name in self._vectors:
            self.remove_vector(vector.name)
        self._vectors[vector.name] = vector

    def remove_vector(self, name: str) -> None:
        """Forget a vector: new requests that name it look it up anew, running ones keep it."""
        if name not in self._vectors:
            raise ValueError(
                f"vectors.{name}: not loaded; loaded: {', '.join(self.vectors) or 'none'}"
            )
        vector = self._vectors.pop(name)
        for backbone in self.backbones.values():
            self.engine.between_steps(partial(backbone.mixer.drop, vector))

    # Answers

    def generate(self, prompt: RequestLike, **fields: Any) -> Result:
        """The answer to one request: a prompt, a dict of request fields, or a `Request`.

        Keyword arguments are fields of the request (`alignment`, `prefill`, ...) or of its sampling
        (`max_tokens`, `seed`, ...). Raises ValueError naming the field, the value and the way out.
        """
        return self.batch([prompt], **fields)[0]

    def batch(
        self,
        prompts: Sequence[RequestLike],
        on_result: Callable[[Result], None] | None = None,
        **fields: Any,
    ) -> list[Result]:
        """The answers to several requests, run together; `fields` apply to those that do not say
        otherwise. In order.

        `on_result` is called with each result as soon as it and those before it are there.
        """
        submitted = [self._submit(plan) for plan in self._plans(prompts, fields)]
        results = []
        try:
            for _, future in submitted:
                results.append(future.result())
                if on_result is not None:
                    on_result(results[-1])
        finally:
            for job, _ in submitted[len(results) :]:
                self.engine.cancel(job)
        return results

    def stream(self, prompt: RequestLike, **fields: Any) -> Iterator[Chunk]:
        """The answer's chunks as they are decided. Closing the iterator cancels the request."""
        return (chunk for _, chunk in self.stream_batch([prompt], **fields))

    def stream_batch(
        self, prompts: Sequence[RequestLike], **fields: Any
    ) -> Iterator[tuple[int, Chunk]]:
        """The chunks of several requests run together, as they are decided, each with its request's
        place in `prompts`."""
        chunks: queue.SimpleQueue[tuple[int, Chunk] | None] = queue.SimpleQueue()

        def put(place: int, chunk: Chunk) -> None:
            chunks.put((place, chunk))

        submitted = [
            self._submit(plan, partial(put, place))
            for place, plan in enumerate(self._plans(prompts, fields))
        ]
        for _, future in submitted:
            future.add_done_callback(lambda _: chunks.put(None))

        def flow() -> Iterator[tuple[int, Chunk] | None]:
            try:
                yield None  # so that it has begun, and closing it comes to `finally`
                running = len(submitted)
                while running:
                    found = chunks.get()
                    if found is None:
                        running -= 1
                    else:
                        yield found
                for _, future in submitted:
                    future.result()
            finally:
                for job, _ in submitted:
                    self.engine.cancel(job)

        flowing = flow()
        next(flowing)
        return cast("Iterator[tuple[int, Chunk]]", flowing)

    async def agenerate(self, prompt: RequestLike, **fields: Any) -> Result:
        """`generate` for asyncio; cancelling the task cancels the request."""
        return (await self.abatch([prompt], **fields))[0]

    async def abatch(self, prompts: Sequence[RequestLike], **fields: Any) -> list[Result]:
        """`batch` for asyncio."""
        submitted = [self._submit(plan) for plan in self._plans(prompts, fields)]
        try:
            return await asyncio.gather(*(asyncio.wrap_future(future) for _, future in submitted))
        finally:
            for job, _ in submitted:
                self.engine.cancel(job)

    async def astream(self, prompt: RequestLike, **fields: Any) -> AsyncIterator[Chunk]:
        """`stream` for asyncio."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(chunk: Chunk | None) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        job, future = self._submit(self._plan(self.request(prompt, **fields)), put)
        future.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await asyncio.wrap_future(future)
        finally:
            self.engine.cancel(job)

    def score(self, prompt: RequestLike, answer: str, **fields: Any) -> Likelihood:
        """How likely `answer` is under the request's aligned policy, guides included. One forward
        pass."""
        return self.score_batch([(prompt, answer)], **fields)[0]

    def score_batch(
        self, pairs: Sequence[tuple[RequestLike, str]], **fields: Any
    ) -> list[Likelihood]:
        """`score` of several (prompt, answer) pairs, run together. In order. Answers to the same
        request share one reading of its prompt."""
        requests = self.requests([prompt for prompt, _ in pairs], **fields)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.model_dump_json(), []).append(place)
        for request in requests:
            if request.alignment.search is not None:
                raise ValueError(
                    "alignment.search: chooses what is written, and a given answer is only read;"
                    " leave it out to score"
                )
        readings = [
            one
            for group in groups.values()
            for one in self._readings(self._plan(requests[group[0]]), group, pairs)
        ]
        started = [
            (places, self._submit_score(plan, written)) for plan, places, written in readings
        ]
        found: dict[int, Likelihood] = {}
        try:
            for places, (_, future) in started:
                found.update(zip(places, future.result(), strict=True))
        finally:
            for _, (job, _) in started:
                self.engine.cancel(job)
        return [found[place] for place in range(len(pairs))]

    def _readings(
        self, plan: _Plan, places: list[int], pairs: Sequence[tuple[RequestLike, str]]
    ) -> Iterator[tuple[_Plan, list[int], list[list[int]]]]:
        """The answers at these places to one request as token ids, in as few readings as memory
        allows. Raises ValueError for what cannot be read."""
        tokenizer, continuing = plan.backbone.tokenizer, plan.request.prefill is not None
        written = [text_ids(pairs[place][1], tokenizer, continuing=continuing) for place in places]
        if not all(written):
            raise ValueError("answer: has no tokens; give a text to score")
        longest, size = max(map(len, written)), len(written)
        while size > 1 and not self.engine.fits(plan.needs(longest, size)):
            size = -(-size // 2)
        self.engine.check(plan.needs(longest, size))
        for start in range(0, len(written), size):
            yield plan, places[start : start + size], written[start : start + size]

    # From a request to a program

    @staticmethod
    def requests(prompts: Sequence[RequestLike], **fields: Any) -> list[Request]:
        """`request` for several; a fault names the request it is in."""
        found = []
        for place, prompt in enumerate(prompts):
            with _naming(place, len(prompts)):
                found.append(Fader.request(prompt, **fields))
        return found

    @staticmethod
    def request(prompt: RequestLike, **fields: Any) -> Request:
        """`prompt` and `fields` as a checked `Request`. Needs no model."""
        if isinstance(prompt, Request):
            if fields:
                raise ValueError(f"{', '.join(fields)}: give these inside the Request")
            return prompt
        value: dict[str, Any] = {"messages": prompt} if isinstance(prompt, str) else dict(prompt)
        if "prompt" in value:
            if "messages" in value:
                raise ValueError(
                    "prompt: stands for messages, which are given too; give one of the two"
                )
            value["messages"] = value.pop("prompt")
        said: list[Mapping[str, Any]] = [
            {name: fields.pop(name) for name in list(fields) if name in _SAMPLING}
        ]  # the later ones win, field by field
        said += [_given(of.get("sampling", {})) for of in (fields, value)]
        value = {
            **fields,
            **value,
            "sampling": {name: one for given in said for name, one in given.items()},
        }
        if isinstance(value.get("alignment"), (str, Mapping)):
            value["alignment"] = load_alignment(value["alignment"])
        return parse(Request, value)

    def _plans(self, prompts: Sequence[RequestLike], fields: dict[str, Any]) -> list[_Plan]:
        """All plans, before anything is started; a fault names the request it is in."""
        plans = []
        for place, request in enumerate(self.requests(prompts, **fields)):
            with _naming(place, len(prompts)):
                plans.append(self._plan(request))
                self.engine.check(plans[-1].needs(request.sampling.max_tokens, _samples(request)))
        return plans

    def _plan(self, request: Request) -> _Plan:
        """Find the request's model, vectors and policies. Raises ValueError for what there is not
        or does not fit."""
        backbone = self._backbone(request.model, "model")
        policies: dict[tuple[Any, ...], Policy] = {}

        def resolve(spec: PolicySpec, told: Preferences = _NOTHING) -> Policy:
            reader = self._backbone(spec.model or request.model, "policy.model")
            if reader is not backbone:
                _same_vocabulary(backbone, reader)
            wanted = request.alignment.vectors if spec.vectors is None else spec.vectors
            vectors = mixture(
                (self.vector(name, reader), strength) for name, strength in wanted.items()
            )
            prompt = request.alignment.preferences if spec.preferences is None else spec.preferences
            ids = tuple(
                prompt_ids(request.messages, (prompt, told), reader.tokenizer, request.prefill)
            )
            if not ids:
                raise ValueError("messages: the prompt has no tokens; write something")
            return policies.setdefault(
                (reader.name, ids, vectors), Policy(reader.name, ids, vectors)
            )

        base = resolve(PolicySpec())
        with _under("guides"):
            guided = GuidedPolicy(base, terms(request.alignment.guides, resolve))
        stopping = stop_tokens(request.sampling.stop, backbone.tokenizer)
        end_tokens = frozenset(
            token for token in backbone.end_tokens | stopping if token < backbone.vocabulary
        )
        context = base.prompt[-8:] if request.prefill else ()
        seen = base.prompt if request.sampling.repetition_penalty != 1 else ()

        def encode(text: str, continuing: bool) -> list[int]:
            return text_ids(text, backbone.tokenizer, continuing=continuing)

        task = Task(request.sampling, end_tokens, backbone.decode, seen, encode, context)
        wanted = request.alignment.search
        if wanted is None:
            return _Plan(request, guided, backbone, task)
        _drawn_as_searched(request.sampling, wanted)
        with _under("search"):
            aim = objective(
                wanted.rewards,
                resolve,
                self.resources,
                request.messages[-1].content,
                request.prefill or "",
            )
        return _Plan(request, guided, backbone, task, aim)

    def _backbone(self, name: str | None, field: str) -> Backbone:
        name = name or self.model
        if name not in self.backbones:
            raise ValueError(
                f"{field}: {name!r} is not loaded; loaded: {', '.join(self.backbones)}"
            )
        return self.backbones[name]

    def _program(self, plan: _Plan) -> Program:
        """The program that answers a request and returns its answers."""
        root, samples, wanted = (
            Prefix(),
            range(plan.request.sampling.n),
            plan.request.alignment.search,
        )
        if wanted is None or plan.objective is None:
            return together([decode(plan.guided, root, plan.task, index) for index in samples])
        return together(
            [
                search(wanted, plan.guided, root, plan.task, plan.objective, index)
                for index in samples
            ]
        )

    def _submit(
        self, plan: _Plan, on_item: Callable[[Chunk], None] = lambda _: None
    ) -> tuple[Job, Future[Result]]:
        def finished(job: Job, answers: list[Answer]) -> Result:
            return Result(
                tuple(answers), job.usage, len(plan.guided.base.prompt), plan.request.alignment
            )

        needs = plan.needs(plan.request.sampling.max_tokens, _samples(plan.request))
        return self._start(self._program(plan), needs, finished, on_item)

    def _submit_score(
        self, plan: _Plan, written: Sequence[list[int]]
    ) -> tuple[Job, Future[list[Likelihood]]]:
        def program() -> Program:
            root = Prefix()
            if len(written) > 1:  # the prompt is read once, for all of them
                yield from next_scores(plan.guided, [root])
            return (yield from together([report(root, ids) for ids in written]))

        def report(root: Prefix, ids: list[int]) -> Program:
            reading = yield from sequence_scores(plan.guided, root.then(*ids), len(ids))
            return token_logprobs(reading, ids, 0, plan.backbone.decode)

        def finished(_: Job, reports: list[list[TokenLogprob]]) -> list[Likelihood]:
            return [Likelihood.of(details) for details in reports]

        return self._start(program(), plan.needs(max(map(len, written)), len(written)), finished)

    def _start(
        self,
        program: Program,
        needs: Mapping[str, tuple[int, int]],
        finished: Callable[[Job, Any], Any],
        on_item: Callable[[Chunk], None] = lambda _: None,
    ) -> tuple[Job, Future[Any]]:
        future: Future[Any] = Future()

        def ended(result: Any, error: BaseException | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(finished(job, result))

        job = Job(program, needs, on_item, ended)
        self.engine.submit(job)
        return job, future


_NOTHING = Preferences()
_SAMPLING = frozenset(Sampling.model_fields)


def _samples(request: Request) -> int:
    """How many answers are written at the same time."""
    wanted = request.alignment.search
    return request.sampling.n * (rows(wanted) if wanted else 1)


def _drawn_as_searched(sampling: Sampling, wanted: Search) -> None:
    """Raises ValueError where a search could not do anything with the sampling, or would not heed
    it."""
    if isinstance(wanted, Lookahead) and wanted.rollout == "greedy":
        if sampling.temperature > 0:
            raise ValueError(
                f"sampling.temperature: {sampling.temperature:g} has no effect on a greedy"
                " look-ahead search; set it to 0, or the search's `hypotheses` to `sampled`"
            )
    elif sampling.temperature == 0:
        raise ValueError(
            f"sampling.temperature: 0 draws the same answer every time; {wanted.kind} needs a"
            " temperature above 0, such as 0.8"
        )


@contextmanager
def _under(field: str) -> Iterator[None]:
    """Puts the field that is being resolved before a fault in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from None


@contextmanager
def _naming(place: int, count: int) -> Iterator[None]:
    """Puts the number of the request before a fault, where there are several."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"request {place + 1}: {error}" if count > 1 else str(error)) from None


def _given(sampling: Any) -> Mapping[str, Any]:
    """The fields of a sampling that were given. Raises ValueError for what is none."""
    if isinstance(sampling, Sampling):
        return sampling.model_dump(exclude_unset=True)
    if not isinstance(sampling, Mapping):
        raise ValueError(f"sampling: must be a mapping of its fields (got {sampling!r})")
    return sampling


def _fits(vector: Vector, backbone: Backbone) -> bool:
    try:
        vector.check(backbone)
    except ValueError:
        return False
    return True


def _same_vocabulary(one: Backbone, two: Backbone) -> None:
    """Raises ValueError unless each token means the same in both models."""
    mine, yours = one.tokenizer.get_vocab(), two.tokenizer.get_vocab()
    if mine != yours:
        differing = next(token for token in [*mine, *yours] if mine.get(token) != yours.get(token))
        raise ValueError(
            f"policy.model: {two.name} has another vocabulary than {one.name} (token {differing!r}"
            f" is {yours.get(differing)} there, {mine.get(differing)} here); take a model of the"
            " same tokenizer"
        )


__all__ = ["Cancelled", "Chunk", "Fader", "Likelihood", "Result"]
