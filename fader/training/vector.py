"""Trains alignment vectors: preferences along the line theta + λ * AV, with LoRA, by TRL and PEFT
(arXiv 2410.19206).

The vector is the LoRA itself: aligned - unaligned = B A. Each lesson (`lessons.py`) is taught at
its own strength λ, in batches of rows with different strengths. Vectors that are co-trained are one
LoRA whose ranks are shared out among them, as `engine/adapters.py` stacks them. With s(y) the score
of an answer under the weights at λ,

    loss = -log sigmoid(beta * (s(chosen) - s(rejected)))  -  sft_weight * log pi(chosen) per token

where s is the log-probability per token (the sum without `length_normalized`). With the loss `dpo`
(DPO, arXiv 2305.18290) the base model's is subtracted from it; with `simpo` (SimPO, arXiv
2405.14734) it is not. That is the default, since levels are ranked by likelihood itself. With
`flip`, for lessons of one pair under two opposite preferences p and p', the sigmoid takes both
margins together:

    s(a | p) - s(b | p) + s(b | p') - s(a | p').

What makes an answer likely whatever is told cancels there, the base model's share too. Two lessons
that prefer the same answer of one pair stay by themselves. `sft` is -log pi(chosen) per token
alone. `distil` (context distillation, arXiv 2209.15189) takes the base model as teacher that reads
the lesson behind examples of what is told (`Demonstrated`), and compares whole distributions: the
loss is KL(teacher || pi) per token, of both answers. Retained lessons have the loss retain_weight *
|change of log pi per token| for both answers instead, smooth below 0.2 nats.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from rich.progress import (
    Progress,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from fader.data.records import content_hash
from fader.engine import builtin
from fader.engine.identity import fingerprint, identity
from fader.methods.prompt import ending_ids, prompt_ids
from fader.methods.tokens import text_ids
from fader.schema import at
from fader.training.lessons import Demonstrated, Lesson
from fader.training.run import (
    Clock,
    Watch,
    drop,
    fits_the_template,
    last_checkpoint,
    load,
    locked,
    progress_bar,
    same_run_or_fresh,
    shared,
    steps,
)
from fader.vectors.peft_folder import CONFIG, targeted
from fader.vectors.vector import Vector, check_place

FORMAT = 1
"""Raise it by hand when a change of the code changes what a training gives: vectors of another
format are not taken for what the same data and settings give."""
DATED = ("base_identity", "format")
"""Where a card differs in nothing but these, its vector is out of date: the same command trains it
anew, without --force."""
SAVE = 25  # steps after which a run is saved
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    beta: float = 3.0
    """How sharply a preference counts: about 3 with log-probabilities per token, about 0.1 with
    those of whole answers."""
    length_normalized: bool = True
    """Compare log-probabilities per token (length-normalised); off: of whole answers."""
    loss: Literal["dpo", "simpo", "flip", "sft", "distil"] = "simpo"
    """`dpo` compares log-probabilities less the base model's, which are computed once before
    training; `simpo` compares log-probabilities as they are; `flip` does so for two lessons at
    once, one after the other, that prefer opposite answers under opposite preferences (for each by
    itself where both prefer the same answer); `sft` compares nothing and makes the chosen answers
    likelier, per token; `distil` learns what the base model finds likely behind examples."""
    reference: Literal["told", "untold"] = "told"
    """Whether the base model of `dpo` reads the lesson's preferences too. Untold, what the prompt
    alone does counts for the preference, as where the guide's reference is untold."""
    sft_weight: float = 0.1
    """Weight of the chosen answer's negative log-likelihood per token."""
    retain_weight: float = 1.5
    """Weight of the retained lessons, which keep other subjects as they are."""
    retain: Literal["likelihood", "divergence"] = "likelihood"
    """What retained lessons hold: the likelihood of their answers, or the whole distribution of
    each of their tokens, which holds more and takes a further reading."""
    learning_rate: float = 1.5e-3
    epochs: float = 1.0
    batch: int = 2
    sft_epochs: float = 0.0
    """Passes of supervised fine-tuning on the chosen answers, at strength 1, before the
    preferences."""
    in_order: bool = False
    """Teach the lessons in their order; off: in one that is drawn by the seed."""
    upper: float = 1.0
    """The share of the layers, from the top, that are changed. Those below need no gradient, so
    that training goes faster."""
    max_length: int = 1024
    """Lessons with more tokens, prompt and answer together, are left out."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("batch", 1), ("max_length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least} (got {getattr(self, name)})")
        if not 0 < self.upper <= 1:
            raise ValueError(f"upper: must be above 0 and at most 1 (got {self.upper})")
        if self.loss == "flip" and (self.batch % 2 or not self.in_order):
            raise ValueError("loss: flip takes lessons two by two; give an even batch and in_order")
        if self.seed >= 2**32:
            raise ValueError(f"seed: must be below 2**32 (got {self.seed})")
        for name in ("alpha", "beta", "learning_rate", "epochs"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"{name}: must be above 0 (got {value})")
        for name in ("sft_weight", "retain_weight", "sft_epochs"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name}: must not be below 0 (got {value})")
        if not all(self.targets) or not self.targets:
            raise ValueError(f"targets: must be names of linear layers (got {self.targets})")


DPO = Recipe(
    beta=0.1, length_normalized=False, loss="dpo", sft_weight=0.0, learning_rate=2e-4, batch=4
)
"""Plain DPO, for lessons at strength 1."""


def train_vector(
    name: str, lessons: Sequence[Lesson], folder: Path, recipe: Recipe = Recipe(), **settings: Any
) -> Vector:
    """`train_vectors` for one vector."""
    return train_vectors({name: folder}, lessons, recipe, **settings)[0]


def train_vectors(
    folders: Mapping[str, Path],
    lessons: Sequence[Lesson],
    recipe: Recipe = Recipe(),
    model: str = builtin.NAME,
    dtype: str = "bfloat16",
    progress: bool = True,
    start: Sequence[Vector] = (),
    force: bool = False,
) -> list[Vector]:
    """Co-train the vectors of these names, write each to its folder with its card, and return them.

    A lesson has a strength for each vector, in the order of `folders`. A stopped run goes on from
    its last checkpoint, beside the first folder, if lessons and settings are the same. Vectors that
    are there already, from the same lessons and settings, are returned as they are. `start`:
    vectors to go on from, one for each name, of the recipe's rank and targets. `dtype`: of the
    saved factors. The products run in bfloat16 where the device computes it fast; the factors are
    trained in float32.

    Raises ValueError before anything is trained: for lessons that the model cannot be taught, for a
    folder that another training writes into, and for a folder with another vector unless `force`.
    """
    for folder in folders.values():
        check_place(folder)
    with locked(folders.values()):
        return _trained(folders, lessons, recipe, model, dtype, progress, start, force)


@dataclass(frozen=True)
class Stage:
    """One of several trainings of which each goes on from the one before."""

    name: str
    folder: Path
    lessons: Sequence[Lesson]
    recipe: Recipe


def train_stages(
    stages: Sequence[Stage],
    model: str = builtin.NAME,
    start: Sequence[Vector] = (),
    force: bool = False,
    **settings: Any,
) -> Vector:
    """Train one after the other, each from the one before, the first from `start`; return the last.
    Resumable as `train_vectors`, which says what `settings` there are.

    What is in the folders is looked at before the first is trained: raises ValueError for a folder
    with another vector than this call's, or one of its earlier runs', unless `force`.
    """
    for stage in stages:
        check_place(stage.folder)
    if not force:
        _refuse_others(stages, start, model)
    for stage in stages:
        given = {"model": model, "start": start, "force": True, **settings}
        start = [train_vector(stage.name, stage.lessons, stage.folder, stage.recipe, **given)]
    return start[0]


def _refuse_others(stages: Sequence[Stage], start: Sequence[Vector], model: str) -> None:
    """Raises ValueError for a folder that holds what another training gave."""
    if not any((stage.folder / CONFIG).is_file() for stage in stages):
        return
    base, tokenizer = load(model)
    before: list[str] | None = [vector.digest for vector in start]
    for stage in stages:
        if not (stage.folder / CONFIG).is_file():
            before = None  # not known before it is trained
            continue
        there = Vector.load(stage.folder, stage.name)
        *_, run = prepared(base, tokenizer, stage.lessons, stage.recipe, [stage.name], ())
        run["start"] = there.card.get("start") if before is None else before
        if as_asked(there.card, there.base, run):
            before = [there.digest]
        else:
            refuse_another(stage.folder, there.card, there.base, run, force=False)
            before = None  # it is out of date, and trained anew


def _trained(
    folders: Mapping[str, Path],
    lessons: Sequence[Lesson],
    recipe: Recipe,
    model: str,
    dtype: str,
    progress: bool,
    start: Sequence[Vector],
    force: bool,
) -> list[Vector]:
    base, tokenizer = load(model)
    _check_targets(base, recipe.targets)
    given = len(lessons)
    lessons, rows, run = prepared(base, tokenizer, lessons, recipe, list(folders), start)
    _check_start(start, base, recipe, model, run["base_fingerprint"])
    first = next(iter(folders.values()))
    work = first.with_name("." + "+".join(folder.name for folder in folders.values()) + ".part")
    numbers = getattr(torch, dtype)
    there = _there(folders)
    if len(there) == len(folders) and all(
        as_asked(one.card, one.base, run) and _in(numbers, one) for one in there
    ):
        return there
    for one in there:
        refuse_another(folders[one.name], one.card, one.base, run, force)

    def make(bar: Progress) -> LineTrainer:
        trainer = _trainer(recipe, base, tokenizer, rows, len(folders), work, bar)
        if start:
            go_on(trainer.model, start)
        return trainer

    trainer, seconds = fitted(make, recipe, run, work, progress)
    trainer.save_model(str(work / "final"))
    card = {
        "kind": "alignment vector",
        **trained_card(model, run, lessons, given, start, trainer, seconds),
    }
    factors = Vector.load(work / "final").factors
    found = []
    for place, (name, folder) in enumerate(folders.items()):
        mine = slice(place * recipe.rank, (place + 1) * recipe.rank)
        found.append(
            Vector(
                name,
                {m: (a[mine].to(numbers), b[:, mine].to(numbers)) for m, (a, b) in factors.items()},
                run["base_fingerprint"],
                card,
            )
        )
        found[-1].save(folder)
    drop(work)
    return found


def _there(folders: Mapping[str, Path]) -> list[Vector]:
    """The vectors that are in these folders already."""
    return [
        Vector.load(folder, name) for name, folder in folders.items() if (folder / CONFIG).is_file()
    ]


def _in(numbers: torch.dtype, vector: Vector) -> bool:
    """Whether a vector's factors are stored in this dtype."""
    return all(factor.dtype == numbers for pair in vector.factors.values() for factor in pair)


