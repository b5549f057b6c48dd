"""How many threads llama.cpp computes with, and how many tokens one call reads: what is fastest,
found by a short measurement when a model is loaded and kept for the next load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
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
_SEVERAL = 4  # tokens of a call that is measured as one of several
_TURNS = 8  # calls by which thread counts are compared, of which the first does not count
_GAIN = 0.95  # fewer threads, or fewer tokens for each, must take less than this share of the time
_SECONDS = 10.0  # a batch is not measured where it would take longer


class Fastest(Measured):
    """What is the fastest for a model."""

    threads: PositiveInt
    """Threads that compute where a call reads one token."""
    several: PositiveInt
    """And where it reads several: there a second thread of one core gains more."""
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
        "calls": [_SEVERAL, _TURNS],
        "sizes": sizes,
        **weights,
    }
    usual = Fastest(key=key, quiet=False, threads=threads[0], several=threads[0], batch=sizes[0])
    if not measured or len(threads) == len(sizes) == 1:
        return usual
    known = kept(Fastest, key)
    if known and {known.threads, known.several} <= {*threads} and known.batch in sizes:
        return known
    if is_busy():
        return usual
    one, several = (_best_count(context, threads, tokens) for tokens in (1, _SEVERAL))
    library().llama_set_n_threads(context.handle, one, several)
    size = _best_size(context, sizes)
    found = Fastest(key=key, quiet=True, threads=one, several=several, batch=size)
    keep(found)
    return found


def _thread_counts() -> list[int]:
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given):
        return [int(given)]
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    most = min(psutil.cpu_count(logical=False) or 1, cores or 2**10)
    return sorted({most, max(1, most // 2)}, reverse=True)


def _best_count(context: Context, counts: Sequence[int], tokens: int) -> int:
    """All threads, or fewer where a call of so many tokens takes less time with them: medians of
    calls in turns."""
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_TURNS):
        for count, times in taken.items():
            times.append(_call_seconds(context, count, tokens))
    each = {count: median(times[1:]) for count, times in taken.items()}
    best = min(counts, key=lambda count: each[count])
    return best if each[best] < _GAIN * each[counts[0]] else counts[0]


def _call_seconds(context: Context, threads: int, tokens: int) -> float:
    """How long a call of so many tokens takes with so many threads."""
    library().llama_set_n_threads(context.handle, threads, threads)
    return _seconds(context, tokens)


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
