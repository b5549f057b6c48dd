"""Which kernel multiplies a layer fastest on this CPU, found by a short measurement.

A linear layer's product can be computed by several kernels that agree up to rounding. Which one is
the fastest depends on the CPU, the threads, the type, the layer's shape and the number of rows, by
factors up to ten (docs/decisions/0003). So it is measured once, when a model is loaded, and the
choice is kept in the cache folder. FADER_KERNELS=default turns it off.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional

from fader.engine.measured import Measured, cpu, is_busy, keep, kept
from fader.schema import Positive

Shape = tuple[int, int]
"""Outputs and inputs of a layer."""

Name = Literal["default", "packed", "transposed"]

ROWS = (1, 4, 16, 48, 2, 3, 8, 32, 128)
"""Row counts in the order in which they are measured; other counts take the choice of the nearest
one above."""

COPY_LIMIT = 2**32
"""Bytes of a model's weights up to which kernels that keep a copy of them are considered."""

_GAIN = 0.95  # another kernel or type must take less than this share of the usual one's time
_COPIES = 4  # layers of one shape that are measured in turns, so that no weights stay in a cache
_LARGEST = 2**26  # bytes of one weight that are measured; of a larger one a slice of its outputs
_SECONDS = 4.0  # a measurement ends after these; after twice as many if it had only begun


@dataclass(frozen=True)
class Kernel:
    """One way to compute x W^T + b."""

    prepare: Callable[[Tensor], Tensor]
    """From the weight [out, in] what `multiply` takes in its place."""
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """From x [..., in], the prepared weight and the bias: [..., out]."""
    copies: bool
    """Whether what is prepared takes as much memory as the weight."""


def _same(weight: Tensor) -> Tensor:
    return weight


def _pack(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own order of blocks (its best for 16 rows serves all counts well)."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return packed


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(W x^T)^T: other blocks of the matrices meet."""
    y = (weight @ x.reshape(-1, x.shape[-1]).t()).t().contiguous().view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


KERNELS: Mapping[Name, Kernel] = {
    "default": Kernel(_same, functional.linear, copies=False),
    "packed": Kernel(_pack, _packed, copies=True),
    "transposed": Kernel(_same, _transposed, copies=False),
}


class Threads(Measured):
    """The thread count that is the fastest for a model."""

    threads: PositiveInt


class Choice(Measured):
    """The kernels that are the fastest for a model."""

    kernels: dict[str, dict[PositiveInt, Name]]
    """By shape (`3072x576`) and rows."""

    def of(self, shape: Shape) -> dict[int, Name]:
        """The kernels of a shape by rows, in rising order; none where it was not measured."""
        return dict(sorted(self.kernels.get(_text(shape), {}).items()))


class Pace(Measured):
    """How much time bfloat16 takes of float32's."""

    shares: dict[PositiveInt, Positive]
    """By rows: the time of all products of a forward in bfloat16 over that in float32."""

    @property
    def dtype(self) -> torch.dtype:
        """The faster type, over all row counts."""
        return torch.bfloat16 if _mean(self.shares.values()) < _GAIN else torch.float32

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.2f} at {rows}" for rows, share in self.shares.items())
        return (
            f"dtype: {str(self.dtype).removeprefix('torch.')} (share of float32's time that"
            f" bfloat16 takes, by rows: {shares})"
        )


def measuring(asked: str | None) -> bool:
    """Whether kernels are to be measured: `asked`, else FADER_KERNELS, is `measured` (also where
    neither is given) or `default`. Raises ValueError for anything else."""
    field, value = "kernels", asked
    if asked is None:
        field, value = "FADER_KERNELS", os.environ.get("FADER_KERNELS") or "measured"
    if value not in ("measured", "default"):
        raise ValueError(f"{field}: must be 'measured' or 'default' (got {value!r})")
    return value == "measured"


