"""How the claims' scripts talk: `[PART ...] [--limit N] [--report FILE]`, one figure per line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from fader.evaluation.figures import Figure
from fader.evaluation.report import write_report


def print_figures(parts: Collection[str], run: Callable[[Sequence[str], int | None], Iterator[Figure]], arguments: list[str]) -> None:
    """Print each figure as soon as it is there; with `--report FILE` draw them at the end."""
    given = {name: arguments[arguments.index(name) + 1] for name in ("--report", "--limit") if name in arguments}
    names = [word for word in arguments if not word.startswith("--") and word not in given.values()]
    if unknown := [name for name in names if name not in parts]:
        raise SystemExit(f"PART: no part {unknown[0]!r}; known: {', '.join(parts)}")
    figures = []
    for figure in run(names, int(given["--limit"]) if "--limit" in given else None):
        figures.append(figure)
        sys.stdout.write(json.dumps(asdict(figure)) + "\n")
        sys.stdout.flush()
    if "--report" in given:
        write_report(figures, Path(given["--report"]))