def prepared(
    base: Any,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    recipe: Recipe,
    names: Sequence[str],
    start: Sequence[Vector],
) -> tuple[list[Lesson], list[dict[str, Any]], dict[str, Any]]:
    """The lessons that are short enough, the rows of token ids that they are taught by, and all
    that tells this run from others. Raises ValueError for lessons that the model cannot be
    taught."""
    base_print = fingerprint(base)
    fits_the_template(tokenizer, (_conversation(lesson) for lesson in lessons))
    lessons, rows = _short_enough(lessons, tokenizer, base, recipe)
    run = {
        "vectors": list(names),
        "data": content_hash(lessons),
        "recipe": asdict(recipe),
        "base_fingerprint": base_print,
        "start": [vector.digest for vector in start],
        "base_identity": identity(base, tokenizer),
        "format": FORMAT,
    }
    return lessons, rows, run


def as_asked(card: Mapping[str, Any], base: str | None, run: Mapping[str, Any]) -> bool:
    """Whether what has this card and this base model is what the run gives."""
    known = {**card, "vectors": card.get("trained_with"), "base_fingerprint": base}
    return all(known.get(key) == value for key, value in json.loads(json.dumps(run)).items())


def refuse_another(
    folder: Path, card: Mapping[str, Any], base: str | None, run: Mapping[str, Any], force: bool
) -> None:
    """Raises ValueError for a folder that holds what another run gives, unless `force`. What is
    merely out of date may be written anew, and a word is said."""
    if force:
        return
    if not as_asked(card, base, {**run, **{key: card.get(key) for key in DATED}}):
        raise ValueError(
            f"out: {folder} holds a vector of other data, settings or model; replace"
            " it with --force, or give another folder"
        )
    log.warning(
        "%s is trained anew: since it was, the model's tokenizer, chat template or settings"
        " or the way of training have changed",
        folder,
    )


