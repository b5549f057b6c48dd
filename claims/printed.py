"""What the claims' scripts share: how they are run (`[PART ...] [--limit N] [--report FILE]`, one figure per line), and where public data is."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from fader import Fader
from fader.engine.backbone import quick_dtype
from fader.evaluation.figures import Figure
from fader.evaluation.ledger import Ledger
from fader.evaluation.report import write_report
from fader.training.data import read_rows

Room = TypeVar("Room")


def print_figures(
    parts: Mapping[str, Callable[[Room], Iterator[Figure]]], room: Callable[[Ledger, int | None], Room], ledger: Path, arguments: list[str]
) -> None:
    """Measure the named parts (all by default) in a room on the built-in model, and print each figure as soon as it is there; with
    `--report FILE` draw them at the end."""
    given = {name: arguments[arguments.index(name) + 1] for name in ("--report", "--limit") if name in arguments}
    names = [word for word in arguments if not word.startswith("--") and word not in given.values()]
    if unknown := [name for name in names if name not in parts]:
        raise SystemExit(f"PART: no part {unknown[0]!r}; known: {', '.join(parts)}")
    figures = []
    with Fader(dtype=quick_dtype()) as fader:
        where = room(Ledger(fader, ledger), int(given["--limit"]) if "--limit" in given else None)
        for name in names or parts:
            start = time.perf_counter()
            for figure in parts[name](where):
                figures.append(figure)
                sys.stdout.write(json.dumps(asdict(figure)) + "\n")
                sys.stdout.flush()
            sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
    if "--report" in given:
        write_report(figures, Path(given["--report"]))


def public_rows(name: str) -> list[dict[str, Any]]:
    """The records of a file in the folder with public data that FADER_DATA names; none, and a word about it, where it is not there."""
    file = Path(os.environ.get("FADER_DATA", "")) / name
    if "FADER_DATA" in os.environ and file.is_file():
        return [row for _, row in read_rows(file)]
    sys.stderr.write(f"{name}: not in the folder that FADER_DATA names\n")
    return []
