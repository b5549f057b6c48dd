"""Stage 2 of PAD (arXiv 2410.04070): the personal part between the model of stage 1 and its head.

Backbone and LoRA are frozen (`personal.py` is stage 1). With h the last hidden state under the
prompt that tells the preference p, and W the head, one of two arms gives the personal policy pi^:

    map      softmax(W (I + B A) h)    the paper's released code: a map that does not depend on p
    weights  softmax(W (w_p * h))      Algorithm 1: w_p = 1 + phi(p), elementwise

Either is the identity at the start, and learns equation (9), as stage 1 does:

    loss = -log sigmoid(beta * [ r(y_w) - r(y_l) ]),   r(y) = log pi^(y | p, x) - log pi_ref(y | x)

The released map is a full matrix. Ours is I + B A of low rank, since before the head that is a
difference of the head of low rank: W (I + B A) h = W h + (W B) A h. What the arm gives is therefore
an ordinary vector, the factors of stage 1 and a pair for the head, which is mixed, added and served
as any other. A head tied to the embedding is no matter: the embedding stays as it is.

phi is a small net without biases, B tanh(A e), on the preference's own hidden state e: the mean of
the last hidden states over its tokens, read by itself and brought to unit size. So w_p is all ones
where nothing is told. Several preferences have w = 1 + the sum of share * phi(p), and cost one row,
whose prompt tells them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fader.data.preferences import Judged
from fader.engine import builtin
from fader.engine.identity import fingerprint
from fader.engine.loading import check_safetensors
from fader.files import whole_folder
from fader.methods.tokens import text_ids
from fader.request import Preferences
from fader.training.lessons import Lesson
from fader.training.personal import PERSONAL, personal_lessons
from fader.training.run import Watch, drop, load, locked
from fader.training.vector import (
    LineTrainer,
    Recipe,
    answer_logprobs,
    as_asked,
    fitted,
    go_on,
    prepared,
    refuse_another,
    settings,
    trained_card,
)
from fader.vectors.peft_folder import CONFIG, plain_config, read_json, save_tensors
from fader.vectors.vector import CARD, Vector, check_place

Arm = Literal["map", "weights"]
WEIGHTS = "preference_weights.safetensors"
PART = "personal"  # what the part is called in the model; PEFT keeps it in checkpoints by that name
TOGETHER = 32  # preferences that are read at once


@dataclass(frozen=True)
class HeadRecipe(Recipe):
    """Settings of stage 2. `rank` is that of the map, or the width of phi; what the part adds is
    scaled by alpha / rank, as in LoRA. `targets`: the head alone."""

    targets: tuple[str, ...] = ("lm_head",)
    arm: Arm = "map"
    dropout: float = 0.1
    """Share of the part's inputs that are left out at each step, as in the released code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be at least 0 and below 1 (got {self.dropout})")
        if self.sft_epochs:
            raise ValueError(
                f"sft_epochs: stage 2 has no supervised passes (got {self.sft_epochs}); give 0"
            )
        if self.loss == "distil" or self.retain == "divergence":
            raise ValueError(
                "retain: stage 2 compares likelihoods alone (got loss"
                f" {self.loss}, retain {self.retain}); give likelihood, and another loss"
            )


_OWN = {"targets": ("lm_head",), "upper": 1.0, "alpha": 16, "learning_rate": 1e-3}
MAP = HeadRecipe(**{**asdict(PERSONAL), **_OWN})
WEIGHTED = replace(MAP, arm="weights", rank=64, alpha=64)
RECIPES: Mapping[str, HeadRecipe] = {"map": MAP, "weights": WEIGHTED}
"""The settings of each arm; beta, loss and batches are those of stage 1."""


