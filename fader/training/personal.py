"""PAD's personalised reward model (arXiv 2410.04070), stage 1 of its two: the model under
preference prompts, by LoRA. Stage 2 is `personal_head.py`.

With w_p all ones, equation (9) of the paper is DPO under the prompt that tells the preference p:

    loss = -log sigmoid(beta * [ r(y_w) - r(y_l) ]),   r(y) = log pi(y | p, x) - log pi_ref(y)

where the sums run over the answers' tokens, and the reference is the base model, told the same. Two
deviations. Both orders of a pair, under opposite preferences, stand in one batch (`told.py`). And a
first pass puts both into one sigmoid (`Recipe.loss` "flip"), in which cancels whatever moves an
answer under either preference: from the start by equation (9) alone, that is most of what is
learned. The passes after it, by equation (9), take that back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fader.data.preferences import Judged
from fader.training.lessons import Lesson
from fader.training.told import told_lessons
from fader.training.vector import Recipe, Stage, train_stages
from fader.vectors.vector import Vector

PERSONAL = Recipe(
    rank=16,
    alpha=32,
    loss="dpo",
    reference="told",
    beta=0.2,
    length_normalized=False,
    sft_weight=0.0,
    retain_weight=1.0,
    learning_rate=5e-4,
    batch=8,
    in_order=True,
    upper=2 / 3,
)
"""The settings of the passes by equation (9)."""
FIRST_RATE = 1e-3
"""The learning rate of the first pass."""


def train_personal(
    name: str,
    flips: Sequence[Sequence[Judged]],
    idle: Sequence[str],
    folder: Path,
    recipe: Recipe = PERSONAL,
    passes: int = 4,
    start: Sequence[Vector] = (),
    **settings: Any,
) -> Vector:
    """Train the model on a first pass and on `passes` more through the flips, each in wordings
    drawn anew, and write it to its folder as a vector: with it a policy that is told a preference
    is the personalised one. `start`: a vector to go on from in place of the first pass, which
    leaves its own in a hidden folder beside this one.

    Resumable, and raises ValueError, as `train_vectors`, which says what `settings` there are.
    """
    seed = recipe.seed
    stages = [Stage(name, folder, personal_lessons(flips, idle, seed + 1, passes), recipe)]
    if not start:
        first = Stage(
            f"{name}-first",
            folder.with_name(f".{folder.name}-first"),
            personal_lessons(flips, idle, seed, 1),
            replace(recipe, loss="flip", in_order=True, learning_rate=FIRST_RATE),
        )
        stages.insert(0, first)
    return train_stages(stages, start=start, **settings)


def personal_lessons(
    flips: Sequence[Sequence[Judged]], idle: Sequence[str], seed: int, passes: int
) -> list[Lesson]:
    """The lessons of so many passes through the flips, each in wordings drawn anew."""
    return [
        lesson
        for one in range(seed, seed + passes)
        for lesson in told_lessons(flips, idle, "principle", one)
    ]