T = TypeVar("T", bound="LineTrainer")


def fitted(
    make: Callable[[Progress], T],
    recipe: Recipe,
    run: dict[str, Any],
    work: Path,
    progress: bool,
) -> tuple[T, float]:
    """A trainer that has trained, from the run's last checkpoint in `work` if there is one; and the
    seconds that it took in all. Raises ValueError where the weights became infinite."""
    same_run_or_fresh(work, run)
    checkpoint = last_checkpoint(work)
    clock = Clock(checkpoint)
    with progress_bar(progress) as bar:
        trainer = make(bar)
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else False)
    weights = cast("nn.Module", trainer.model).parameters()
    if not all(torch.isfinite(weight).all() for weight in weights):
        drop(work)
        raise ValueError(
            f"learning_rate: {recipe.learning_rate} is too high; the weights became infinite"
        )
    return trainer, round(clock.seconds, 1)


def trained_card(
    model: str,
    run: Mapping[str, Any],
    lessons: Sequence[Lesson],
    given: int,
    start: Sequence[Vector],
    trainer: LineTrainer,
    seconds: float,
) -> dict[str, Any]:
    """What the card of a training says: of which model, from what, how long, and its curve.
    `given`: lessons before those that are too long were left out."""
    return {
        "base_model": model,
        "trained_with": run["vectors"],
        "lessons": len(lessons),
        "retained": sum(lesson.retained for lesson in lessons),
        "too_long": given - len(lessons),
        **{key: run[key] for key in ("data", "recipe", "start", "base_identity", "format")},
        "started_from": _histories(start),
        "seconds": seconds,
        "curve": [
            {key: row[key] for key in ("step", *CURVE) if key in row}
            for row in trainer.state.log_history
            if "loss" in row
        ],
    }


