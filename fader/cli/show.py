"""What all commands share: their options, and how rows are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter
from rich.console import Console
from rich.table import Table

from fader.backends import EngineName
from fader.data.sources import json_rows
from fader.engine.llama.loading import load as load_gguf
from fader.engine.protocols import Backbone
from fader.files import read_text
from fader.vectors.store import open_vector
from fader.vectors.vector import Vector

screen = Console(markup=False, emoji=False)  # what people and models write is no mark-up


class Engine(StrEnum):
    """Who runs the model."""

    TORCH = "torch"
    LLAMA = "llama.cpp"
    VLLM = "vllm"


RunBy = Annotated[
    Engine,
    typer.Option("--engine", help="Who runs the model."),
]
SameAs = Annotated[
    str | None,
    typer.Option(
        help=(
            "For a GGUF file on llama.cpp: a folder or hub id of which you know that it is the same"
            " model. Its vectors are taken."
        )
    ),
]
Model = Annotated[str, typer.Option(help="Built-in name, folder, GGUF file or hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Rating = Annotated[
    str | None,
    typer.Option(
        help=(
            "Column that says which answer is better, for data with ratings instead of a chosen"
            " answer."
        )
    ),
]
SkipBad = Annotated[
    int, typer.Option(min=0, help="Pass over at most this many bad records, naming each.")
]
Align = Annotated[
    str | None,
    typer.Option(help="An alignment: JSON text, a YAML or JSON file, or a profile's name."),
]
Input = Annotated[str | None, typer.Option("--input", help="JSONL file, or - for standard input.")]
Workers = Annotated[int, typer.Option(min=1, help="With --ray: how many workers.")]


def model_as(model: str, by: EngineName, same_as: str | None) -> str | Backbone:
    """What a `Fader` takes for --model: its name, or with --same-as the model itself, loaded."""
    refuse_kin(by, same_as)
    return model if same_as is None else load_gguf(model, same_as=same_as)


def size_of(option: str, text: str | None) -> int | None:
    """The bytes that an option's value says, such as 512MiB or 2GB."""
    if text is None:
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValueError:
        raise ValueError(f"{option}: must be a size such as 512MiB or 2GB (got {text!r})") from None


def refuse_kin(by: EngineName, same_as: str | None) -> None:
    """Raises ValueError for --same-as where no GGUF file is read."""
    if same_as is not None and by != "llama.cpp":
        raise ValueError(
            f"--same-as: is for GGUF files with --engine llama.cpp (got --engine {by}); leave it"
            " out, or give that engine"
        )


def commands(help: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", help=help
    )


def rows(source: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSONL file or of standard input, with their line numbers."""
    if source is None:
        return
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    text = read_text(content, source)
    yield from json_rows(text.split("\n"), source)  # no other line ends: JSON text may hold them


def given_options(context: typer.Context) -> dict[str, str]:
    """The options that somebody gave on the command line: name of the parameter -> `--option`."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name: f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source and source.name == "COMMANDLINE"
    }


def workers_of(context: typer.Context) -> int | None:
    """How many workers on Ray a command was asked for; None: it does the work itself. Raises
    ValueError for a number of workers without --ray."""
    if context.params["ray"]:
        return int(context.params["workers"])
    if "workers" in given_options(context):
        raise ValueError("--workers: are those of --ray; give that too, or leave --workers out")
    return None


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Around the imports of a command whose libraries come with an extra: says which one, where
    they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} needs {error.name}: pip install 'fader[{extra}]'") from error


def named_value(text: str, form: str) -> tuple[str, str]:
    """`NAME=VALUE` as its two parts. Raises ValueError for another form."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise ValueError(f"{form}: must be of this form (got {text!r})")
    return name, value


def with_strengths(parts: Sequence[str]) -> dict[Vector, float]:
    """Vectors and their strengths, each from NAME=STRENGTH, where a folder may stand for a name.
    Raises ValueError naming what is none."""
    found = {}
    for part in parts:
        name, _, strength = part.rpartition("=")
        try:
            number = float(strength)
        except ValueError:
            raise ValueError(
                f"VECTOR=STRENGTH: {part!r} does not end with = and a number, as medical=0.5 does"
            ) from None
        found[open_vector(name)] = number
    return found


def print_json(row: dict[str, Any]) -> None:
    """One line of JSON; in ASCII where standard output can hold no more."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show(title: str, rows: list[dict[str, Any]], as_json: bool, empty: str = "") -> None:
    """Rows as JSON lines or as a table; for people, `empty` where there are none."""
    if as_json:
        for row in rows:
            print_json(row)
    elif rows:
        table(title, rows)
    else:
        screen.print(empty)


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table; a column for every key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    drawn = Table(*columns, title=title)
    for row in rows:
        drawn.add_row(*(str(row.get(column, "")) for column in columns))
    screen.print(drawn)
