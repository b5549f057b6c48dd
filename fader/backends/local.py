"""The local backend: requests answered by our own engine, in this process.

A request becomes a plan (policies, terms of guides, the objective of a search), and the plan a
program of the engine. What can be refused is refused while planning, all faults at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fader.answer import Chunk, Likelihood, Result
from fader.backends import About, EngineName
from fader.engine import builtin
from fader.engine.llama.loading import load as load_gguf
from fader.engine.loading import load
from fader.engine.loop import Engine, Needs
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import Program, UsageSoFar, together
from fader.engine.protocols import Backbone
from fader.engine.running import Running
from fader.engine.stats import Stats
from fader.methods.decode import Task, decode, token_logprobs
from fader.methods.guidance import (
    GuidedPolicy,
    next_scores,
    sequence_scores,
    terms,
    told_to_base,
)
from fader.methods.objective import Objective, objective
from fader.methods.prompt import newest_that_fit, prompt_ids, raw_ids
from fader.methods.search import rows, search
from fader.methods.spans import ROOM, Spans
from fader.methods.structured import masks
from fader.methods.tokens import stop_tokens, text_ids
from fader.request import PolicySpec, Preferences, Request, Sampling, Search, is_greedy
from fader.rewards.reward import NOTHING, Resources
from fader.schema import Faults, Invalid, at, path_of, short, whole_characters
from fader.vectors.store import find
from fader.vectors.vector import Vector, mixture


@dataclass(frozen=True)
class Plan:
    """A request made ready to run."""

    request: Request
    guided: GuidedPolicy
    backbone: Backbone
    task: Task
    objective: Objective | None = None
    """The objective of the request's search."""
    dropped: int = 0
    """Past choices that did not fit and are not told."""

    def needs(self, length: int, samples: int) -> dict[str, tuple[int, int]]:
        """Rows and positions on each backbone, for `samples` answers of `length` tokens."""
        found: dict[str, tuple[int, int]] = {}
        judges = self.objective.policies if self.objective else []
        counts = [(policy, samples) for policy in self.guided.policies]
        counts += [(policy, 2 * samples) for policy in judges]
        for policy, count in counts:
            taken, longest = found.get(policy.backbone, (0, 0))
            found[policy.backbone] = taken + count, max(longest, len(policy.prompt) + length)
        terms = self.guided.terms
        candidates = sum(t.plausible.top_k or 0 for t in terms if t.plausible is not None)
        for term in terms:
            if term.spans is None:
                continue
            for policy in (term.policy, term.reference):
                taken, longest = found.get(policy.backbone, (0, 0))
                read = len(policy.prompt) + term.spans.limit + term.spans.longest
                found[policy.backbone] = taken + samples * (1 + candidates), max(longest, read)
        return found