def bound_caches() -> None:
    """Let oneDNN keep the code and the plans of 64 products instead of 1,024 (unless the process's
    environment says how many): each number of rows needs its own, .4 MB each, and prompts of mixed
    lengths need all numbers. To be called before the first product, since it reads them then."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "64")


def choose_threads(shapes: Mapping[Shape, int], dtype: torch.dtype) -> int:
    """The fastest thread count for a model with so many layers of each shape: torch's own, or its
    half, a quarter and so on; as kept, else measured and kept.

    The present count stays where OMP_NUM_THREADS, MKL_NUM_THREADS or torch.set_num_threads set it,
    and while other processes are busy, since they would make fewer threads look better.
    """
    counts = [torch.get_num_threads()]
    if counts[0] == 1 or _threads_are_set():
        return counts[0]
    key = {**_key(shapes, dtype), "found": "threads"}
    if (known := kept(Threads, key)) and known.threads <= counts[0]:
        return known.threads
    if is_busy():
        return counts[0]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    rows = (1, 4, 16)
    times = measure(shapes, [dtype], counts, rows, passes=5)
    costs = {n: _mean(_cost(times, shapes, n, dtype, count) for count in rows) for n in counts}
    best = min(costs, key=lambda n: costs[n])
    found = best if costs[best] < _GAIN * costs[counts[0]] else counts[0]
    keep(Threads(key=key, quiet=True, threads=found))
    return found


def choose(shapes: Mapping[Shape, int], dtype: torch.dtype) -> Choice:
    """The fastest kernels for a model with so many layers of each shape, at torch's present thread
    count: as kept, else measured (a few seconds) and kept."""
    key = {**_key(shapes, dtype), "found": "kernels"}
    if known := kept(Choice, key):
        return known
    threads, quiet = torch.get_num_threads(), not is_busy()
    times = measure(shapes, [dtype], [threads])

    def fastest(shape: Shape, rows: int) -> Name:
        taken = {name: times.get((threads, dtype, shape, rows, name), math.inf) for name in KERNELS}
        best = min(KERNELS, key=lambda name: taken[name])
        return best if taken[best] < _GAIN * taken["default"] else "default"

    kernels = {
        _text(shape): {
            rows: fastest(shape, rows)
            for rows in sorted(ROWS)
            if (threads, dtype, shape, rows, "default") in times
        }
        for shape in shapes
    }
    choice = Choice(key=key, quiet=quiet, kernels=kernels)
    keep(choice)
    return choice


def pace(shapes: Mapping[Shape, int]) -> Pace:
    """How fast bfloat16 is against float32 for a model with so many layers of each shape, both with
    their fastest kernels: as kept, else measured and kept."""
    key = {**_key(shapes, None), "found": "dtype"}
    if known := kept(Pace, key):
        return known
    threads, both, quiet = torch.get_num_threads(), (torch.float32, torch.bfloat16), not is_busy()
    times = measure(shapes, both, [threads])
    shares = {}
    for rows in sorted(ROWS):
        plain, half = (_cost(times, shapes, threads, dtype, rows) for dtype in both)
        if math.isfinite(plain + half):
            shares[rows] = round(half / plain, 3)
    found = Pace(key=key, quiet=quiet, shares=shares)
    keep(found)
    return found


def kernel_for(choice: Mapping[int, Name], rows: int) -> Name:
    """The kernel of the first row count, in rising order, that is not below `rows`; beyond the
    largest, the largest's. Without a choice the default."""
    name: Name = "default"
    for count, name in choice.items():  # noqa: B007
        if rows <= count:
            break
    return name


Times = dict[tuple[int, torch.dtype, Shape, int, Name], float]
"""Seconds of one product by threads, type, shape, rows and kernel."""


@torch.inference_mode()
def measure(
    shapes: Mapping[Shape, int],
    dtypes: Sequence[torch.dtype],
    threads: Sequence[int],
    rows: Sequence[int] = ROWS,
    passes: int = 12,
) -> Times:
    """The minimum of interleaved repeats: other work on the machine only ever adds time. Kernels
    that cannot run here, and those that the time limit left out, are missing."""
    began = time.perf_counter()
    layers = [copies for dtype in dtypes for copies in _layers(shapes, dtype)]
    before = torch.get_num_threads()
    first: Times = {}
    later: Times = {}
    try:
        for turn in range(passes + 1):
            times = later if turn else first  # the first calls also set things up
            for threaded, count in itertools.product(threads, rows):
                torch.set_num_threads(threaded)
                for copies, (place, name) in itertools.product(layers, enumerate(KERNELS)):
                    if time.perf_counter() - began > (_SECONDS if turn > 2 else 2 * _SECONDS):
                        return {**first, **later}
                    layer = copies[(turn + place) % len(copies)]  # not the one just read: cold
                    if name in layer.prepared:
                        key = (threaded, layer.dtype, layer.shape, count, name)
                        times[key] = min(times.get(key, math.inf), layer.seconds(name, count))
    finally:
        torch.set_num_threads(before)
    return {**first, **later}


