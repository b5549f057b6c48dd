"""What a caller may ask: `Request`, `Sampling`, `Alignment`. One frozen schema for Python, YAML
profiles, the command line and HTTP.

Unknown fields are refused with their path (`schema.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fader.rewards.specs import TextRewardSpec
from fader.schema import (
    NUMBER,
    Finite,
    Frozen,
    Invalid,
    Positive,
    Seed,
    Share,
    Text,
    Texts,
    listed,
    not_empty,
    parse,
    short,
)

Token = Annotated[int, Field(ge=0, lt=2**31), NUMBER]


def _not_nothing(written: str | tuple[int, ...]) -> str | tuple[int, ...]:
    if not written or (isinstance(written, str) and not written.strip()):
        raise ValueError("must not be empty; leave the field out instead")
    return written


Written = Annotated[str | tuple[Token, ...], AfterValidator(_not_nothing)]
Rendering = Literal["meta", "tiers", "system", "principle"]


class Message(Frozen):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: Text
    """What is said."""


class Sampling(Frozen):
    """How tokens are drawn. The default is greedy: temperature 0."""

    max_tokens: int = Field(256, ge=1)
    """At most this many tokens are written."""
    temperature: Finite = Field(0.0, ge=0)
    """0 takes the likeliest token; 1 samples the distribution as it is."""
    top_k: int | None = Field(None, ge=1)
    """Sample among this many likeliest tokens."""
    top_p: Share | None = None
    """Sample among the fewest tokens that hold this much probability."""
    min_p: Share | None = None
    """Sample among tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: Positive = 1.0
    """Divides the positive and multiplies the negative logits of tokens that were already read or
    written; 1 is off."""
    seed: Seed = 0
    """The same seed gives the same text, whatever else runs."""
    stop: Annotated[
        tuple[Annotated[str, AfterValidator(not_empty)], ...], BeforeValidator(listed)
    ] = ()
    """The answer ends before the first of these strings. A blank one such as a line break is fine,
    and so is a special token such as `<|im_end|>`."""
    n: int = Field(1, ge=1, le=128)
    """How many answers to draw. At temperature 0 they are all the same."""
    logprobs: int | None = Field(None, ge=0, le=100)
    """Report each token's log-probability under the aligned distribution, and this many
    alternatives."""
    min_tokens: int = Field(0, ge=0)
    """Before so many tokens no end token is written; a stop string still ends the answer. At most
    `max_tokens`. Not with a search."""
    ignore_eos: bool = False
    """Whether the answer goes on after the model's end token. Not with a search."""
    logit_bias: dict[Token, Finite] = Field(default_factory=dict)
    """Added to the scores of these token ids, in nats, before a token is drawn. Not with a
    search."""

    @model_validator(mode="after")
    def _ends(self) -> Sampling:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) must not be more than max_tokens"
                f" ({self.max_tokens})"
            )
        return self


class Choice(Frozen):
    """One past judgement of the user: of two answers, the one they liked."""

    prompt: Text | None = None
    """What had been asked."""
    chosen: Text
    """The answer that the user liked."""
    rejected: Text
    """The answer that they liked less."""


class Preferences(Frozen):
    """Typed preferences that act in the context (MetaAlign, arXiv 2410.14184). `methods/prompt.py`
    renders them."""

    provider: Texts = ()
    """The provider's guidelines and preferences; they win over the user's."""
    user: Texts = ()
    """The user's stated preferences."""
    facts: Texts = ()
    """Facts about the user, from which preferences are to be inferred."""
    history: tuple[Choice, ...] = ()
    """Past choices of the user, the oldest first, from which preferences are to be inferred. Where
    they leave no room for the answer, the oldest are left out, and the result says how many
    (`dropped_choices`)."""
    rendering: Rendering = "meta"
    """`meta`: MetaAlign's two typed tiers and the rule for conflicts; `tiers`: the tiers alone, for
    a model that was taught the rule; `system`: a plain system prompt; `principle`: PAD's guideline
    and principle prompt."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.provider or self.user or self.facts or self.history)


class PolicySpec(Frozen):
    """A way to read the conversation: which model, with which vectors, told which preferences. What
    is left out is as in the request."""

    model: Text | None = None
    """A loaded model's name. It must have the same vocabulary."""
    vectors: dict[str, Finite] | None = None
    """Its mixture of vectors; `{}` means none."""
    preferences: Preferences | None = None
    """What it is told; `{}` means nothing."""