class Part(nn.Module):
    """What both arms have: factors A [rank, hidden] and B [hidden, rank], B zero at the start."""

    def __init__(self, hidden: int, recipe: HeadRecipe) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.down = nn.Linear(hidden, recipe.rank, bias=False)
        self.up = nn.Linear(recipe.rank, hidden, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.dropout = recipe.alpha / recipe.rank, recipe.dropout

    def kept(self, x: Tensor) -> Tensor:
        """`x` in the factors' type, less what is dropped out while training."""
        return functional.dropout(x.to(self.down.weight), self.dropout, self.training)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) with the scale in B."""
        return self.down.weight.detach(), self.up.weight.detach() * self.scale


class PersonalMap(Part):
    """h + B A h, the same map for every preference."""

    def forward(self, hidden: Tensor, strengths: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """hidden [rows, tokens, hidden], with the map at the strength of each row [rows, 1]."""
        added = self.scale * self.up(self.down(self.kept(hidden)))
        found: Tensor = hidden + (strengths[:, None] * added).to(hidden)
        return found


class PersonalWeights(Part):
    """w_p * h with w_p = 1 + phi(p). It holds the states of the preferences that are taught; the
    first is that of none, which is zero."""

    told: Tensor

    def __init__(self, hidden: int, recipe: HeadRecipe, preferences: int) -> None:
        super().__init__(hidden, recipe)
        self.register_buffer("told", torch.zeros(1 + preferences, hidden), persistent=False)

    def forward(self, hidden: Tensor, strengths: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """hidden [rows, tokens, hidden], weighted for the preferences that each row is told: their
        numbers `told` [rows, most] and their `shares` [rows, most]."""
        states = self.told[inputs["told"].long()]  # [rows, most, hidden]
        phi = self.scale * self.up(torch.tanh(self.down(self.kept(states))))
        change = (inputs["shares"][..., None] * phi).sum(1)  # [rows, hidden]
        found: Tensor = hidden + hidden * (strengths * change)[:, None].to(hidden)
        return found


@dataclass(frozen=True, eq=False)
class PreferenceWeights:
    """What the arm `weights` learns: phi, which makes of a preference's hidden state its
    weights."""

    name: str
    down: Tensor
    """A [rank, hidden]"""
    up: Tensor
    """B [hidden, rank], any scale in it"""
    start: str
    """Digest of the vector of stage 1 that they were trained on."""
    base: str
    """Fingerprint of the model."""
    card: Mapping[str, Any] = field(default_factory=dict)

    def part(self, preferences: int) -> PersonalWeights:
        """The part of a model that applies them, with room for so many preferences."""
        rank, hidden = self.down.shape
        recipe = replace(WEIGHTED, rank=rank, alpha=rank, dropout=0.0)
        found = PersonalWeights(hidden, recipe, preferences).requires_grad_(False)
        found.down.weight.copy_(self.down)
        found.up.weight.copy_(self.up)
        return found

    def save(self, folder: Path) -> None:
        """Write them to a folder, whole or not at all; what is there is replaced."""
        with whole_folder(folder, replace=True) as scratch:
            tensors = {"down": self.down.contiguous(), "up": self.up.contiguous()}
            save_tensors(tensors, scratch / WEIGHTS)
            named = {"name": self.name, "stage_1": self.start, "base_fingerprint": self.base}
            card = json.dumps({**self.card, **named}, indent=1)
            (scratch / CARD).write_text(card, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PreferenceWeights:
        """The weights in a folder. Raises ValueError, naming the file, where there are none."""
        file = folder / WEIGHTS
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file; train preference weights with `fader train personal NAME"
                " --stage weights --start VECTOR`"
            )
        check_safetensors(file)
        tensors, card = load_file(file), read_json(folder / CARD)
        down, up = tensors.get("down"), tensors.get("up")
        if down is None or up is None or down.ndim != 2 or down.shape != up.T.shape:
            raise ValueError(f"{file}: holds no pair `down` [rank, hidden] and `up` [hidden, rank]")
        if missing := [key for key in ("name", "stage_1", "base_fingerprint") if key not in card]:
            raise ValueError(f"{folder / CARD}: {missing[0]} is missing; train the weights anew")
        return cls(card["name"], down, up, card["stage_1"], card["base_fingerprint"], card)


class HeadTrainer(LineTrainer):
    """The trainer of stage 1 with the personal part before the head. At strength 0 both the LoRA
    and the part are off, and it reads as the base model."""

    def read(self, model: Any, inputs: Mapping[str, Tensor], strengths: Tensor) -> Tensor:
        """`answer_logprobs`, with the part."""
        return read_with_part(model, inputs, strengths)


def read_with_part(model: Any, inputs: Mapping[str, Tensor], strengths: Tensor) -> Tensor:
    """`answer_logprobs` of a model with a personal part: its LoRA and its part are read at the
    strength of each lesson [lessons, 1]."""
    part = getattr(model.get_base_model(), PART)
    return answer_logprobs(model, inputs, strengths, lambda hidden: part(hidden, strengths, inputs))


def train_personal_head(
    name: str,
    start: Vector,
    flips: Sequence[Sequence[Judged]],
    idle: Sequence[str],
    folder: Path,
    recipe: HeadRecipe = MAP,
    passes: int = 2,
    model: str = builtin.NAME,
    dtype: str = "bfloat16",
    progress: bool = True,
    force: bool = False,
) -> Vector | PreferenceWeights:
    """Train the personal part on top of `start`, the model of stage 1, on `passes` through the
    flips; write what the recipe's arm gives to its folder, and return it.

    The arm `map` gives a vector: `start` and a difference of the head. The arm `weights` gives
    `PreferenceWeights`, to be read with `start`. Resumable as `train_vectors`. Raises ValueError
    before anything is trained: for a `start` that is of another model or changes the head already,
    and for a folder with something else.
    """
    _check_place(folder, recipe.arm)
    lessons = personal_lessons(flips, idle, recipe.seed, passes)
    with locked([folder]):
        return _trained(name, start, lessons, folder, recipe, model, dtype, progress, force)


def _trained(
    name: str,
    start: Vector,
    lessons: Sequence[Lesson],
    folder: Path,
    recipe: HeadRecipe,
    model: str,
    dtype: str,
    progress: bool,
    force: bool,
) -> Vector | PreferenceWeights:
    base, tokenizer = load(model)
    head = head_of(base, start, model)
    recipe, given = replace(recipe, targets=(head,)), len(lessons)
    lessons, rows, run = prepared(base, tokenizer, lessons, recipe, [name], [start])
    texts = number(lessons, rows) if recipe.arm == "weights" else []
    if there := _there(folder, name, recipe.arm):
        if as_asked(there.card, there.base, run):
            return there
        refuse_another(folder, there.card, there.base, run, force)
    work, numbers = folder.with_name(f".{folder.name}.part"), getattr(torch, dtype)
    weight = base.get_output_embeddings().weight.detach()  # W [vocabulary, hidden]
    hidden = weight.shape[1]
    part = (
        PersonalMap(hidden, recipe)
        if recipe.arm == "map"
        else PersonalWeights(hidden, recipe, len(texts))
    )

    def make(bar: Progress) -> HeadTrainer:
        return head_trainer(recipe, base, tokenizer, rows, start, part, texts, work, bar)

    trainer, seconds = fitted(make, recipe, run, work, progress)
    down, up = (factor.cpu() for factor in part_of(trainer.model).factors)
    card = trained_card(model, run, lessons, given, [start], trainer, seconds)
    found: Vector | PreferenceWeights
    if recipe.arm == "map":
        pair = down.to(numbers), (weight.float().cpu() @ up).to(numbers)  # (A, W B)
        factors = {**start.factors, head: pair}
        card = {**card, "kind": "alignment vector"}
        found = Vector(name, factors, run["base_fingerprint"], card, start.base_weights)
    else:
        card = {**card, "kind": "preference weights"}
        found = PreferenceWeights(name, down, up, start.digest, run["base_fingerprint"], card)
    found.save(folder)
    drop(work)
    return found


def head_trainer(
    recipe: HeadRecipe,
    base: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    start: Vector,
    part: Part,
    texts: Sequence[str],
    work: Path,
    bar: Progress,
) -> HeadTrainer:
    """The trainer of a part on the model with the vector of stage 1, all frozen but the part."""
    base.add_module(PART, part)
    trainer = HeadTrainer(
        recipe,
        base,
        settings(recipe, len(rows), work),
        tokenizer,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        peft_config=_lora(start),
        callbacks=[Watch(bar, recipe.arm)],
    )
    begin(trainer.model, start, tokenizer, texts)
    return trainer


def head_of(base: Any, start: Vector, model: str) -> str:
    """The name of the model's head. Raises ValueError unless `start` fits the model and leaves its
    head alone."""
    modules: Mapping[str, nn.Module] = dict(base.named_modules())
    linear = {name: layer for name, layer in modules.items() if isinstance(layer, nn.Linear)}
    head = next((n for n, layer in linear.items() if layer is base.get_output_embeddings()), None)
    if head is None:
        raise ValueError(f"model: {model} has no linear layer as its head; take another model")
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    start.check_model(model, fingerprint(base), shapes, base.state_dict().__getitem__)
    if head in start.factors:
        raise ValueError(
            f"start: {start.name} changes the head ({head}) already; give the vector of stage 1"
        )
    return head


def _lora(start: Vector) -> LoraConfig:
    """LoRA layers in which the vector's factors fit as they are, and the part, kept with them."""
    ranks = {module: down.shape[0] for module, (down, _) in start.factors.items()}
    fields = {**plain_config(ranks, None), "inference_mode": False, "modules_to_save": [PART]}
    return LoraConfig(**{key: value for key, value in fields.items() if key != "peft_type"})


