"""The measured effect on a vector's card: how its strengths change the ranking of answers. It says
most of answers that the vector was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fader.data.records import LEVELS, Item, LevelItem, Pair, content_hash
from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.evaluation.cache import ResultCache
from fader.evaluation.pairs import pairs
from fader.evaluation.suite import Suite
from fader.evaluation.tune import alone, curves, top1
from fader.fader import Fader
from fader.request import Request
from fader.schema import Invalid
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import Vector

log = logging.getLogger(__name__)
STRENGTHS = (-1.0, -0.35, 0.0, 0.5, 1.0)


def note_effect(
    vector: Vector,
    folder: Path,
    items: Sequence[Item],
    model: str = builtin.NAME,
    seen: bool = False,
    held_out: Sequence[Pair] = (),
) -> Vector:
    """Measure the vector on `items` and write the effect into its card in `folder`. Returns the
    vector with that card. `seen`: the vector was trained on these items, and the card says so.
    `held_out`: pairs that it was not trained on; the card has their metrics with intervals. Items
    that the model cannot read, such as too long ones, are left out; the card has their number, a
    warning the first reason too.

    Raises ValueError if another vector has come into the folder meanwhile.
    """
    with Fader(model, dtype=quick_dtype()) as fader:
        fader.add_vector(vector)
        reasons = [_fault(fader, item) for item in items]
        items = [item for item, why in zip(items, reasons, strict=True) if why is None]
        faults = [why for why in reasons if why is not None]
        held_out = [pair for pair in held_out if _fault(fader, pair) is None]
        cache = ResultCache(fader)
        found = effect(cache, vector.name, items) | ({"seen_in_training": True} if seen else {})
        if faults:
            log.warning("%d items are not measured: %s", len(faults), faults[0])
            found["not_measured"] = len(faults)
        if held_out:
            suite = Suite(cache, pairs=held_out, vectors={"": vector.name})
            found["held_out"] = [asdict(metric) for metric in pairs(suite, STRENGTHS)]
    if (folder / CONFIG).is_file() and Vector.load(folder).digest != vector.digest:
        raise ValueError(f"out: {folder} holds another vector by now; nothing was written into it")
    noted = replace(vector, card={**vector.card, "effect": found})
    noted.save(folder)
    return noted


def _fault(fader: Fader, item: Item) -> Invalid | None:
    """Why the model cannot read the item's conversation with each of its answers; None if it
    can."""
    if isinstance(item, LevelItem):
        pair, answers = item.pair(), [*item.answers.values()]
    else:
        pair, answers = item, [item.chosen, item.rejected]
    request = Request.of({"messages": [turn.model_dump() for turn in pair.messages]})
    return next(iter(fader.backend.check(request, answers)), None)


def effect(cache: ResultCache, name: str, items: Sequence[Item]) -> dict[str, Any]:
    """At each of five strengths: for level items the share whose answer of each level ranks first,
    for pairs the share whose chosen answer is the likelier one, and the margin. For levels also the
    strength at which each is clearest. `vector`, `base` and `data` are hashes of the vector, the
    model and the items that were measured."""
    levels = [item for item in items if isinstance(item, LevelItem)]
    preferred = [item for item in items if isinstance(item, Pair)]
    vector = cache.fader.vector(name)
    found: dict[str, Any] = {
        "vector": vector.digest,
        "base": vector.base,
        "items": len(items),
        "data": content_hash(items),
    }
    if levels:
        suite = Suite(cache, {name: [replace(item, split="dev") for item in levels]}, {name: name})
        picked = alone(suite, "effect")
        found["levels"] = {level: picked[name, level] for level in LEVELS}
        at = curves(suite, "effect", [(name, strength) for strength in STRENGTHS], "dev")
        shares = {
            strength: {level: float(np.mean(top1(means, level))) for level in LEVELS}
            for (_, strength), means in at.items()
        }
        found["strengths"] = [
            {"strength": strength, **{level: round(share, 3) for level, share in row.items()}}
            for strength, row in shares.items()
        ]
    if preferred:
        found["strengths"] = [
            _preferred(Suite(cache), name, preferred, strength) for strength in STRENGTHS
        ]
    return found


def _preferred(suite: Suite, name: str, pairs: Sequence[Pair], strength: float) -> dict[str, float]:
    margins = suite.margins("effect", name, "effect", pairs, {"vectors": {name: strength}})
    return {
        "strength": strength,
        "chosen": round(float((margins > 0).mean()), 3),
        "margin": round(float(margins.mean()), 3),
    }
