"""Files and folders that are whole or not there. Only this module renames things into place."""

from __future__ import annotations

import codecs
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings that they say."""
POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has not fetched."""
SCRATCH = ".*.tmp"
"""What is still being written, as a pattern; without a writer, a killed process left it behind."""


def encoding_of(content: bytes) -> str:
    """The encoding that a file's byte order mark says; without one, UTF-8."""
    return next((name for mark, name in ENCODINGS if content.startswith(mark)), "utf-8")


def is_file(place: Path) -> bool:
    """Whether there is such a file; also for a name that no file can have."""
    try:
        return place.is_file()
    except (OSError, ValueError):
        return False


def refuse_pointer(file: Path) -> None:
    """Raises ValueError for a file that git-lfs has not fetched."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{file}: a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
            )


def stamp(place: Path) -> list[tuple[str, int, int]]:
    """By what a changed file or folder is told from what it was: its files' names, sizes in bytes
    and times of writing; none where there is nothing."""
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found if is_file(file)
    ]


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes a second time. Of two fields of one name a reader loses one."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def read_text(content: bytes, source: str) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says. Raises ValueError naming
    `source` and the line for other bytes."""
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}:{line}: byte {content[error.start]:#04x} is no {encoding.upper()}; save the"
            " file as UTF-8"
        ) from None


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it there: it is whole or as it was before, and a
    failed write leaves nothing. Its folder is made where it is missing.

    Raises OSError naming the file.
    """
    with whole_file(file) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def join_whole(file: Path, parts: Iterable[Path]) -> None:
    """Write what some files hold, one after the other; whole, as `write_whole` does."""
    with whole_file(file) as scratch, scratch.open("wb") as stream:
        for part in parts:
            with part.open("rb") as read:
                shutil.copyfileobj(read, stream)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name beside a file's place, to write into; renamed there when the block ends well. A
    failure leaves the place as it was."""
    place = file.resolve()
    scratch = _scratch(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSONL; whole, as `write_whole` does."""
    write_whole(file, json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `folder`, renamed there when the block ends well; a failure leaves
    nothing. With `replace` a folder that is there gives way to it then, not before.

    Raises OSError if something is there when the block ends, and may not be replaced.
    """
    place = folder.resolve()
    scratch, old = _scratch(place), _scratch(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir()
    try:
        yield scratch
        if replace and place.exists():
            place.rename(old)
        try:
            scratch.rename(place)
        except OSError as error:
            if old.exists():
                old.rename(place)
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def drop_folder(folder: Path) -> None:
    """Remove a folder: for others it is there as a whole or not at all. Raises OSError where it
    cannot be."""
    scratch = _scratch(folder.resolve())
    folder.rename(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch(place: Path) -> Path:
    """A name beside a place that no other writer has, in this process or another."""
    return place.with_name(f".{place.name[:60]}-{uuid4().hex}.tmp")
