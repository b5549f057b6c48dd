"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, text: str, folder: Path) -> None:
    """Write a file in `folder` (on the same disk), then rename it into its place: it is whole or
    not there, and a failed write leaves nothing."""
    scratch = folder / f"{file.name}.tmp"
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        scratch.unlink(missing_ok=True)
