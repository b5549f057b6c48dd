"""DeAL: decoding as a search that looks ahead (arXiv 2402.06147), exact and fast.

The score of a candidate token v after y is

    c(v) = log P(y v | p)  +  weight * h(y v z)

where z is how the model goes on after v, `lookahead` tokens far, and h the reward of the whole.
Candidates are the top-k of the request's policy (vectors and guides inside) and what rewards
propose. One token is committed a step; z only serves to judge it. The `beams` best hypotheses are
kept.

The paper leaves speed to future work. Here the hypotheses are a tree whose nodes are read once.
Optimizations decide which nodes are read. Each can be switched off, and none changes a token:

    reuse      the look-ahead of the committed candidate is the beginning of those of the next step
    prune      log P and the reward's bounds tell which candidates can still win; a single one is
               committed
    skip       the same with the bounds of texts that begin like this one: where no candidate can
               win by its reward, the likeliest token is taken without a look-ahead
    speculate  the positions after the leading candidate are looked into as well, in the same
               forwards (one beam)

ARGS (arXiv 2402.01694) is this search with a look-ahead of 0, k = 10 and a weight of about 1.5.

Deviation from the paper: a look-ahead never goes beyond `max_tokens`, so h judges only what can be
written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fader.answer import SearchReport
from fader.engine.program import Program
from fader.methods.decode import partial_stop, token_logprobs
from fader.methods.guidance import GuidedLogits, next_scores
from fader.methods.hypothesis import Hypothesis, Output, SearchContext, ends_sentence
from fader.methods.sampling import draw, penalize, truncate, uniform
from fader.request import Lookahead
from fader.rewards.reward import END, Interval

Step = tuple[int, tuple[int, ...]]
"""A token, and the tokens that are to follow it where it begins a proposal."""
MARGIN = 1e-9  # bounds are compared with some room: sums of rewards depend a little on their order


@dataclass(eq=False)
class Node:
    """A hypothesis in the tree, and what is known of it."""

    hypothesis: Hypothesis
    logprob: float
    """log P of its tokens."""
    bounds: Interval
    """The least and the greatest h of any answer that begins like this."""
    forced: tuple[int, ...] = ()
    """The tokens that follow, where it is part of a proposal."""
    proposed: int = 0
    """Tokens that were candidates only because a reward proposed them."""
    value: float | None = None
    """h of this text itself, once it was scored."""
    candidates: dict[Step, float] = field(default_factory=dict)
    """Once read: the steps that can still win, the likeliest first, with log P."""
    follows: tuple[Step, float] | None = None
    """Once read: how a look-ahead goes on, with log P."""
    proposals: frozenset[Step] = frozenset()
    """Candidates that only a reward proposed."""
    reading: GuidedLogits | None = None
    children: dict[Step, Node] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it is not finished and has not been read."""
        return self.hypothesis.finish is None and self.follows is None


@dataclass(eq=False)
class Entry:
    """A candidate at a position, how far its look-ahead has come, and the bounds of its score."""

    parent: Node
    step: Step | None
    """None: a finished hypothesis, which stays as it is."""
    node: Node
    tip: Node
    complete: bool
    low: float
    high: float


def lookahead(spec: Lookahead, context: SearchContext) -> Program:
    """Write one answer, emitting a `Chunk` for each token as it is committed; returns the
    `Answer`."""
    tree, out = Tree(spec, context), Output(context)
    beams = [tree.root()]
    exhausted: str | None = None
    while any(beam.hypothesis.finish is None for beam in beams):
        kept = tree.decided(beams)
        if kept is not None:
            beams = [tree.commit(entry) for entry in kept]
            yield from out.decided([beam.hypothesis for beam in beams])
            continue
        if exhausted := context.spent.exhausted:
            beams = [tree.best_so_far(beams)]
            break
        unread, unscored = tree.wanted(beams)
        if unscored:
            yield from tree.value(unscored)
        else:
            reading = yield from next_scores(
                context.guided, [node.hypothesis.prefix for node in unread]
            )
            context.spent.pay(rows=len(unread) * len(context.guided.policies), tokens=len(unread))
            tree.note(unread, reading)
    yield from tree.value([beam for beam in beams if beam.value is None])
    best = max(beams, key=lambda beam: tree.score(beam, beam.value or 0.0))
    report = SearchReport(best.value or 0.0, context.spent.tokens, best.proposed, exhausted)
    return (yield from out.end(best.hypothesis, report))