class Plausible(Frozen):
    """The tokens that a guide may choose among: those in the top-k, top-p or min-p set of one
    distribution."""

    top_k: int | None = Field(None, ge=1)
    """The likeliest tokens, this many."""
    top_p: Share | None = None
    """The fewest tokens that hold this much probability."""
    min_p: Share | None = None
    """Tokens of at least this share of the likeliest one's probability."""
    of: Literal["base", "policy"] = "base"
    """Whose distribution decides: the request's own, or the guide's policy."""


class When(Frozen):
    """Where a guide acts. Elsewhere the answer goes on as without it."""

    every: int = Field(1, ge=1)
    """At the first token and each n-th after it. At the others it is not read."""
    base_at_most: Share | None = None
    """Only where the base's likeliest token has at most this probability. The base is then read
    first, and the guide only where it can change the choice; at 1 the tokens are the same."""
    advantage: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Only where another token scores higher than the base's own choice, by more than this, in
    nats (`methods/budget.py` finds the value for a budget)."""


class _Guide(Frozen):
    weight: Finite = 1.0
    """w in w * (log policy - log reference); 0 is off."""
    clip: Positive | None = None
    """log policy - log reference is kept between minus this and this, in nats."""
    when: When = When()
    """Where the guide acts; left out: everywhere."""
    plausible: Plausible | None = None
    """Which tokens stay candidates. Null, or one without limits: all tokens. The sets of several
    guides are united."""


class Contrast(_Guide):
    """The same model told and not told a principle (Linear Alignment, arXiv 2401.11458).

    Linear Alignment's (1 + r) * told - r * untold is weight = 1 + r.
    """

    kind: Literal["contrast"]
    principle: Text
    """What the policy is told, beside the request's `preferences`."""
    against: Text | None = None
    """A principle for the reference to be told, such as the opposite; left out, the reference is
    the request's own policy."""
    rendering: Rendering = "system"
    """How the principle is said (see `Preferences.rendering`)."""
    weight: Finite = 2.0
    plausible: Plausible | None = Plausible(top_p=0.8, of="policy")


class Realign(_Guide):
    """Decoding-time realignment (DeRa, arXiv 2402.02992): base^(1-weight) * aligned^weight."""

    kind: Literal["realign"]
    aligned: PolicySpec
    """The aligned policy."""
    weight: Finite = 1.0
    """0 is the request's own policy, 1 the aligned one; more goes beyond it."""


class Component(Frozen):
    """One policy of a mixture and its share."""

    policy: PolicySpec
    """One of the policies that are mixed."""
    weight: Finite
    """Its share; negative ones are allowed."""


class Mix(_Guide):
    """Multi-objective decoding (MOD, arXiv 2406.18853): log p = sum of w_i * log p_i, with the w_i
    adding up to 1."""

    kind: Literal["mix"]
    components: tuple[Component, ...] = Field(min_length=1)
    """The policies and their shares, which add up to 1."""
    weight: Finite = 1.0
    """1 is the mixture itself; 0 is off."""

    @model_validator(mode="after")
    def _adds_up(self) -> Mix:
        total = sum(component.weight for component in self.components)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of the components must add up to 1, got {total:g}")
        return self


