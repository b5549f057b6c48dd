"""`ResultCache`: what a model answered to every query of an evaluation, one JSON line each with the
full request.

A query whose line is there already is not measured again. So a stopped run goes on where it was,
and a second task that asks the same costs nothing. Lines are found by their content: request,
answer, model (its weights, settings, tokenizer and chat template), and the numbers inside each
vector that the request names.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from fader.answer import Likelihood, Result
from fader.fader import Fader
from fader.files import write_whole
from fader.request import Request, named

FORMAT = 1
"""Raise it by hand when a change of the code changes what is measured: lines of another format are
measured again."""
TOGETHER = 96  # measurements that a process is asked at once; a stopped run loses at most these


@dataclass(frozen=True)
class Query:
    """What is to be measured: an item of a task under a method. With an `answer`, its likelihood;
    without one, the model writes an answer."""

    task: str
    method: str
    case: str
    item: str
    request: Request
    answer: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The result of a query: the log-probability per token of a given answer, or the answer that
    the model wrote; and what that cost."""

    text: str
    mean: float
    tokens: int
    prompt_tokens: int
    seconds: float
    finish: str = ""
    rows: int = 0
    """Rows read for it, summed over forward passes."""
    reward: float | None = None
    """The reward of the answer, where the request has a search."""


class Workers(Protocol):
    """Processes that measure side by side, each with the model."""

    count: int

    def each(
        self, batches: Sequence[Sequence[Query]]
    ) -> Iterable[tuple[int, Sequence[Measurement]]]:
        """The measurements of each batch, with its place, in any order (see `measure`)."""


class ResultCache:
    """Asks a model and remembers. `file`: where the lines are kept; None keeps them in memory
    alone. `workers`: who measures; None: the model in this process."""

    def __init__(
        self,
        fader: Fader,
        file: Path | None = None,
        quiet: bool = False,
        workers: Workers | None = None,
    ) -> None:
        self.fader, self.file, self.quiet, self.workers = fader, file, quiet, workers
        self._known: dict[str, Measurement] = {}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(
                f"{file}.lock"
            )  # held while lines are read or added: several processes may share a file
            with self._lock:
                self._known = _lines(file)

    def ask(self, asked: Sequence[Query]) -> list[Measurement]:
        """The measurement of each query, in order. Those that are not known are made in batches,
        and each batch is written down before the next."""
        keys = [self._key(one) for one in asked]
        missing = list(
            {
                key: one for key, one in zip(keys, asked, strict=True) if key not in self._known
            }.items()
        )
        if missing:
            bar = Progress(
                *Progress.get_default_columns()[:2],
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            bar.disable = self.quiet
            with bar:
                task = bar.add_task(asked[0].task, total=len(missing))
                count = self.workers.count if self.workers else 1
                size = min(TOGETHER, math.ceil(len(missing) / count))
                batches = [missing[at : at + size] for at in range(0, len(missing), size)]
                for place, said in self._measured([[one for _, one in b] for b in batches]):
                    self._write(batches[place], said)
                    bar.advance(task, len(said))
        return [self._known[key] for key in keys]

    def _measured(
        self, batches: Sequence[Sequence[Query]]
    ) -> Iterable[tuple[int, Sequence[Measurement]]]:
        """The measurements of each batch, with its place."""
        if self.workers is not None:
            return self.workers.each(batches)
        return enumerate(measure(self.fader, batch) for batch in batches)

    def _write(self, batch: Sequence[tuple[str, Query]], said: Sequence[Measurement]) -> None:
        self._known.update((key, one) for (key, _), one in zip(batch, said, strict=True))
        if self.file is None:
            return
        rows = [
            {
                **{name: getattr(one, name) for name in ("task", "method", "case", "item")},
                "request": one.request.model_dump(mode="json", exclude_defaults=True),
                "said": vars(answer),
                "key": key,
            }
            for (key, one), answer in zip(batch, said, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._lock, self.file.open("a+b") as stream:
            stream.truncate(_whole_lines(stream))  # another process may have ended in the midst
            stream.write(lines.encode("utf-8"))

    def _key(self, asked: Query) -> str:
        request = asked.request.model_dump(mode="json")
        models = {asked.request.model or self.fader.model, *named(request, "model")}
        vectors = {
            vector: self.fader.vector(vector).digest
            for vector in sorted(set(named(request, "vectors")))
        }
        content = [
            FORMAT,
            request,
            asked.answer,
            {
                name: self.fader.backend.identity(name)
                for name in sorted(models & {*self.fader.backend.models})
            },
            vectors,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def measure(fader: Fader, asked: Sequence[Query]) -> list[Measurement]:
    """What the model answers to each query, all of them together."""
    given = [(one.request, one.answer) for one in asked if one.answer is not None]
    likelihoods = iter(zip(given, fader.score_batch(given), strict=True))
    results = iter(fader.batch([one.request for one in asked if one.answer is None]))
    return [
        _written(next(results)) if one.answer is None else _read(*next(likelihoods))
        for one in asked
    ]


def _whole_lines(stream: BinaryIO) -> int:
    """The bytes of a file up to the end of its last whole line."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        stream.seek(start)
        if (place := stream.read(end - start).rfind(b"\n")) >= 0:
            return start + place + 1
        end = start
    return 0


def _read(given: tuple[Request, str], likelihood: Likelihood) -> Measurement:
    return Measurement(given[1], likelihood.mean, len(likelihood.tokens), 0, 0.0)


def _written(result: Result) -> Measurement:
    answer, usage = result.answers[0], result.usage
    reward = answer.search.reward if answer.search else None
    return Measurement(
        answer.text,
        0.0,
        len(answer.token_ids),
        result.prompt_tokens,
        round(usage.seconds, 6),
        answer.finish_reason,
        usage.rows,
        reward,
    )


def _lines(file: Path) -> dict[str, Measurement]:
    """The measurements in a file. A last line that a killed process left unfinished is cut off.

    Raises ValueError for a file of another kind, and leaves it as it is.
    """
    if not file.is_file():
        return {}
    *lines, rest = file.read_bytes().split(b"\n")
    found = {}
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found[row["key"]] = Measurement(**row["said"])
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}:{place}: not a line of an evaluation's cache ({error}); give another"
                " --out, or delete it"
            ) from None
    if rest and not (lines or rest.startswith(b'{"task": ')):
        raise ValueError(f"{file}: not an evaluation's cache; give another --out, or delete it")
    if rest:
        write_whole(file, b"".join(line + b"\n" for line in lines))
    return found