def _conversation(lesson: Lesson) -> list[dict[str, str]]:
    turns = [{"role": turn.role, "content": turn.content} for turn in lesson.messages]
    return [*turns, {"role": "assistant", "content": lesson.chosen}]


def _check_targets(base: Any, targets: Sequence[str]) -> None:
    head = base.get_output_embeddings()  # its weight is read past any LoRA
    layers = [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    ]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"targets: the model has no linear layer {target!r} below its head; it has"
                f" {', '.join(known)}"
            )


def _places(base: Any, recipe: Recipe) -> dict[str, Any]:
    """Where the recipe puts LoRA layers, in the fields of PEFT's config."""
    layers = base.config.get_text_config().num_hidden_layers
    changed = math.ceil(layers * recipe.upper)
    upper = list(range(layers - changed, layers)) if changed < layers else None
    return {"target_modules": list(recipe.targets), "layers_to_transform": upper}


def _check_start(
    start: Sequence[Vector], base: nn.Module, recipe: Recipe, model: str, mark: str
) -> None:
    """Raises ValueError for a vector to go on from that is of another model than the one with this
    fingerprint, of other layers than the recipe's or of another rank."""
    linear = {
        name: (layer.out_features, layer.in_features)
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
    }
    places = _places(base, recipe)
    wanted = {name for name in linear if targeted(name, places)}
    for vector in start:
        with at("start"):
            vector.check_model(model, mark, linear, base.state_dict().__getitem__)
        if vector.factors.keys() != wanted:
            raise ValueError(
                f"start: {vector.name} moves other layers than the recipe's targets; train it with"
                " the same `targets`"
            )
        for name, (down, _) in vector.factors.items():
            if down.shape[0] != recipe.rank:
                raise ValueError(
                    f"start: {vector.name} has rank {down.shape[0]} in {name}, the recipe"
                    f" {recipe.rank}; give the same `rank`"
                )


