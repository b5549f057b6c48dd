"""`load`: a backbone on llama.cpp from a GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch

from fader.engine import builtin
from fader.engine.identity import fingerprint
from fader.engine.kernels import measuring
from fader.engine.llama.backbone import LlamaBackbone
from fader.engine.llama.convert import builtin_file
from fader.engine.llama.measure import given_batch
from fader.engine.loading import files_of, read
from fader.schema import within


def load(
    name: str = builtin.NAME,
    device: str | None = None,
    dtype: str | None = None,
    kv_bytes: int | None = None,
    kernels: str | None = None,
    batch: int | None = None,
    same_as: str | None = None,
) -> LlamaBackbone:
    """A backbone from a GGUF file, or the built-in model, which is made into one the first time.

    `device`: "cpu" keeps all layers off a GPU; left out, they go where llama.cpp was built for.
    `kv_bytes`: memory for keys and values. `kernels`: "measured" or "default", whether the numbers
    of threads and of tokens of one call are measured. `batch`: the latter by hand; left out, as
    FADER_LLAMA_BATCH says. `same_as`: a model that transformers loads, of which you know that it is
    the same: vectors of that one are taken. Raises ValueError for what llama.cpp cannot run.
    """
    if device not in (None, "cpu"):
        raise ValueError(
            f"device: {device!r} is chosen by llama.cpp's own build; leave it out, or give cpu"
        )
    if dtype is not None:
        raise ValueError(
            f"dtype: {dtype!r} has no effect on a GGUF file, which has types of its own; make"
            " another file with `fader models convert --to`"
        )
    if name != builtin.NAME and Path(name).suffix != ".gguf":
        raise ValueError(
            f"model: llama.cpp reads GGUF files (got {name}); `fader models convert {name} --out"
            " NAME.gguf` makes one"
        )
    measured, batch = measuring(kernels), given_batch(batch)
    path = builtin_file() if name == builtin.NAME else Path(name)
    files_of(str(path))  # there, and no pointer
    mark = None
    if same_as is not None:
        with within("same_as"):
            mark = fingerprint(read(same_as, torch.bfloat16)[0])  # in float32 it is the same
    backbone = LlamaBackbone(name, path, kv_bytes, device is None, measured, batch)
    if mark is not None:
        backbone.fingerprint = mark
    return backbone
