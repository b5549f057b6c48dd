"""Guidance of next-token scores: one log-linear form, and the presets that are settings of it.

    score(a) = log pi(a|s) + sum over i of w_i * (log pi_i(a|s_i) - log pi_ref,i(a|s_i))

over the plausible tokens a, where s_i is the conversation as policy i is told it. The
presets, with pi the request's own policy:

| preset       | source            | pi_i          | pi_ref,i                 | plausible         |
| ------------ | ----------------- | ------------- | ------------------------ | ----------------- |
| contrast     | Linear Alignment, | pi told the   | pi, or told the opposite | top-p 0.8 of pi_i |
|              | arXiv 2401.11458  | principle     |                          |                   |
| realign      | DeRa, 2402.02992  | aligned model | pi                       | all               |
| mix          | MOD, 2406.18853   | each          | pi (cancels, for the w_i | all               |
|              |                   | objective's   | add to 1)                |                   |
| personalized | PAD, 2410.04070   | reward model, | the same without         | top-k 10 of pi    |
|              | equation (13)     | told          | vectors, told or not;    |                   |
|              |                   |               | or pi                    |                   |
| proxy        | proxy tuning,     | small tuned   | small untuned model      | all               |
|              | 2401.08565        | model         |                          |                   |
| ratio        | the form itself   | any           | any                      | all               |

Of PAD's equations the policy is (11), the bound of Theorem 1 is (12), and what is done here, the
decoding rule, is (13). ARGS (2402.01694) is no guide but a setting of the look-ahead search: see
`lookahead.py`.

The scores are renormalised over the plausible tokens, so that log-probabilities are those of the
guided distribution. Raises ValueError where they are no numbers, naming the guides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, Program, SequenceLogits
from fader.methods.sampling import truncate
from fader.request import (
    Contrast,
    Guide,
    Mix,
    Personalized,
    Plausible,
    PolicySpec,
    Preferences,
    Proxy,
    Ratio,
    Realign,
    Rendering,
)
from fader.schema import Faults, path_of


@dataclass(frozen=True)
class Term:
    """w * (log policy - log reference), and where its plausible tokens come from."""

    label: str
    weight: float
    policy: Policy
    reference: Policy
    plausible: Plausible | None


@dataclass(frozen=True)
class GuidedPolicy:
    """A request's guided policy: the base and the terms that bend it. No terms: the base,
    exactly."""

    base: Policy
    terms: tuple[Term, ...] = ()

    @property
    def policies(self) -> list[Policy]:
        """Every policy that has to read the prefix, once."""
        return list(
            dict.fromkeys(
                [self.base, *(p for term in self.terms for p in (term.policy, term.reference))]
            )
        )


@dataclass(frozen=True, eq=False)
class GuidedLogits:
    """The scores of a guided policy at some positions."""

    scores: Tensor
    """[positions, vocabulary]; their softmax is the guided distribution. -inf: not a plausible
    token."""
    added: dict[str, Tensor]
    """For each term, what it added to each token's score [positions, vocabulary]."""


def next_scores(guided: GuidedPolicy, prefixes: Sequence[Prefix]) -> Program:
    """The guided policy's next-token scores after each prefix: a `GuidedLogits` [prefixes,
    vocabulary]."""
    policies = guided.policies
    logits = yield [NextLogits(policy, prefixes) for policy in policies]
    return combine(guided, dict(zip(policies, logits, strict=True)))


def sequence_scores(guided: GuidedPolicy, prefix: Prefix, length: int) -> Program:
    """The guided policy's scores from which each of the last `length` tokens of `prefix` would be
    chosen: a `GuidedLogits` [length, vocabulary]."""
    policies = guided.policies
    logits = yield [SequenceLogits(policy, prefix, length) for policy in policies]
    return combine(guided, dict(zip(policies, logits, strict=True)))


def combine(guided: GuidedPolicy, logits: Mapping[Policy, Tensor]) -> GuidedLogits:
    """The log-linear form over the logits [positions, vocabulary] of every policy."""
    if not guided.terms:
        return GuidedLogits(logits[guided.base], {})
    size = min(
        scores.shape[-1] for scores in logits.values()
    )  # embeddings may be padded beyond the shared vocabulary
    log = {policy: scores[:, :size].log_softmax(-1) for policy, scores in logits.items()}
    added = {
        term.label: term.weight * (log[term.policy] - log[term.reference]) for term in guided.terms
    }
    scores = log[guided.base] + torch.stack(list(added.values())).sum(0)
    _refuse_unusable(guided, scores)
    plausible = torch.zeros_like(scores, dtype=torch.bool)
    for term in guided.terms:
        plausible |= _plausible(term.plausible, log[guided.base], log[term.policy])
    return GuidedLogits(scores.masked_fill(~plausible, float("-inf")), added)


