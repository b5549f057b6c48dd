"""Only the engine's thread keeps a pool of OpenMP workers: what else computes ends with its
thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import random_vectors

from fader import Fader, load
from fader.engine import identity, loading
from fader.engine.apart import apart
from fader.vectors import vector
from fader.vectors.vector import Vector


def test_it_runs_in_a_thread_that_ends() -> None:
    ran = []

    @apart
    def work(one: int, *, two: int) -> int:
        ran.append(threading.current_thread())
        return one + two

    assert work(1, two=2) == 3
    ran[0].join(5)
    assert not ran[0].is_alive()
    assert ran[0] is not threading.current_thread()


def test_its_error_is_the_callers() -> None:
    @apart
    def work() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        work()


def test_what_a_request_needs_is_not_computed_by_its_thread(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for module, name in (
        (loading, "read"),
        (identity, "fingerprint"),
        (vector, "read_folder"),
    ):
        real = getattr(module, name)

        def noted(*given: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            found[name] = threading.current_thread()
            return real(*given, **more)

        monkeypatch.setattr(module, name, noted)
    backbone = load(str(tiny_folder))
    with Fader(backbone) as fader:
        assert "fingerprint" not in found  # nobody asked who it is
        [folder] = random_vectors(fader, tmp_path, ["one"]).values()
        Vector.load(folder)
        fader.backend.identity(fader.model)
    assert found.keys() == {"read", "fingerprint", "read_folder"}
    assert threading.current_thread() not in found.values()
