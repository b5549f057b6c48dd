"""DeAL: decoding as a search that looks ahead (arXiv 2402.06147), exact and fast.

A candidate token v after y is worth

    c(v) = log P(y v | p)  +  weight * h(y v z)

where z is how the model goes on after v, `lookahead` tokens far, and h the reward of the whole.
Candidates are the top-k of the request's policy (vectors and guides inside) and what rewards
propose. One token is committed a step: z only judges. The `beams` best are kept.

The paper leaves speed to future work. Here drafts are a tree whose nodes are read once, and
shortcuts, each of which can be switched off and none of which changes a token, decide which nodes
are read:

    reuse      the look-ahead of the committed candidate is the beginning of those of the next step
    prune      log P and the reward's bounds tell which candidates can still win; a single one is
               committed
    plain      the same with the bounds of texts that begin like this one: where nothing can be
               gained, decoding is plain
    speculate  the positions after the leading candidate are looked into as well, in the same
               forwards (one beam)

Deviation from the paper: a look-ahead never goes beyond `max_tokens`, so h judges only what can be
written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fader.engine.program import Program
from fader.engine.sampling import draw, penalize, truncate, uniform
from fader.methods.decode import SearchReport, token_logprobs, uncertain
from fader.methods.draft import Draft, Output, Scene, ends_sentence
from fader.methods.guidance import Reading, read
from fader.methods.rewards import END, Interval
from fader.request import Lookahead

Step = tuple[int, tuple[int, ...]]
"""A token, and the tokens that are to follow it where it begins a proposal."""
MARGIN = 1e-9  # bounds are compared with some room: sums of rewards depend a little on their order


@dataclass(eq=False)
class Node:
    """A draft in the tree, and what is known of it."""

    draft: Draft
    logprob: float
    """log P of its tokens."""
    bounds: Interval
    """Between which values h lies for any answer that begins like this."""
    forced: tuple[int, ...] = ()
    """How it goes on where it is part of a proposal."""
    proposed: int = 0
    """Tokens that were candidates only because a reward proposed them."""
    value: float | None = None
    """h of this text itself, once it was asked."""
    candidates: dict[Step, float] = field(default_factory=dict)
    """Once read: the steps that can still win, the likeliest first, with log P."""
    follows: tuple[Step, float] | None = None
    """Once read: how a look-ahead goes on, with log P."""
    proposals: frozenset[Step] = frozenset()
    """Candidates that only a reward proposed."""
    reading: Reading | None = None
    children: dict[Step, Node] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether its next token has to be chosen but is not known yet."""
        return self.draft.finish is None and self.follows is None


@dataclass(eq=False)
class Entry:
    """A candidate at a position: where it is, how far its look-ahead has come, and between which
    values its worth lies."""

    parent: Node
    step: Step | None
    """None: a finished draft that stays as it is."""
    node: Node
    tip: Node
    complete: bool
    low: float
    high: float


def lookahead(spec: Lookahead, scene: Scene) -> Program:
    """Write one answer, emitting a `Chunk` for each token as it is committed; returns the
    `Answer`."""
    tree, out = Tree(spec, scene), Output(scene.task, scene.index)
    beams = [tree.root()]
    exhausted: str | None = None
    while any(beam.draft.finish is None for beam in beams):
        kept = tree.decided(beams)
        if kept is not None:
            beams = [tree.commit(entry) for entry in kept]
            yield from out.decided([beam.draft for beam in beams])
            continue
        if exhausted := scene.purse.exhausted:
            beams = [tree.best_so_far(beams)]
            break
        unread, unvalued = tree.wanted(beams)
        if unvalued:
            yield from tree.value(unvalued)
        else:
            reading = yield from read(scene.aligned, [node.draft.prefix for node in unread])
            scene.purse.pay(rows=len(unread) * len(scene.aligned.policies), tokens=len(unread))
            tree.note(unread, reading)
    yield from tree.value([beam for beam in beams if beam.value is None])
    best = max(beams, key=lambda beam: tree.worth(beam, beam.value or 0.0))
    report = SearchReport(best.value or 0.0, scene.purse.tokens, best.proposed, exhausted)
    return (yield from out.end(best.draft, report))


