"""What the claims' scripts share: how they are run (`[PART ...] [--limit N] [--report FILE]
[--json]`, one figure per line), and where public data is."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fader import Fader
from fader.data.records import read_rows
from fader.engine.backbone import quick_dtype
from fader.evaluation.cache import ResultCache
from fader.evaluation.metrics import Metric
from fader.evaluation.report import write_report
from fader.evaluation.suite import Suite


def print_metrics(
    parts: Mapping[str, Callable[[Suite], Iterator[Metric]]], cache: Path, arguments: list[str]
) -> None:
    """Measure the named parts (all by default) on the built-in model, and print each
    figure as soon as it is there; with `--report FILE` draw them at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument(
        "--limit", type=int, help="at most this many items of each kind; for a quick look"
    )
    parser.add_argument("--report", type=Path, help="HTML file to write")
    parser.add_argument("--json", action="store_true", help="lines of JSON on a terminal too")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.parts if name not in parts]:
        parser.error(f"PART: no part {unknown[0]!r}; known: {', '.join(parts)}")
    figures = []
    with Fader(dtype=quick_dtype()) as fader:
        where = Suite(ResultCache(fader, cache), limit=given.limit)
        for name in given.parts or parts:
            start = time.perf_counter()
            for figure in parts[name](where):
                figures.append(figure)
                readable = sys.stdout.isatty() and not given.json
                sys.stdout.write(f"{_line(figure) if readable else json.dumps(asdict(figure))}\n")
                sys.stdout.flush()
            sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
    if given.report:
        write_report(figures, given.report)


def _line(figure: Metric) -> str:
    """A figure as a person reads it."""
    return "{task} {method} {case} {metric}: {value:.3f} ({low:.3f} to {high:.3f}, n = {n})".format(
        **asdict(figure)
    )


def public_rows(name: str) -> list[dict[str, Any]]:
    """The records of a file in the folder with public data that FADER_DATA names; none, and a word
    about it, where it is not there."""
    file = Path(os.environ.get("FADER_DATA", "")) / name
    if "FADER_DATA" in os.environ and file.is_file():
        return [row for _, row in read_rows(file)]
    sys.stderr.write(f"{name}: not in the folder that FADER_DATA names\n")
    return []