def _short_enough(
    lessons: Sequence[Lesson], tokenizer: Any, base: Any, recipe: Recipe
) -> tuple[list[Lesson], list[dict[str, Any]]]:
    """The lessons whose conversations, with either answer, have at most `max_length` tokens, and
    the rows of token ids that they are taught by. Logs how many are left out. Raises ValueError
    where none is left."""
    longest = recipe.max_length
    reach = getattr(base.config.get_text_config(), "max_position_embeddings", None) or longest
    limit = min(longest, reach)
    ending = ending_ids(tokenizer)
    rows = [_row(lesson, tokenizer, ending, recipe) for lesson in lessons]
    lengths = [
        max(len(row["prompt_ids"]), len(row.get("teacher_ids", ())))
        + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    ]
    kept = [place for place, length in enumerate(lengths) if length <= limit]
    if recipe.loss == "flip":
        _check_flips(lessons)
        short = set(kept)
        kept = [place for place in kept if place ^ 1 in short]
    if not kept:
        raise ValueError(
            f"max_length: all {len(lessons)} lessons are longer than {limit} tokens (the longest"
            f" has {max(lengths, default=0)}); give a greater --max-length, at most what"
            f" the model reads ({reach}), or shorter conversations"
        )
    if gone := len(lessons) - len(kept):
        log.warning(
            "%d of %d lessons are left out: longer than %d tokens (--max-length)",
            gone,
            len(lessons),
            limit,
        )
    if recipe.loss == "flip":
        for place, row in enumerate(rows):
            row["flipped"] = float(row["chosen_ids"] != rows[place ^ 1]["chosen_ids"])
    return [lessons[place] for place in kept], [rows[place] for place in kept]


def _check_flips(lessons: Sequence[Lesson]) -> None:
    """Raises ValueError unless the lessons come two by two, of the same two answers."""
    for place in range(0, len(lessons), 2):
        two = lessons[place : place + 2]
        kinds = {(frozenset((one.chosen, one.rejected)), one.retained) for one in two}
        if len(two) < 2 or len(kinds) > 1:
            raise ValueError(
                f"loss: flip takes lessons two by two, of the same two answers; lessons"
                f" {place + 1} and {place + 2} are not; use dpo"
            )


def _histories(vectors: Sequence[Vector]) -> list[dict[str, Any]]:
    """How the vectors were trained, for the cards of those that go on from them. Vectors that were
    co-trained have one entry."""
    found = [
        {
            key: vector.card.get(key)
            for key in ("data", "recipe", "lessons", "seconds", "started_from")
        }
        for vector in vectors
    ]
    return [history for place, history in enumerate(found) if history not in found[:place]]


def go_on(model: Any, vectors: Sequence[Vector]) -> None:
    """Put these vectors into the LoRA layers in place of its fresh factors."""
    layers: dict[str, Any] = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    for name, layer in layers.items():
        first = torch.cat([vector.factors[name][0] for vector in vectors]).float()  # [ranks, in]
        second = (
            torch.cat([vector.factors[name][1] for vector in vectors], dim=1).float()
            / layer.scaling["default"]
        )  # [out, ranks]
        layer.lora_A["default"].weight.data.copy_(first)
        layer.lora_B["default"].weight.data.copy_(second)


