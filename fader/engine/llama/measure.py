"""How many threads llama.cpp computes with, and how many tokens one call reads: what is fastest,
found by a short measurement when a model is loaded and kept for the next load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
from pydantic import PositiveInt

from fader.engine.llama.binding import library, why
from fader.engine.llama.contexts import Context
from fader.engine.measured import Measured, cpu, is_busy, keep, kept

BATCH = 512
"""Tokens of one call of llama.cpp at most."""
SIZES = (BATCH, 256, 128, 64)
"""Numbers of tokens that are measured."""
_ROWS = (1, 4)  # tokens of a step, of one request and of several, by which threads are compared
_STEPS = 3  # of each, of which the fastest counts
_GAIN = 0.95  # fewer threads, or fewer tokens for each, must take less than this share of the time
_SECONDS = 10.0  # a batch is not measured where it would take longer


class Fastest(Measured):
    """What is the fastest for a model."""

    threads: PositiveInt
    """Threads that compute."""
    batch: PositiveInt
    """Tokens of one call at most."""


def given_batch(asked: int | None) -> int | None:
    """The tokens of one call as said by hand: `asked`, else FADER_LLAMA_BATCH; None for neither.
    Raises ValueError for a number that cannot be."""
    field, value = "batch", str(asked)
    if asked is None:
        field, value = "FADER_LLAMA_BATCH", os.environ.get("FADER_LLAMA_BATCH", "")
    if not value:
        return None
    if not (value.isdecimal() and 1 <= int(value) <= BATCH):
        raise ValueError(
            f"{field}: must be a number of tokens from 1 to {BATCH} (got {value!r}); leave it out,"
            " and it is measured"
        )
    return int(value)


def choose(
    context: Context, weights: Mapping[str, Any], room: int, measured: bool, batch: int | None
) -> Fastest:
    """What is the fastest for a model of such weights, whose context has room for so many tokens:
    all cores or half of them, and one of `SIZES`; as kept, else measured and kept.

    OMP_NUM_THREADS and `batch` say them by hand. Without measuring, and while other processes are
    busy, they are all cores and the largest call.
    """
    threads = _thread_counts()
    sizes = [batch] if batch else [size for size in SIZES if size <= room] or [BATCH]
    key = {
        "found": "llama.cpp",
        "cpu": cpu(),
        "system": library().llama_print_system_info().decode(errors="replace"),
        "threads": threads,
        "rows": [*_ROWS],
        "sizes": sizes,
        **weights,
    }
    usual = Fastest(key=key, quiet=False, threads=threads[0], batch=sizes[0])
    if not measured or len(threads) == len(sizes) == 1:
        return usual
    known = kept(Fastest, key)
    if known and known.threads in threads and known.batch in sizes:
        return known
    if is_busy():
        return usual
    each = {count: _step_seconds(context, count) for count in threads}
    best = min(threads, key=lambda count: each[count])
    best = best if each[best] < _GAIN * each[threads[0]] else threads[0]
    library().llama_set_n_threads(context.handle, best, best)
    found = Fastest(key=key, quiet=True, threads=best, batch=_best_size(context, sizes))
    keep(found)
    return found


def _thread_counts() -> list[int]:
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given):
        return [int(given)]
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    most = min(psutil.cpu_count(logical=False) or 1, cores or 2**10)
    return sorted({most, max(1, most // 2)}, reverse=True)


def _step_seconds(context: Context, threads: int) -> float:
    """How long steps of `_ROWS` take in all with so many threads."""
    library().llama_set_n_threads(context.handle, threads, threads)
    return sum(min(_seconds(context, rows) for _ in range(_STEPS + 1)) for rows in _ROWS)


def _best_size(context: Context, sizes: Iterable[int]) -> int:
    """The largest size, or a smaller one that reads a token in less time."""
    most, *others = sizes
    if not others:
        return most
    least = others[-1]
    if _seconds(context, least) * sum((most, *others)) / least > _SECONDS:
        return most
    each = {size: _seconds(context, size) / size for size in (most, *others)}
    best = min(each, key=lambda size: each[size])
    return best if each[best] < _GAIN * each[most] else most


def _seconds(context: Context, count: int) -> float:
    """How long a call of so many tokens takes."""
    L = library()
    batch: Any = L.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        for at in range(count):
            batch.token[at], batch.pos[at] = 0, at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = at == count - 1
        start = time.perf_counter()
        if L.llama_decode(context.handle, batch):
            raise MemoryError(f"llama.cpp could not read {count} tokens: {why()}")
        L.llama_synchronize(context.handle)
        return time.perf_counter() - start
    finally:
        L.llama_memory_seq_rm(context.memory, 0, -1, -1)
        L.llama_batch_free(batch)
