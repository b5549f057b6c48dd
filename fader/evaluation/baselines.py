"""What vectors are compared with: asking for the level in words, told (zero-shot) or shown by
examples (few-shot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fader.evaluation.lab import Lab, Wish
from fader.training.data import Level, shuffled

TOLD: Mapping[Level, str] = {
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
BASELINES = ("told", "shown")
EXAMPLES = 3


def wish(lab: Lab, method: str, domain: str, level: Level) -> Wish:
    """A baseline's request fields for one domain and level: `told` as a system prompt, `shown` with
    three answered questions besides."""
    fields: dict[str, Any] = {
        "alignment": {
            "prompt": {"provider": TOLD[level].format(domain=domain), "rendering": "system"}
        }
    }
    if method == "shown":
        fields["before"] = _examples(lab, domain, level)
    return lambda _: fields


def _examples(lab: Lab, domain: str, level: Level) -> Sequence[dict[str, str]]:
    shown = shuffled(lab.items(domain, "train"), lab.seed)[:EXAMPLES]
    return [
        turn
        for item in shown
        for turn in (
            {"role": "user", "content": item.query},
            {"role": "assistant", "content": item.answers[level]},
        )
    ]
