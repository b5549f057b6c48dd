"""Files of many requests, answered a shard at a time, so that a stopped run goes on where it was.

A shard is some lines that follow each other. Its answers are kept in a hidden folder beside the
output as one file, whole or not there, under a hash of all that they depend on: the lines, the
model, the vectors. When all are there, they are joined in the order of the lines. So each line has
one answer, whatever was killed meanwhile, and a line that is mended has only its shard made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fader.backends import Backend
from fader.files import SCRATCH, join_whole, write_whole
from fader.request import Request
from fader.schema import Faults, within

SIZE = 64
"""Requests of a shard: as many as are answered together, and lost when they are stopped."""


@dataclass(frozen=True)
class Shard:
    """Some requests, each with the place that faults name it by, such as `big.jsonl:17`."""

    key: str
    """A hash of all that the answers depend on."""
    places: tuple[str, ...]
    requests: tuple[str, ...]
    """Each as JSON."""


Answering = Callable[[Sequence[Shard]], Iterable[tuple[str, Sequence[str]]]]
"""Answers shards: for each its key and a line of JSON for each request, in any order of shards."""


def shards(
    requests: Iterable[tuple[str, str]], depends: Mapping[str, Any], size: int = SIZE
) -> Iterator[Shard]:
    """Requests as JSON, each with its place, cut into shards. `depends`: what the answers depend on
    besides the requests, as JSON values."""
    said = json.dumps(depends, sort_keys=True)
    some: list[tuple[str, str]] = []

    def cut() -> Shard:
        places, texts = zip(*some, strict=True)
        # its first place too: two shards with the same requests are still two
        key = hashlib.sha256("\n".join([said, places[0], *texts]).encode()).hexdigest()[:32]
        some.clear()
        return Shard(key, places, texts)

    for place, request in requests:
        some.append((place, request))
        if len(some) == size:
            yield cut()
    if some:
        yield cut()


def answers(backend: Backend, shard: Shard) -> list[str]:
    """A line of JSON for each request of a shard, all answered together. Raises `Invalid` naming
    the place of a request that cannot be answered."""
    asked = [Request.model_validate_json(text) for text in shard.requests]
    for place, request in zip(shard.places, asked, strict=True):
        with within(place):
            Faults(found=backend.check(request)).raise_any()
    running = backend.submit_all(asked)
    lines = []
    try:
        for place, one in zip(shard.places, running, strict=True):
            with within(place):
                lines.append(json.dumps(one.result().as_dict(), ensure_ascii=False))
    finally:
        for one in running[len(lines) :]:
            one.cancel()
    return lines


def one_by_one(make: Callable[[], Backend]) -> Answering:
    """Answers shards by one backend in this process, one after the other."""

    def answering(some: Sequence[Shard]) -> Iterator[tuple[str, list[str]]]:
        if not some:
            return
        backend = make()
        try:
            for shard in some:
                yield shard.key, answers(backend, shard)
        finally:
            backend.close()

    return answering


@dataclass(frozen=True)
class Output:
    """Where the answers go."""

    file: Path

    @property
    def part(self) -> Path:
        """The hidden folder with the answers so far."""
        return self.file.with_name(f".{self.file.name}.part")

    def has(self, shard: Shard) -> bool:
        """Whether a shard has been answered."""
        return self._of(shard).is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it is made. Raises ValueError for a file that is there, and where another run makes
        it."""
        if self.file.exists():
            raise ValueError(f"--out: {self.file} exists; choose another file, or remove it")
        self.part.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.part / "lock", timeout=0):
                for scratch in self.part.glob(SCRATCH):
                    scratch.unlink()
                yield
        except Timeout:
            raise ValueError(
                f"--out: another run is writing into {self.part}; wait for it, or choose another"
                " file"
            ) from None

    def write(
        self, all_of_them: Sequence[Shard], answering: Answering, tell: Callable[[int], None]
    ) -> None:
        """Answer the shards that are not answered yet, and join them. `tell` is told how many lines
        more are done, those of earlier runs first."""
        left = {shard.key: shard for shard in all_of_them if not self.has(shard)}
        count = {shard.key: len(shard.requests) for shard in all_of_them}
        tell(sum(count.values()) - sum(count[key] for key in left))
        for key, lines in answering(list(left.values())):
            assert len(lines) == count[key], f"{len(lines)} answers to {count[key]} requests"
            shard = left.pop(key)
            write_whole(self._of(shard), "".join(f"{line}\n" for line in lines))
            tell(len(lines))
        assert not left, f"{len(left)} shards without answers"
        join_whole(self.file, [self._of(shard) for shard in all_of_them])
        for shard in all_of_them:
            self._of(shard).unlink()

    def _of(self, shard: Shard) -> Path:
        return self.part / f"{shard.key}.jsonl"
