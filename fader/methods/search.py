"""Search over sequences: a reward decides which continuation is kept. One core, propose - score -
keep, and the methods that are settings of it.

| kind      | source               | proposes                      | keeps                       |
| --------- | -------------------- | ----------------------------- | --------------------------- |
| best-of-n |                      | n whole answers               | the best                    |
| blockwise | controlled decoding, | n blocks after what was kept  | the `beams` best            |
|           | arXiv 2310.17022     |                               |                             |
| segments  | CARDS, 2406.16306    | segments that end where the   | the first that reaches a    |
|           |                      | model is unsure               | threshold, which rises      |
| lookahead | DeAL, 2402.06147     | likely tokens and what would  | the best by log P + weight  |
|           |                      | follow                        | * h, one token more         |

The last has a file of its own (`lookahead.py`), since it shares look-aheads between steps. Draws
depend on (seed, number of the hypothesis, position) alone.

Deviations. Blockwise: controlled decoding keeps the blocks with the highest value of a prefix
scorer, which is trained to predict the reward of the whole answer. Here the reward judges the
unfinished text as it is, so a reward that only whole answers earn says nothing on the way.
Segments, after CARDS's released code: a segment of 4 to 64 tokens that ends at position t is kept
with probability

    exp(min(0, h - tau(t)) / softness),  tau(t) = r_0 + t * (target - r_0) / max_tokens,
    r_0 = (1 - alpha) * h(nothing written) + alpha * target

and the best of 20 where none is; its tries are drawn side by side instead of one after the other,
with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fader.answer import SearchReport
from fader.engine.prefix import Prefix
from fader.engine.program import Program, together
from fader.methods.decode import Task, token_logprobs
from fader.methods.guidance import GuidedPolicy, next_scores
from fader.methods.hypothesis import Hypothesis, Output, SearchContext, Spent, ends_sentence
from fader.methods.lookahead import lookahead
from fader.methods.objective import Objective
from fader.methods.sampling import draw, uniform
from fader.request import BestOfN, Blockwise, Lookahead, Search, Segments

Propose = Callable[[Any, SearchContext, Sequence[Hypothesis]], Program]
"""propose(spec, context, kept): hypotheses that continue the kept ones; finished ones as they
are."""
Keep = Callable[[Any, SearchContext, Sequence[Hypothesis]], list[Hypothesis]]
"""keep(spec, context, hypotheses): those of the scored hypotheses to go on from, the best first."""


def search(
    spec: Search,
    guided: GuidedPolicy,
    root: Prefix,
    task: Task,
    objective: Objective,
    index: int = 0,
) -> Program:
    """Write one answer as `spec` says, emitting a `Chunk` for each decided token; returns the
    `Answer`. `index` tells a request's samples apart."""
    context = SearchContext(guided, root, task, objective, Spent(spec.budget), index)
    if isinstance(spec, Segments):
        [nothing] = yield from context.scored([Hypothesis(root)])
        context = replace(context, start=nothing.reward)
    if isinstance(spec, Lookahead):
        return (yield from lookahead(spec, context))
    return (yield from propose_score_keep(spec, context, *KINDS[type(spec)]))


def propose_score_keep(
    spec: Search, context: SearchContext, propose: Propose, keep: Keep
) -> Program:
    """The core. When the budget is used up, the best hypothesis so far is the answer, a finished
    one if there is one."""
    out = Output(context)
    kept = [Hypothesis(context.root)]
    exhausted: str | None = None
    while any(hypothesis.finish is None for hypothesis in kept) and not exhausted:
        hypotheses = yield from propose(spec, context, kept)
        hypotheses = yield from context.scored(hypotheses)
        exhausted = (
            context.spent.exhausted
            if any(hypothesis.finish is None for hypothesis in hypotheses)
            else None
        )
        kept = (
            _best([hypothesis for hypothesis in hypotheses if hypothesis.finish] or hypotheses, 1)
            if exhausted
            else keep(spec, context, hypotheses)
        )
        hypotheses = []  # what was not kept is let go of before the next are proposed
        for hypothesis in kept:
            hypothesis.prefix.release_behind(context.root)
        yield from out.decided(kept)
    best = _best(kept, 1)[0]
    return (
        yield from out.end(
            best, SearchReport(best.reward, context.spent.tokens, exhausted=exhausted)
        )
    )


def rows(spec: Search) -> int:
    """How many hypotheses of one answer are in memory at the same time, at most."""
    kept = spec.beams if isinstance(spec, Blockwise | Lookahead) else 1
    match spec:
        case BestOfN() | Blockwise():
            hypotheses = spec.n
        case Segments():
            hypotheses = spec.tries
        case Lookahead():
            proposing = any(getattr(reward, "propose", False) for reward in spec.rewards)
            hypotheses = spec.width + spec.beams * spec.top_k * (2 if proposing else 1)
    return hypotheses + kept + 1


