"""Search over sequences: which continuation is kept, by a reward. One core, propose - score - keep,
and the methods that are settings of it.

| kind      | source                   | proposes                     | keeps
|
|-----------|--------------------------|------------------------------|------------------------------|
| best-of-n | -                        | n whole answers              | the best
|
| blockwise | controlled decoding,     | n blocks after what was kept | the `beams` best
|
|           | arXiv 2310.17022         |                              |
|
| segments  | CARDS, 2406.16306        | segments that end where      | the first that is near
|
|           |                          | unsure                       | enough to the target
|
| lookahead | DeAL, 2402.06147         | likely tokens and what       | the best by log P + weight *
|
|           |                          | would follow                 | h, one token more
|

The last has a file of its own (`lookahead.py`), for it shares look-aheads between steps. Draws
depend on (seed, draft, position) alone. Deviation from CARDS: the tries of a segment are drawn side
by side instead of one after the other, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fader.engine.prefix import Prefix
from fader.engine.program import Program, together
from fader.engine.sampling import draw, uniform
from fader.methods.decode import SearchReport, Task, token_logprobs
from fader.methods.draft import Draft, Output, Purse, Scene, ends_sentence
from fader.methods.guidance import Aligned, read
from fader.methods.lookahead import lookahead
from fader.methods.objective import Objective
from fader.request import BestOfN, Blockwise, Lookahead, Search, Segments

Propose = Callable[[Any, Scene, Sequence[Draft]], Program]
"""propose(spec, scene, kept): drafts that go on from those that were kept; finished ones as they
are."""
Keep = Callable[[Any, Scene, Sequence[Draft]], list[Draft]]
"""keep(spec, scene, drafts): those of the valued drafts to go on from, the best first."""


def search(
    spec: Search, aligned: Aligned, root: Prefix, task: Task, objective: Objective, index: int = 0
) -> Program:
    """Write one answer as `spec` says, emitting a `Chunk` for each decided token; returns the
    `Answer`. `index` tells a request's samples apart."""
    scene = Scene(aligned, root, task, objective, Purse(spec.budget), index)
    if isinstance(spec, Lookahead):
        return (yield from lookahead(spec, scene))
    return (yield from propose_score_keep(spec, scene, *KINDS[type(spec)]))


def propose_score_keep(spec: Search, scene: Scene, propose: Propose, keep: Keep) -> Program:
    """The core. When the budget is used up the best draft so far ends it, a finished one if there
    is one."""
    out = Output(scene.task, scene.index)
    kept = [Draft(scene.root)]
    exhausted: str | None = None
    while any(draft.finish is None for draft in kept) and not exhausted:
        drafts = yield from propose(spec, scene, kept)
        drafts = yield from scene.valued(drafts)
        exhausted = scene.purse.exhausted if any(draft.finish is None for draft in drafts) else None
        kept = (
            _best([draft for draft in drafts if draft.finish] or drafts, 1)
            if exhausted
            else keep(spec, scene, drafts)
        )
        drafts = []  # what was not kept is let go of before the next are proposed
        for draft in kept:
            draft.prefix.settle(scene.root)
        yield from out.decided(kept)
    best = _best(kept, 1)[0]
    return (
        yield from out.end(best, SearchReport(best.reward, scene.purse.tokens, exhausted=exhausted))
    )


def rows(spec: Search) -> int:
    """How many drafts of one answer are in memory at the same time, at most."""
    kept = spec.beams if isinstance(spec, Blockwise | Lookahead) else 1
    match spec:
        case BestOfN() | Blockwise():
            drafts = spec.n
        case Segments():
            drafts = spec.tries
        case Lookahead():
            proposing = any(getattr(reward, "propose", False) for reward in spec.rewards)
            drafts = spec.width + spec.beams * spec.top_k * (2 if proposing else 1)
    return drafts + kept + 1


