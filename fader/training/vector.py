"""Training one alignment vector: DPO with LoRA on preference pairs, by TRL and PEFT (arXiv 2410.19206, arXiv 2305.18290).

The vector is the LoRA itself: aligned - unaligned = B A. The loss compares log-probabilities per token (`normalize`, TRL's `sigmoid_norm`),
since the paper ranks answers that way and answers of different levels differ in length; without it, plain DPO.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from fader.engine import builtin
from fader.engine.backbone import fingerprint
from fader.methods.vector import Vector
from fader.training.data import Pair, content_hash


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    beta: float = 2.0
    """Strength of the pull towards the reference; of the order of 0.1 without `normalize`, of 2 with it."""
    normalize: bool = True
    learning_rate: float = 2e-4
    epochs: float = 2.0
    batch: int = 4
    sft_epochs: float = 0.0
    """Supervised passes over the chosen answers before DPO."""
    seed: int = 0


def train_vector(
    name: str,
    pairs: Sequence[Pair],
    folder: Path,
    recipe: Recipe = Recipe(),
    model: str = builtin.NAME,
    dtype: str = "bfloat16",
    progress: bool = True,
) -> Vector:
    """Train on `pairs`, write the vector to `folder` with its card, and return it.

    A run that was stopped goes on from its last checkpoint in `folder`.part if the data and settings are the same. `dtype`: of the saved factors.
    """
    source = str(builtin.fetch()) if model == builtin.NAME else model
    base: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    base_print = fingerprint(base)
    work = folder.with_name(f".{folder.name}.part")
    identity = {"data": content_hash(pairs), "recipe": asdict(recipe), "base_fingerprint": base_print}
    _same_run_or_fresh(work, identity)
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.messages],
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for pair in pairs
        ]
    )
    lora: LoraConfig | None = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    shared: dict[str, Any] = {
        "per_device_train_batch_size": recipe.batch,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": recipe.seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    start = time.perf_counter()
    with _bar(progress) as bar:
        if recipe.sft_epochs:
            examples = data.map(lambda row: {"messages": row["prompt"] + row["chosen"]}, remove_columns=data.column_names)
            sft_settings = SFTConfig(output_dir=str(work / "sft"), num_train_epochs=recipe.sft_epochs, save_strategy="no", **shared)
            sft = SFTTrainer(
                base, sft_settings, train_dataset=examples, processing_class=tokenizer, peft_config=lora, callbacks=[_Watch(bar, f"{name}: SFT")]
            )
            sft.train()
            base, lora = sft.model, None
        settings = DPOConfig(
            output_dir=str(work),
            num_train_epochs=recipe.epochs,
            beta=recipe.beta,
            loss_type=["sigmoid_norm" if recipe.normalize else "sigmoid"],
            precompute_ref_log_probs=lora is not None,
            precompute_ref_batch_size=8,
            save_strategy="steps",
            save_steps=10,
            save_total_limit=1,
            **shared,
        )
        watch = _Watch(bar, f"{name}: DPO")
        trainer = DPOTrainer(base, args=settings, train_dataset=data, processing_class=tokenizer, peft_config=lora, callbacks=[watch])
        trainer.train(resume_from_checkpoint=bool(list(work.glob("checkpoint-*"))))
    trainer.save_model(str(work / "final"))
    trained = Vector.load(work / "final", name)
    curve = [{key: row[key] for key in ("step", "loss", "rewards/accuracies", "rewards/margins") if key in row} for row in trainer.state.log_history]
    card = {
        "kind": "alignment vector",
        "base_model": model,
        "pairs": len(pairs),
        "data": identity["data"],
        "recipe": asdict(recipe),
        "seconds": round(time.perf_counter() - start, 1),
        "curve": [row for row in curve if "loss" in row],
    }
    numbers = getattr(torch, dtype)
    vector = Vector(name, {m: (a.to(numbers), b.to(numbers)) for m, (a, b) in trained.factors.items()}, base_print, card)
    vector.save(folder)
    shutil.rmtree(work, ignore_errors=True)
    return vector


def _same_run_or_fresh(work: Path, identity: dict[str, Any]) -> None:
    """Keep the checkpoints of a stopped run of the same data and settings; drop those of another."""
    note = work / "run.json"
    wanted = json.loads(json.dumps(identity))
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == wanted:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    note.write_text(json.dumps(identity), encoding="utf-8")


def _bar(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not show)


class _Watch(TrainerCallback):
    """Moves the progress bar and shows the newest loss."""

    def __init__(self, bar: Progress, name: str) -> None:
        self._bar, self._name = bar, name
        self._task = bar.add_task(name, total=None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Called by the trainer after each step."""
        loss = f" loss {logs['loss']:.3f}" if logs and "loss" in logs else ""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step, description=self._name + loss)
