"""Files and folders are whole or not there, whoever writes and whatever fails."""

import ast
import os
import stat
import threading
from pathlib import Path

import pytest

from fader.files import SCRATCH, whole_folder, write_whole

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_file_is_written_with_its_folder_as_text_or_bytes(tmp_path):
    write_whole(tmp_path / "new" / "a", "grün\n")
    write_whole(tmp_path / "new" / "b", b"\xff\r\n")
    assert (tmp_path / "new" / "a").read_bytes() == "grün\n".encode()
    assert (tmp_path / "new" / "b").read_bytes() == b"\xff\r\n"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(os.stat(tmp_path / "new" / "a").st_mode) == stat.S_IMODE(
        os.stat(plain).st_mode
    )


def test_a_write_that_fails_leaves_what_there_was(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'a'}'"):
            write_whole(tmp_path / "a", "new")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "\ud83d")
    with pytest.raises(OSError, match="a/b"):
        write_whole(tmp_path / "a" / "b", "new")
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "other").symlink_to(tmp_path / "real" / "vector")
    write_whole(tmp_path / "link", "new")
    (tmp_path / "real" / "vector").mkdir()
    with whole_folder(tmp_path / "other", replace=True) as scratch:
        (scratch / "b").write_text("new")
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert (tmp_path / "other" / "b").read_text() == "new"
    assert (names(tmp_path), names(tmp_path / "real")) == (
        ["link", "other", "real"],
        ["a", "vector"],
    )


def test_writers_of_one_file_never_mix(tmp_path):
    contents = [letter * 2_000_000 for letter in "abcd"]
    threads = [
        threading.Thread(target=write_whole, args=(tmp_path / "a", content))
        for content in contents * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in contents
    assert names(tmp_path) == ["a"]


def test_a_folder_is_there_when_the_block_has_ended_well(tmp_path):
    place = tmp_path / "new" / "vector"
    with whole_folder(place) as scratch:
        (scratch / "a").write_text("old")
        assert not place.exists()
        assert scratch.match(SCRATCH)
    with pytest.raises(OSError, match=f"'{place}'"), whole_folder(place) as scratch:
        (scratch / "a").write_text("other")
    with pytest.raises(UnicodeEncodeError), whole_folder(place, replace=True) as scratch:
        (scratch / "a").write_text("half \ud83d", encoding="utf-8")
    assert (place / "a").read_text() == "old"
    with whole_folder(place, replace=True) as scratch:
        (scratch / "b").write_text("new")
    assert names(place) == ["b"]
    assert names(place.parent) == ["vector"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "a") as scratch:
        (scratch / "old").touch()
    real, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(target)
        return full() if len(calls) == 2 else real(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "a", replace=True):
        pass
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["old"])


RENAMES = {
    "import os\nos.replace(a, b)": True,
    "import os\nos.rename(a, b)": True,
    "a.replace(b)": True,
    "a.rename(b)": True,
    "import shutil\nshutil.move(a, b)": True,
    "a.replace('x', 'y')": False,
    "replace(a, b=1)": False,
    "a.rename_columns(b)": False,
}


def renames(source: str) -> list[int]:
    """The lines on which something is renamed into place."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and (
            call.func.attr in ("rename", "renames")
            or (call.func.attr == "replace" and len(call.args) == 1 and not call.keywords)
            or (
                call.func.attr in ("replace", "move")
                and getattr(call.func.value, "id", "") in ("os", "shutil")
            )
        )
    ]


@pytest.mark.parametrize("source", RENAMES)
def test_what_counts_as_renaming(source):
    assert bool(renames(source)) == RENAMES[source]


def test_only_one_module_renames_into_place():
    folders = ("fader", "recipes", "reproductions", "benchmarks", "examples")
    found = {
        str(file.relative_to(ROOT))
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        if renames(file.read_text(encoding="utf-8"))
    }
    assert found == {"fader/files.py"}
