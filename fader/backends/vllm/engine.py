"""The engine whose rows vLLM reads: the same programs, answered from vLLM's forward passes.

What a program asks to be read is a row of vLLM. When its logits are there, the program goes on
within the same pass; if it asks for the same text and one token more, the row goes on with that
token, as in vLLM's own decoding. Else the row ends, and what is asked next is a new row, which
vLLM's memory of prefixes makes cheap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fader.backends.vllm.adapters import Adapter, Mixture
from fader.backends.vllm.model import Room, ServedModel
from fader.engine.loop import Engine, Needs, _is_token, _Job, _not_finite, _Row

T = TypeVar("T")


class Reader(Protocol):
    """What the engine needs of vLLM (see `plugin.Runner`)."""

    rows: int
    positions: int
    max_length: int
    places: int
    """Adapters that it has in place at the same time."""
    modules: Collection[str]
    """The last parts of the names of the layers that adapters can change."""

    def native(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[list[int]]:
        """What vLLM itself writes after each of these prompts, greedily; for comparison."""

    def add(self, row: int, tokens: Sequence[int], adapter: Adapter | None, end: int) -> None:
        """Begin a row with these tokens; it ends when it is given the token `end`."""

    def step(self) -> list[int]:
        """One forward pass; the rows that have ended."""

    def end(self, rows: Sequence[int]) -> None:
        """End rows between two passes."""

    @property
    def used(self) -> float:
        """The share of the memory that rows take."""

    @property
    def pushed_out(self) -> int:
        """How many times a row had to make room, and was read again later."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(eq=False)
class _Ride:
    """A row of vLLM, and what is asked of it."""

    row: _Row
    prompt: int
    """Tokens that it began with."""
    length: int
    """Tokens that it has, with those that were decided."""
    adapter: Adapter | None
    """Which vLLM may read from its folder at any pass."""