def with_part(base: Any, start: Vector, part: Part, tokenizer: Any, texts: Sequence[str]) -> Any:
    """The model with the vector and the part, all frozen but the part, and the states of these
    preferences read."""
    base.add_module(PART, part)
    model = get_peft_model(base, _lora(start))
    begin(model, start, tokenizer, texts)
    return model


def begin(model: Any, start: Vector, tokenizer: Any, texts: Sequence[str]) -> None:
    """Put the vector into the LoRA layers, freeze everything but the part, and read the states of
    the preferences."""
    go_on(model, [start])
    model.requires_grad_(False)
    part = part_of(model).requires_grad_(True)
    if texts:
        part.told[1:] = preference_states(model, tokenizer, texts)


def part_of(model: Any) -> Any:
    """The part that is trained; PEFT keeps it beside the one that it was made of."""
    return getattr(model.get_base_model(), PART).modules_to_save["default"]


@torch.no_grad()
def preference_states(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The hidden state of each text [texts, hidden], read by itself by the model with its LoRA: the
    mean over its tokens, of unit mean square."""
    body: Any = model.get_base_model().base_model
    found: list[Tensor] = []
    for start in range(0, len(texts), TOGETHER):
        ids = [text_ids(text, tokenizer) for text in texts[start : start + TOGETHER]]
        tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long, device=model.device)
        mask = torch.zeros_like(tokens)  # [texts, tokens]
        for row, one in enumerate(ids):
            tokens[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), 1
        states = body(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        means = (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found.append(functional.rms_norm(means, means.shape[-1:]))
    return torch.cat(found)


def number(lessons: Sequence[Lesson], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Note in each row the numbers of the preferences that its lesson tells and their shares, which
    are equal; 0 is none. Returns the texts, the first of which has number 1."""
    told = [_texts(lesson.told) for lesson in lessons]
    places = {text: 0 for texts in told for text in texts}
    places = {text: place for place, text in enumerate(places, 1)}
    most = max(1, *map(len, told))
    for row, texts in zip(rows, told, strict=True):
        rest = [0] * (most - len(texts))
        row["told"] = [*(places[text] for text in texts), *rest]
        row["shares"] = [*(1 / len(texts) for _ in texts), *rest]
    return list(places)


def _texts(told: Preferences | None) -> tuple[str, ...]:
    if told is None:
        return ()
    if told.history:
        raise ValueError(
            "told.history: preference weights are made of texts, and past choices are none; state"
            " the preference"
        )
    return (*told.provider, *told.user, *told.facts)


def _check_place(folder: Path, arm: Arm) -> None:
    """Raises ValueError for a folder that holds anything but what the arm gives."""
    if arm == "map":
        check_place(folder)
    elif folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"out: {folder} is there already and holds no preference weights; choose another"
            " folder, or remove it"
        )


def _there(folder: Path, name: str, arm: Arm) -> Vector | PreferenceWeights | None:
    """What the folder holds already."""
    if arm == "weights":
        return PreferenceWeights.load(folder) if (folder / WEIGHTS).is_file() else None
    return Vector.load(folder, name) if (folder / CONFIG).is_file() else None
