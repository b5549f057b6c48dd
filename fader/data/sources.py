"""Where records come from: JSONL, JSON, CSV, TSV and parquet files, each also as .gz, and data sets
in folders and on the hub.

Text is UTF-8, or whatever its byte order mark says. A file is read by what its name ends in; one
with another ending is taken for JSONL.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fader.files import encoding_of, refuse_pointer, repeated

KINDS = (
    "give a .jsonl, .json, .csv, .tsv or .parquet file (also .gz), a folder that `datasets` reads,"
    " or a data set's hub id"
)


@dataclass(frozen=True)
class Row:
    """A record and where it stands, such as `pairs.jsonl:3`; or what is wrong with it."""

    place: int
    """Its line; in files without lines of their own its number, from 1."""
    where: str
    fields: Mapping[str, Any] | None
    fault: str = ""

    @property
    def sound(self) -> Mapping[str, Any]:
        """Its fields. Raises ValueError with its fault where it holds no record."""
        if self.fields is None:
            raise ValueError(self.fault)
        return self.fields


def rows(source: Path | str) -> Iterator[Row]:
    """The records of a file or data set. A line that holds no record comes with its fault.

    A data set's split stands behind a colon (`owner/name:train_prefs`); without it all splits are
    read and marked in `split`. Raises ValueError for a source that cannot be read at all.
    """
    if not str(source).strip():
        raise ValueError(f"data: its name is empty; {KINDS}")
    path = Path(source)
    if not path.is_file():
        return _data_set(str(source))
    data = _content(path)
    kind = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    if kind.lower() == ".parquet":
        return _numbered(_parquet(data, path), path)
    if kind.lower() in (".csv", ".tsv"):
        return _table(_decoded(data, path), path)
    if kind.lower() == ".json":
        return _json(_decoded(data, path), path)
    return _lines(data, str(source))


def json_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of some lines, with their line numbers; blank lines are passed over.
    `source` names them in errors."""
    for place, line in enumerate(lines, 1):
        if line.strip():
            yield place, _object(line, f"{source}:{place}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object (got {type(row).__name__})")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for one that says a field twice, of which one would be
    lost."""
    if (name := repeated(name for name, _ in pairs)) is not None:
        raise ValueError(f"{name!r} is there twice; keep one")
    return dict(pairs)


def _content(path: Path) -> bytes:
    refuse_pointer(path)
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); copy it again") from None


def _decoded(data: bytes, path: Path | str) -> str:
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(_undecoded(f"{path}:{line}", error)) from None


def _undecoded(where: str, error: UnicodeDecodeError) -> str:
    return (
        f"{where}: not {error.encoding.upper()} text (byte 0x{error.object[error.start]:02X}"
        f" {error.reason}); save the file as UTF-8"
    )


def _lines(data: bytes, source: str) -> Iterator[Row]:
    marked = encoding_of(data) != "utf-8"
    lines: list[Any] = _decoded(data, source).split("\n") if marked else data.split(b"\n")
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}:{place}"
        try:
            text = line if marked else line.decode("utf-8")
            yield Row(place, where, _object(text, where))
        except UnicodeDecodeError as error:
            yield Row(place, where, None, _undecoded(where, error))
        except ValueError as error:
            yield Row(place, where, None, str(error))


def _json(text: str, path: Path) -> Iterator[Row]:
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            return _lines(text.encode(), str(path))  # JSONL under another name
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return _numbered(found if isinstance(found, list) else [found], path)


def _numbered(found: Iterable[Any], path: Path | str) -> Iterator[Row]:
    for place, row in enumerate(found, 1):
        where = f"{path}: record {place}"
        if isinstance(row, Mapping):
            yield Row(place, where, row)
        else:
            kind = type(row).__name__
            yield Row(place, where, None, f"{where}: must be a JSON object (got {kind})")


def _table(text: str, path: Path) -> Iterator[Row]:
    text = text.lstrip("\r\n")
    csv.field_size_limit(2**31 - 1)

    def columns(mark: str) -> int:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])
        return sum('"' not in cell for cell in header)  # a quote within: cut at a wrong mark

    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=columns), strict=True
    )
    try:
        names = reader.fieldnames or ()
    except csv.Error as error:
        raise ValueError(f"{path}: not a table: its header: {error}") from None
    if name := repeated(names):
        raise ValueError(f"{path}: has two columns {name!r}; keep one of them, or rename one")
    place = 0
    while True:
        place += 1
        where = f"{path}: record {place}"
        try:
            row: dict[Any, Any] | None = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: not a table: {error}") from None
        if row is None:
            return
        if None in row or None in row.values():
            yield Row(place, where, None, f"{where}: has not the {len(names)} cells of the header")
        else:
            yield Row(place, where, row)


def _parquet(data: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install 'fader[train]'") from None
    try:
        found: list[dict[str, Any]] = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({error})") from None
    return found


def _data_set(source: str) -> Iterator[Row]:
    name, _, part = source.partition(":")
    if source.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")):
        raise ValueError(f"{source}: no such file; {KINDS}")
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ModuleNotFoundError:
        raise ValueError(
            f"{source}: no such file, and data sets need `datasets`: pip install 'fader[train]'"
        ) from None
    disable_progress_bar()
    try:
        found = load_dataset(name, split=part or None)
    except Exception as error:  # the hub client has no common kind of error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source}: could not be read ({said}); {KINDS}") from error
    return _numbered(_marked({part: found} if part else found, source), source)


def _marked(parts: Mapping[str, Iterable[Mapping[str, Any]]], source: str) -> Iterator[Any]:
    """The records of a data set's splits, each marked with its split unless it says one itself."""
    names = [_split_word(part) for part in parts]
    if len(parts) > 1 and (other := [part for part in parts if not _split_word(part)]):
        raise ValueError(
            f"{source}: has the split {other[0]!r}, which is none of {', '.join(SPLITS)}; name the"
            f" split to read, as in {source}:{other[0]}"
        )
    if len(set(names)) < len(names):
        first = f"{source}:{next(iter(parts))}"
        raise ValueError(f"{source}: has the splits {', '.join(parts)}; name one, as in {first}")
    for part, name in zip(parts, names, strict=True):
        for row in parts[part]:
            yield row if row.get("split") or not name else {**row, "split": name}


SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "validation", "valid", "val", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The names that splits go by; `_prefs`, `_sft` or `_gen` may stand behind them."""


def _split_word(part: str) -> str:
    word = part.partition("[")[0].lower()
    for end in ("_prefs", "_sft", "_gen"):
        word = word.removesuffix(end)
    return SPLITS.get(word, "")


def split_name(value: Any, where: str) -> str:
    """`value` of a record's `split` as train, dev or test; train where nothing is said. Raises
    ValueError for a name that is not known."""
    if value is None or value == "":
        return "train"
    found = _split_word(value.strip()) if isinstance(value, str) else ""
    if not found:
        raise ValueError(
            f"{where}: split: must be one of {', '.join(SPLITS)}, also with _prefs behind it"
            f" (got {value!r})"
        )
    return found
