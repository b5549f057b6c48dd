"""Guides of another tokenizer: the reward of a candidate token is the log-ratio of its text.

    reward(v | T) = L(T + text(v)) - L(T),    L(T) = sum over the guide's own tokens t of T of
                                              (log pi(t) - log pi_ref(t))

Both texts are read as the guide's own tokenizer reads them, all of a candidate's sub-tokens are
summed, and where a candidate changes how the end of the text is divided, the tokens that it
replaces are taken back. So the rewards of an answer's tokens add up to the implicit reward of its
text. A token that ends the answer has the log-ratio of the guide's own end tokens together; one
that adds no text (the first half of a character, a special token) has none, and the token that
completes the character has it all.

Candidates that are one more token to the guide are scored by what is read anyway; only longer ones,
and those that change the end of the text, are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, Program, SequenceLogits

ROOM = 4
"""For each token of the base there is room for as many of the guide's, on average over an
answer."""


@dataclass(frozen=True, eq=False)
class Spans:
    """How a guide reads what a base of another tokenizer writes."""

    text: Callable[[Sequence[int]], str]
    """The text of an answer's tokens, as far as its characters are whole."""
    encode: Callable[[str], tuple[int, ...]]
    """The guide's own tokens of an answer's text."""
    ends: frozenset[int]
    """The base's tokens that end an answer."""
    own_ends: frozenset[int]
    """The guide's."""
    limit: int
    """The guide's tokens of the longest answer that it reads."""
    longest: int
    """The guide's tokens of the longest candidate."""
    known: WeakKeyDictionary[Prefix, Prefix] = field(default_factory=WeakKeyDictionary)
    """The base's prefixes as the guide reads them."""

    def ratios(
        self, policy: Policy, reference: Policy, prefix: Prefix, candidates: Sequence[int]
    ) -> Program:
        """The reward of each candidate after the base's `prefix` [candidates]. Raises ValueError
        for a text that is too long for the guide."""
        tokens = prefix.tokens
        text = self.text(tokens)
        before = self.encode(text)
        here = self._own(prefix, before)
        texts = [self.text([*tokens, token]) for token in candidates]
        longer = {
            after: self.encode(after)
            for token, after in zip(candidates, texts, strict=True)
            if after != text and token not in self.ends
        }
        both = (policy, reference)
        nexts = yield [NextLogits(one, [here]) for one in both]
        plain = nexts[0][0].log_softmax(-1) - nexts[1][0].log_softmax(-1)  # [the guide's tokens]
        size = len(before)
        found = {
            after: float(plain[ids[-1]]) for after, ids in longer.items() if ids[:-1] == before
        }
        read = {after: ids for after, ids in longer.items() if after not in found}
        shared = {after: _shared(before, ids) for after, ids in read.items()}
        back = size - min([*shared.values(), size])  # tokens at the end of the text that may go
        wanted = [(here, back)] + [
            (_branch(here, shared[after], ids), len(ids) - shared[after])
            for after, ids in read.items()
        ]
        wanted = [(node, count) for node, count in wanted if count]
        logits = iter(
            (yield [SequenceLogits(one, node, count) for one in both for node, count in wanted])
        )
        sums = [[_each(next(logits), node.ending(count)) for node, count in wanted] for _ in both]
        rewards = iter([mine - theirs for mine, theirs in zip(*sums, strict=True)])
        gone = next(rewards) if back else torch.zeros(0)
        for after, ids in read.items():
            taken = float(gone[back - (size - shared[after]) :].sum())
            new = float(next(rewards).sum()) if len(ids) > shared[after] else 0.0
            found[after] = new - taken
        ended = self._end(nexts[0][0]) - self._end(nexts[1][0])
        return torch.tensor(
            [
                ended if token in self.ends else found.get(after, 0.0)
                for token, after in zip(candidates, texts, strict=True)
            ]
        )

    def _end(self, logits: Tensor) -> float:
        """The log-probability that the answer ends here, from logits [the guide's tokens]."""
        ends = torch.tensor(sorted(self.own_ends), device=logits.device)
        return float(logits.log_softmax(-1)[ends].logsumexp(0))

    def _own(self, prefix: Prefix, ids: tuple[int, ...]) -> Prefix:
        """The guide's prefix for the base's, which goes on from the nearest known one."""
        if len(ids) > self.limit:
            raise ValueError(
                f"alignment.guides: the answer takes more than the {self.limit} tokens that the"
                " guide's model was given room for; make it shorter"
            )
        known = next((self.known[node] for node in prefix.line() if node in self.known), Prefix())
        if known.tokens == list(ids):
            own = known
        else:
            own = _branch(known, _shared(known.tokens, ids), ids)
        self.known[prefix] = own
        return own


def _shared(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(one, two, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))


def _branch(node: Prefix, shared: int, ids: Sequence[int]) -> Prefix:
    """The prefix of `ids`, whose first `shared` tokens are those of `node`. Each token is a prefix
    of its own, so that others can go on from any of them."""
    node = next(one for one in node.line() if one.length <= shared)
    for token in ids[node.length :]:
        node = node.then(token)
    return node


def _each(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities [tokens] from the logits from which each was chosen."""
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    return logits.log_softmax(-1).gather(1, chosen)[:, 0].double()
