"""The same benchmark in two checkouts, side by side: our side of each case, one round here and one
there in turns, in two processes that stay alive.

    python -m benchmarks.against OTHER_CHECKOUT decode --case batch-1 --rounds 9

Prints a row for each case: `ours` is this checkout's speed, `theirs` the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKER = """
import importlib, json, sys, time

name, only = sys.argv[1], sys.argv[2]
bench = importlib.import_module(f"benchmarks.{name}")
replies, sys.stdout = sys.stdout, sys.stderr

def reply(**row):
    replies.write(json.dumps(row) + "\\n")
    replies.flush()

def compare(name, case, ours, *_, **__):
    if only and case != only:
        return {}
    ours()
    reply(case=case)
    for line in sys.stdin:
        if line == "next\\n":
            break
        start = time.perf_counter()
        work = ours()
        reply(speed=work / (time.perf_counter() - start))
    return {}

bench.compare = compare
for _ in bench.run():
    pass
reply(case=None)
"""
"""Runs in either checkout, in an older one too: waits before each round to be told to go."""


class Worker:
    """One checkout's process."""

    def __init__(self, checkout: Path, name: str, case: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name, case],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.__exit__(None, None, None)

    def reply(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the benchmark ended with status {self._process.wait()}")
        row: dict[str, Any] = json.loads(line)
        return row

    def say(self, word: str) -> None:
        """`go` for a round, `next` for the next case."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()


def run(other: Path, name: str, case: str | None, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each case that both checkouts have."""
    with (
        Worker(Path.cwd(), name, case or "") as here,
        Worker(other.resolve(), name, case or "") as there,
    ):
        while (found := here.reply()["case"]) == there.reply()["case"]:
            if found is None:
                return
            speeds: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for worker, measured in zip((here, there), speeds, strict=True):
                    worker.say("go")
                    measured.append(worker.reply()["speed"])
            here.say("next")
            there.say("next")
            ours, theirs = map(statistics.median, speeds)
            ratios = [a / b for a, b in zip(*speeds, strict=True)]
            yield {
                "name": name,
                "case": found,
                "ratio": round(ours / theirs, 3),
                "ours": round(ours, 3),
                "theirs": round(theirs, 3),
                "n": rounds,
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
            }
        raise ValueError(f"{name}: the checkouts measure other cases; name one with --case")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the folder of another checkout")
    parser.add_argument("name", help="decode, guide, pad, vectors or deal")
    parser.add_argument("--case")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    for row in run(given.other, given.name, given.case, given.rounds):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