class Personalized(_Guide):
    """A personalised reward model told what the user wants (PAD, arXiv 2410.04070, eq. (13)).

    Exactly one of `principle`, `principles` and `preferences` says what that is.
    """

    kind: Literal["personalized"]
    principle: Text | None = None
    """What the model is told, as a text, beside the request's `preferences`."""
    principles: dict[Text, Finite] = Field(default_factory=dict)
    """Several texts and the weight of each: one term each, all read in one batch."""
    preferences: Preferences | None = None
    """What the model is told, as preferences, said as `rendering` says. Python's `Fader` and the
    command line also take the name of a profile, whose preferences these then are."""
    model: Text | None = None
    """The backbone of the personalised model; left out: the request's model. It may have another
    tokenizer."""
    vectors: dict[str, Finite] = Field(default_factory=dict)
    """The vectors that make the backbone the personalised model; these or `model` must be given."""
    rendering: Rendering = "principle"
    """How it is said, whatever the `rendering` of `preferences` is."""
    reference: Literal["told", "untold", "base"] = "told"
    """`told`: the same model without its vectors, told the same; `untold`: that, not told; `base`:
    the policy that is guided, as it reads (the released code)."""
    tell_base: bool = False
    """Whether the policy that is guided is told too (the released code), or not (the paper)."""
    plausible: Plausible | None = Plausible(top_k=10)

    @property
    def told(self) -> tuple[tuple[Preferences, float], ...]:
        """What the model is told, each with its share of the weight."""
        if self.preferences is not None:
            return ((self.preferences.model_copy(update={"rendering": self.rendering}), 1.0),)
        texts = self.principles if self.principle is None else {self.principle: 1.0}
        return tuple(
            (Preferences(user=(text,), rendering=self.rendering), share)
            for text, share in texts.items()
        )

    @model_validator(mode="after")
    def _is_told_something(self) -> Personalized:
        given = [self.principle is not None, bool(self.principles), self.preferences is not None]
        if sum(given) != 1:
            raise ValueError(
                "give `principle`, `principles` or `preferences`, one of them: what the user wants"
            )
        if self.preferences is not None and self.preferences.empty:
            raise ValueError("`preferences` say nothing; give what the user wants")
        return self

    @model_validator(mode="after")
    def _has_a_model(self) -> Personalized:
        if not self.vectors and self.model is None:
            raise ValueError(
                "give `vectors` or `model`: what makes the model personal; for a principle alone"
                " use the guide `contrast`"
            )
        if not any(self.vectors.values()) and self.reference == "told":
            raise ValueError(
                "without vectors the model would be its own reference; give `vectors`, or set"
                " `reference` to `untold` or `base`"
            )
        return self


class Proxy(_Guide):
    """A small tuned model against its untuned self (proxy tuning, arXiv 2401.08565; contrastive
    decoding)."""

    kind: Literal["proxy"]
    tuned: Text
    """The name of a loaded model: the tuned one."""
    untuned: Text
    """The name of a loaded model: the same before it was tuned."""


class Ratio(_Guide):
    """The common form itself: weight * (log policy - log reference)."""

    kind: Literal["ratio"]
    policy: PolicySpec
    """What is moved towards."""
    reference: PolicySpec = PolicySpec()
    """What is moved away from; left out: the request's own policy."""


Guide = Annotated[
    Contrast | Realign | Mix | Personalized | Proxy | Ratio, Field(discriminator="kind")
]


class ImplicitSpec(Frozen):
    """Reward: beta * sum of (log policy - log reference) over the answer's tokens, which a trained
    policy implies (DPO, arXiv 2305.18290)."""

    kind: Literal["implicit"]
    policy: PolicySpec
    """What the answer is to be like, such as `{"vectors": {"harmless": 1}}`."""
    reference: PolicySpec = PolicySpec(vectors={})
    """What it is compared with; left out: the request's own policy without any vectors."""
    beta: Positive = 1.0
    """The factor beta."""
    length_normalized: bool = False
    """The mean over the tokens instead of the sum."""
    squash: bool = False
    """Its logistic function, in [0, 1]."""
    weight: Finite = 1.0
    """Its share in the weighted sum; negative: the less the better."""


RewardSpec = Annotated[TextRewardSpec | ImplicitSpec, Field(discriminator="kind")]


class Budget(Frozen):
    """What a search may spend on one answer. When a limit is reached, the best answer so far is
    returned: a finished one if there is one, else the best hypothesis, whose `finish_reason` is
    `budget`."""

    rows: int | None = Field(None, ge=1)
    """Rows read by the request's own policies, summed over forward passes."""
    tokens: int | None = Field(None, ge=1)
    """Tokens explored: read as part of any hypothesis, kept or not."""
    seconds: Positive | None = None
    """Seconds since the search began. Waiting for room before that does not count."""


class _Search(Frozen):
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """h is their weighted sum. They judge the whole answer, its `prefill` included; implicit
    rewards judge the tokens that are written."""
    budget: Budget = Budget()
    """What may be spent on one answer; left out: no limit."""


class BestOfN(_Search):
    """Draw `n` answers and keep the one of the highest reward."""

    kind: Literal["best-of-n"]
    n: int = Field(4, ge=1, le=128)
    """How many to draw for each answer."""


