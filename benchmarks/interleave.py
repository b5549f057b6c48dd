"""The way every benchmark measures: two sides in turns, medians, one row per case. Both run in one
process, or in one each (`Apart`). Where the same prompts come again in each round, they are read
anew (`Fader(share_prompts=False)`)."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from fader import Fader, Vector

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
"""Where, and in which type, the sides that are not ours run: as ours does (`engine/loading.py`)."""
Side = Callable[[], float]
"""Runs once and returns how much work it did (tokens, say)."""
RANK = 8
"""Of `random_vector`, on the layers `ADAPTED`."""
ADAPTED = ("q_proj", "v_proj", "o_proj", "down_proj")


def random_vector(name: str, fader: Fader, seed: int) -> Vector:
    """A vector of small random factors on the layers that training adapts."""
    noise = torch.Generator().manual_seed(seed)
    factors = {
        module: (
            torch.randn(RANK, inner, generator=noise) * 0.02,
            torch.randn(out, RANK, generator=noise) * 0.02,
        )
        for module, (out, inner) in fader.backend.backbones[fader.model].layers.items()
        if module.endswith(ADAPTED)
    }
    return Vector(name, factors)


def compare(
    name: str,
    case: str,
    ours: Side,
    theirs: Side,
    target: float | None,
    rounds: int = 5,
    unit: str = "tokens/s",
) -> dict[str, Any]:
    """Both sides in turns, after one round that does not count. The row's ratio is our speed over
    theirs; `target` is what it should be at least, if anything was promised."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, found in zip((ours, theirs), speeds, strict=True):
            start = time.perf_counter()
            work = side()
            if turn:
                found.append(work / (time.perf_counter() - start))
    return row(name, case, *speeds, target, unit)


class Apart(ProcessPoolExecutor):
    """A process of its own for what one side computes with: `start(*about)` makes there what
    `turn` then calls. Two libraries that compute in one process slow each other down, since their
    pools of workers are more than the cores."""

    def __init__(self, start: Callable[..., Callable[..., Any]], *about: Any) -> None:
        super().__init__(1, get_context("spawn"), _start, (start, *about))

    def turn(self, *asked: Any) -> Any:
        """What that gives, called with `asked`."""
        return self.submit(_turn, *asked).result()


_started: list[Callable[..., Any]] = []
"""What this process computes with, where it is one side's own."""


def _start(start: Callable[..., Callable[..., Any]], *about: Any) -> None:
    _started.append(start(*about))


def _turn(*asked: Any) -> Any:
    return _started[0](*asked)


def row(
    name: str,
    case: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    target: float | None,
    unit: str = "tokens/s",
) -> dict[str, Any]:
    """The row of a case from what the two sides measured in each round: speeds, or times or
    sizes where the unit is "ms" or "MiB"."""
    our, their = statistics.median(ours), statistics.median(theirs)
    pairs = [(our, their), *zip(ours, theirs, strict=True)]
    ratio, *ratios = (b / a if unit in ("ms", "MiB") else a / b for a, b in pairs)
    found = {
        "name": name,
        "case": case,
        "ratio": round(ratio, 3),
        "ours": round(our, 3),
        "theirs": round(their, 3),
        "unit": unit,
        "n": len(ours),
    }
    spread = {"low": round(min(ratios), 3), "high": round(max(ratios), 3)}
    return {**found, **spread, "target": target}


def chosen(case: str | None, targets: Mapping[str, float | None]) -> dict[str, float | None]:
    """The cases that are to run, with their targets: the named one, or all. Raises ValueError for
    a name that is none of them."""
    if case is None:
        return dict(targets)
    if case not in targets:
        raise ValueError(f"--case: no case {case!r}; known: {', '.join(targets)}")
    return {case: targets[case]}


def main(run: Callable[..., Iterable[dict[str, Any]]]) -> None:
    """Print each row as a line of JSON as soon as it is measured. The argument `--case CASE` runs
    only that one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case")
    for row in run(case=parser.parse_args().case):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


TOPICS = (
    "a lighthouse keeper",
    "the invention of paper",
    "a walk in the mountains",
    "how rivers shape the land",
    "a village market",
    "the life of a honey bee",
    "an old sailing ship",
    "building a wooden house",
    "a city at night",
    "the first snow of winter",
    "a train across the desert",
    "how glass is made",
    "a family of foxes",
    "the history of maps",
    "a garden in spring",
    "a deep sea dive",
)


def prompts(count: int) -> list[str]:
    """Prompts that are answered at length."""
    return [
        f"Write a long and detailed story about {TOPICS[i % len(TOPICS)]}." for i in range(count)
    ]


def text(encode: Callable[[str], Sequence[int]], begins: str, length: int) -> str:
    """A text of about `length` tokens that begins as is said; `encode` gives a text's tokens."""
    found, place = begins, 0
    while len(encode(found)) < length:
        found += f" Then there was {TOPICS[place % len(TOPICS)]}."
        place += 1
    return found