class VLLMEngine(Engine):
    """Runs programs on one model that vLLM holds.

    `make`: makes the reader, in the engine's thread. `adapter`: the adapter of a mixture.
    """

    def __init__(
        self,
        model: ServedModel,
        make: Callable[[VLLMEngine], Reader],
        adapter: Callable[[Mixture], Adapter | None],
        max_waiting: int | None = None,
    ) -> None:
        super().__init__({model.name: model}, max_waiting=max_waiting, share_prompts=False)
        self.model = model
        self.gangs: dict[int, Hashable] = {}
        """The gang of each row of vLLM that has one, as of the next pass."""
        self._adapter = adapter
        self._rides: dict[int, _Ride] = {}
        self._read_by: dict[_Row, int] = {}
        self._begun = 0
        self._end_token = model.vocabulary - 1  # any would do; one that is hardly ever written
        self.broken: BaseException | None = None
        try:
            self.reader = self.call(lambda: make(self))
        except BaseException:
            super().close()
            raise
        model.max_length = min(model.max_length, self.reader.max_length)
        model.memory = Room(self.reader.positions)

    def close(self) -> None:
        """Cancel what runs, stop the thread and let go of the model."""
        super().close()
        self.reader.close()

    def call(self, action: Callable[[], T]) -> T:
        """What `action` gives, called in the engine's thread between two passes."""
        made: Future[T] = Future()

        def act() -> None:
            try:
                with torch.inference_mode(False):
                    made.set_result(action())
            except BaseException as error:
                made.set_exception(error)

        self._send(act)
        return made.result()

    def check(self, needs: Needs) -> None:
        """Raises `Invalid` if a job of these needs could never run."""
        if fault := self.fault():
            raise RuntimeError(fault)
        super().check(needs)

    def fault(self) -> str:
        """What vLLM failed with, if it has: then no row can be read any more."""
        return "" if self.broken is None else f"vLLM has failed ({self.broken!r}); start anew"

    def _fits(self, job: _Job) -> bool:
        """Whether a job may start: while there are places for its rows beside those of others. One
        alone may have more rows than places, which then take turns."""
        rows = sum(rows for other in (*self._live, job) for rows, _ in other.needs.values())
        return not self._live or rows <= self.reader.rows

    # One forward pass

    def _forward(self, name: str) -> bool:
        """One forward pass of vLLM, with all that programs ask for."""
        if fault := self.fault():
            self._end_all(RuntimeError(fault))
            return False
        gone = [number for number, ride in self._rides.items() if not ride.row.jobs]
        if gone:
            self.reader.end(gone)
            for number in gone:
                self._read_by.pop(self._rides.pop(number).row, None)
        for row in list(self._rows[name].values()):
            if row.jobs and row not in self._read_by:
                self._begin(row)
        if not self._rides:
            return False
        self._note_gangs()
        try:
            with torch.inference_mode(False):
                ended = self.reader.step()
        except BaseException as error:
            self.broken = error
            self._rides.clear()
            self._read_by.clear()
            raise
        for number in ended:
            ride = self._rides.pop(number)
            if self._read_by.get(ride.row) == number:  # what is left of it is a new row
                del self._read_by[ride.row]
        self.model.memory.used = int(self.reader.used * self.reader.positions)
        return True

    def _begin(self, row: _Row) -> None:
        """Let vLLM read a row, up to the first position whose logits are asked for."""
        tokens = row.text[: row.start + 1 + len(row.pieces)]
        vocabulary = self.model.vocabulary
        if wrong := [token for token in row.text if not _is_token(token, vocabulary)]:
            error = ValueError(
                f"messages: token {wrong[0]!r} is none of the {vocabulary} that {self.model.name}"
                " reads; take the tokenizer that belongs to the model"
            )
            return self._end_row(row, error)
        self._begun += 1
        try:
            adapter = self._adapter(row.policy.vectors)  # type: ignore[arg-type]
            self.reader.add(self._begun, tokens, adapter, self._end_token)
        except Exception as error:
            logging.getLogger("fader").exception("a row could not begin")
            return self._end_row(row, error.with_traceback(None))
        self._rides[self._begun] = _Ride(row, len(tokens), len(tokens), adapter)
        self._read_by[row] = self._begun
        return None

    def _note_gangs(self) -> None:
        """Rows that one job waits for are a gang."""
        members: dict[_Job, list[int]] = {}
        for number, ride in self._rides.items():
            if ride.row.jobs:  # its job may just have ended, where another row could not begin
                members.setdefault(ride.row.jobs[0], []).append(number)
        self.gangs.clear()
        for job, numbers in members.items():
            if len(numbers) > 1:
                self.gangs.update(dict.fromkeys(numbers, id(job)))

    def scheduled(self, tokens: Mapping[int, int], cached: Mapping[int, int]) -> None:
        """Count what a pass reads for each job."""
        rides = [(self._rides[number], count) for number, count in tokens.items()]
        self._meter.count(len(rides), sum(count for _, count in rides))
        passed: set[_Job] = set()
        for ride, count in rides:
            for job in dict.fromkeys(ride.row.jobs):
                job.usage.rows += 1
                job.usage.tokens_read += count
                passed.add(job)
        for job in passed:
            job.usage.forward_passes += 1
        for number, count in cached.items():
            row = self._rides[number].row
            if not row.prefix.length:
                self._meter.count_prompt(row.total, count)
                for job in dict.fromkeys(row.jobs):
                    job.usage.cached_tokens += count

    def decide(self, numbers: Sequence[int], written: Sequence[int], logits: Tensor) -> list[int]:
        """The next token of each of these rows of vLLM, which have written so many tokens, by their
        logits [rows, vocabulary]. Called in the midst of a pass, so it raises nothing."""
        tokens = [self._end_token] * len(numbers)  # which ends a row
        try:
            with torch.inference_mode():
                self._decide(numbers, written, logits.float(), tokens)
        except BaseException as error:
            logging.getLogger("fader").exception("the engine failed")
            self._end_all(RuntimeError(f"the engine failed: {error!r}"))
        for number in numbers:
            self._rides[number].length += 1
        return tokens

    def _decide(
        self, numbers: Sequence[int], written: Sequence[int], logits: Tensor, tokens: list[int]
    ) -> None:
        places = {number: place for place, number in enumerate(numbers)}
        finite = logits.amax(-1).isfinite().tolist()  # NaN wins a maximum
        whole: list[tuple[int, _Row]] = []
        for number, length, found, sound in zip(numbers, written, logits, finite, strict=True):
            ride = self._rides[number]
            row = ride.row
            if not row.jobs:
                continue
            if ride.prompt + length != ride.length:
                self._end_row(row, RuntimeError(f"vLLM read row {number} at another position"))
            elif not sound:
                self._end_row(row, _not_finite(row.policy))
            else:
                row.pieces.append(found[None, : self.model.vocabulary])
                if len(row.pieces) < row.keep - 1:
                    tokens[places[number]] = row.text[ride.length]
                else:
                    whole.append((number, row))
        queue = self._rows[self.model.name]
        ready: dict[_Job, None] = {}
        whole = [(number, row) for number, row in whole if row.jobs]  # some ended meanwhile
        for _, row in whole:
            del queue[row.policy, row.prefix, row.keep]
            del self._read_by[row]
            if row.keep > 1:  # those after the last token are not asked for
                row.pieces.append(row.pieces[-1])
            for put in row.waiting:
                put(torch.cat(row.pieces) if len(row.pieces) > 1 else row.pieces[0])
            ready.update(dict.fromkeys(row.jobs))
        for job in ready:
            self._resume_if_ready(job)
        going_on = {(row.policy, row.prefix): number for number, row in whole}
        for row in queue.values():
            if row in self._read_by or row.keep > 1 or len(row.prefix.tail) != 1:
                continue
            token, before = row.prefix.tail[0], (row.policy, row.prefix.parent)
            if before in going_on and _is_token(token, self.model.vocabulary):
                number = going_on.pop(before)
                self._rides[number].row = row
                self._read_by[row] = number
                tokens[places[number]] = token
