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

A term whose policies have another tokenizer compares texts instead of tokens: see `spans.py`.
Terms act where their guide's `when` says; elsewhere the base goes on as without them. What a guide
has not read there it reads in one piece when it is asked again.

The scores are renormalised over the plausible tokens, so that log-probabilities are those of the
guided distribution. Raises ValueError where they are no numbers, naming the guides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, Program, SequenceLogits, together
from fader.methods.sampling import truncate
from fader.methods.spans import Spans
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
    When,
)
from fader.schema import Faults, Invalid, path_of

Choice = Literal["greedy", "drawn"]
"""How the next token is chosen from the scores, where nothing else is asked of them."""

ROUNDING = 1e-4  # nats by which a bound must hold, so that no rounding decides


@dataclass(frozen=True)
class Term:
    """w * (log policy - log reference), where its plausible tokens come from, and where it acts."""

    label: str
    weight: float
    policy: Policy
    reference: Policy
    plausible: Plausible | None
    clip: float | None = None
    when: When = field(default_factory=When)
    spans: Spans | None = None
    """How its policies read what the base writes, where they have another tokenizer."""

    @property
    def bound(self) -> float:
        """The most that it adds to a score or takes from it."""
        return math.inf if self.clip is None else abs(self.weight) * self.clip

    def added(self, log: Callable[[Policy], Tensor], ratio: Tensor | None = None) -> Tensor:
        """What it adds to scores, from the log-probabilities `log` of its two policies, or from
        their `ratio` where they have another tokenizer."""
        ratio = log(self.policy) - log(self.reference) if ratio is None else ratio
        return self.weight * (ratio if self.clip is None else ratio.clamp(-self.clip, self.clip))

    def acts(self, base: Tensor, places: Sequence[int]) -> Tensor:
        """At which positions it acts [positions], by the base's logits [positions, vocabulary] and
        by how many tokens stand before each."""
        acting = torch.tensor([place % self.when.every == 0 for place in places])
        if self.when.base_at_most is not None:
            sure = base.amax(-1) - base.logsumexp(-1)
            acting &= (sure <= math.log(self.when.base_at_most)).cpu()
        return acting.to(base.device)


@dataclass(frozen=True)
class GuidedPolicy:
    """A request's guided policy: the base and the terms that bend it. No terms: the base,
    exactly."""

    base: Policy
    terms: tuple[Term, ...] = ()

    @property
    def policies(self) -> list[Policy]:
        """Every policy that has to read the prefix, once. Those of another tokenizer read its
        text."""
        terms = [term for term in self.terms if term.spans is None]
        return list(
            dict.fromkeys(
                [self.base, *(p for term in terms for p in (term.policy, term.reference))]
            )
        )


@dataclass(frozen=True, eq=False)
class GuidedLogits:
    """The scores of a guided policy at some positions."""

    scores: Tensor
    """[positions, vocabulary]; their softmax is the guided distribution. -inf: not a plausible
    token."""
    advantage: Tensor
    """[positions]: how much higher the best token scores than the base's likeliest; 0: it is that
    one. Also where the guides then do not act because of it."""
    logits: Mapping[Policy, Tensor]
    """Those of all policies that were read."""
    acting: Mapping[Term, Tensor]
    """Where each term acts [positions]."""
    ratios: Mapping[Term, Tensor] = field(default_factory=dict)
    """Those of terms of another tokenizer [positions, vocabulary]; 0 for what is not plausible."""

    @property
    def added(self) -> dict[str, Tensor]:
        """For each term, what it added to each token's score [positions, vocabulary]."""
        log = {policy: logits.log_softmax(-1) for policy, logits in self.logits.items()}
        return {
            term.label: term.added(log.__getitem__, self.ratios.get(term)).masked_fill(
                ~acts[:, None], 0.0
            )
            for term, acts in self.acting.items()
        }

    def at(self, place: int) -> GuidedLogits:
        """A copy of those at one position."""
        row = slice(place, place + 1)
        return GuidedLogits(
            self.scores[row].clone(),
            self.advantage[row].clone(),
            {policy: logits[row].clone() for policy, logits in self.logits.items()},
            {term: acts[row].clone() for term, acts in self.acting.items()},
            {term: ratio[row].clone() for term, ratio in self.ratios.items()},
        )


