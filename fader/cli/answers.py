"""Commands that answer: generate, score, chat; and what can be asked for: models, profiles,
schema."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fader import Fader, Result
from fader.cli.show import Align, AsJson, Input, Model, commands, print_json, rows, screen, show
from fader.engine import builtin
from fader.profiles import load_alignment, profile_folders, profiles
from fader.request import json_schema

app = commands("A mixing desk for language models.")


@app.command(
    epilog=(
        'Example: `fader generate \'What is a bond?\' --align \'{"preferences": {"user": "Explain'
        " as to a child.\"}}'`"
    )
)
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...")] = None,
    input: Input = None,
    align: Align = None,
    model: Model = builtin.NAME,
    max_tokens: Annotated[
        int | None, typer.Option(help="At most this many tokens per answer.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts, all in one batch. A line of --input is a prompt (`{"prompt": ...}`) with, if
    it likes, its own alignment."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if align is not None:
        fields["alignment"] = load_alignment(align)
    asked: list[Any] = [*(prompts or []), *(row for _, row in rows(input))]
    if not asked:
        raise ValueError(
            "PROMPT: nothing to answer; give a prompt, or --input FILE with one JSON object per"
            " line"
        )
    requests = Fader.requests(asked, **fields)
    with Fader(model) as fader:
        if as_json or len(requests) > 1 or requests[0].sampling.n > 1:
            with Progress(
                *Progress.get_default_columns(), console=Console(stderr=True), transient=True
            ) as progress:
                task = progress.add_task("answers", total=len(requests))

                def show(result: Result) -> None:
                    if as_json:
                        print_json(result.as_dict())
                    else:
                        sys.stdout.write(
                            "\n".join(answer.text for answer in result.answers) + "\n\n"
                        )
                    progress.advance(task)

                fader.batch(requests, show)
            return
        for chunk in fader.stream(requests[0]):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


@app.command(
    epilog='Example: `echo \'{"prompt": "2+2?", "answer": "4"}\' | fader score --input - --json`'
)
def score(
    input: Input = "-", align: Align = None, model: Model = builtin.NAME, as_json: AsJson = False
) -> None:
    """How likely given answers are under the aligned policy. Lines: `{"prompt" or "messages",
    "answer", "alignment"?}`."""
    fields = {} if align is None else {"alignment": load_alignment(align)}
    pairs: list[tuple[Any, str]] = []
    for place, row in rows(input):
        if not isinstance(row.get("answer"), str):
            raise ValueError(f"{input}:{place}: answer must be a text (got {row.get('answer')!r})")
        pairs.append(({key: value for key, value in row.items() if key != "answer"}, row["answer"]))
    if not pairs:
        raise ValueError(f"--input: {input} has no lines")
    with Fader(model) as fader:
        for found in fader.score_batch(pairs, **fields):
            (
                print_json(found.as_dict())
                if as_json
                else screen.print(
                    f"{found.logprob:9.3f}  {found.mean:7.3f} per token  {len(found.tokens)} tokens"
                )
            )


@app.command(epilog="Example: `fader chat --align pirate`")
def chat(
    align: Align = None,
    model: Model = builtin.NAME,
    max_tokens: int = 512,
    temperature: float = 0.7,
    seed: int = 0,
) -> None:
    """Talk with the aligned model. An empty line, Ctrl-D or Ctrl-C ends it; `/align JSON` changes
    the alignment on the way."""
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
            for chunk in fader.stream(
                request, max_tokens=max_tokens, temperature=temperature, seed=seed
            ):
                said += chunk.text
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            sys.stdout.write("\n")
            messages.append({"role": "assistant", "content": said or " "})


@app.command(epilog="Example: `fader models --fetch --json`")
def models(
    fetch: Annotated[
        bool, typer.Option(help="Fetch the built-in model if it is not there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The models that can be asked for by name, where their weights are, and whether they are
    there."""
    if fetch:
        builtin.fetch()
    row = {"name": builtin.NAME, "path": str(builtin.path()), "fetched": builtin.fetched()}
    show("Models", [row], as_json)


@app.command(
    "profiles",
    epilog=(
        "Example: put `pirate.yaml` with `guides: [{kind: contrast, principle: Answer like a"
        " pirate.}]` into `.fader/profiles`"
    ),
)
def list_profiles(as_json: AsJson = False) -> None:
    """The named alignments in the project's and the user's profile folders."""
    found = []
    for name, file in profiles().items():
        try:
            found.append(
                {
                    "name": name,
                    "file": str(file),
                    "alignment": (
                        load_alignment(name).model_dump(mode="json", exclude_defaults=True)
                    ),
                }
            )
        except ValueError as error:
            found.append({"name": name, "file": str(file), "error": str(error)})
    show(
        "Profiles",
        found,
        as_json,
        f"No profiles yet; put YAML files into {' or '.join(map(str, profile_folders()))}",
    )


@app.command(epilog="Example: `fader schema > request.schema.json`")
def schema() -> None:
    """The JSON Schema of a request."""
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")


@app.command(epilog="Example: `fader bench decode --json`")
def bench(
    name: Annotated[
        str, typer.Argument(help="A script under benchmarks/: decode, guide, vectors, knob, deal.")
    ],
    case: Annotated[str | None, typer.Option(help="Only this case of it; left out: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a claim of speed side by side with its peer, in one run. Needs the source
    checkout."""
    folder = Path(__file__).parents[2] / "benchmarks"
    known = sorted(
        file.stem
        for file in folder.glob("*.py")
        if file.stem not in ("__init__", "interleave", "against")
    )
    if name not in known:
        raise ValueError(
            f"NAME: no benchmark {name!r}; known:"
            f" {', '.join(known) or 'none (benchmarks come with the source checkout)'}"
        )
    sys.path.insert(0, str(folder.parent))
    for row in importlib.import_module(f"benchmarks.{name}").run(case=case):
        if as_json:
            print_json(row)
        else:
            screen.print(
                f"{row['name']} {row['case']}: {row['ratio']:.2f}x  ({row['ours']} against"
                f" {row['theirs']} {row['unit']}, n = {row['n']})"
            )


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
