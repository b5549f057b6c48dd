"""`Running`, what the engine gives for a program that it has accepted: its result to come, its cost
so far, and a way to end it early."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from fader.answer import Usage

T = TypeVar("T")


class Cancelled(Exception):
    """The job was cancelled before it ended."""


class Busy(RuntimeError):
    """The greatest number of jobs waits already; nothing was queued. Try again later."""


class Lost(RuntimeError):
    """What ran the job is gone, and nothing else could go on with it. Ask again."""


class Running(Future[T]):
    """The result of a job that waits or runs. `usage` is what it has cost so far, and in the end
    what it cost."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__()
        self.usage = Usage()
        self._stop = stop
        self.set_running_or_notify_cancel()  # so that only the one who runs it ends it

    def cancel(self) -> bool:
        """Ask for an early end: the job's memory returns at the next step, and `result` raises
        `Cancelled` (`cancelled` stays False: the end is an error like others). From any thread;
        False, and nothing happens, if the job is done."""
        if self.done():
            return False
        self._stop()
        return True