class Local:
    """A model, or several with one vocabulary, behind our own engine (see `backends.Backend`).

    `model`: the built-in model's name, a folder, a GGUF file, a hub id, or a loaded `Backbone`.
    `models`: others by name, for guides. `vectors`: folders of vectors by name, beside those found
    in the usual places. `engine`: what reads them, "torch" or "llama.cpp". `share_prompts`: whether
    requests that begin with the same tokens, under the same vectors, read them once. `resources`:
    what rewards may use, by name. `max_waiting`: how many requests may wait for memory before
    others are refused with `Busy`.
    """

    def __init__(
        self,
        model: str | Backbone = builtin.NAME,
        models: Mapping[str, str | Path | Backbone] | None = None,
        vectors: Mapping[str, str | Path] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        kv_bytes: int | None = None,
        token_budget: int = 512,
        share_prompts: bool = True,
        resources: Resources = NOTHING,
        max_waiting: int | None = None,
        engine: EngineName = "torch",
    ) -> None:
        _refuse_no_model(model, "model")
        self.model = model if isinstance(model, str) else model.name
        self._load = partial(loader(engine), device=device, dtype=dtype, kv_bytes=kv_bytes)
        self.engine = Engine({}, token_budget, max_waiting=max_waiting, share_prompts=share_prompts)
        for name, source in [(self.model, model), *(models or {}).items()]:
            self.add_model(name, source)
        self.resources = resources
        self._vectors: dict[str, Vector] = {}
        for name, folder in (vectors or {}).items():
            self.add_vector(Vector.load(folder, name))

    def close(self) -> None:
        """Cancel what runs and free the engine's thread."""
        self.engine.close()

    def identity(self, model: str) -> str:
        """A hash of all that a model's answers depend on besides the request."""
        return self.backbones[model].identity

    def stats(self) -> Stats:
        """How busy the engine is."""
        return self.engine.stats()

    def fault(self) -> str:
        """Nothing: what ends one request leaves the others."""
        return ""

    @property
    def models(self) -> list[str]:
        """Names of the loaded models, the one that answers by default first."""
        return list(self.backbones)

    @property
    def backbones(self) -> Mapping[str, Backbone]:
        """The loaded models by name."""
        return self.engine.backbones

    def add_model(self, name: str, source: str | Path | Backbone) -> None:
        """Load another model (see `engine.loading.load`), which requests may name from now on.
        Raises ValueError for a name that is taken, and for what is no model."""
        _refuse_no_model(source, path_of("models", name))
        self.engine.add(name, self._load(str(source)) if isinstance(source, str | Path) else source)

    # Vectors, while requests run

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors in use so far; others are found when a request names them."""
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
            known = ", ".join(self.vectors) or "none"
            raise Invalid(f"not loaded; loaded: {known}", f"vectors.{name}")
        self.engine.forget(self._vectors.pop(name))

    # From a request to a program

    def about(self, model: str) -> About:
        """What is known of a model. Raises `Invalid` for one that is not loaded."""
        backbone = self.model_named(model, "model")
        tokenizer = backbone.tokenizer
        return About(
            model,
            backbone.max_length,
            backbone.vocabulary,
            tuple(sorted(backbone.end_tokens)),
            {
                "tokenizer_class": type(tokenizer).__name__,
                **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
                "chat_template": tokenizer.chat_template,
            },
        )

    def encode(self, model: str, request: Request | str, begin: bool = True) -> list[int]:
        """Token ids: those of a text, or those that a request's own policy reads."""
        backbone = self.model_named(model, "model")
        if isinstance(request, str):
            whole_characters(request)
            return list(backbone.tokenizer(request, add_special_tokens=begin)["input_ids"])
        return list(_Resolver(self, request, backbone, ()).base.prompt)

    def decode(self, model: str, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids. Raises `Invalid` for one that the model does not have."""
        backbone = self.model_named(model, "model")
        with at("tokens"):
            backbone.check_tokens(tokens)
        return str(backbone.tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def needs(self, request: Request) -> Needs:
        """Rows and positions by model, for what a request takes at one time."""
        return self._needs(self.plan(request))

    def check(
        self, request: Request, answers: Sequence[str | Sequence[int]] | None = None
    ) -> list[Invalid]:
        """Every fault of a request; none: it can run. With `answers`: whether these can be
        scored."""
        try:
            if answers is None:
                self.plan(request)
            else:
                self._scored(request, answers)
        except Invalid as error:
            return error.faults
        return []

    def submit(
        self, request: Request, on_chunk: Callable[[Chunk], None] = lambda _: None
    ) -> Running[Result]:
        """Start a request. Raises `Invalid` with all its faults before anything runs."""
        [running] = self.submit_all([request], lambda _, chunk: on_chunk(chunk))
        return running

    def submit_all(
        self,
        requests: Sequence[Request],
        on_chunk: Callable[[int, Chunk], None] = lambda _, __: None,
    ) -> list[Running[Result]]:
        """Start requests that begin together, so that their prompts are read together."""
        plans = [self.plan(request) for request in requests]
        needs = [self._needs(plan) for plan in plans]
        return self.engine.run_all(
            [
                (_result(plan), need, partial(on_chunk, place))
                for place, (plan, need) in enumerate(zip(plans, needs, strict=True))
            ]
        )

    def score(
        self, request: Request, answers: Sequence[str | Sequence[int]]
    ) -> Running[list[Likelihood]]:
        """How likely given answers are under the request's guided policy. The prompt is read once
        for as many of them as memory allows. Raises `Invalid` before anything runs."""
        plan, written, size, needs = self._scored(request, answers)
        return self.engine.run(_likelihoods(plan, written, size), needs)

    def _scored(
        self, request: Request, answers: Sequence[str | Sequence[int]]
    ) -> tuple[Plan, list[list[int]], int, Needs]:
        """What scoring takes: the plan, the answers' tokens, how many are read at a time, and the
        memory for these."""
        faults, plan = Faults(), None
        with faults.at("alignment", "search"):
            if request.alignment.search is not None:
                raise Invalid(
                    "chooses what is written, and a given answer is only read; leave it out to"
                    " score"
                )
        with faults.at("json_schema"):
            if request.json_schema is not None:
                raise Invalid(
                    "holds for what is written, and a given answer is only read; leave it out to"
                    " score"
                )
        with faults.at():
            plan = self.plan(request, writes=False)
        reader = self.backbones.get(request.model or self.model)
        written = []
        for answer in answers:
            with faults.at("answer"):
                written.append(_answer_ids(answer, reader, _goes_on(request)))
        faults.raise_any()
        assert plan is not None
        longest, size = max(map(len, written), default=0), max(len(written), 1)
        while size > 1 and not self.engine.fits(plan.needs(longest, size)):
            size = -(-size // 2)
        return plan, written, size, self._room(plan, longest, size, "answer")

    def _room(self, plan: Plan, length: int, samples: int, field: str) -> Needs:
        """What `samples` answers of up to `length` tokens need. Raises `Invalid` where that can
        never be had, under the field that asks for too much; `field` is what says the length."""
        needs = plan.needs(length, samples)
        try:
            self.engine.check(needs)
        except Invalid as fault:
            raise Invalid(fault.said, self._too_much(plan, length, field)) from None
        return needs

    def _too_much(self, plan: Plan, length: int, field: str) -> str:
        """The first field without which one could run: the number of answers, the search, the
        alignment as a whole; else the longer one of prompt and answer."""
        unsearched = replace(plan, objective=None)
        bare = replace(unsearched, guided=GuidedPolicy(plan.guided.base, ()))
        for without, needs in (
            ("sampling.n", plan.needs(length, _rows(plan))),
            ("alignment.search", unsearched.needs(length, 1)),
            ("alignment", bare.needs(length, 1)),
        ):
            if self.engine.fits(needs):
                return without
        if length > len(plan.guided.base.prompt):
            return field
        return "messages" if plan.request.raw is None else "raw"

    def plan(self, request: Request, writes: bool = True) -> Plan:
        """Find the request's model, vectors and policies. Raises `Invalid` with every fault: names
        that are not known, vectors that do not fit, requests that could never run. `writes`:
        whether answers are written, or given ones only read."""
        faults = Faults()
        backbone = self.model_named(request.model, "model")
        alignment, base = request.alignment, None
        own = self.mixture_of(alignment.vectors, backbone, faults.inside("alignment"))
        resolve = _Resolver(self, request, backbone, own)
        with faults.at():
            base = resolve.base
        if base is None:  # without it nothing more can be said
            faults.raise_any()
            raise AssertionError("a policy that cannot be had without a fault")
        guided = GuidedPolicy(
            base, terms(alignment.guides, resolve, faults.inside("alignment", "guides"))
        )
        aim = None
        if writes and alignment.search is not None:
            with faults.at("sampling"):
                _drawn_as_searched(request.sampling, alignment.search)
            asked = request.messages[-1].content if request.messages else request.raw or ""
            question, begun = _text(asked, backbone), _text(request.prefill or "", backbone)
            place = faults.inside("alignment", "search", "rewards")
            aim = objective(
                alignment.search.rewards, resolve, self.resources, question, begun, place
            )
        faults.raise_any()
        task = _task(request, base, backbone)
        plan = Plan(request, guided, backbone, task, aim, resolve.dropped)
        if writes:
            self._needs(plan)
        return plan

    def _needs(self, plan: Plan) -> Needs:
        """What all answers that a request writes at one time need."""
        sampling = plan.request.sampling
        return self._room(
            plan, sampling.max_tokens, sampling.n * _rows(plan), "sampling.max_tokens"
        )

    def model_named(self, name: str | None, field: str) -> Backbone:
        """The loaded model of that name, by default the first. Raises `Invalid` under `field`."""
        name = name or self.model
        if name not in self.backbones:
            known = ", ".join(self.backbones)
            raise Invalid(f"{name!r} is not loaded; loaded: {known}", field)
        return self.backbones[name]

    def mixture_of(
        self, strengths: Mapping[str, float], backbone: Backbone, faults: Faults
    ) -> tuple[tuple[Vector, float], ...]:
        """Vectors by name with their strengths; those that cannot be had are `faults`."""
        found = []
        for name, strength in strengths.items():
            with faults.at():
                found.append((self.vector(name, backbone), strength))
        return mixture(found)


def loader(engine: EngineName) -> Callable[..., Backbone]:
    """What loads a model for that engine. Raises ValueError for one that is not there."""
    if engine == "torch":
        return load
    if engine == "llama.cpp":
        return load_gguf
    raise ValueError(f"engine: {engine!r} is not known; give torch, llama.cpp or vllm")


class _Resolver:
    """Turns what a request says of a policy into one (see `guidance.Resolve`); equal ones are made
    once."""

    def __init__(
        self,
        local: Local,
        request: Request,
        backbone: Backbone,
        own: tuple[tuple[Vector, float], ...],
    ) -> None:
        self._local, self._request, self._backbone, self._own = local, request, backbone, own
        self._made: dict[tuple[Any, ...], Policy] = {}
        self.dropped = 0
        """Past choices that a policy had no room for, at most."""

    @property
    def base(self) -> Policy:
        """The policy that is guided: the request's own, told what guides tell it."""
        return self(PolicySpec(), told_to_base(self._request.alignment.guides))

    def __call__(
        self,
        spec: PolicySpec | str,
        told: Sequence[Preferences] = (),
        field: str = "",
        any_tokens: bool = False,
    ) -> Policy:
        """The policy, told `told` beside the request's preferences."""
        model_field = field if isinstance(spec, str) else path_of(field, "model")
        spec = PolicySpec(model=spec, vectors={}) if isinstance(spec, str) else spec
        reader = self._local.model_named(spec.model or self._request.model, model_field)
        if reader is not self._backbone and not any_tokens:
            with at(model_field):
                _same_vocabulary(self._backbone, reader)
        alignment = self._request.alignment
        preferences = alignment.preferences if spec.preferences is None else spec.preferences
        key = (
            reader.name,
            self._read((preferences, *told), reader),
            self._mixed(spec, reader, field),
        )
        return self._made.setdefault(key, Policy(*key))

    def spans(self, policy: Policy) -> Spans | None:
        """How a policy of another tokenizer reads the answer; None for one of the same."""
        reader, mine = self._local.backbones[policy.backbone], self._backbone
        if _same_tokens(reader, mine):
            return None
        begun = _goes_on(self._request)
        context = list(self.base.prompt[-8:]) if begun else []
        start = len(mine.decode(context))

        def text(tokens: Sequence[int]) -> str:
            return mine.decode([*context, *tokens])[start:].rstrip("\ufffd")

        @lru_cache(maxsize=4096)
        def encode(text: str) -> tuple[int, ...]:
            return tuple(text_ids(text, reader.tokenizer, continuing=begun))

        longest = max(len(token.encode()) for token in mine.tokenizer.get_vocab())
        room = reader.max_length - len(policy.prompt) - longest
        limit = max(1, min(ROOM * (self._request.sampling.max_tokens + 1), room))
        return Spans(text, encode, mine.end_tokens, reader.end_tokens, limit, longest)

    def _mixed(
        self, spec: PolicySpec, reader: Backbone, field: str
    ) -> tuple[tuple[Vector, float], ...]:
        if spec.vectors is None and reader is self._backbone:
            return self._own
        faults = Faults()
        named = self._request.alignment.vectors if spec.vectors is None else spec.vectors
        found = self._local.mixture_of(named, reader, faults.inside(field))
        faults.raise_any()
        return found

    def _read(self, preferences: Sequence[Preferences], reader: Backbone) -> tuple[int, ...]:
        """The token ids of the conversation under these preferences, of whose histories the oldest
        choices are left out where all of them leave no room for the answer."""
        sampling, wanted = self._request.sampling, self._request.alignment.search
        samples = sampling.n * (rows(wanted) if wanted else 1)

        def fits(told: Sequence[Preferences]) -> bool:
            length = len(self._ids(told, reader)) + sampling.max_tokens
            return self._local.engine.fits({reader.name: (samples, length)})

        told, dropped = newest_that_fit(preferences, fits)
        self.dropped = max(self.dropped, dropped)
        return self._ids(told, reader)

    def _ids(self, preferences: Sequence[Preferences], reader: Backbone) -> tuple[int, ...]:
        """The token ids of the conversation under these preferences."""
        request, mine = self._request, self._backbone
        raw, begun = request.raw, request.prefill
        if not _same_tokens(reader, mine):  # ids mean nothing to it
            raw, begun = raw and _text(raw, mine), begun and _text(begun, mine)
        with at("messages" if raw is None else "raw"):
            if raw is not None:
                ids = raw_ids(raw, preferences, reader.tokenizer)
            elif begun is None or isinstance(begun, str):
                ids = prompt_ids(request.messages, preferences, reader.tokenizer, begun)
            else:
                ids = [*prompt_ids(request.messages, preferences, reader.tokenizer), *begun]
            if not ids:
                raise ValueError("the prompt has no tokens; write something")
            reader.check_tokens(ids)
        return tuple(ids)


def _same_tokens(one: Backbone, two: Backbone) -> bool:
    """Whether an id is the same token to both."""
    return one is two or _equal_vocabularies(one.tokenizer, two.tokenizer)


@lru_cache(maxsize=64)  # it takes 20 ms to make one
def _equal_vocabularies(one: Any, two: Any) -> bool:
    return bool(one.get_vocab() == two.get_vocab())


def _rows(plan: Plan) -> int:
    """Answers that are written side by side for one."""
    wanted = plan.request.alignment.search
    return rows(wanted) if wanted else 1


def _answer_ids(answer: object, reader: Backbone | None, continuing: bool) -> list[int]:
    """The tokens of an answer that is to be scored, a text or token ids; none where no model is
    there to read them. Raises `Invalid` for what cannot be scored."""
    if not isinstance(answer, Sequence) or (
        not isinstance(answer, str) and any(type(token) is not int for token in answer)
    ):
        raise Invalid(f"must be a text to score (got {short(answer)})")
    if reader is None:
        return []
    if isinstance(answer, str):
        ids = text_ids(answer, reader.tokenizer, continuing=continuing)
    else:
        ids = list(answer)
    if not ids:
        raise Invalid("has no tokens; give a text to score")
    reader.check_tokens(ids)
    return ids


def _task(request: Request, base: Policy, backbone: Backbone) -> Task:
    def encode(text: str, continuing: bool) -> list[int]:
        return text_ids(text, backbone.tokenizer, continuing=continuing)

    sampling = request.sampling
    ends = stop_tokens(sampling.stop, backbone.tokenizer)
    ends |= frozenset() if sampling.ignore_eos else backbone.end_tokens
    masking = None
    if request.json_schema is not None:
        with at("json_schema"):
            _only_plain(request)
            masking = masks(request.json_schema, backbone)
    with at("sampling.logit_bias"):
        backbone.check_tokens(list(sampling.logit_bias))
    return Task(
        request.sampling,
        frozenset(token for token in ends if token < backbone.vocabulary),
        backbone.decode,
        seen=base.prompt if request.sampling.repetition_penalty != 1 else (),
        encode=encode,
        masks=masking,
        context=base.prompt[-8:] if _goes_on(request) else (),
    )


def _only_plain(request: Request) -> None:
    """Raises ValueError for what does not go with JSON by a schema."""
    beside = {
        "a search": request.alignment.search is not None,
        "prefill": request.prefill is not None,
        "min_tokens": request.sampling.min_tokens > 0,
        "ignore_eos": request.sampling.ignore_eos,
    }
    for name, given in beside.items():
        if given:
            raise ValueError(f"does not go with {name}; leave one of them out")


def _goes_on(request: Request) -> bool:
    """Whether what is written continues a text that the caller gave."""
    return request.prefill is not None or request.raw is not None


def _text(written: str | Sequence[int], backbone: Backbone) -> str:
    """What was given as a text or as token ids, as a text."""
    return written if isinstance(written, str) else backbone.decode(written)


def _result(plan: Plan) -> Program:
    """The program that answers a request and returns its `Result`."""
    request, root = plan.request, Prefix()
    wanted, aim, samples = request.alignment.search, plan.objective, range(request.sampling.n)
    if wanted is None or aim is None:
        programs = [decode(plan.guided, root, plan.task, index) for index in samples]
    else:
        programs = [search(wanted, plan.guided, root, plan.task, aim, index) for index in samples]
    answers = yield from together(programs)
    usage = yield UsageSoFar()
    prompt = len(plan.guided.base.prompt)
    return Result(tuple(answers), usage, prompt, request.alignment, plan.dropped)


def _likelihoods(plan: Plan, written: Sequence[list[int]], size: int) -> Program:
    """The program that reads given answers, `size` at a time, and returns their likelihoods."""

    def report(root: Prefix, ids: list[int]) -> Program:
        logits = yield from sequence_scores(plan.guided, root.then(*ids), len(ids))
        alternatives = plan.request.sampling.logprobs or 0
        details = token_logprobs(plan.guided, logits, ids, alternatives, plan.backbone.decode)
        return Likelihood.of(details, plan.dropped)

    root = Prefix()
    if len(written) > 1:  # the prompt is read once, for all of them
        yield from next_scores(plan.guided, [root])
    found: list[Likelihood] = []
    for start in range(0, len(written), size):
        some = written[start : start + size]
        found += yield from together([report(root, ids) for ids in some])
    return found


def _drawn_as_searched(sampling: Sampling, wanted: Search) -> None:
    """Raises `Invalid` for settings that a search cannot use or would ignore."""
    for name in ("min_tokens", "ignore_eos", "logit_bias"):
        if getattr(sampling, name):
            raise Invalid("has no effect on a search; leave it out, or the search", name)
    if is_greedy(wanted):
        if sampling.temperature > 0:
            raise Invalid(
                f"{sampling.temperature:g} has no effect on a greedy look-ahead search; set it to"
                " 0, or the search's `rollout` to `sampled`",
                "temperature",
            )
    elif sampling.temperature == 0:
        raise Invalid(
            f"0 draws the same answer every time; {wanted.kind} needs a temperature above 0, such"
            " as 0.8",
            "temperature",
        )


def _refuse_no_model(source: Any, field: str) -> None:
    """Raises `Invalid` under `field` for what can be no model."""
    loaded = hasattr(source, "forward") and hasattr(source, "memory")
    if not (loaded or isinstance(source, str | Path)):
        raise Invalid(
            "must be a model's name, folder, GGUF file or hub id, or a loaded Backbone (got"
            f" {short(source)})",
            field,
        )


def _fits(vector: Vector, backbone: Backbone) -> bool:
    try:
        vector.check(backbone)
    except ValueError:
        return False
    return True


def _same_vocabulary(one: Backbone, two: Backbone) -> None:
    """Raises ValueError unless each token means the same in both models."""
    if not _same_tokens(one, two):
        mine, yours = one.tokenizer.get_vocab(), two.tokenizer.get_vocab()
        differing = next(t for t in [*mine, *yours] if mine.get(t) != yours.get(t))
        raise ValueError(
            f"{two.name} has another vocabulary than {one.name} (token {differing!r} is"
            f" {yours.get(differing)} there, {mine.get(differing)} here); take a model of the same"
            " tokenizer"
        )
