"""Which form of PAD's model (arXiv 2410.04070) to train, measured on the built-in model's dev split
after training on a quarter of the shipped lessons: `python -m reproductions.pad [PART ...]
[--limit N] [--report FILE] [--json]`.

Prints one figure per line, as JSON with `--json`. A part trains one form and measures it; all by
default and in this order:

    stage-1     the model under preferences, by LoRA: the shipped settings
    plain       the paper's own: rank 8 on all layers, rate 5e-6, beta 0.1, the reference told, no
                lessons that are retained; batches of 8 (paper: 128)
    untold      the reference reads no preference
    beta-0.05   beta a quarter of the shipped one
    beta-0.8    and four times it
    rank-4, rank-32
    per-token   log-probabilities per token, beta 3, in place of those of whole answers
    map         stage 2 on stage-1: a map before the head
    map-64      the same at rank 64
    weights     stage 2 on stage-1: weights of the last hidden state, made of the preference

`accuracy`: the share of pairs that the reward ranks right, the reference told the same, in wordings
that are never taught; `over_stage_1`: how much more often than stage 1, paired; `raw`: the share
that the likelihood per token ranks right (of vectors alone). Cases are those of `fader eval
personalized`.
Trainings and figures that are there already are taken as they are, and a stopped one goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fader.data.preferences import Flip
from fader.evaluation.metrics import Metric, exactly, paired_difference, share
from fader.evaluation.personal import Sides, Told, cases, likelihoods
from fader.evaluation.suite import Suite
from fader.evaluation.weighted import rewards
from fader.request import Preferences
from fader.starter.shipped import starter_families, starter_rows
from fader.training.lessons import Lesson
from fader.training.personal import PERSONAL, personal_lessons, train_personal
from fader.training.personal_head import (
    MAP,
    WEIGHTED,
    HeadRecipe,
    PreferenceWeights,
    train_personal_head,
)
from fader.training.told import taught_flips
from fader.training.vector import Recipe, train_vector
from fader.vectors.vector import Vector
from reproductions.runner import print_metrics

RUNS = Path("runs/pad")
SHARE = 0.25  # of each family's pairs
PASSES = 1
ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FORMS: Mapping[str, Recipe] = {
    "stage-1": PERSONAL,
    "plain": Recipe(
        rank=8,
        alpha=16,
        targets=ALL_LAYERS,
        loss="dpo",
        beta=0.1,
        length_normalized=False,
        sft_weight=0.0,
        retain_weight=0.0,
        learning_rate=5e-6,
        batch=8,
    ),
    "untold": replace(PERSONAL, reference="untold"),
    "beta-0.05": replace(PERSONAL, beta=0.05),
    "beta-0.8": replace(PERSONAL, beta=0.8),
    "rank-4": replace(PERSONAL, rank=4, alpha=8),
    "rank-32": replace(PERSONAL, rank=32, alpha=64),
    "per-token": replace(PERSONAL, length_normalized=True, beta=3.0),
    "map": MAP,
    "map-64": replace(MAP, rank=64, alpha=64),
    "weights": WEIGHTED,
}


def taught(suite: Suite) -> tuple[list[Flip], list[str]]:
    """The flips and the idle facts of every training."""
    families = suite.families or starter_families()
    idle = [row["text"] for row in starter_rows("preferences/irrelevant", "train")]
    return taught_flips(families, suite.seed, SHARE), idle


def backbone(suite: Suite, form: str) -> Vector:
    """A model of stage 1."""
    flips, idle = taught(suite)
    recipe, model = FORMS[form], suite.cache.fader.model
    if form == "plain":
        lessons = personal_lessons(flips, idle, recipe.seed, PASSES)
        return train_vector(form, lessons, RUNS / form, recipe, model=model)
    return train_personal(form, flips, idle, RUNS / form, recipe, PASSES, model=model)


def measured(suite: Suite, form: str) -> Iterator[Metric]:
    """The figures of one form, on the dev split; a form of stage 2 goes on from `stage-1`."""
    suite, recipe = replace(suite, split="dev"), FORMS[form]
    start, model = backbone(suite, "stage-1"), suite.cache.fader.model
    found: Vector | PreferenceWeights = (
        train_personal_head(form, start, *taught(suite), RUNS / form, recipe, PASSES, model)
        if isinstance(recipe, HeadRecipe)
        else backbone(suite, form)
    )
    for kind in ("lessons", "seconds"):
        yield exactly("pad", form, "all", f"training_{kind}", found.card[kind], suite.seed)
    for case, told in cases(suite).items():
        prompts = [one.judged.pair.messages for one in told]
        if isinstance(found, Vector):
            rewarded, means = ranked(suite, found, told)
            yield share("pad", form, case, "raw", _first(means), suite.seed, prompts)
        else:
            rewarded = rewards(found, start, _lessons(told), model).double().numpy()
        right = _first(rewarded)
        yield share("pad", form, case, "accuracy", right, suite.seed, prompts)
        if form != "stage-1":
            plain = _first(ranked(suite, start, told)[0])
            yield paired_difference(
                "pad", form, case, "over_stage_1", right, plain, suite.seed, prompts
            )


def ranked(suite: Suite, vector: Vector, told: Sequence[Told]) -> tuple[Sides, Sides]:
    """The vector's reward of the chosen and of the rejected answers under what each pair is told,
    and their likelihood per token [pairs, 2]."""
    suite.cache.fader.add_vector(vector)
    base, _ = likelihoods(suite, "pad", "base", told, {})
    alignment = {"vectors": {vector.name: 1.0}}
    sums, means = likelihoods(suite, "pad", vector.name, told, alignment)
    return sums - base, means


def _lessons(told: Sequence[Told]) -> list[Lesson]:
    return [
        Lesson(
            one.judged.pair.messages,
            one.judged.pair.chosen,
            one.judged.pair.rejected,
            (1.0,),
            told=Preferences(user=(one.text,), rendering="principle"),
        )
        for one in told
    ]


def _first(sides: Sides) -> list[bool]:
    """Whether each pair's chosen answer has the higher number [pairs, 2]."""
    return list(np.asarray(sides[:, 0] > sides[:, 1]).tolist())


PARTS: Mapping[str, Callable[[Suite], Iterator[Metric]]] = {
    form: partial(measured, form=form) for form in FORMS
}


if __name__ == "__main__":
    print_metrics(PARTS, RUNS / "claims.jsonl", sys.argv[1:])