class Blockwise(_Search):
    """Draw `n` blocks, keep the `beams` hypotheses of the highest reward, and so on (blockwise
    controlled decoding, arXiv 2310.17022, without its trained prefix scorer: the rewards judge the
    unfinished text)."""

    kind: Literal["blockwise"]
    n: int = Field(4, ge=1, le=128)
    """Blocks that are drawn at each step."""
    block: Annotated[int, Field(ge=1), NUMBER] | Literal["sentence"] = 16
    """Tokens of a block, or up to the end of a sentence."""
    beams: int = Field(1, ge=1, le=64)
    """Hypotheses that are kept; at most `n`."""

    @model_validator(mode="after")
    def _fewer_kept(self) -> Blockwise:
        if self.beams > self.n:
            raise ValueError(
                f"beams ({self.beams}) must not be more than n ({self.n}): there are n"
                " hypotheses to keep them from"
            )
        return self


class Segments(_Search):
    """Draw a segment until it is good enough, then go on from it (rejection by segments, CARDS,
    arXiv 2406.16306)."""

    kind: Literal["segments"]
    entropy: Positive = 3.0
    """A segment ends where the next token's distribution has at least this entropy, in nats."""
    shortest: int = Field(4, ge=1)
    """A segment has at least this many tokens, unless the answer ends."""
    longest: int = Field(64, ge=1)
    """A segment has at most this many tokens."""
    tries: int = Field(20, ge=1, le=128)
    """After as many rejections, the best of them is kept."""
    target: Finite = 1.0
    """The threshold at `max_tokens`: the reward that the whole answer is to have."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Where the threshold begins: 0 at the reward of nothing written, 1 at the target. It rises
    evenly from there."""
    softness: Positive = 0.1
    """A segment that misses the threshold by d is kept with probability exp(-d / softness)."""

    @model_validator(mode="after")
    def _shortest_first(self) -> Segments:
        if self.shortest > self.longest:
            raise ValueError(
                f"shortest ({self.shortest}) must not be more than longest ({self.longest})"
            )
        return self


Optimization = Literal["reuse", "prune", "skip", "speculate"]


class Lookahead(_Search):
    """Search token by token: log P + weight * h of how the model would go on (DeAL, arXiv
    2402.06147)."""

    kind: Literal["lookahead"]
    top_k: int = Field(10, ge=1, le=1000)
    """Candidates of each step: at most this many of the likeliest tokens."""
    top_p: Share | None = None
    """And no more than hold this probability."""
    lookahead: Annotated[int, Field(ge=0), NUMBER] | Literal["sentence", "end"] = 16
    """How far a candidate is continued to be judged: tokens, to the end of the sentence, or to the
    end of the answer."""
    rollout: Literal["greedy", "sampled"] = "greedy"
    """How look-aheads go on: by the likeliest token, or drawn as the request's sampling says."""
    beams: int = Field(1, ge=1, le=64)
    """Hypotheses that are kept."""
    weight: Finite = Field(10.0, ge=0)
    """Of h against log P; 0 is off."""
    width: int = Field(16, ge=1, le=1024)
    """Look-aheads that may be under way at the same time, beside those of the token being decided.
    More are quicker where rows are cheap; the tokens are the same."""
    optimizations: tuple[Optimization, ...] = ("reuse", "prune", "skip", "speculate")
    """What makes it fast. None of them changes a token."""


Search = Annotated[BestOfN | Blockwise | Segments | Lookahead, Field(discriminator="kind")]


def is_greedy(search: Search | None) -> bool:
    """Whether a search decides every token itself, so that none is drawn."""
    return isinstance(search, Lookahead) and search.rollout == "greedy"


class Alignment(Frozen):
    """What the answer should be like. Empty: the base model, exactly."""

    preferences: Preferences = Preferences()
    """Preferences that the model reads."""
    vectors: dict[str, Finite] = Field(default_factory=dict)
    """Alignment vectors by name, and their strengths λ: W + sum of λ_i * dW_i."""
    guides: tuple[Guide, ...] = ()
    """Guidance of the next-token scores."""
    search: Search | None = None
    """Which continuation is kept, by rewards."""