def _whole(spec: BestOfN, context: SearchContext, kept: Sequence[Hypothesis]) -> Program:
    return (
        yield from together(
            [write(context, kept[0], context.index * spec.n + place) for place in range(spec.n)]
        )
    )


def _keep_best(
    spec: BestOfN, context: SearchContext, hypotheses: Sequence[Hypothesis]
) -> list[Hypothesis]:
    return _best(hypotheses, 1)


def _blocks(spec: Blockwise, context: SearchContext, kept: Sequence[Hypothesis]) -> Program:
    open_ones = [hypothesis for hypothesis in kept if not hypothesis.finish]

    full = _new_sentence if spec.block == "sentence" else _new_tokens(spec.block)
    blocks = [
        write(context, open_ones[place % len(open_ones)], context.index * spec.n + place, full)
        for place in range(spec.n)
    ]
    return [hypothesis for hypothesis in kept if hypothesis.finish] + (yield from together(blocks))


def _keep_beams(
    spec: Blockwise, context: SearchContext, hypotheses: Sequence[Hypothesis]
) -> list[Hypothesis]:
    different: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in hypotheses:
        different.setdefault(tuple(hypothesis.prefix.tokens), hypothesis)
    return _best(list(different.values()), spec.beams)


def _segments(spec: Segments, context: SearchContext, kept: Sequence[Hypothesis]) -> Program:
    full = _new_tokens(spec.longest)
    tries = [
        write(
            context,
            kept[0],
            context.index * spec.tries + place,
            full,
            spec.entropy,
            spec.shortest,
        )
        for place in range(spec.tries)
    ]
    return (yield from together(tries))


def _keep_accepted(
    spec: Segments, context: SearchContext, hypotheses: Sequence[Hypothesis]
) -> list[Hypothesis]:
    for place, hypothesis in enumerate(hypotheses):
        chance = uniform(
            context.task.sampling.seed,
            -1 - context.index * spec.tries - place,
            hypothesis.prefix.length,
        )
        missing = hypothesis.reward - threshold(spec, context, hypothesis.prefix.length)
        if chance < math.exp(min(0.0, missing) / spec.softness):
            return [hypothesis]
    return _best(hypotheses, 1)


def threshold(spec: Segments, context: SearchContext, position: int) -> float:
    """The reward at which a segment that ends at this position is always kept. It rises to the
    target; `alpha` says where between the reward of the empty answer and the target it begins."""
    first = (1 - spec.alpha) * context.start + spec.alpha * spec.target
    return first + position * (spec.target - first) / context.task.sampling.max_tokens


KINDS: Mapping[type, tuple[Propose, Keep]] = {
    BestOfN: (_whole, _keep_best),
    Blockwise: (_blocks, _keep_beams),
    Segments: (_segments, _keep_accepted),
}


Full = Callable[[Hypothesis, Hypothesis], bool]
"""full(hypothesis, start): whether the text since `start` is a whole block or segment."""


def write(
    context: SearchContext,
    hypothesis: Hypothesis,
    stream: int,
    full: Full = lambda hypothesis, start: False,
    entropy: float = math.inf,
    least: int = 1,
) -> Program:
    """The hypothesis continued by draws of this stream until it is finished, until it is
    `full(hypothesis, start)`, or until, after `least` tokens, the next token's distribution has at
    least this `entropy` (nats)."""
    sampling, start = context.task.sampling, hypothesis
    while hypothesis.finish is None and not context.spent.exhausted:
        reading = yield from next_scores(context.guided, [hypothesis.prefix])
        new = hypothesis.prefix.length - start.prefix.length
        if new >= least and entropy < math.inf and _entropy(reading.scores[0]) >= entropy:
            break
        written = hypothesis.prefix.tokens if sampling.repetition_penalty != 1 else ()
        token = draw(
            reading.scores[0],
            sampling,
            (*context.task.seen, *written),
            uniform(sampling.seed, stream, hypothesis.prefix.length),
        )
        reports = (
            ()
            if sampling.logprobs is None
            else token_logprobs(
                context.guided, reading, [token], sampling.logprobs, context.task.decode
            )
        )
        hypothesis = hypothesis.then(token, context.task, reports)
        context.spent.pay(rows=len(context.guided.policies), tokens=1)
        if full(hypothesis, start):
            break
    return hypothesis


def _new_tokens(count: int) -> Full:
    return lambda hypothesis, start: hypothesis.prefix.length - start.prefix.length >= count


def _new_sentence(hypothesis: Hypothesis, start: Hypothesis) -> bool:
    return ends_sentence(hypothesis.text[len(start.text) :])


def _entropy(scores: Tensor) -> float:
    return float(torch.distributions.Categorical(logits=scores, validate_args=False).entropy())


def _best(hypotheses: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """The hypotheses of the highest reward, the first of equals."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.reward)[:count]
