"""How many threads llama.cpp computes with: measured, since more are not always faster."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

from fader.engine.llama.binding import library
from fader.engine.llama.contexts import Context

STEPS = 3  # of each count, of which the fastest counts


def choose_threads(context: Context, measured: bool) -> int:
    """The fastest count for single tokens: the number of cores, or its half; OMP_NUM_THREADS says
    it where it is set. Without measuring, the number of cores."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given):
        return int(given)
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    most = min(psutil.cpu_count(logical=False) or 1, cores or 2**10)
    counts = sorted({most, max(1, most // 2)}, reverse=True)
    if not measured or len(counts) == 1:
        return counts[0]
    return min(counts, key=lambda count: _seconds(context, count))


def _seconds(context: Context, threads: int) -> float:
    """How long one token takes."""
    L = library()
    L.llama_set_n_threads(context.handle, threads, threads)
    found: list[float] = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        _read_one(context)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _read_one(context: Context) -> None:
    L = library()
    batch: Any = L.llama_batch_init(1, 0, 1)
    try:
        batch.n_tokens, batch.token[0], batch.pos[0] = 1, 0, 0
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
        if L.llama_decode(context.handle, batch):
            raise MemoryError("llama.cpp could not read a token")
        L.llama_memory_seq_rm(context.memory, 0, -1, -1)
    finally:
        L.llama_batch_free(batch)