def _refuse_unusable(guided: GuidedPolicy, scores: Tensor) -> None:
    """Raises ValueError, naming the guides, for scores [positions, vocabulary] that are no
    distribution, since they are infinite."""
    if not bool(scores.amax(-1).isfinite().all()):  # the maximum of NaN is NaN
        weights = ", ".join(f"{term.label} ({term.weight:g})" for term in guided.terms)
        raise ValueError(
            f"alignment.guides: their scores are no finite numbers at the weights of {weights};"
            " take smaller ones"
        )


def _plausible(plausible: Plausible | None, base: Tensor, policy: Tensor) -> Tensor:
    if plausible is None:
        return torch.ones_like(base, dtype=torch.bool)
    judge = base if plausible.of == "base" else policy
    return truncate(judge, plausible.top_k, plausible.top_p, plausible.min_p) > float("-inf")


class Resolve(Protocol):
    """Turns a `PolicySpec` into a policy: fields left out are as in the request. A model's name
    stands for that model without vectors."""

    def __call__(
        self, spec: PolicySpec | str, told: Sequence[Preferences] = (), field: str = ""
    ) -> Policy:
        """The policy, told `told` beside the request's preferences. Raises `Invalid` with the path
        `field`, where the guide says it."""

    @property
    def base(self) -> Policy:
        """The policy that is guided: the request's own, told what guides tell it."""


def told_to_base(guides: Sequence[Guide]) -> tuple[Preferences, ...]:
    """What guides tell the policy that they guide. Those of weight 0 tell it nothing."""
    return tuple(
        told
        for guide in guides
        if isinstance(guide, Personalized) and guide.tell_base
        for told, share in guide.told
        if guide.weight * share
    )


def _contrast(guide: Contrast, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    request = PolicySpec()
    reference = (
        resolve(request)
        if guide.against is None
        else resolve(request, _told(guide.against, guide.rendering))
    )
    return [(guide.weight, resolve(request, _told(guide.principle, guide.rendering)), reference)]


def _realign(guide: Realign, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    return [(guide.weight, resolve(guide.aligned, field="aligned"), resolve(PolicySpec()))]


def _mix(guide: Mix, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    return [
        (
            guide.weight * part.weight,
            resolve(part.policy, field=path_of("components", place, "policy")),
            resolve(PolicySpec()),
        )
        for place, part in enumerate(guide.components)
    ]


def _personalized(guide: Personalized, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    own = PolicySpec(model=guide.model, vectors={})

    def reference(told: Preferences) -> Policy:
        if guide.reference == "base":
            return resolve.base
        return resolve(own, (told,) if guide.reference == "told" else ())

    personal = own.model_copy(update={"vectors": guide.vectors})
    return [
        (guide.weight * share, resolve(personal, (told,)), reference(told))
        for told, share in guide.told
    ]


def _proxy(guide: Proxy, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    tuned, untuned = resolve(guide.tuned, field="tuned"), resolve(guide.untuned, field="untuned")
    return [(guide.weight, tuned, untuned)]


def _ratio(guide: Ratio, resolve: Resolve) -> list[tuple[float, Policy, Policy]]:
    return [
        (
            guide.weight,
            resolve(guide.policy, field="policy"),
            resolve(guide.reference, field="reference"),
        )
    ]


PRESETS: Mapping[type, Callable[[Any, Resolve], list[tuple[float, Policy, Policy]]]] = {
    Contrast: _contrast,
    Realign: _realign,
    Mix: _mix,
    Personalized: _personalized,
    Proxy: _proxy,
    Ratio: _ratio,
}


def terms(guides: Sequence[Guide], resolve: Resolve, faults: Faults) -> tuple[Term, ...]:
    """The terms of all guides. Those of weight 0, and those whose policy is its own reference, are
    left out: zero is off. Guides that cannot be used are `faults`."""
    found = []
    for place, guide in enumerate(guides):
        with faults.at(place, guide.kind):
            parts = PRESETS[type(guide)](guide, resolve)
            for number, (weight, policy, reference) in enumerate(parts):
                label = f"{place}:{guide.kind}" + (f".{number}" if len(parts) > 1 else "")
                if weight != 0 and policy != reference:
                    found.append(Term(label, weight, policy, reference, guide.plausible))
    return tuple(found)


def _told(principle: str, rendering: Rendering) -> tuple[Preferences, ...]:
    return (Preferences(user=(principle,), rendering=rendering),)