def next_scores(
    guided: GuidedPolicy, prefixes: Sequence[Prefix], choice: Choice | None = None
) -> Program:
    """The guided policy's next-token scores after each prefix: a `GuidedLogits` [prefixes,
    vocabulary]. Terms that do not act are not read where that is known beforehand.

    `choice`: all that is wanted is a token chosen this way after the one prefix. Then terms that
    can wait for the base are not read either where they cannot change it.
    """
    places = [prefix.length for prefix in prefixes]
    acting = [
        term for term in guided.terms if any(place % term.when.every == 0 for place in places)
    ]
    late = [term for term in acting if term.when.base_at_most is not None]
    at_once = GuidedPolicy(guided.base, tuple(term for term in acting if term not in late))
    logits = yield from _read(at_once.policies, prefixes)
    if late:
        base = logits[guided.base]
        late = [term for term in late if bool(term.acts(base, places).any())]
        if late and not at_once.terms and choice is not None and len(prefixes) == 1:
            settled = _settled(late, base, choice)
            if settled is not None:
                return settled
        acting = [*at_once.terms, *late]
        needed = [p for p in GuidedPolicy(guided.base, tuple(late)).policies if p not in logits]
        logits |= yield from _read(needed, prefixes)
    ratios = yield from _ratios(acting, logits[guided.base], prefixes)
    return combine(GuidedPolicy(guided.base, tuple(acting)), logits, places, ratios)


def _read(policies: Sequence[Policy], prefixes: Sequence[Prefix]) -> Program:
    if not policies:
        return {}
    logits = yield [NextLogits(policy, prefixes) for policy in policies]
    return dict(zip(policies, logits, strict=True))


def _ratios(terms: Sequence[Term], base: Tensor, prefixes: Sequence[Prefix]) -> Program:
    """The log-ratios [positions, vocabulary] of the terms of another tokenizer, by the base's
    logits; 0 for tokens that are not plausible."""
    found = {term: torch.zeros_like(base) for term in terms if term.spans is not None}
    places = [prefix.length for prefix in prefixes]
    acting = [term.acts(base, places) for term in terms] if found else []
    allowed = _allowed(terms, {}, base, acting) if found else base
    for row, prefix in enumerate(prefixes) if found else ():
        candidates = allowed[row].nonzero()[:, 0]
        if len(candidates):
            rewards = yield from together(
                [
                    term.spans.ratios(term.policy, term.reference, prefix, candidates.tolist())
                    for term in found
                    if term.spans is not None
                ]
            )
            for ratio, values in zip(found.values(), rewards, strict=True):
                ratio[row, candidates] = values.to(ratio)
    return found


def _settled(terms: Sequence[Term], base: Tensor, choice: Choice) -> GuidedLogits | None:
    """The base's scores [1, vocabulary], where these terms cannot change what is chosen by them;
    else None.

    They cannot where one token is plausible, or where the base's first token leads by more than
    they can take from it and give to another.
    """
    if any(term.plausible is None or term.plausible.of == "policy" for term in terms):
        return None
    plausible = _allowed(terms, {}, base, [torch.ones(1, dtype=torch.bool)] * len(terms))
    withheld = max(term.when.advantage for term in terms)
    scores = base if withheld else base.masked_fill(~plausible, float("-inf"))
    alone = int(plausible.sum()) == 1
    if not alone and choice == "greedy":
        first, second = base[0].log_softmax(-1).masked_fill(~plausible[0], -math.inf).topk(2).values
        alone = 2 * sum(term.bound for term in terms) - float(first - second) < withheld - ROUNDING
    return GuidedLogits(scores, torch.zeros(1), {}, {}) if alone else None


def sequence_scores(guided: GuidedPolicy, prefix: Prefix, length: int) -> Program:
    """The guided policy's scores from which each of the last `length` tokens of `prefix` would be
    chosen: a `GuidedLogits` [length, vocabulary]."""
    policies = guided.policies
    logits = yield [SequenceLogits(policy, prefix, length) for policy in policies]
    found = dict(zip(policies, logits, strict=True))
    places = range(prefix.length - length, prefix.length)
    ratios: Mapping[Term, Tensor] = {}
    if any(term.spans for term in guided.terms):
        node = next(one for one in prefix.line() if one.length <= places[0])
        line = [node.then(*prefix.tokens[node.length : places[0]])]
        for token in prefix.ending(length)[:-1]:
            line.append(line[-1].then(token))
        ratios = yield from _ratios(guided.terms, found[guided.base], line)
    return combine(guided, found, places, ratios)


