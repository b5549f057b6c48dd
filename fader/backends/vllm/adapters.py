"""Mixtures of vectors as LoRA adapters on disk, where vLLM reads them.

A mixture is one adapter whose factors are those of its vectors, stacked: A = [A_1; A_2; ...] and B
= [λ_1 B_1, λ_2 B_2, ...], so B A is the sum of λ_i B_i A_i, exactly. It is written once, under the
hash of what is in it, into a folder that several processes may share and that holds so many bytes:
what was used least recently goes first. What is in use stays, even where that takes more. Strengths
are rounded to steps, so that a slider does not make adapters without end.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from fader.files import drop_folder, whole_folder
from fader.schema import Invalid, path_of
from fader.vectors.peft_folder import CONFIG, PREFIX, WEIGHTS, plain_config
from fader.vectors.vector import Vector

STEP = 0.05
"""Strengths are multiples of this."""

Mixture = tuple[tuple[Vector, float], ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Adapter:
    """A LoRA on disk: what vLLM reads for a mixture of vectors. While this object lives, neither
    this process nor another one removes it."""

    number: int
    """Above 0, one for each in a process."""
    name: str
    folder: Path


class Adapters:
    """The adapters of one model in `folder`, at most `room` bytes of those that are not in use.

    `rank`: the greatest one that the engine takes; `modules`: the last parts of the names of the
    layers that it can change.
    """

    def __init__(self, folder: Path, room: int, rank: int, modules: Collection[str]) -> None:
        self.folder = folder
        self.room = room
        self.rank = rank
        self.modules = modules
        self._numbers: dict[str, int] = {}  # name -> number

    def check(self, mixture: Mixture, field: str) -> None:
        """Raises `Invalid`, under the path of the field that names the vectors, for a mixture that
        the engine cannot take."""
        for vector, _ in mixture:
            for module in vector.factors:
                if module.rpartition(".")[2] not in self.modules:
                    raise Invalid(
                        f"changes the layer {module}, which vLLM cannot change per row; take the"
                        " engine `torch`",
                        path_of(field, vector.name),
                    )
        if (rank := _rank(mixture)) > self.rank:
            raise Invalid(
                f"{len(mixture)} vectors have the rank {rank} together, the engine takes up to"
                f" {self.rank}; name fewer, or cut them with `fader vectors compress`",
                field,
            )
        if (size := _size(mixture)) > self.room:
            raise Invalid(
                f"the vectors take {size} bytes as one adapter, the folder of adapters holds"
                f" {self.room}; give it more room",
                field,
            )

    def of(self, mixture: Mixture) -> Adapter | None:
        """The adapter of a mixture, written where it is not there; None for no vectors. Raises
        OSError where it cannot be written; then nothing is left of it."""
        if not mixture:
            return None
        name = _name(mixture)
        folder = self.folder / name
        while (held := _held(folder / CONFIG)) is None:
            self._make_room(_size(mixture))
            try:
                with whole_folder(folder) as scratch:
                    _write(mixture, scratch)
            except OSError:
                if not (folder / CONFIG).is_file():  # else another process was first
                    raise
        with suppress(OSError):  # in a folder of somebody else's
            os.utime(held)
        found = Adapter(self._numbers.setdefault(name, len(self._numbers) + 1), name, folder)
        weakref.finalize(found, os.close, held)
        return found

    def _make_room(self, size: int) -> None:
        """Remove adapters until so many bytes more are within bounds, but none that is in use."""
        kept = []
        for weights in self.folder.glob(f"[!.]*/{WEIGHTS}"):  # not what is still being written
            try:
                about = weights.stat(), (weights.parent / CONFIG).stat()
            except FileNotFoundError:  # another process has just removed it, or is writing it
                continue
            kept.append((about[1].st_mtime, weights.parent, about[0].st_size))
        taken = sum(bytes_of for _, _, bytes_of in kept)
        for _, folder, bytes_of in sorted(kept):
            if taken + size <= self.room:
                break
            if (alone := _held(folder / CONFIG, alone=True)) is not None:
                try:
                    drop_folder(folder)
                    taken -= bytes_of
                except OSError:  # as in a folder of somebody else's: it stays
                    pass
                finally:
                    os.close(alone)


def _held(config: Path, alone: bool = False) -> int | None:
    """A descriptor of an adapter's file, locked against its removal, until it is closed; `alone`:
    against its use. None where there is no such file, or where it is in use."""
    import fcntl  # not on Windows, where vLLM does not run, but the rest of fader does

    try:
        found = os.open(config, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(found), os.stat(config)):
            return found
    except (BlockingIOError, FileNotFoundError):  # in use, or removed meanwhile
        pass
    except OSError:  # no locks here, as on some networks: read without, and nothing is removed
        if not alone:
            return found
    os.close(found)
    return None


def _rank(mixture: Mixture) -> int:
    """The greatest rank of any layer of the adapter."""
    ranks: dict[str, int] = {}
    for vector, _ in mixture:
        for module, (down, _) in vector.factors.items():
            ranks[module] = ranks.get(module, 0) + down.shape[0]
    return max(ranks.values(), default=0)


def _size(mixture: Mixture) -> int:
    """Bytes of the adapter's factors, in float32."""
    return sum(
        4 * (down.numel() + up.numel())
        for vector, _ in mixture
        for down, up in vector.factors.values()
    )


def _name(mixture: Mixture) -> str:
    """A hash of the vectors' numbers and their strengths."""
    parts = sorted((vector.digest, strength) for vector, strength in mixture)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _write(mixture: Mixture, folder: Path) -> None:
    """Write the adapter, all of whose layers have one rank: the lesser ones are padded with
    zeros."""
    rank = _rank(mixture)
    modules = {module for vector, _ in mixture for module in vector.factors}
    tensors = {}
    for module in modules:
        pairs = [
            (one.factors[module], strength) for one, strength in mixture if module in one.factors
        ]
        down = torch.cat([pair[0].float() for pair, _ in pairs])
        up = torch.cat([pair[1].float() * strength for pair, strength in pairs], dim=1)
        less = rank - down.shape[0]
        pad = torch.nn.functional.pad
        tensors[f"{PREFIX}{module}.lora_A.weight"] = pad(down, (0, 0, 0, less)).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = pad(up, (0, less)).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # vLLM wants to know the last parts of the names alone
    config = plain_config(dict.fromkeys(sorted(modules), rank), None)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def rounded(model: Model) -> Model:
    """A request, or a part of one, with all its strengths of vectors rounded to `STEP`."""
    changed = {}
    for name, value in model:
        new = value
        if name == "vectors" and value:
            new = {one: round_strength(strength) for one, strength in value.items()}
        elif isinstance(value, BaseModel):
            new = rounded(value)
        elif isinstance(value, tuple):
            new = tuple(rounded(one) if isinstance(one, BaseModel) else one for one in value)
        if new != value:
            changed[name] = new
    return model.model_copy(update=changed) if changed else model


def round_strength(strength: float) -> float:
    """The nearest multiple of `STEP`."""
    return round(round(strength / STEP) * STEP, 6) + 0.0
