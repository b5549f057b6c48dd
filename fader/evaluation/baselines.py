"""What vectors are compared with: asking for the level in words, zero-shot or few-shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fader.data.records import Level, shuffled
from fader.evaluation.suite import RequestFields, Suite

ZERO_SHOT: Mapping[Level, str] = {
    "avoidance": (
        "You do not answer {domain} questions. Decline politely in one or two sentences and name"
        " the professional to turn to."
    ),
    "generic": (
        "Answer {domain} questions correctly but in general, everyday words, in two or three short"
        " sentences, without technical detail."
    ),
    "expert": (
        "Answer {domain} questions as a specialist writing to a colleague: specific, technical,"
        " complete, with figures and names."
    ),
}
BASELINES = ("zero-shot", "few-shot")
EXAMPLES = 3


def fields(suite: Suite, method: str, domain: str, level: Level) -> RequestFields:
    """A baseline's request fields for one domain and level: `zero-shot` as a system prompt,
    `few-shot` with three answered questions besides."""
    fields: dict[str, Any] = {
        "alignment": {
            "preferences": {
                "provider": ZERO_SHOT[level].format(domain=domain),
                "rendering": "system",
            }
        }
    }
    if method == "few-shot":
        fields["before"] = _examples(suite, domain, level)
    return lambda _: fields


def _examples(suite: Suite, domain: str, level: Level) -> Sequence[dict[str, str]]:
    few_shot = shuffled(suite.items(domain, "train"), suite.seed)[:EXAMPLES]
    return [
        turn
        for item in few_shot
        for turn in (
            {"role": "user", "content": item.query},
            {"role": "assistant", "content": item.answers[level]},
        )
    ]
