"""The measured effect that a vector's card carries: what its amounts do to the ranking of answers,
best those it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.evaluation.lab import Lab
from fader.evaluation.ledger import Ledger
from fader.evaluation.tune import alone, curves, firsts
from fader.fader import Fader
from fader.methods.vector import Vector
from fader.training.data import LEVELS, Item, LevelItem, Pair, content_hash

AMOUNTS = (-1.0, -0.35, 0.0, 0.5, 1.0)


def note_effect(
    vector: Vector,
    folder: Path,
    items: Sequence[Item],
    model: str = builtin.NAME,
    seen: bool = False,
) -> Vector:
    """Measure the vector on `items` and write what was found into its card in `folder`. Returns the
    vector with that card. `seen`: it was trained on these items, which the card then says."""
    with Fader(model, dtype=quick_dtype()) as fader:
        fader.add_vector(vector)
        found = effect(Ledger(fader), vector.name, items) | (
            {"seen_in_training": True} if seen else {}
        )
    noted = replace(vector, card={**vector.card, "effect": found})
    noted.save(folder)
    return noted


def effect(ledger: Ledger, name: str, items: Sequence[Item]) -> dict[str, Any]:
    """What five amounts do: the share of items whose answer of each level ranks first, or whose
    chosen answer does, and by what margin. For levels also the amount at which each is clearest.
    `vector`, `base` and `data` tell of which numbers this holds, on which model and items."""
    levels = [item for item in items if isinstance(item, LevelItem)]
    pairs = [item for item in items if isinstance(item, Pair)]
    vector = ledger.fader.vector(name)
    found: dict[str, Any] = {
        "vector": vector.digest,
        "base": vector.base,
        "items": len(items),
        "data": content_hash(items),
    }
    if levels:
        lab = Lab(ledger, {name: [replace(item, split="dev") for item in levels]}, {name: name})
        picked = alone(lab, "effect")
        found["levels"] = {level: picked[name, level] for level in LEVELS}
        at = curves(lab, "effect", [(name, amount) for amount in AMOUNTS], "dev")
        shares = {
            amount: {level: float(np.mean(firsts(means, level))) for level in LEVELS}
            for (_, amount), means in at.items()
        }
        found["amounts"] = [
            {"amount": amount, **{level: round(share, 3) for level, share in row.items()}}
            for amount, row in shares.items()
        ]
    if pairs:
        found["amounts"] = [_preferred(Lab(ledger), name, pairs, amount) for amount in AMOUNTS]
    return found


def _preferred(lab: Lab, name: str, pairs: Sequence[Pair], amount: float) -> dict[str, float]:
    margins = lab.margins("effect", name, "effect", pairs, {"vectors": {name: amount}})
    return {
        "amount": amount,
        "chosen": round(float((margins > 0).mean()), 3),
        "margin": round(float(margins.mean()), 3),
    }