def _as_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Request(Frozen):
    """One question and how it is to be answered."""

    messages: Annotated[tuple[Message, ...], BeforeValidator(_as_messages)] = ()
    """The conversation; a plain text is one user turn. Either this or `raw` is given."""
    raw: Written | None = None
    """Instead of messages: a text, or token ids, that the model continues as it is, without a chat
    template. Control tokens that are spelled in the text are control tokens; preferences stand as a
    paragraph above it."""
    sampling: Sampling = Sampling()
    """How tokens are drawn; left out: the likeliest each time, 256 at most."""
    alignment: Alignment = Alignment()
    """What the answer should be like, in any form that `--align` takes."""
    model: Text | None = None
    """The model that answers, by the name it was loaded under; left out: the one that was loaded
    first. In Python's `Fader` and in a line of `--input` it may also be a model's folder or GGUF
    file."""
    prefill: Written | None = None
    """The assistant's answer is forced to begin with this text, or with these token ids. The result
    holds only what was written after it."""
    json_schema: dict[str, Any] | None = None
    """The answer is JSON that this JSON Schema allows (`pip install 'fader[json]'`). The mask is
    laid over the guided scores; reported log-probabilities are those before it. A schema with what
    cannot be enforced is refused. Not with a search, `prefill`, `min_tokens` or `ignore_eos`."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Request:
        if not self.messages and self.raw is None:
            raise ValueError("give `messages`, or `raw`: what is to be answered")
        if self.messages and self.raw is not None:
            raise ValueError("`messages` and `raw` are both given; give one of the two")
        if self.raw is not None and self.prefill is not None:
            raise ValueError("`prefill` begins an answer to messages; put it at the end of `raw`")
        return self

    @classmethod
    def of(cls, prompt: RequestLike, **fields: Any) -> Request:
        """A request from a prompt, a list of messages, or a mapping of the request's fields, in
        which `prompt` may stand for `messages`.

        `fields`: fields of the request or of its sampling (`max_tokens=8`). They apply where
        `prompt` does not say otherwise. Raises `Invalid`.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        if isinstance(prompt, Request):
            if given:
                raise Invalid("give these inside the Request", ", ".join(given))
            return prompt
        value = _as_fields(prompt)
        if "messages" in given and "messages" in value:
            raise Invalid(
                "given twice, since the prompt stands for them too; give one of the two", "messages"
            )
        # the later ones win, field by field
        said = [{name: given.pop(name) for name in list(given) if name in Sampling.model_fields}]
        said += [_of_sampling(of.get("sampling", {})) for of in (given, value)]
        sampling = {name: one for part in said for name, one in part.items()}
        return parse(cls, {**given, **value, "sampling": sampling})


def named(value: Any, kind: Literal["vectors", "model"]) -> Iterator[str]:
    """Names of the vectors, or of the models, that a request as JSON values names anywhere."""
    if isinstance(value, dict):
        found = value.get(kind) or ()
        yield from [found] if isinstance(found, str) else found
        for inner in value.values():
            yield from named(inner, kind)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner, kind)


RequestLike = str | Sequence[Mapping[str, Any] | Message] | Mapping[str, Any] | Request
"""What `Request.of` takes."""


def _as_fields(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"messages": prompt}
    if isinstance(prompt, Mapping):
        value = {name: one for name, one in prompt.items() if one is not None}
        if "prompt" in value and "messages" in value:
            raise Invalid("stands for messages, which are given too; give one of the two", "prompt")
        if "prompt" in value:
            value["messages"] = value.pop("prompt")
        if {"role", "content"} <= value.keys():
            raise Invalid(
                "is one message; put it into a list, and the list of several conversations' lists"
                " into `batch`",
                "prompt",
            )
        for name in Sampling.model_fields:
            if name in value:
                raise Invalid(f'stands under `sampling`: {{"sampling": {{"{name}": ...}}}}', name)
        return value
    if isinstance(prompt, Sequence) and prompt and all(map(_is_message, prompt)):
        return {"messages": [*prompt]}
    raise Invalid(
        "must be a text, a list of messages, a mapping of request fields, or a Request (got"
        f" {short(prompt)}); several prompts at once go to `batch`",
        "prompt",
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, Message) or (isinstance(value, Mapping) and "role" in value)


def _of_sampling(sampling: Any) -> dict[str, Any]:
    """The fields of a sampling that were given. Raises `Invalid` for what is none."""
    if isinstance(sampling, Sampling):
        return sampling.model_dump(exclude_unset=True)
    if not isinstance(sampling, Mapping):
        raise Invalid(f"must be a mapping of its fields (got {short(sampling)})", "sampling")
    return {name: value for name, value in sampling.items() if value is not None}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a request."""
    return Request.model_json_schema()
