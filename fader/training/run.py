"""What every training shares: one at a time in a folder, resumption, clock, progress bar, settings,
and whether a chat template can be trained on.

A run that was killed goes on from its last whole checkpoint. The newest two are kept: while the one
is being written, the one before it is there.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jinja2 import TemplateError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from fader.engine.backbone import quick_dtype
from fader.engine.loading import read
from fader.files import write_whole
from fader.methods.prompt import has_system_role
from fader.schema import short

WHOLE = "seconds"  # the file that makes a checkpoint whole


def load(model: str) -> tuple[Any, Any]:
    """The model and its tokenizer, in the type that this machine multiplies fastest."""
    base, tokenizer = read(model, getattr(torch, quick_dtype()))
    base.set_attn_implementation("sdpa")
    return base, tokenizer


def steps(items: int, batch: int, epochs: float) -> int:
    """How many times a training changes the weights."""
    return math.ceil(math.ceil(items / batch) * epochs)


def shared(batch: int, learning_rate: float, seed: int, steps: int) -> dict[str, Any]:
    """The trainer settings that all trainings share. The learning rate rises over the first tenth
    of the steps. Where that is less than one step it starts at its peak, since the first step of a
    rise has a rate of 0."""
    return {
        "per_device_train_batch_size": batch,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1 if steps >= 10 else 0,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": seed,
        "bf16": quick_dtype() == "bfloat16",
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
    }


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Within: no other training writes into these folders. Raises ValueError for one into which
    another does."""
    with ExitStack() as held:
        for folder in sorted(folders):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
            try:
                held.enter_context(lock)
            except Timeout:
                raise ValueError(
                    f"out: another training is writing into {folder}; wait until it has ended, or"
                    " give another folder"
                ) from None
            held.callback(Path(lock.lock_file).unlink, missing_ok=True)  # before it is given back
        yield


def same_run_or_fresh(work: Path, identity: dict[str, Any]) -> None:
    """Keep the checkpoints of a stopped run of the same data and settings; drop those of another,
    and what a killed process left half-written."""
    note = work / "run.json"
    wanted = json.dumps(identity, sort_keys=True)
    if note.is_file() and note.read_text(encoding="utf-8") == wanted:
        for checkpoint in work.glob("checkpoint-*"):
            if not (checkpoint / WHOLE).is_file():
                shutil.rmtree(checkpoint)
        return
    drop(work)
    work.mkdir(parents=True)
    write_whole(note, wanted)


def drop(work: Path) -> None:
    """Delete the checkpoints of a run; the note that makes them its own goes first, so that what a
    process killed here leaves behind is gone on from by none."""
    (work / "run.json").unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint, from which a run goes on; each of them is whole."""
    found = sorted(work.glob("checkpoint-*"), key=lambda place: int(place.name.split("-")[1]))
    return found[-1] if found else None


def fits_the_template(tokenizer: Any, conversations: Iterable[Sequence[Mapping[str, str]]]) -> None:
    """Raises ValueError for a chat template that conversations cannot be taught with: there is
    none, it refuses or drops system turns, or it writes the prompt differently once an answer
    follows. `conversations`: messages that end with the assistant's."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "model: has no chat template, and conversations cannot be taught without one; give a"
            " tuned model, or put a chat_template.jinja into its folder"
        )
    for place, turns in enumerate(conversations, 1):
        *asked, answer = turns
        if asked[0]["role"] == "system" and not has_system_role(tokenizer):
            raise ValueError(
                f"data: item {place} has a system turn ({short(asked[0]['content'])}), and the"
                " model's chat template takes none; put its text into the first user turn"
            )
        try:
            prompt, whole = (
                str(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=more))
                for part, more in ((asked, True), ([*asked, answer], False))
            )
        except TemplateError as error:
            raise ValueError(
                f"data: item {place}: the model's chat template refuses the conversation: {error}"
            ) from None
        if not whole.startswith(prompt):
            parted = next(i for i, letter in enumerate(prompt) if whole[i : i + 1] != letter)
            raise ValueError(
                f"model: its chat template writes the prompt of item {place} otherwise once an"
                f" answer follows ({short(prompt[parted:])} becomes"
                f" {short(whole[parted : parted + 60])}); give a template that only appends"
            )


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
    included. It writes them into every checkpoint as the last thing: one that has them is whole."""

    def __init__(self, checkpoint: Path | None) -> None:
        said = (checkpoint / WHOLE).read_text(encoding="utf-8") if checkpoint else "0"
        self._before = float(said)
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._began

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each checkpoint."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_whole(checkpoint / WHOLE, f"{self.seconds}")


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
