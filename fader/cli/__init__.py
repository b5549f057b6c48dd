"""The command line: one short function per command. Bad input ends with one clear message on
standard error and exit status 2."""

import sys
from io import TextIOWrapper

import typer

from fader.cli import data, evaluate, models, profiles, serve, teacher, train, vectors
from fader.cli.answers import app
from fader.engine.running import Lost

app.command("eval", epilog="Example: `fader eval levels --split test --json`")(evaluate.evaluate)
vectors.app.command(
    "tune", epilog="Example: `fader vectors tune medical=expert,legal=avoidance --profile clinic`"
)(evaluate.tune)
app.command("serve", epilog="Example: `fader serve --align pirate`")(serve.serve)
app.add_typer(serve.app, name="keys")
data.app.command(
    "levels",
    epilog=(
        "Example: `fader data levels tax-law --count 120 --out tax.jsonl --endpoint"
        " http://localhost:8000/v1 --teacher some-model --dry-run`"
    ),
)(teacher.levels)
data.app.command(
    "preferences",
    epilog=(
        "Example: `fader data preferences home-cooking --family 'length=short answers/thorough"
        " answers' --out cooking.jsonl --endpoint http://localhost:8000/v1 --teacher some-model"
        " --dry-run`"
    ),
)(teacher.preferences)
data.app.command(
    "meta",
    epilog=(
        "Example: `fader data meta --out tiers.jsonl`, then `fader train meta mine --data"
        " tiers.jsonl`"
    ),
)(teacher.meta)
app.add_typer(profiles.app, name="profiles")
app.add_typer(models.app, name="models", epilog="Example: `fader models --fetch --json`")
app.add_typer(vectors.app, name="vectors")
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry point: runs a command; turns bad input, and the loss of what answers, into one message
    and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal in ASCII gets what it can show
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, TextIOWrapper):  # what is no text is refused where it is used
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        app()
    except (ValueError, OSError, Lost) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
