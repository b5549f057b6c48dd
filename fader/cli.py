"""The command line: one short function per command. Bad input ends with one clear message on standard error and exit status 2."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fader import Fader, Result
from fader.engine import builtin
from fader.methods.vector import available, find, folders, user_folder
from fader.request import json_schema, load_alignment, profile_folders, profiles
from fader.training.data import json_rows, read_pairs
from fader.training.data import split as of_split

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", help="A mixing desk for language models.")
vectors_app = typer.Typer(no_args_is_help=True, help="Alignment vectors: list and inspect.")
app.add_typer(vectors_app, name="vectors")
train_app = typer.Typer(no_args_is_help=True, help="Train vectors (needs the extra `train`).")
app.add_typer(train_app, name="train")
screen = Console()

Model = Annotated[str, typer.Option(help="Built-in name, folder, GGUF file or hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Align = Annotated[str | None, typer.Option(help="An alignment: JSON text, a YAML or JSON file, or a profile's name.")]
Input = Annotated[str | None, typer.Option("--input", help="JSONL file, or - for standard input.")]


@app.command(epilog='Example: `fader generate \'What is a bond?\' --align \'{"prompt": {"user": "Explain as to a child."}}\'`')
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...")] = None,
    input: Input = None,
    align: Align = None,
    model: Model = builtin.NAME,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many tokens per answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts, all in one batch. A line of --input is a prompt (`{"prompt": ...}`) with, if it likes, its own alignment."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if align is not None:
        fields["alignment"] = load_alignment(align)
    asked: list[Any] = [*(prompts or []), *(row for _, row in _rows(input))]
    if not asked:
        raise ValueError("PROMPT: nothing to answer; give a prompt, or --input FILE with one JSON object per line")
    requests = Fader.requests(asked, **fields)
    with Fader(model) as fader:
        if as_json or len(requests) > 1 or requests[0].sampling.n > 1:
            with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task("answers", total=len(requests))

                def show(result: Result) -> None:
                    if as_json:
                        _print_json(result.as_dict())
                    else:
                        sys.stdout.write("\n".join(answer.text for answer in result.answers) + "\n\n")
                    progress.advance(task)

                fader.batch(requests, show)
            return
        for chunk in fader.stream(requests[0]):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


@app.command(epilog='Example: `echo \'{"prompt": "2+2?", "answer": "4"}\' | fader score --input - --json`')
def score(input: Input = "-", align: Align = None, model: Model = builtin.NAME, as_json: AsJson = False) -> None:
    """How likely given answers are under the aligned policy. Lines: `{"prompt" or "messages", "answer", "alignment"?}`."""
    fields = {} if align is None else {"alignment": load_alignment(align)}
    pairs: list[tuple[Any, str]] = []
    for place, row in _rows(input):
        if not isinstance(row.get("answer"), str):
            raise ValueError(f"{input}:{place}: answer must be a text (got {row.get('answer')!r})")
        pairs.append(({key: value for key, value in row.items() if key != "answer"}, row["answer"]))
    if not pairs:
        raise ValueError(f"--input: {input} has no lines")
    with Fader(model) as fader:
        for found in fader.score_batch(pairs, **fields):
            _print_json(found.as_dict()) if as_json else screen.print(
                f"{found.logprob:9.3f}  {found.mean:7.3f} per token  {len(found.tokens)} tokens"
            )


@app.command(epilog="Example: `fader chat --align pirate`")
def chat(align: Align = None, model: Model = builtin.NAME, max_tokens: int = 512, temperature: float = 0.7, seed: int = 0) -> None:
    """Talk with the aligned model. An empty line, Ctrl-D or Ctrl-C ends it; `/align JSON` changes the alignment on the way."""
    alignment = load_alignment(align) if align is not None else load_alignment({})
    messages: list[dict[str, str]] = []
    with Fader(model) as fader:
        while text := _ask():
            if text.startswith("/align "):
                try:
                    alignment = load_alignment(text.removeprefix("/align ").strip())
                except ValueError as error:
                    screen.print(str(error), style="red", markup=False)
                continue
            messages.append({"role": "user", "content": text})
            said = ""
            request = {"messages": messages, "alignment": alignment}
            for chunk in fader.stream(request, max_tokens=max_tokens, temperature=temperature, seed=seed):
                said += chunk.text
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            sys.stdout.write("\n")
            messages.append({"role": "assistant", "content": said or " "})


@app.command(epilog="Example: `fader models --fetch --json`")
def models(fetch: Annotated[bool, typer.Option(help="Fetch the built-in model if it is not there.")] = False, as_json: AsJson = False) -> None:
    """The models that can be asked for by name, where their weights are, and whether they are there."""
    if fetch:
        builtin.fetch()
    row = {"name": builtin.NAME, "path": str(builtin.path()), "fetched": builtin.fetched()}
    _show("Models", [row], as_json)


@app.command(
    "profiles", epilog="Example: put `pirate.yaml` with `guides: [{kind: contrast, principle: Answer like a pirate.}]` into `.fader/profiles`"
)
def list_profiles(as_json: AsJson = False) -> None:
    """The named alignments in the project's and the user's profile folders."""
    rows = []
    for name, file in profiles().items():
        try:
            rows.append({"name": name, "file": str(file), "alignment": load_alignment(name).model_dump(mode="json", exclude_defaults=True)})
        except ValueError as error:
            rows.append({"name": name, "file": str(file), "error": str(error)})
    _show("Profiles", rows, as_json, f"No profiles yet; put YAML files into {' or '.join(map(str, profile_folders()))}")


@app.command(epilog="Example: `fader schema > request.schema.json`")
def schema() -> None:
    """The JSON Schema of a request."""
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")


@app.command(epilog="Example: `fader bench decode --json`")
def bench(name: Annotated[str, typer.Argument(help="A script under benchmarks/: decode, guide, vectors, knob.")], as_json: AsJson = False) -> None:
    """Measure a claim of speed side by side with its peer, in one run. Needs the source checkout."""
    folder = Path(__file__).parent.parent / "benchmarks"
    known = sorted(file.stem for file in folder.glob("*.py") if file.stem not in ("__init__", "interleave"))
    if name not in known:
        raise ValueError(f"NAME: no benchmark {name!r}; known: {', '.join(known) or 'none (benchmarks come with the source checkout)'}")
    sys.path.insert(0, str(folder.parent))
    for row in importlib.import_module(f"benchmarks.{name}").run():
        if as_json:
            _print_json(row)
        else:
            screen.print(f"{row['name']} {row['case']}: {row['ratio']:.2f}x  ({row['ours']} against {row['theirs']} {row['unit']}, n = {row['n']})")


@train_app.command(
    "vector", epilog="Example: `fader train vector tax --data pairs.jsonl`, then `fader generate '…' --align '{\"vectors\": {\"tax\": 0.5}}'`"
)
def train_vector_command(
    name: Annotated[str, typer.Argument(help="What requests will call the vector.")],
    data: Annotated[str, typer.Option(help="JSONL of pairs (prompt, chosen, rejected) or of levels (query, avoidance, generic, expert).")],
    out: Annotated[str | None, typer.Option(help="Folder to write; left out: the user's vectors folder, where requests look.")] = None,
    model: Model = builtin.NAME,
    split: Annotated[str | None, typer.Option(help="Train on the records of this split only.")] = None,
    negate: Annotated[bool, typer.Option("--negate", help="Swap chosen and rejected.")] = False,
    rank: int = 8,
    epochs: float = 2.0,
    beta: float = 2.0,
    learning_rate: float = 2e-4,
    sft_epochs: float = 0.0,
    per_token: Annotated[bool, typer.Option(help="Compare log-probabilities per token; off is plain DPO (use beta 0.1).")] = True,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train an alignment vector from preference pairs: DPO with LoRA, resumable. About six minutes for 120 pairs on two cores."""
    try:
        from fader.training.vector import Recipe, train_vector
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs {error.name}: pip install 'fader[train]'") from error

    pairs = read_pairs(data)
    pairs = of_split(pairs, split) if split else pairs
    pairs = [pair.swapped for pair in pairs] if negate else pairs
    recipe = Recipe(
        rank=rank, alpha=2 * rank, beta=beta, normalize=per_token, learning_rate=learning_rate, epochs=epochs, sft_epochs=sft_epochs, seed=seed
    )
    folder = Path(out) if out else user_folder() / name
    vector = train_vector(name, pairs, folder, recipe, model)
    row = {"name": name, "folder": str(folder), "pairs": len(pairs), "seconds": vector.card["seconds"], "last": vector.card["curve"][-1]}
    _print_json(row) if as_json else screen.print(row)


