"""The objective of a search: h, the weighted sum of its rewards, which judge texts or compare the
log-probabilities of policies.

    h(y) = sum of w_i * R_i(prompt, y)  +  sum of w_j * beta_j * sum over t of
           (log pi_j(y_t) - log pi_ref,j(y_t))

The second kind are implicit rewards (DPO, arXiv 2305.18290): any vector or pair of policies is a
reward. They are rows in the same batches as the search's own, and read only the tokens that are
new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from fader.engine.prefix import Policy, Prefix
from fader.engine.program import Ask, NextLogits, Program, Score, SequenceLogits
from fader.methods.guidance import Resolve
from fader.request import ImplicitSpec, RewardSpec
from fader.rewards.reward import ANY, Interval, Resources, Reward
from fader.rewards.table import WeightedSum, make
from fader.schema import Faults, Invalid


@dataclass(frozen=True, eq=False)
class Implicit:
    """The implicit reward of a policy against a reference."""

    spec: ImplicitSpec
    policy: Policy
    reference: Policy
    sums: WeakKeyDictionary[Prefix, float] = field(default_factory=WeakKeyDictionary)
    """Sum of log pi - log pi_ref over the tokens of each prefix read so far."""

    @property
    def bounds(self) -> Interval:
        """Between which values it lies, weighted."""
        if not self.spec.squash:
            return ANY
        return min(0.0, self.spec.weight), max(0.0, self.spec.weight)

    def value(self, prefix: Prefix) -> float:
        """The weighted reward of a prefix that was read."""
        total = (
            self.spec.beta
            * self.sums[prefix]
            / (max(1, prefix.length) if self.spec.length_normalized else 1)
        )
        value = self.spec.weight * (
            1 / (1 + math.exp(-max(-500.0, total))) if self.spec.squash else total
        )
        if not math.isfinite(value):
            raise ValueError(
                f"rewards.implicit: gave {value!r}, which is no finite number; take smaller"
                f" strengths, `weight` or `beta` (policy {_named(self.policy)}, reference"
                f" {_named(self.reference)})"
            )
        return value

    def read(self, prefixes: Sequence[Prefix]) -> Program:
        """Read what is new of these prefixes, by both policies, in one pass each."""
        new = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in self.sums]
        known = {
            prefix: next(node for node in prefix.line() if node in self.sums or node.parent is None)
            for prefix in new
        }
        both = (self.policy, self.reference)
        unread = {
            policy: [node for node in dict.fromkeys(known.values()) if policy not in node.memo]
            for policy in both
        }
        yield [
            NextLogits(policy, nodes) for policy, nodes in unread.items() if nodes
        ]  # once, for all that go on from there
        counts = [prefix.length - known[prefix].length for prefix in new]
        asks: list[Ask] = [
            SequenceLogits(policy, prefix, count)
            for policy in both
            for prefix, count in zip(new, counts, strict=True)
            if count
        ]
        found = iter((yield asks))
        logs = {
            policy: {
                prefix: next(found) if count else None
                for prefix, count in zip(new, counts, strict=True)
            }
            for policy in both
        }
        for (
            policy,
            nodes,
        ) in unread.items():  # nobody goes on from there again: their cache would only take room
            for node in nodes:
                if node.length:
                    node.memo.pop(policy, None)
        for prefix in new:
            self._note(prefix, known[prefix], *(logs[policy][prefix] for policy in both))

    def _note(
        self, prefix: Prefix, known: Prefix, mine: torch.Tensor | None, theirs: torch.Tensor | None
    ) -> None:
        """Sums for `prefix` and the prefixes on the way to it, from the logits [new tokens,
        vocabulary] of both policies."""
        start = self.sums.setdefault(known, 0.0) if known.length == 0 else self.sums[known]
        if mine is None or theirs is None:
            self.sums[prefix] = start
            return
        tokens = torch.tensor(prefix.ending(len(mine)), device=mine.device)[:, None]
        size = min(mine.shape[-1], theirs.shape[-1])
        ratios = [
            logits[:, :size].log_softmax(-1).gather(1, tokens)[:, 0].double()
            for logits in (mine, theirs)
        ]
        sums = (ratios[0] - ratios[1]).cumsum(0).tolist()
        for node in prefix.line():
            if node is known:
                break
            self.sums[node] = start + sums[node.length - known.length - 1]


@dataclass(frozen=True, eq=False)
class Objective:
    """h, and its bounds for texts that are not finished."""

    reward: WeightedSum
    """The rewards of texts."""
    implicit: tuple[Implicit, ...]
    prompt: str
    prefill: str = ""
    """The forced beginning of the answer: rewards judge the whole answer."""

    @property
    def policies(self) -> list[Policy]:
        """The policies that read hypotheses to judge them."""
        return list(
            dict.fromkeys(
                policy for term in self.implicit for policy in (term.policy, term.reference)
            )
        )

    def of(self, prefixes: Sequence[Prefix], texts: Sequence[str]) -> Program:
        """h of each hypothesis, given by its prefix and its text."""
        for term in self.implicit:
            yield from term.read(prefixes)
        prompts, whole = [self.prompt] * len(texts), [self.prefill + text for text in texts]
        columns = yield [
            Score(reward.score, prompts, whole, reward.slow) for _, reward in self.reward.terms
        ]
        scores = self.reward.total(columns, len(texts))
        return [
            score + sum(term.value(prefix) for term in self.implicit)
            for score, prefix in zip(scores, prefixes, strict=True)
        ]

    @property
    def bounds(self) -> Interval:
        """Between which values h lies for any text."""
        return _total([self.reward.bounds, *(term.bounds for term in self.implicit)])

    def prefix_bounds(self, text: str) -> Interval:
        """Between which values h lies for any answer that begins with this text."""
        return _total(
            [
                self.reward.prefix_bounds(self.prefill + text),
                *(term.bounds for term in self.implicit),
            ]
        )

    def propose(self, text: str) -> Sequence[str]:
        """Texts by which an answer that begins with this text might go on."""
        return self.reward.propose(self.prefill + text)


def objective(
    specs: Sequence[RewardSpec],
    resolve: Resolve,
    resources: Resources,
    prompt: str,
    prefill: str,
    faults: Faults,
) -> Objective:
    """The objective of a request's rewards; those that cannot be made are `faults`."""
    texts: list[tuple[float, Reward]] = []
    implied: list[Implicit] = []
    for place, spec in enumerate(specs):
        with faults.at(place, spec.kind):  # of any weight: a fault is one at weight 0 too
            if isinstance(spec, ImplicitSpec):
                implied.append(_implicit(spec, resolve))
            else:
                texts.append((spec.weight, make(spec, resources)))
    return Objective(
        WeightedSum(tuple((weight, reward) for weight, reward in texts if weight)),
        tuple(one for one in implied if one.spec.weight),
        prompt,
        prefill,
    )


def _implicit(spec: ImplicitSpec, resolve: Resolve) -> Implicit:
    policy = resolve(spec.policy, field="policy")
    reference = resolve(spec.reference, field="reference")
    if policy == reference:
        raise Invalid(
            "is the same as the reference; give it other vectors, other preferences or another"
            " model",
            "policy",
        )
    return Implicit(spec, policy, reference)


def _named(policy: Policy) -> str:
    """A policy as errors name it: its model, and the strengths of its vectors."""
    strengths = ", ".join(f"{vector.name} at {strength:g}" for vector, strength in policy.vectors)
    return policy.backbone + (f" with the vectors {strengths}" if strengths else "")


def _total(intervals: Iterable[Interval]) -> Interval:
    low, high = zip(*intervals, strict=True)
    return sum(low), sum(high)
