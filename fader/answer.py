"""What comes out of a request: chunks, answers, results, likelihoods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fader.request import Alignment


@dataclass(frozen=True)
class Result:
    """The answers to one request, what they cost, and the alignment as it was resolved."""

    answers: tuple[Answer, ...]
    usage: Usage
    prompt_tokens: int
    alignment: Alignment
    dropped_choices: int = 0
    """How many past choices of a history, the oldest, did not fit and were not told."""

    @property
    def text(self) -> str:
        """The (first) answer's text."""
        return self.answers[0].text

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values: the first answer's fields, `samples` with all of them
        where there are several, usage, alignment."""
        samples = [
            {key: value for key, value in dataclasses.asdict(answer).items() if value is not None}
            for answer in self.answers
        ]
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": sum(len(answer.token_ids) for answer in self.answers),
            **dataclasses.asdict(self.usage),
            "dropped_choices": self.dropped_choices,
        }
        more = {"samples": samples} if len(samples) > 1 else {}
        return {
            **samples[0],
            **more,
            "usage": usage,
            "alignment": self.alignment.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Likelihood:
    """How likely a given answer is under an aligned policy."""

    logprob: float
    """Sum over the answer's tokens; -inf if a guide's plausible set leaves one of them out."""
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    details: tuple[TokenLogprob, ...]
    dropped_choices: int = 0
    """As `Result.dropped_choices`."""

    @classmethod
    def of(cls, details: Sequence[TokenLogprob], dropped: int = 0) -> Likelihood:
        """The likelihood of an answer from the reports on its tokens."""
        found = tuple(detail.logprob for detail in details)
        tokens = tuple(detail.token for detail in details)
        return cls(sum(found), tokens, found, tuple(details), dropped)

    @property
    def mean(self) -> float:
        """Log-probability per token."""
        return self.logprob / len(self.logprobs)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; a log-probability of -inf is null."""
        return {
            "logprob": _finite(self.logprob),
            "mean": _finite(self.mean),
            "tokens": list(self.tokens),
            "logprobs": [_finite(value) for value in self.logprobs],
            "dropped_choices": self.dropped_choices,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


FinishReason = Literal["stop", "length", "budget"]


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability under the aligned distribution, before temperature and
    truncation."""

    token: str
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens as (id, logprob)."""
    base: float = 0.0
    """Its log-probability under the policy that is guided, without the guides."""
    guides: dict[str, float] = field(default_factory=dict)
    """What each guide added to this token's score."""
    advantage: float = 0.0
    """By how much the guides would score another token above the likeliest of the base, in nats; 0:
    they agree with it."""


@dataclass(frozen=True)
class Chunk:
    """A piece of answer number `index`, as it is decided. The texts of its chunks in order are the
    answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class SearchReport:
    """How an answer was found by a search."""

    reward: float
    """h of the answer: the weighted sum of its rewards."""
    explored: int
    """Tokens read as part of any hypothesis, kept or not."""
    proposed: int = 0
    """Committed tokens that were candidates only because a reward proposed them."""
    exhausted: str | None = None
    """The limit of the budget that ended the search, if one did."""


@dataclass(frozen=True)
class Answer:
    """A whole answer. `token_ids` ends with the end token if one was written; the text leaves it
    out."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    search: SearchReport | None = None


@dataclass
class Usage:
    """What a job cost."""

    rows: int = 0
    """Rows read, summed over forward passes."""
    forward_passes: int = 0
    tokens_read: int = 0
    cached_tokens: int = 0
    """Tokens that were not read, since other requests had read them."""
    reward_calls: int = 0
    """Texts scored."""
    seconds: float = 0.0