@vectors_app.command("list", epilog="Example: `fader vectors list --json`")
def list_vectors(as_json: AsJson = False) -> None:
    """The vectors that can be asked for by name."""
    rows = [{"name": name, "folder": str(folder)} for name, folder in available().items()]
    _show("Vectors", rows, as_json, f"No vectors yet; put PEFT LoRA folders into one of {', '.join(map(str, folders()))}")


@vectors_app.command(epilog="Example: `fader vectors inspect ./my-lora --json`")
def inspect(name: Annotated[str, typer.Argument(help="A vector's name or folder.")], as_json: AsJson = False) -> None:
    """A vector's rank, its base model, and the norm of its difference in every layer."""
    vector = find(name)
    norms = vector.norms()
    head = {"name": vector.name, "rank": vector.rank, "base_model": vector.card.get("base_model"), "base_fingerprint": vector.base}
    head["norm"] = sum(norm * norm for norm in norms.values()) ** 0.5
    if as_json:
        _print_json({**head, "norms": norms})
        return
    screen.print(head)
    _table("Norms", [{"layer": module, "norm": round(norm, 4), "": "█" * round(30 * norm / max(norms.values()))} for module, norm in norms.items()])


def _rows(source: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSONL file or of standard input, with their line numbers."""
    if source is None:
        return
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    yield from json_rows(text.splitlines(), source)


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _print_json(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _show(title: str, rows: list[dict[str, Any]], as_json: bool, empty: str = "") -> None:
    """Rows as JSON lines or as a table; for people, `empty` where there are none."""
    if as_json:
        for row in rows:
            _print_json(row)
    elif rows:
        _table(title, rows)
    else:
        screen.print(empty)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    screen.print(table)


def main() -> None:
    """Entry point: runs a command; turns bad input into one message and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