class Tree:
    """The hypotheses of one answer, and which of them can still win."""

    def __init__(self, spec: Lookahead, context: SearchContext) -> None:
        self.spec, self.context = spec, context
        self._reuse, self._prune, self._skip, self._speculate = (
            name in spec.optimizations for name in ("reuse", "prune", "skip", "speculate")
        )
        self._skip = self._skip and self._prune
        self._speculate = self._speculate and spec.beams == 1
        self._everything = context.objective.bounds

    def root(self) -> Node:
        """The empty answer."""
        return self._node(Hypothesis(self.context.root), 0.0, (), 0)

    def decided(self, beams: Sequence[Node]) -> list[Entry] | None:
        """The candidates that are kept after these beams, if that is decided; else None."""
        if any(beam.open for beam in beams):
            return None
        entries = self._entries(beams)
        if all(entry.complete and entry.tip.value is not None for entry in entries):
            best = sorted(range(len(entries)), key=lambda place: (-entries[place].low, place))[
                : self.spec.beams
            ]
            return [entries[place] for place in sorted(best)]
        return entries if self._prune and len(entries) <= self.spec.beams else None

    def commit(self, entry: Entry) -> Node:
        """The candidate as a beam to go on from. The cache behind it is freed."""
        node = entry.node
        node.hypothesis.prefix.release_behind(self.context.root)
        return (
            node
            if self._reuse or entry.step is None
            else self._node(node.hypothesis, node.logprob, (), node.proposed)
        )

    def wanted(self, beams: Sequence[Node]) -> tuple[list[Node], list[Node]]:
        """The nodes to read next, and those to score. Where there are some to score, that comes
        first."""
        unread: dict[Node, None] = {}
        unscored: dict[Node, None] = {}
        room = self.spec.width - sum(_branches(beam) for beam in beams)
        position, first = list(beams), True
        while position:
            unread.update(dict.fromkeys(node for node in position if node.open))
            if any(node.open for node in position):
                break
            entries = self._entries(position)
            for entry in entries if len(entries) > self.spec.beams or not self._prune else ():
                if entry.complete:
                    if entry.tip.value is None:
                        unscored[entry.tip] = None
                elif not (
                    entry.node.open and entry.step != _followed(entry.parent)
                ):  # its look-ahead is under way, or is the line's
                    unread[entry.tip] = None
                elif first or room > 0:
                    unread[entry.tip] = None
                    room -= 1
            lead = max(entries, key=lambda entry: entry.low)
            beside = lead.node.open and lead.step != _followed(
                lead.parent
            )  # to read on after it begins a hypothesis of its own
            position = (
                [lead.node]
                if self._speculate
                and lead.node.hypothesis.finish is None
                and (room > 0 or not beside)
                else []
            )
            room -= beside and lead.tip not in unread
            first = False
        return list(unread), list(unscored)

    def score(self, node: Node, value: float) -> float:
        """log P + weight * h, where h is `value`. At weight 0 even an unbounded h is off."""
        return node.logprob + self.spec.weight * value if self.spec.weight else node.logprob

    def value(self, nodes: Sequence[Node]) -> Program:
        """Score the nodes' texts: sets their `value`."""
        if nodes:
            hypotheses = yield from self.context.scored([node.hypothesis for node in nodes])
            for node, hypothesis in zip(nodes, hypotheses, strict=True):
                node.value = hypothesis.reward

    def note(self, nodes: Sequence[Node], reading: GuidedLogits) -> None:
        """Note what was read for these nodes: their candidates, and how their look-aheads go on."""
        sampling = self.context.task.sampling
        seen = [
            (
                (*self.context.task.seen, *node.hypothesis.prefix.tokens)
                if sampling.repetition_penalty != 1
                else ()
            )
            for node in nodes
        ]
        scores = torch.stack(
            [
                penalize(row, ids, sampling.repetition_penalty)
                for row, ids in zip(reading.scores, seen, strict=True)
            ]
        )
        log = scores.log_softmax(-1)  # [nodes, vocabulary]
        values, ids = (
            found.tolist()
            for found in truncate(log, top_p=self.spec.top_p).topk(
                min(self.spec.top_k, log.shape[-1])
            )
        )
        for place, node in enumerate(nodes):
            likely = {
                token: value
                for token, value in zip(ids[place], values[place], strict=True)
                if value > -math.inf
            }
            proposed = self._proposals(node.hypothesis.text, log[place])
            steps = [((token, proposed.get(token, ())), value) for token, value in likely.items()]
            added = [
                ((token, proposed[token]), float(log[place, token]))
                for token in proposed
                if token not in likely
            ]
            added = [(step, value) for step, value in added if value > -math.inf]
            node.candidates, node.proposals = (
                dict([*steps, *added]),
                frozenset(step for step, _ in added),
            )
            if not node.candidates:
                raise ValueError(
                    "search: the policy gives no token a probability after this text (its scores"
                    " are not numbers, or a guide excludes all)"
                )
            if node.forced:
                follows = node.forced[0], node.forced[1:]
            elif self.spec.rollout == "sampled":
                chance = uniform(sampling.seed, self.context.index, node.hypothesis.prefix.length)
                follows = draw(reading.scores[place], sampling, seen[place], chance), ()
            else:
                follows = ids[place][0], ()
            node.follows = follows, float(log[place, follows[0]])
            if sampling.logprobs is not None:
                node.reading = reading.at(place)

    def best_so_far(self, beams: Sequence[Node]) -> Node:
        """The best of the finished hypotheses that have been scored. If there is none: the leading
        candidate with its look-ahead."""
        finished = [
            node
            for beam in beams
            for node in _nodes(beam)
            if node.hypothesis.finish and node.value is not None
        ]
        if finished:
            return max(finished, key=lambda node: self.score(node, node.value or 0.0))
        known = [beam for beam in beams if not beam.open]
        return max(self._entries(known), key=lambda entry: entry.low).tip if known else beams[0]

    def _entries(self, position: Sequence[Node]) -> list[Entry]:
        """The candidates after these nodes that can still be among the best, in their order. The
        others leave the tree."""
        entries = []
        for node in position:
            if node.hypothesis.finish:
                entries.append(self._entry(node, None, node))
            else:
                entries += [
                    self._entry(node, step, self._child(node, step, logprob))
                    for step, logprob in node.candidates.items()
                ]
        if not self._prune or len(entries) <= self.spec.beams:
            return entries
        enough = sorted((entry.low for entry in entries), reverse=True)[self.spec.beams - 1]
        out = [entry for entry in entries if entry.high + MARGIN < enough]
        for entry in out:
            if entry.step is not None:
                del entry.parent.candidates[entry.step]
                if entry.step != _followed(entry.parent):
                    del entry.parent.children[entry.step]
        return [entry for entry in entries if entry.high + MARGIN >= enough]

    def _entry(self, parent: Node, step: Step | None, node: Node) -> Entry:
        tip, complete = self._tip(parent, node) if step is not None else (node, True)
        if complete and tip.value is not None:
            low = high = tip.value
        else:
            low, high = tip.bounds
        return Entry(
            parent, step, node, tip, complete, self.score(node, low), self.score(node, high)
        )

    def _tip(self, parent: Node, node: Node) -> tuple[Node, bool]:
        """The last node of a candidate's look-ahead so far, and whether the look-ahead is
        complete."""
        start, begun, far = (
            node.hypothesis.prefix.length,
            len(parent.hypothesis.text),
            self.spec.lookahead,
        )
        while not node.hypothesis.finish:
            if (
                ends_sentence(node.hypothesis.text[begun:])
                if far == "sentence"
                else far != "end" and node.hypothesis.prefix.length - start >= far
            ):
                break
            if node.follows is None:
                return node, False
            node = self._child(node, *node.follows)
        return node, True

    def _child(self, node: Node, step: Step, logprob: float) -> Node:
        child = node.children.get(step)
        if child is None:
            sampling = self.context.task.sampling
            reports = (
                token_logprobs(
                    self.context.guided,
                    node.reading,
                    [step[0]],
                    sampling.logprobs or 0,
                    self.context.task.decode,
                )
                if node.reading
                else ()
            )
            hypothesis = node.hypothesis.then(step[0], self.context.task, reports)
            child = node.children[step] = self._node(
                hypothesis,
                node.logprob + logprob,
                step[1],
                node.proposed + (step in node.proposals),
            )
        return child

    def _node(
        self, hypothesis: Hypothesis, logprob: float, forced: tuple[int, ...], proposed: int
    ) -> Node:
        certain = (
            hypothesis.text
            if hypothesis.finish
            else hypothesis.text[
                : len(hypothesis.text)
                - partial_stop(hypothesis.text, self.context.task.sampling.stop)
            ]
        )
        return Node(
            hypothesis,
            logprob,
            self.context.objective.prefix_bounds(certain) if self._skip else self._everything,
            forced,
            proposed,
        )

    def _proposals(self, text: str, log: Tensor) -> dict[int, tuple[int, ...]]:
        """What rewards propose after this text: the first token of each proposal, and those after
        it. At most `top_k` proposals."""
        found: dict[int, tuple[int, ...]] = {}
        task = self.context.task
        for proposal in self.context.objective.propose(text)[: self.spec.top_k]:
            if proposal == END:
                tokens = sorted(task.end_tokens, key=lambda token: -float(log[token]))[:1]
            else:
                tokens = task.encode(proposal, bool(text or task.context))
            if tokens:
                found.setdefault(tokens[0], tuple(tokens[1:]))
        return found


def _followed(node: Node) -> Step | None:
    return node.follows[0] if node.follows else None


def _branches(root: Node) -> int:
    """Hypotheses in memory below a node, beside the one that its look-ahead follows."""
    return sum(
        child.follows is not None and step != _followed(node)
        for node in _nodes(root)
        for step, child in node.children.items()
    )


def _nodes(root: Node) -> Iterator[Node]:
    waiting = [root]
    while waiting:
        yield (node := waiting.pop())
        waiting += node.children.values()
