"""What was measured on this machine and kept: when other processes disturb it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from fader.engine import measured


class Times(NamedTuple):
    """Seconds that all CPUs spent."""

    user: float
    system: float
    idle: float
    iowait: float = 0.0


@pytest.mark.parametrize(
    ("after", "own", "busy"),
    [
        (Times(0.0, 0.0, 10.0), 0.0, False),
        (Times(5.0, 0.0, 5.0), 5.0, False),  # threads of this process that still spin
        (Times(5.0, 1.0, 4.0), 5.0, False),
        (Times(5.0, 0.0, 5.0), 1.0, True),
        (Times(1.0, 3.0, 1.0, 5.0), 1.0, True),
        (Times(0.0, 1.0, 1.0, 8.0), 0.0, False),  # what waits for a disk does not compute
    ],
)
def test_only_other_processes_disturb(
    monkeypatch: pytest.MonkeyPatch, after: Times, own: float, busy: bool
) -> None:
    system = iter([Times(0.0, 0.0, 0.0), after])
    process = iter([0.0, own])
    monkeypatch.setattr(measured, "_WATCHED", 0.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(system))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=_of(process)))
    assert measured.is_busy() is busy


def _of(process: Iterator[float]) -> object:
    return lambda: SimpleNamespace(user=next(process), system=0.0)
