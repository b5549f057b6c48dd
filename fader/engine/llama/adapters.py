"""Vectors as llama.cpp's adapters: GGUF written from their factors, loaded when first used."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from fader.engine.llama.binding import library, why
from fader.engine.llama.file import HEAD, GGUFFile
from fader.engine.protocols import Delta, Mixture


class AdapterStore:
    """The adapters that are loaded for one model."""

    def __init__(self, model: Any, file: GGUFFile) -> None:
        self._model, self._file = model, file
        self._loaded: dict[Delta, Any] = {}

    def set(self, context: Any, mixture: Mixture) -> None:
        """Let a context compute with a mixture. The head's part of it is not llama.cpp's: see
        `head_parts`."""
        strengths: dict[Delta, float] = {}
        for vector, strength in mixture:
            if vector.factors.keys() - {HEAD}:
                strengths[vector] = strengths.get(vector, 0.0) + strength
        handles = [self._handle(vector) for vector in strengths]
        values = [ctypes.cast(handle, ctypes.c_void_p).value for handle in handles]
        L = library()
        array = ctypes.cast(
            (ctypes.c_void_p * max(1, len(values)))(*values), L.llama_set_adapters_lora.argtypes[1]
        )
        scales = (ctypes.c_float * max(1, len(values)))(*strengths.values())
        if L.llama_set_adapters_lora(context, array, len(values), scales):
            raise ValueError(f"vectors: llama.cpp does not take this mixture: {why()}")
        L.llama_set_embeddings(context, bool(head_parts(mixture)))

    def drop(self, vector: Delta) -> None:
        """Free a vector that no context computes with."""
        if (handle := self._loaded.pop(vector, None)) is not None:
            library().llama_adapter_lora_free(handle)

    def _handle(self, vector: Delta) -> Any:
        if vector not in self._loaded:
            with _as_file(vector, self._file) as file:
                handle = library().llama_adapter_lora_init(self._model, os.fsencode(file))
            if not handle:
                raise ValueError(f"vectors.{vector.name}: llama.cpp does not take it: {why()}")
            self._loaded[vector] = handle
        return self._loaded[vector]


def head_parts(mixture: Mixture) -> list[tuple[Tensor, Tensor, float]]:
    """What a mixture changes in the head: factors A, B and the strength of each vector."""
    return [
        (*vector.factors[HEAD], strength)
        for vector, strength in mixture
        if HEAD in vector.factors and strength
    ]


def with_head(logits: Tensor, hidden: Tensor, mixture: Mixture) -> Tensor:
    """Logits [rows, vocabulary] with the head's part of a mixture added, from the hidden states
    that the head read [rows, width]."""
    for down, up, strength in head_parts(mixture):
        logits = logits + strength * (hidden @ down.to(hidden).T) @ up.to(hidden).T
    return logits


@contextmanager
def _as_file(vector: Delta, model: GGUFFile) -> Iterator[str]:
    """The vector as a GGUF adapter, in memory where the system has files there (Linux), else in a
    temporary folder."""
    for name, pair in vector.factors.items():
        if not all(bool(factor.isfinite().all()) for factor in pair):
            raise ValueError(
                f"vectors.{vector.name}: its factors for {name} are not finite; give a vector whose"
                " values are numbers of a sensible size"
            )
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("fader-adapter")
        try:
            name = f"/proc/{os.getpid()}/fd/{handle}"
            _write(vector.factors, model, name)
            yield name
        finally:
            os.close(handle)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _write(vector.factors, model, str(Path(scratch) / "adapter.gguf"))
        yield str(Path(scratch) / "adapter.gguf")


def _write(factors: Mapping[str, Sequence[Tensor]], model: GGUFFile, file: str) -> None:
    writer = gguf.GGUFWriter(file, model.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # the scale is in B already
    for layer, (down, up) in factors.items():
        if layer == HEAD:
            continue
        name = model.tensors[layer + ".weight"]
        writer.add_tensor(name + ".lora_a", _numbers(down))
        writer.add_tensor(name + ".lora_b", model.to_file(layer, _numbers(up)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _numbers(factor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(factor.detach().float().cpu().numpy())
