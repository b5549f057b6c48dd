"""Ways to ask a model that its answers be helpful, harmless or humorous: in words, by examples, by
guides, by vectors, by choosing among drafts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fader.data.records import shuffled, split
from fader.starter.shipped import starter_pairs

WISHES: Mapping[str, str] = {
    "helpful": "Be helpful: answer what I asked, correctly and to the point.",
    "harmless": "Be harmless: encourage nothing that could hurt anybody.",
    "humorous": "Be humorous: make the answer fun to read.",
}
"""What is said for each aim that has a judge. No lesson says it in these words."""

Asking = Callable[[Sequence[str]], Mapping[str, Any]]
"""asking(aims): the fields of a request that asks for these aims, without its question. `before`
among them: turns above the question."""

EXAMPLES = 3
CANDIDATES = 10
WARMTH = 0.8  # the temperature of drafts among which one is chosen


def base(aims: Sequence[str]) -> Mapping[str, Any]:
    """Nothing is asked for."""
    return {}


def personalized(vector: str, apart: float | None = None, **settings: Any) -> Asking:
    """PAD's guide: the personalised model of a vector is told the wishes. `apart`: each wish by
    itself, a term with this share of the guide's weight; left out: all of them in one prompt.
    `settings`: of the guide, where they are not its defaults."""
    guide = {"kind": "personalized", "vectors": {vector: 1.0}, **settings}

    def fields(aims: Sequence[str]) -> Mapping[str, Any]:
        texts = _texts(aims)
        told: dict[str, Any] = (
            {"preferences": {"user": texts}}
            if apart is None
            else {"principles": dict.fromkeys(texts, apart)}
        )
        return {"alignment": {"guides": [{**guide, **told}]}}

    return fields


def prompting(rendering: str = "principle") -> Asking:
    """The base model is told the wishes, as the personalised one is, or in another rendering."""
    return lambda aims: {"alignment": {"preferences": _told(aims, rendering)}}


def few_shot(seed: int = 0) -> Asking:
    """The base model is told the wishes, and reads three answers that obey: of training pairs, the
    preferred ones; one of each aim where all are asked for."""

    def fields(aims: Sequence[str]) -> Mapping[str, Any]:
        pairs = [
            pair
            for aim in aims
            for pair in shuffled(split(starter_pairs(aim), "train"), seed)[: EXAMPLES // len(aims)]
        ]
        before = [
            turn
            for pair in pairs
            for turn in (
                *(message.model_dump() for message in pair.messages),
                {"role": "assistant", "content": pair.chosen},
            )
        ]
        return {**prompting()(aims), "before": before}

    return fields


def contrast(**settings: Any) -> Asking:
    """The untrained contrast: the base model told the wishes against itself not told. `settings`:
    of the guide, where they are not its defaults."""
    return lambda aims: {
        "alignment": {
            "guides": [{"kind": "contrast", "principle": " ".join(_texts(aims)), **settings}]
        }
    }


AS_PERSONALIZED: Mapping[str, Any] = {
    "weight": 1.0,
    "rendering": "principle",
    "plausible": {"top_k": 10},
}
"""What makes the contrast PAD's guide with a model that was not trained."""


def mixed_models(aims: Sequence[str]) -> Mapping[str, Any]:
    """MOD (arXiv 2406.18853): the log-probabilities of one model for each aim, the base with that
    aim's vector, in equal shares."""
    parts = [{"policy": {"vectors": {aim: 1.0}}, "weight": 1 / len(aims)} for aim in aims]
    return {"alignment": {"guides": [{"kind": "mix", "components": parts}]}}


def mixed_vectors(aims: Sequence[str]) -> Mapping[str, Any]:
    """A mixture of the aims' vectors in equal shares, in one model."""
    return {"alignment": {"vectors": {aim: 1 / len(aims) for aim in aims}}}


def best_of(vector: str, n: int = CANDIDATES) -> Asking:
    """Of `n` drafts of the base model, the one that the personalised model of a vector, told the
    wishes, finds more likely than the base by the most: its implicit reward, a sum over tokens."""

    def fields(aims: Sequence[str]) -> Mapping[str, Any]:
        policy = {"vectors": {vector: 1.0}, "preferences": _told(aims, "principle")}
        search = {
            "kind": "best-of-n",
            "n": n,
            "rewards": [{"kind": "implicit", "policy": policy}],
        }
        return {"alignment": {"search": search}, "temperature": WARMTH}

    return fields


def rewarded(vector: str, aims: Sequence[str]) -> Mapping[str, Any]:
    """The personalised model itself, told the wishes: how likely it finds an answer."""
    return {"alignment": {"preferences": _told(aims, "principle"), "vectors": {vector: 1.0}}}


def _texts(aims: Sequence[str]) -> list[str]:
    return [WISHES[aim] for aim in aims]


def _told(aims: Sequence[str], rendering: str) -> dict[str, Any]:
    return {"user": _texts(aims), "rendering": rendering}
