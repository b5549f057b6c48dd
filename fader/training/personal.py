"""PAD's personalised reward model (arXiv 2410.04070), stage 1 of its two: the model under
preference prompts, by LoRA. Stage 2 is `personal_head.py`.

With w_p all ones, equation (9) of the paper is DPO under the prompt that tells the preference p:

    loss = -log sigmoid(beta * [ r(y_w) - r(y_l) ]),   r(y) = log pi(y | p, x) - log pi_ref(y)

where the sums run over the answers' tokens. Ours takes the two lessons of a flip, the same answers
under opposite preferences, into one sigmoid (`Recipe.loss` "flip"), in which the reference cancels.
With each lesson for itself the loss stays above chance while margins grow: most of what moves an
answer is that anything is told at all, and that is the same for both preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fader.data.preferences import Judged
from fader.training.lessons import Lesson
from fader.training.told import told_lessons
from fader.training.vector import Recipe, train_vector
from fader.vectors.vector import Vector

PERSONAL = Recipe(
    rank=16,
    alpha=32,
    loss="flip",
    beta=0.2,
    length_normalized=False,
    sft_weight=0.0,
    retain_weight=1.0,
    learning_rate=1e-3,
    batch=8,
    in_order=True,
    upper=2 / 3,
)
"""The settings of the shipped personalised model."""


def train_personal(
    name: str,
    flips: Sequence[Sequence[Judged]],
    idle: Sequence[str],
    folder: Path,
    recipe: Recipe = PERSONAL,
    passes: int = 5,
    **settings: Any,
) -> Vector:
    """Train the model on `passes` through the flips, each in wordings drawn anew, and write it to
    its folder as a vector: with it a policy that is told a preference is the personalised one.

    Resumable, and raises ValueError, as `train_vectors`, which says what `settings` there are.
    """
    lessons = personal_lessons(flips, idle, recipe.seed, passes)
    return train_vector(name, lessons, folder, recipe, **settings)


def personal_lessons(
    flips: Sequence[Sequence[Judged]], idle: Sequence[str], seed: int, passes: int
) -> list[Lesson]:
    """The lessons of so many passes through the flips, each in wordings drawn anew."""
    return [
        lesson
        for one in range(seed, seed + passes)
        for lesson in told_lessons(flips, idle, "principle", one)
    ]
