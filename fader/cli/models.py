"""Commands about models: which can be asked for by name, and GGUF files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fader.cli.show import AsJson, screen, show
from fader.engine import builtin
from fader.engine.llama.convert import TYPES, convert

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="The models that can be asked for by name, and GGUF files made of models.",
    epilog="Example: `fader models --fetch --json`",
)


@app.callback()
def models(
    context: typer.Context,
    fetch: Annotated[
        bool, typer.Option(help="Fetch the built-in model if it is not there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The models that can be asked for by name, where their weights are, and whether they are
    there."""
    if context.invoked_subcommand is not None:
        return
    if fetch:
        builtin.fetch()
    row = {"name": builtin.NAME, "path": str(builtin.path()), "fetched": builtin.fetched()}
    show("Models", [row], as_json)


@app.command("convert", epilog="Example: `fader models convert FOLDER --to q8_0 --out mine.gguf`")
def convert_model(
    model: Annotated[str, typer.Argument(help="A model's folder, built-in name or GGUF file.")],
    out: Annotated[Path, typer.Option(help="The GGUF file to write.")],
    to: Annotated[str, typer.Option(help=f"Type of its weights: {', '.join(TYPES)}.")] = "q8_0",
) -> None:
    """Write a model as a GGUF file, for `--engine llama.cpp`."""
    convert(model, out, to)
    screen.print(f"{out}: {out.stat().st_size / 2**20:.0f} MB, {to}")