def _whole(spec: BestOfN, scene: Scene, kept: Sequence[Draft]) -> Program:
    return (
        yield from together(
            [write(scene, kept[0], scene.index * spec.n + place) for place in range(spec.n)]
        )
    )


def _keep_best(spec: BestOfN, scene: Scene, drafts: Sequence[Draft]) -> list[Draft]:
    return _best(drafts, 1)


def _blocks(spec: Blockwise, scene: Scene, kept: Sequence[Draft]) -> Program:
    open_ones = [draft for draft in kept if not draft.finish]

    full = _new_sentence if spec.block == "sentence" else _new_tokens(spec.block)
    blocks = [
        write(scene, open_ones[place % len(open_ones)], scene.index * spec.n + place, full)
        for place in range(spec.n)
    ]
    return [draft for draft in kept if draft.finish] + (yield from together(blocks))


def _keep_beams(spec: Blockwise, scene: Scene, drafts: Sequence[Draft]) -> list[Draft]:
    different: dict[tuple[int, ...], Draft] = {}
    for draft in drafts:
        different.setdefault(tuple(draft.prefix.tokens), draft)
    return _best(list(different.values()), spec.beams)


def _segments(spec: Segments, scene: Scene, kept: Sequence[Draft]) -> Program:
    full = _new_tokens(spec.longest)
    tries = [
        write(scene, kept[0], scene.index * spec.tries + place, full, spec.entropy)
        for place in range(spec.tries)
    ]
    return (yield from together(tries))


def _keep_accepted(spec: Segments, scene: Scene, drafts: Sequence[Draft]) -> list[Draft]:
    for place, draft in enumerate(drafts):
        chance = uniform(
            scene.task.sampling.seed, -1 - scene.index * spec.tries - place, draft.prefix.length
        )
        if chance < math.exp(min(0.0, draft.reward - spec.target) / spec.softness):
            return [draft]
    return _best(drafts, 1)


KINDS: Mapping[type, tuple[Propose, Keep]] = {
    BestOfN: (_whole, _keep_best),
    Blockwise: (_blocks, _keep_beams),
    Segments: (_segments, _keep_accepted),
}


Full = Callable[[Draft, Draft], bool]
"""full(draft, start): whether what was written since `start` is enough for now."""


def write(
    scene: Scene,
    draft: Draft,
    stream: int,
    full: Full = lambda draft, start: False,
    entropy: float = math.inf,
) -> Program:
    """The draft continued by draws of this stream until it is finished, `full(draft, start)`, or
    the next token's entropy (nats) is reached."""
    sampling, start = scene.task.sampling, draft
    while draft.finish is None and not scene.purse.exhausted:
        reading = yield from read(scene.aligned, [draft.prefix])
        new = draft.prefix.length - start.prefix.length
        if new and entropy < math.inf and _entropy(reading.scores[0]) >= entropy:
            break
        written = draft.prefix.tokens if sampling.repetition_penalty != 1 else ()
        token = draw(
            reading.scores[0],
            sampling,
            (*scene.task.seen, *written),
            uniform(sampling.seed, stream, draft.prefix.length),
        )
        reports = (
            ()
            if sampling.logprobs is None
            else token_logprobs(reading, [token], sampling.logprobs, scene.task.decode)
        )
        draft = draft.then(token, scene.task, reports)
        scene.purse.pay(rows=len(scene.aligned.policies), tokens=1)
        if full(draft, start):
            break
    return draft


def _new_tokens(count: int) -> Full:
    return lambda draft, start: draft.prefix.length - start.prefix.length >= count


def _new_sentence(draft: Draft, start: Draft) -> bool:
    return ends_sentence(draft.text[len(start.text) :])


def _entropy(scores: Tensor) -> float:
    return float(torch.distributions.Categorical(logits=scores, validate_args=False).entropy())


def _best(drafts: Sequence[Draft], count: int) -> list[Draft]:
    """The drafts of the highest reward, the first of equals."""
    return sorted(drafts, key=lambda draft: -draft.reward)[:count]
