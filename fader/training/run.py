"""What every training shares: resumption, clock, progress bar, settings."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.files import write_whole


def load(model: str) -> tuple[Any, Any]:
    """The model and its tokenizer, in the type that this machine multiplies fastest."""
    source = builtin.source(model)
    base: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=quick_dtype(), attn_implementation="sdpa"
    )
    return base, AutoTokenizer.from_pretrained(source)


def shared(batch: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Settings of the trainers of TRL and transformers that every training has."""
    return {
        "per_device_train_batch_size": batch,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": seed,
        "bf16": quick_dtype() == "bfloat16",
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
    }


def same_run_or_fresh(work: Path, identity: dict[str, Any]) -> None:
    """Keep the checkpoints of a stopped run of the same data and settings; drop those of
    another."""
    note = work / "run.json"
    wanted = json.loads(json.dumps(identity))
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == wanted:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_whole(note, json.dumps(identity))


def progress_bar(show: bool) -> Progress:
    """A bar on standard error, with the time passed and left; hidden unless `show`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not show)


class Clock(TrainerCallback):
    """Seconds that a training has taken, those before the checkpoint that it goes on from
    included."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._began

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each checkpoint."""
        write_whole(self._file, f"{self.seconds}")


class Watch(TrainerCallback):
    """Moves the progress bar and shows the newest loss."""

    def __init__(self, bar: Progress, name: str) -> None:
        self._bar, self._name = bar, name
        self._task = bar.add_task(name, total=None)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Called by the trainer after each step."""
        loss = f" loss {logs['loss']:.3f}" if logs and "loss" in logs else ""
        self._bar.update(
            self._task,
            total=state.max_steps,
            completed=state.global_step,
            description=self._name + loss,
        )