def _trainer(
    recipe: Recipe,
    base: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    vectors: int,
    work: Path,
    bar: Progress,
) -> LineTrainer:
    data = Dataset.from_list([dict(row) for row in rows])
    lora = LoraConfig(
        **_places(base, recipe),
        r=recipe.rank * vectors,
        lora_alpha=recipe.alpha * vectors,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    if recipe.sft_epochs:
        base = _supervised(base, tokenizer, data, lora, recipe, work, Watch(bar, "supervised"))
    return LineTrainer(
        recipe,
        base,
        settings(recipe, len(data), work),
        tokenizer,
        train_dataset=data,
        peft_config=None if recipe.sft_epochs else lora,
        callbacks=[Watch(bar, "preferences")],
    )


def settings(recipe: Recipe, lessons: int, work: Path) -> DPOConfig:
    """The trainer's settings, for so many lessons; checkpoints go to `work`."""
    return DPOConfig(
        output_dir=str(work),
        max_length=None,
        num_train_epochs=recipe.epochs,
        precompute_ref_log_probs=recipe.loss == "dpo",
        precompute_ref_batch_size=8,
        save_strategy="steps",
        save_steps=SAVE,
        save_total_limit=2,
        train_sampling_strategy="sequential" if recipe.in_order else "random",
        **shared(
            recipe.batch,
            recipe.learning_rate,
            recipe.seed,
            steps(lessons, recipe.batch, recipe.epochs),
        ),
    )


SIDES = ("chosen", "rejected")
GIVEN = (
    "strengths",
    "retained",
    "flipped",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "told",
    "shares",
)
"""What a row says of its lesson, in numbers."""
SMALL = 0.2  # nats per token
CURVE = ("loss", "accuracy", "margin", "drift")
"""The training curve on a card: the loss, the share of preferences that hold, their mean margin,
and the mean drift of retained answers."""


class LineTrainer(DPOTrainer):
    """TRL's trainer with each lesson read at its own strength of the vector.

    The batch and the loss are ours: both answers of a lesson follow one reading of its prompt, and
    logits are made at their tokens alone. TRL reads the prompt twice and computes five statistics
    of every position over the whole vocabulary.
    """

    def __init__(
        self, recipe: Recipe, model: Any, args: DPOConfig, processing_class: Any, **settings: Any
    ) -> None:
        pad = (
            processing_class.eos_token_id
            if processing_class.pad_token_id is None
            else processing_class.pad_token_id
        )  # masked either way
        together = partial(collate, pad=pad)
        super().__init__(
            model, args=args, processing_class=processing_class, data_collator=together, **settings
        )
        self.remove_callback(
            PrinterCallback
        )  # it prints to standard output, where --json's lines go
        self.recipe = recipe

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # it has token ids already

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's, but each pair of answers is read once: the base model does not care which of them
        a lesson prefers, nor, untold, what a lesson tells."""
        asked = [row.get("reference_ids", row["prompt_ids"]) for row in dataset]
        answers = [(row["chosen_ids"], row["rejected_ids"]) for row in dataset]
        rows = {
            json.dumps([prompt, *sorted(pair)]): {
                **row,
                "prompt_ids": prompt,
                "chosen_ids": min(pair),
                "rejected_ids": max(pair),
            }
            for row, prompt, pair in zip(dataset, asked, answers, strict=True)
        }
        once = super()._precompute_ref_logps(Dataset.from_list([*rows.values()]), name, batch_size)
        found = {
            json.dumps([row["prompt_ids"], row[f"{side}_ids"]]): row[f"ref_{side}_logps"]
            for row in once
            for side in SIDES
        }
        for place, side in enumerate(SIDES):
            sums = [
                found[json.dumps([prompt, pair[place]])]
                for prompt, pair in zip(asked, answers, strict=True)
            ]
            dataset = dataset.add_column(f"ref_{side}_logps", sums)
        return dataset

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The base model's log-probabilities of both answers [lessons] each; TRL keeps them with
        the data."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.read(model, inputs, torch.zeros_like(inputs["strengths"])).chunk(2)

    def read(self, model: Any, inputs: Mapping[str, Tensor], strengths: Tensor) -> Tensor:
        """`answer_logprobs` of a batch at these strengths; for subclasses with a part of their
        own."""
        return answer_logprobs(model, inputs, strengths)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss in the module docstring, averaged over the lessons of the batch."""
        if self.recipe.loss == "distil":
            return self._distilled(model, inputs)
        recipe, retained, lengths = self.recipe, inputs["retained"], inputs["lengths"]
        # [2 lessons]: the chosen ones, then the rejected
        logprobs = self.read(model, inputs, inputs["strengths"])
        if recipe.loss == "dpo":
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        else:
            reference = torch.zeros_like(logprobs)
            if retained.any() and recipe.retain == "likelihood":
                some = only(inputs, retained.nonzero()[:, 0])
                with torch.no_grad():
                    found = self.read(model, some, torch.zeros_like(some["strengths"]))
                reference[torch.cat([retained, retained]) == 1] = found
        scores = (logprobs - reference if recipe.loss == "dpo" else logprobs) / (
            lengths if recipe.length_normalized else 1
        )
        margins = torch.sub(*scores.chunk(2))
        if recipe.loss == "flip":
            both = margins.view(-1, 2).sum(1).repeat_interleave(2)
            margins = torch.where(inputs["flipped"] == 1, both, margins)
        likelihood = (logprobs / lengths).chunk(2)[0]
        drifts = ((logprobs - reference) / lengths).chunk(2)
        taught = -functional.logsigmoid(recipe.beta * margins) - recipe.sft_weight * likelihood
        if recipe.loss == "sft":
            taught = -likelihood
        if retained.any() and recipe.retain == "divergence":
            some = only(inputs, retained.nonzero()[:, 0])
            held = drift = divergences(model, some, some)[0].view(2, -1)
        else:
            drift = torch.stack(drifts)[:, retained == 1]
            held = functional.smooth_l1_loss(drift, drift * 0, reduction="none", beta=SMALL)
        self._note(margins[retained == 0], drift)
        stayed = torch.zeros_like(taught)
        stayed[retained == 1] = recipe.retain_weight * held.sum(0)
        return torch.where(retained == 1, stayed, taught).mean()

    def _distilled(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """KL(teacher || model) per token, averaged over the answers of the batch."""
        retained = inputs["retained"]
        divergence, means = divergences(model, inputs, inputs["teacher"])
        margins = torch.sub(*means.chunk(2))
        self._note(
            margins[retained == 0], divergence.detach()[torch.cat([retained, retained]) == 1]
        )
        weights = torch.where(retained == 1, self.recipe.retain_weight, 1.0)
        loss: Tensor = (torch.cat([weights, weights]) * divergence).mean()
        return loss

    def _note(self, margins: Tensor, drifts: Tensor) -> None:
        found = {"accuracy": (margins > 0).float(), "margin": margins, "drift": drifts.abs()}
        for name, values in found.items():
            if len(values):
                self._metrics["train"][name].append(float(values.detach().mean()))


def collate(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """A batch of lessons. Each is one row of prompt, chosen, rejected, in which each answer sees
    the prompt and itself.

    For every answer token, `source` is the position (in the flattened rows) that predicts it,
    `target` the token, and `answer` the number of its answer: the chosen ones of all lessons first,
    then the rejected ones. `lengths`: tokens of each answer.
    """
    count = len(rows)
    texts = [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in rows]
    width = max(sum(map(len, parts)) for parts in texts)
    ids, places = torch.full((count, width), pad), torch.zeros(count, width, dtype=torch.long)
    part = torch.full((count, width), -1)  # of each token: 0 prompt, 1 chosen, 2 rejected
    source: list[int] = []
    target: list[int] = []
    answer: list[int] = []
    for lesson, (prompt, *answers) in enumerate(texts):
        at = len(prompt)
        ids[lesson, :at], places[lesson, :at], part[lesson, :at] = (
            torch.tensor(prompt),
            torch.arange(at),
            0,
        )
        for side, said in enumerate(answers):
            end = at + len(said)
            ids[lesson, at:end], part[lesson, at:end] = torch.tensor(said), side + 1
            places[lesson, at:end] = torch.arange(len(prompt), len(prompt) + len(said))
            source += [lesson * width + place for place in (len(prompt) - 1, *range(at, end - 1))]
            target += said
            answer += [side * count + lesson] * len(said)
            at = end
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    seen = earlier & (
        (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    )  # [lessons, from, to]
    batch: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": places,
        "attention_mask": seen[:, None],
        "source": torch.tensor(source),
        "target": torch.tensor(target),
        "answer": torch.tensor(answer),
        "lengths": torch.tensor([len(parts[side]) for side in (1, 2) for parts in texts]),
    }
    if "teacher_ids" in rows[0]:
        alike = ("chosen_ids", "rejected_ids", "strengths")
        read = [
            {"prompt_ids": row["teacher_ids"], **{name: row[name] for name in alike}}
            for row in rows
        ]
        batch["teacher"] = collate(read, pad)
    return {
        **batch,
        **{
            name: torch.tensor([row[name] for row in rows], dtype=torch.float32)
            for name in GIVEN
            if name in rows[0]
        },
    }


def only(inputs: Mapping[str, Tensor], lessons: Tensor) -> dict[str, Tensor]:
    """The batch with these of its lessons alone [lessons], as `answer_logprobs` reads it."""
    count, width = inputs["input_ids"].shape
    new = torch.full((count,), -1, device=lessons.device)
    new[lessons] = torch.arange(len(lessons), device=lessons.device)
    side, lesson = inputs["answer"] // count, inputs["answer"] % count
    here = new[lesson] >= 0
    place = inputs["source"] % width
    of_lessons = ("input_ids", "position_ids", "attention_mask", *GIVEN)
    return {
        **{name: inputs[name][lessons] for name in of_lessons if name in inputs},
        "source": (new[lesson] * width + place)[here],
        "target": inputs["target"][here],
        "answer": (side * len(lessons) + new[lesson])[here],
        "lengths": inputs["lengths"].view(2, count)[:, lessons].flatten(),
    }


def divergences(
    model: Any, inputs: Mapping[str, Any], teacher: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """KL(base || model) per token, where the base model reads the answers as `teacher` asks for
    them, and the mean log-probability of their tokens, without a gradient, of both answers of each
    lesson [2 lessons]."""
    strengths, lengths = inputs["strengths"], inputs["lengths"]
    with torch.no_grad():
        taught = answer_logits(model, teacher, torch.zeros_like(strengths))
        taught = taught.float().log_softmax(-1)  # [answer tokens, vocabulary]
    found = answer_logits(model, inputs, strengths).float().log_softmax(-1)
    apart = (taught.exp() * (taught - found)).sum(-1)
    said = found.detach().gather(1, inputs["target"][:, None])[:, 0]
    sums = apart.new_zeros(2, len(lengths))
    sums = sums.index_add(1, inputs["answer"], torch.stack([apart, said])) / lengths
    return sums[0], sums[1]


def answer_logprobs(
    model: Any,
    inputs: Mapping[str, Tensor],
    strengths: Tensor,
    between: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """Log-probability of both answers of each lesson [2 lessons], the chosen ones first, at each
    lesson's strengths [lessons, vectors]. `between`: see `answer_logits`."""
    logits = answer_logits(model, inputs, strengths, between)
    said = -functional.cross_entropy(logits.float(), inputs["target"], reduction="none")
    return said.new_zeros(2 * len(strengths)).index_add(0, inputs["answer"], said)


def answer_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    strengths: Tensor,
    between: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """The logits from which each token of the answers is predicted [answer tokens, vocabulary].
    `between`: what is done to the last hidden states [lessons, tokens, hidden] before the head."""
    causal: Any = model.get_base_model()
    with _at(model, strengths):
        body = causal.base_model(
            **{name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask")},
            use_cache=False,
        )
    hidden = between(body.last_hidden_state).flatten(0, 1)
    logits: Tensor = causal.get_output_embeddings()(hidden[inputs["source"]])
    return logits


@contextmanager
def _at(model: nn.Module, strengths: Tensor) -> Iterator[None]:
    """Within: every LoRA layer computes B ((A x) * strength), at `strengths` [rows, vectors], each
    rank with the strength of the vector that it belongs to."""
    layers: list[Any] = [
        module.lora_A["default"] for module in model.modules() if isinstance(module, LoraLayer)
    ]

    def scaled(layer: Any, _: Any, y: Tensor) -> Tensor:
        ranks = layer.out_features // strengths.shape[1]
        return y * strengths.repeat_interleave(ranks, dim=1)[:, None].to(y)  # [rows, 1, ranks]

    hooks = [layer.register_forward_hook(scaled) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _row(lesson: Lesson, tokenizer: Any, ending: Sequence[int], recipe: Recipe) -> dict[str, Any]:
    """A lesson in the token ids that serving reads, each answer with what ends its turn."""
    row = {
        "prompt_ids": prompt_ids(lesson.messages, [lesson.told] if lesson.told else [], tokenizer),
        "chosen_ids": [*text_ids(lesson.chosen, tokenizer, continuing=True), *ending],
        "rejected_ids": [*text_ids(lesson.rejected, tokenizer, continuing=True), *ending],
        "strengths": list(lesson.strengths),
        "retained": float(lesson.retained),
    }
    if recipe.reference == "untold":
        row["reference_ids"] = prompt_ids(lesson.messages, [], tokenizer)
    if recipe.loss == "distil":
        told = [lesson.told] if lesson.told and not lesson.retained else []
        shown = lesson.shown if isinstance(lesson, Demonstrated) and not lesson.retained else ()
        row["teacher_ids"] = prompt_ids((*shown, *lesson.messages), told, tokenizer)
    return row


def _supervised(
    base: Any,
    tokenizer: Any,
    data: Dataset,
    lora: LoraConfig,
    recipe: Recipe,
    work: Path,
    watch: Watch,
) -> Any:
    """The base with a LoRA that is fine-tuned on the chosen answers of the lessons with positive
    strengths."""
    chosen = data.filter(lambda row: min(row["strengths"]) > 0 and not row["retained"])
    examples = chosen.map(
        lambda row: {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]),
        },
        remove_columns=data.column_names,
    )
    settings = SFTConfig(
        output_dir=str(work / "sft"),
        num_train_epochs=recipe.sft_epochs,
        save_strategy="no",
        max_length=None,
        **shared(
            recipe.batch,
            recipe.learning_rate,
            recipe.seed,
            steps(len(examples), recipe.batch, recipe.sft_epochs),
        ),
    )
    trainer = SFTTrainer(
        base,
        settings,
        train_dataset=examples,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model