@dataclass(frozen=True)
class _Layer:
    """A layer of made-up weights that is measured in place of one of a model."""

    shape: Shape
    dtype: torch.dtype
    scale: float
    """Outputs of the model's layer over those of this one."""
    prepared: Mapping[Name, Tensor]

    def seconds(self, name: Name, rows: int) -> float:
        """What one product of so many rows takes in the model's layer."""
        x = torch.full((1, rows, self.shape[1]), 0.1, dtype=self.dtype)
        start = time.perf_counter()
        KERNELS[name].multiply(x, self.prepared[name], None)
        return (time.perf_counter() - start) * self.scale


def _layers(shapes: Mapping[Shape, int], dtype: torch.dtype) -> list[list[_Layer]]:
    """For each shape as many layers as the model has, up to the copies that are measured, with the
    kernels that compute them here."""
    total = sum(out * inputs * count for (out, inputs), count in shapes.items()) * dtype.itemsize
    found = []
    for shape, count in shapes.items():
        outputs = min(shape[0], max(1, _LARGEST // (shape[1] * dtype.itemsize)))
        weight = torch.randn(outputs, shape[1], generator=torch.Generator().manual_seed(0)).to(
            dtype
        )
        names = [
            name
            for name, kernel in KERNELS.items()
            if (total <= COPY_LIMIT or not kernel.copies) and _computes(kernel, weight)
        ]
        layers = []
        for _ in range(min(count, _COPIES)):
            own = weight.clone()
            prepared = {name: KERNELS[name].prepare(own) for name in names}
            layers.append(_Layer(shape, dtype, shape[0] / outputs, prepared))
        found.append(layers)
    return found


def _computes(kernel: Kernel, weight: Tensor) -> bool:
    """Whether this build of torch, on this CPU, has the kernel and computes the product with it."""
    x = weight[:3]
    expected = functional.linear(x, weight).float()
    tolerance = expected.abs().max() * max(1e-4, 4 * torch.finfo(weight.dtype).eps)
    try:
        found = kernel.multiply(x, kernel.prepare(weight), None).float()
    except (RuntimeError, AttributeError):
        return False
    return bool((found - expected).abs().max() <= tolerance)


def _cost(
    times: Times, shapes: Mapping[Shape, int], threads: int, dtype: torch.dtype, rows: int
) -> float:
    """Seconds of all products of a forward, each by its fastest kernel; infinite where one was not
    measured."""
    return sum(
        count * min(times.get((threads, dtype, shape, rows, name), math.inf) for name in KERNELS)
        for shape, count in shapes.items()
    )


def _mean(values: Iterable[float]) -> float:
    """The geometric mean; 1 of nothing."""
    found = list(values)
    return math.exp(sum(map(math.log, found)) / len(found)) if found else 1.0


def _threads_are_set() -> bool:
    """Whether a person chose the thread count: by the environment, or so that it is none of those
    that torch itself takes."""
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return True
    own = {os.cpu_count(), psutil.cpu_count(logical=False)}
    if hasattr(os, "sched_getaffinity"):
        own.add(len(os.sched_getaffinity(0)))
    return torch.get_num_threads() not in own


def _key(shapes: Mapping[Shape, int], dtype: torch.dtype | None) -> dict[str, Any]:
    """All that a measurement depends on. No dtype: float32 against bfloat16."""
    limits = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return {
        "cpu": cpu(),
        "instructions": [
            torch.backends.cpu.get_cpu_capability(),
            *(os.environ.get(name, "") for name in limits),
        ],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype or "both").removeprefix("torch."),
        "layers": {_text(shape): count for shape, count in sorted(shapes.items())},
    }


def _text(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"