def combine(
    guided: GuidedPolicy,
    logits: Mapping[Policy, Tensor],
    places: Sequence[int],
    ratios: Mapping[Term, Tensor] | None = None,
) -> GuidedLogits:
    """The log-linear form over the logits [positions, vocabulary] of every policy. `places`: how
    many tokens stand before each position; `ratios`: those of terms of another tokenizer.

    Only the columns of tokens that are plausible at some position are computed.
    """
    base, ratios = logits[guided.base], ratios or {}
    acting = {term: term.acts(base, places) for term in guided.terms}
    acting = {term: acts for term, acts in acting.items() if bool(acts.any())}
    if not acting:
        return GuidedLogits(base, base.new_zeros(len(base)), logits, {})
    size = min(
        scores.shape[-1] for scores in logits.values()
    )  # embeddings may be padded beyond the shared vocabulary
    logits = {policy: scores[:, :size] for policy, scores in logits.items()}
    ratios = {term: ratio[:, :size] for term, ratio in ratios.items() if term in acting}
    base = logits[guided.base]
    allowed = _allowed(list(acting), logits, base, list(acting.values()))
    first = base.argmax(-1, keepdim=True)  # [positions, 1]
    columns = allowed.any(0).index_fill(0, first[:, 0], True).nonzero()[:, 0]
    log = {policy: scores.log_softmax(-1)[:, columns] for policy, scores in logits.items()}
    added = [
        term.added(
            log.__getitem__, ratios[term][:, columns] if term in ratios else None
        ).masked_fill(~acts[:, None], 0.0)
        for term, acts in acting.items()
    ]
    values = log[guided.base] + torch.stack(added).sum(0)  # [positions, columns]
    _refuse_unusable(guided, values)
    own = values.gather(1, torch.searchsorted(columns, first))[:, 0]
    values = values.masked_fill(~allowed[:, columns], -math.inf)
    scores = torch.full_like(base, -math.inf).index_copy(1, columns, values)
    advantage = (values.amax(-1) - own).clamp(min=0)  # 0 where nothing is plausible: none acts
    least = torch.stack([term.when.advantage * acts for term, acts in acting.items()]).amax(0)
    silent = (least > 0) & (advantage <= least) | ~torch.stack(list(acting.values())).any(0)
    if bool(silent.any()):
        scores = torch.where(silent[:, None], base, scores)
        acting = {term: acts & ~silent for term, acts in acting.items()}
    return GuidedLogits(scores, advantage, logits, acting, ratios)


def _allowed(
    terms: Sequence[Term],
    logits: Mapping[Policy, Tensor],
    base: Tensor,
    acting: Sequence[Tensor],
) -> Tensor:
    """Which tokens are plausible [positions, vocabulary]: to any of the terms that act there."""
    allowed = torch.zeros_like(base, dtype=torch.bool)
    for term, acts in zip(terms, acting, strict=True):
        judge = term.plausible
        of = logits[term.policy] if judge is not None and judge.of == "policy" else base
        allowed |= _plausible(judge, of) & acts[:, None]
    return allowed


def _refuse_unusable(guided: GuidedPolicy, scores: Tensor) -> None:
    """Raises ValueError, naming the guides, for scores [positions, vocabulary] that are no
    distribution, since they are infinite."""
    if not bool(scores.amax(-1).isfinite().all()):  # the maximum of NaN is NaN
        weights = ", ".join(f"{term.label} ({term.weight:g})" for term in guided.terms)
        raise ValueError(
            f"alignment.guides: their scores are no finite numbers at the weights of {weights};"
            " take smaller ones"
        )


def _plausible(plausible: Plausible | None, judge: Tensor) -> Tensor:
    if plausible is None:
        return torch.ones_like(judge, dtype=torch.bool)
    return truncate(judge, plausible.top_k, plausible.top_p, plausible.min_p) > float("-inf")


class Resolve(Protocol):
    """Turns a `PolicySpec` into a policy: fields left out are as in the request. A model's name
    stands for that model without vectors."""

    def __call__(
        self,
        spec: PolicySpec | str,
        told: Sequence[Preferences] = (),
        field: str = "",
        any_tokens: bool = False,
    ) -> Policy:
        """The policy, told `told` beside the request's preferences. `any_tokens`: it may have
        another tokenizer than the request's own. Raises `Invalid` with the path `field`, where the
        guide says it."""

    def spans(self, policy: Policy) -> Spans | None:
        """How a policy of another tokenizer reads the answer; None for one of the same."""

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
        return resolve(own, (told,) if guide.reference == "told" else (), any_tokens=True)

    personal = own.model_copy(update={"vectors": guide.vectors})
    return [
        (guide.weight * share, resolve(personal, (told,), any_tokens=True), reference(told))
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
                    spans = resolve.spans(policy)
                    if spans is not None and reference.backbone != policy.backbone:
                        raise Invalid(
                            f"`base` reads other tokens than {policy.backbone}; take `told` or"
                            " `untold`",
                            "reference",
                        )
                    limits = guide.plausible, guide.clip, guide.when
                    found.append(Term(label, weight, policy, reference, *limits, spans))
    if any(term.spans for term in found):
        for place, guide in enumerate(guides):
            judge = guide.plausible
            with faults.at(place, guide.kind):
                if judge is None or judge.of == "policy" or judge.top_k is None:
                    raise Invalid(
                        "needs a `top_k` of the base: a guide of another tokenizer reads the text"
                        " of each candidate",
                        "plausible",
                    )
    return tuple(found)


def _told(principle: str, rendering: Rendering) -> tuple[Preferences, ...]:
    return (Preferences(user=(principle,), rendering=rendering),)