class Tree:
    """The drafts of one answer, and which of them are still of interest."""

    def __init__(self, spec: Lookahead, scene: Scene) -> None:
        self.spec, self.scene = spec, scene
        self._reuse, self._prune, self._plain, self._speculate = (
            name in spec.shortcuts for name in ("reuse", "prune", "plain", "speculate")
        )
        self._plain = self._plain and self._prune
        self._speculate = self._speculate and spec.beams == 1
        self._everything = scene.objective.bounds

    def root(self) -> Node:
        """The empty answer."""
        return self._node(Draft(self.scene.root), 0.0, (), 0)

    def decided(self, beams: Sequence[Node]) -> list[Entry] | None:
        """The candidates that are kept after these beams, if that is certain."""
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
        """The candidate as the beam to go on from; memory of what lies behind it is let go."""
        node = entry.node
        node.draft.prefix.settle(self.scene.root)
        return (
            node
            if self._reuse or entry.step is None
            else self._node(node.draft, node.logprob, (), node.proposed)
        )

    def wanted(self, beams: Sequence[Node]) -> tuple[list[Node], list[Node]]:
        """The nodes to read next, and those whose reward is to be asked first."""
        unread: dict[Node, None] = {}
        unvalued: dict[Node, None] = {}
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
                        unvalued[entry.tip] = None
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
            )  # to read on after it begins a draft of its own
            position = (
                [lead.node]
                if self._speculate and lead.node.draft.finish is None and (room > 0 or not beside)
                else []
            )
            room -= beside and lead.tip not in unread
            first = False
        return list(unread), list(unvalued)

    def worth(self, node: Node, value: float) -> float:
        """log P + weight * h, where h is `value`. At weight 0 even an unbounded h is off."""
        return node.logprob + self.spec.weight * value if self.spec.weight else node.logprob

    def value(self, nodes: Sequence[Node]) -> Program:
        """Ask h of the nodes' texts."""
        if nodes:
            drafts = yield from self.scene.valued([node.draft for node in nodes])
            for node, draft in zip(nodes, drafts, strict=True):
                node.value = draft.reward

    def note(self, nodes: Sequence[Node], reading: Reading) -> None:
        """What a forward says of the nodes that were read: candidates, and how look-aheads go
        on."""
        sampling = self.scene.task.sampling
        seen = [
            (
                (*self.scene.task.seen, *node.draft.prefix.tokens)
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
            proposed = self._proposals(node.draft.text, log[place])
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
            elif self.spec.drafts == "sampled":
                chance = uniform(sampling.seed, self.scene.index, node.draft.prefix.length)
                follows = draw(reading.scores[place], sampling, seen[place], chance), ()
            else:
                follows = ids[place][0], ()
            node.follows = follows, float(log[place, follows[0]])
            if sampling.logprobs is not None:
                row = slice(place, place + 1)
                node.reading = Reading(
                    reading.scores[row].clone(),
                    {label: added[row].clone() for label, added in reading.added.items()},
                )

    def best_so_far(self, beams: Sequence[Node]) -> Node:
        """The best of the finished drafts whose reward is known; if there is none, the leading
        candidate with its look-ahead."""
        finished = [
            node
            for beam in beams
            for node in _nodes(beam)
            if node.draft.finish and node.value is not None
        ]
        if finished:
            return max(finished, key=lambda node: self.worth(node, node.value or 0.0))
        read = [beam for beam in beams if not beam.open]
        return max(self._entries(read), key=lambda entry: entry.low).tip if read else beams[0]

    def _entries(self, position: Sequence[Node]) -> list[Entry]:
        """The candidates after these nodes that can still be among the best, in their order."""
        entries = []
        for node in position:
            if node.draft.finish:
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
            parent, step, node, tip, complete, self.worth(node, low), self.worth(node, high)
        )

    def _tip(self, parent: Node, node: Node) -> tuple[Node, bool]:
        """How far the look-ahead of a candidate has come, and whether that is all of it."""
        start, begun, far = node.draft.prefix.length, len(parent.draft.text), self.spec.lookahead
        while not node.draft.finish:
            if (
                ends_sentence(node.draft.text[begun:])
                if far == "sentence"
                else far != "end" and node.draft.prefix.length - start >= far
            ):
                break
            if node.follows is None:
                return node, False
            node = self._child(node, *node.follows)
        return node, True

    def _child(self, node: Node, step: Step, logprob: float) -> Node:
        child = node.children.get(step)
        if child is None:
            sampling = self.scene.task.sampling
            reports = (
                token_logprobs(
                    node.reading, [step[0]], sampling.logprobs or 0, self.scene.task.decode
                )
                if node.reading
                else ()
            )
            draft = node.draft.then(step[0], self.scene.task, reports)
            child = node.children[step] = self._node(
                draft, node.logprob + logprob, step[1], node.proposed + (step in node.proposals)
            )
        return child

    def _node(self, draft: Draft, logprob: float, forced: tuple[int, ...], proposed: int) -> Node:
        certain = (
            draft.text
            if draft.finish
            else draft.text[
                : len(draft.text) - uncertain(draft.text, self.scene.task.sampling.stop)
            ]
        )
        return Node(
            draft,
            logprob,
            self.scene.objective.ahead(certain) if self._plain else self._everything,
            forced,
            proposed,
        )

    def _proposals(self, text: str, log: Tensor) -> dict[int, tuple[int, ...]]:
        """What rewards propose after this text, as first token and those after it; no more of them
        than there are candidates."""
        found: dict[int, tuple[int, ...]] = {}
        for proposal in self.scene.objective.propose(text)[: self.spec.top_k]:
            if proposal == END:
                tokens = sorted(self.scene.task.end_tokens, key=lambda token: -float(log[token]))[
                    :1
                ]
            else:
                tokens = self.scene.task.encode(proposal)
            if tokens:
                found.setdefault(tokens[0], tuple(tokens[1:]))
        return found


def _followed(node: Node) -> Step | None:
    return node.follows[0] if node.follows else None


def _branches(root: Node) -> int:
    """Drafts in memory below a node, beside the one that its look-ahead goes along."""
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
