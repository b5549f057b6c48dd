"""Rewards of answers under preference weights, PAD's Algorithm 1 (arXiv 2410.04070):

    reward(y) = sum over its tokens of  log pi^(y | p, x) - log pi_ref(y | x)

where pi^ has the weights w_p before its head, and pi_ref is the base model, told nothing. Read by
the trainer's own forward: the engine does not serve such weights (docs/decisions/0010). Each lesson
is one row, however many preferences it tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fader.engine import builtin
from fader.engine.identity import fingerprint
from fader.methods.prompt import ending_ids
from fader.training.lessons import Lesson
from fader.training.personal_head import (
    WEIGHTED,
    PreferenceWeights,
    head_of,
    number,
    read_with_part,
    with_part,
)
from fader.training.run import load
from fader.training.vector import collate, prepared
from fader.vectors.vector import Vector

LONGEST = 2**20  # tokens of an answer and its prompt; the model may read fewer


@torch.no_grad()
def rewards(
    weights: PreferenceWeights,
    start: Vector,
    lessons: Sequence[Lesson],
    model: str = builtin.NAME,
    batch: int = 8,
) -> Tensor:
    """The reward of the chosen and of the rejected answer of each lesson [lessons, 2] under what
    the lesson tells. `start`: the vector of stage 1 that the weights were trained on.

    Raises ValueError for another one, for another model, and for lessons that are too long.
    """
    base, tokenizer = load(model)
    head_of(base, start, model)
    _check(weights, start, base, model)
    recipe = replace(WEIGHTED, max_length=LONGEST)
    kept, rows, _ = prepared(base, tokenizer, lessons, recipe, [weights.name], [start])
    if len(kept) < len(lessons):
        raise ValueError(
            f"lessons: {len(lessons) - len(kept)} of {len(lessons)} are longer than {model} reads;"
            " leave them out"
        )
    texts, ending = number(lessons, rows), len(ending_ids(tokenizer))
    for row in rows:  # the answers' own tokens, as the engine scores given answers
        row |= {
            side: row[side][: len(row[side]) - ending] for side in ("chosen_ids", "rejected_ids")
        }
    part = weights.part(len(texts))
    weighted = with_part(base, start, part, tokenizer, texts).eval()
    found: list[Tensor] = []
    for place in range(0, len(rows), batch):
        some = rows[place : place + batch]
        told = collate(some, pad=0)
        untold = collate([{**row, "prompt_ids": row["reference_ids"]} for row in some], pad=0)
        ours = read_with_part(weighted, told, told["strengths"])
        reference = read_with_part(weighted, untold, torch.zeros_like(untold["strengths"]))
        found.append((ours - reference).reshape(2, len(some)).T)
    return torch.cat(found)


def _check(weights: PreferenceWeights, start: Vector, base: Any, model: str) -> None:
    """Raises ValueError for a vector or a model that the weights were not trained on."""
    named, hidden = f"weights.{weights.name}", base.get_output_embeddings().in_features
    if weights.down.shape[1] != hidden:
        raise ValueError(
            f"{named}: are for hidden states of {weights.down.shape[1]} numbers,"
            f" those of {model} have {hidden}; take the model that they were trained on"
        )
    if weights.base != (found := fingerprint(base)):
        raise ValueError(
            f"{named}: were trained on a model with fingerprint {weights.base}, and {model} has"
            f" {found}; take that model"
        )
    if weights.start != start.digest:
        raise ValueError(
            f"{named}: were trained on the vector {weights.start}, and {start.name} is"
            f" {start.digest}; give the vector of stage 1 that they go with"
        )
