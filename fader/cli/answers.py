"""Commands that answer: generate, score, chat; and what can be asked for: models, schema."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fader import Fader, Likelihood, Result, __version__
from fader.backends import Backend, EngineName
from fader.cli.show import (
    Align,
    AsJson,
    Engine,
    Input,
    Model,
    RunBy,
    SameAs,
    Workers,
    commands,
    model_as,
    needing,
    print_json,
    refuse_kin,
    rows,
    screen,
    workers_of,
)
from fader.engine import builtin
from fader.files import stamp
from fader.given import Places, resolve
from fader.profiles import load_alignment
from fader.request import Alignment, Request, Sampling, is_greedy, json_schema, named
from fader.schema import Faults, at, renamed, within
from fader.shards import Output, one_by_one, shards
from fader.vectors.store import available

app = commands("Align language models at inference time.")


MaxTokens = Annotated[int | None, typer.Option(help="At most this many tokens per answer.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 takes the likeliest token; 1 samples as the model says.")
]
TopK = Annotated[int | None, typer.Option(help="Sample among this many likeliest tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample among the fewest tokens of this probability.")
]
MinP = Annotated[
    float | None, typer.Option(help="Sample among tokens this likely, relative to the likeliest.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: tokens that were there already get less likely.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="The answer ends before this text. Repeatable.")
]


def _say_dropped(found: Result | Likelihood) -> None:
    """Say on standard error what of a history was not told."""
    if found.dropped_choices:
        typer.echo(
            f"alignment.preferences.history: the oldest {found.dropped_choices} choices do not fit"
            " and are left out",
            err=True,
        )


def _sampling(context: typer.Context) -> dict[str, Any]:
    """A command's options that are fields of the sampling; None for those left out."""
    given = {name: context.params[name] for name in Sampling.model_fields if name in context.params}
    return {**given, "stop": given["stop"] or None}


@app.command(
    epilog=(
        'Example: `fader generate \'What is a bond?\' --align \'{"preferences": {"user": "Explain'
        " as to a child.\"}}'`"
    )
)
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...")] = None,
    input: Input = None,
    align: Align = None,
    model: Model = builtin.NAME,
    engine: RunBy = Engine.TORCH,
    same_as: SameAs = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    n: Annotated[int | None, typer.Option("--n", help="How many answers to draw.")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="Report each token's log-probability and this many alternatives (JSON)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "File for the answers, a JSON object for each line of --input. A stopped run goes"
                " on where it was."
            )
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help=(
                "Answer --input by workers on Ray: the cluster that RAY_ADDRESS names, else this"
                " machine. Without --out, big.jsonl is answered in big.answers.jsonl."
            ),
        ),
    ] = False,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Answer prompts, all in one batch. A line of --input is a prompt (`{"prompt": ...}`) with, if
    it likes, its own alignment."""
    fields = {"alignment": align, **_sampling(context)}
    spreading = workers_of(context)
    refuse_kin(engine.value, same_as)
    if out is not None or ray:
        if prompts or input in (None, "-"):
            raise ValueError("--out, --ray: answer the lines of a file; give --input FILE")
        _into_file(input, out, model, engine.value, same_as, spreading, fields)
        return
    lines = list(rows(input))
    asked: list[Any] = [*(prompts or []), *(row for _, row in lines)]
    places_of = [*("" for _ in prompts or []), *(f"{input}:{line}" for line, _ in lines)]
    if not asked:
        raise ValueError(
            "PROMPT: nothing to answer; give a prompt, or --input FILE with one JSON object per"
            " line"
        )
    places = Places()
    places.models.taken.add(model)
    with _by_line(places_of):
        requests = resolve(asked, places, **fields)
    with Fader(
        model_as(model, engine.value, same_as),
        models=places.models.places,
        vectors=places.vectors.places,
        engine=engine.value,
    ) as fader:
        if as_json or len(requests) > 1 or requests[0].sampling.n > 1:
            with Progress(
                *Progress.get_default_columns(), console=Console(stderr=True), transient=True
            ) as progress:
                task = progress.add_task("answers", total=len(requests))

                def show(result: Result) -> None:
                    _say_dropped(result)
                    if as_json:
                        print_json(result.as_dict())
                    else:
                        sys.stdout.write(
                            "\n".join(answer.text for answer in result.answers) + "\n\n"
                        )
                    progress.advance(task)

                with _by_line(places_of):
                    fader.batch(requests, show)
            return
        with _by_line(places_of):
            for chunk in fader.stream(requests[0], _say_dropped):
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        sys.stdout.write("\n")


@contextmanager
def _by_line(places: Sequence[str]) -> Iterator[None]:
    """Around what is done with requests: a fault names the line of a file that its request is from
    (`places`, empty for other requests) and not the request's number."""

    def name(path: str) -> str:
        number = re.match(r"request (\d+)(?:: )?", path)
        one = int(number[1]) - 1 if number else 0
        place = places[one] if number or len(places) == 1 else ""
        own = path.removeprefix(number[0]) if number and place else path
        return ": ".join(filter(None, (place, own)))

    with renamed(name), at():
        yield


def _into_file(
    source: str,
    out: Path | None,
    model: str,
    by: EngineName,
    same_as: str | None,
    workers: int | None,
    fields: dict[str, Any],
) -> None:
    """Answer the lines of a file into another one, shard by shard; by `workers` on Ray, or here."""
    if workers is not None:
        with needing("--ray", "ray"):
            from fader.backends.ray import spread
    output = Output(out or Path(source).with_suffix(".answers.jsonl"))
    places, asked, vectors = Places(), list[tuple[str, str]](), set[str]()
    places.models.taken.add(model)
    for line, row in rows(source):
        place = f"{source}:{line}"
        with within(place):
            [request] = resolve([row], places, **fields)
        asked.append((place, request.model_dump_json(exclude_unset=True)))
        vectors.update(named(request.model_dump(mode="json"), "vectors"))
    if not asked:
        raise ValueError(f"--input: {source} has no lines")
    used = {name: folder for name, folder in available().items() if name in vectors}
    given: dict[str, str | Path] = {
        "model": model,
        **places.models.places,
        **places.vectors.places,
        **used,
    }
    depends = {name: [str(one), stamp(Path(one))] for name, one in given.items()}
    make = partial(_backend, model, places.models.places, places.vectors.places, by, same_as)
    answering = one_by_one(make) if workers is None else spread(make, workers)
    with (
        output.held(),
        Progress(
            *Progress.get_default_columns(), console=Console(stderr=True), transient=True
        ) as progress,
    ):
        task = progress.add_task("answers", total=len(asked))
        found = list(shards(asked, {"fader": __version__, "engine": by, **depends}))
        output.write(found, answering, lambda lines: progress.advance(task, lines))
    screen.print(f"{len(asked)} answers: {output.file}")


def _backend(
    model: str,
    models: dict[str, Path],
    vectors: dict[str, Path],
    by: EngineName,
    same_as: str | None,
) -> Backend:
    """What answers, in a process of its own or in this one."""
    return Fader(model_as(model, by, same_as), models=models, vectors=vectors, engine=by).backend


@app.command(
    epilog='Example: `echo \'{"prompt": "2+2?", "answer": "4"}\' | fader score --input - --json`'
)
def score(
    input: Input = "-",
    align: Align = None,
    model: Model = builtin.NAME,
    engine: RunBy = Engine.TORCH,
    same_as: SameAs = None,
    as_json: AsJson = False,
) -> None:
    """How likely given answers are under the aligned policy. Lines: `{"prompt" or "messages",
    "answer", "alignment"?}`."""
    fields = {} if align is None else {"alignment": align}
    pairs: list[tuple[Any, str]] = []
    lines = []
    for place, row in rows(input):
        lines.append(f"{input}:{place}")
        if not isinstance(row.get("answer"), str):
            raise ValueError(f"{input}:{place}: answer must be a text (got {row.get('answer')!r})")
        pairs.append(({key: value for key, value in row.items() if key != "answer"}, row["answer"]))
    if not pairs:
        raise ValueError(f"--input: {input} has no lines")
    with Fader(model_as(model, engine.value, same_as), engine=engine.value) as fader:
        with _by_line(lines):
            scored = fader.score_batch(pairs, **fields)
        for found in scored:
            _say_dropped(found)
            (
                print_json(found.as_dict())
                if as_json
                else screen.print(
                    f"{found.logprob:9.3f}  {found.mean:7.3f} per token  {len(found.tokens)} tokens"
                )
            )


HELP = """/align JSON, FILE or PROFILE   answer under another alignment from now on
/align                          show the alignment
/help                           this list
/quit, an empty line, Ctrl-D    end"""


@app.command(epilog="Example: `fader chat --align pirate`")
def chat(
    context: typer.Context,
    align: Align = None,
    model: Model = builtin.NAME,
    engine: RunBy = Engine.TORCH,
    same_as: SameAs = None,
    max_tokens: MaxTokens = 512,
    temperature: Annotated[
        float | None,
        typer.Option(help="0.7 if left out, and 0 where a greedy look-ahead search decides."),
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Talk with the aligned model. `/help` lists what can be typed beside questions."""
    sampling = _sampling(context)
    alignment = load_alignment(align if align is not None else {})
    Request.of("hello", **_suited(sampling, alignment))
    messages: list[dict[str, str]] = []
    with Fader(model_as(model, engine.value, same_as), engine=engine.value) as fader:
        _check(fader, alignment, sampling)
        while (text := _ask()) and text != "/quit":
            try:
                if text.startswith("/"):
                    alignment = _command(fader, text, alignment, sampling)
                else:
                    turns = [*messages, {"role": "user", "content": text}]
                    messages = _turn(fader, turns, alignment, sampling)
            except (ValueError, OSError) as error:  # it goes on as if nothing had been said
                screen.print(str(error), style="red", markup=False)


def _command(
    fader: Fader, text: str, alignment: Alignment, sampling: Mapping[str, Any]
) -> Alignment:
    """Do what a line that begins with a slash says; the alignment from now on."""
    name, _, rest = text.partition(" ")
    if name == "/align" and rest.strip():
        found = fader.request("hello", alignment=rest.strip()).alignment
        _check(fader, found, sampling)
        return found
    if name == "/align":
        print_json(alignment.model_dump(mode="json", exclude_defaults=True))
    elif name == "/help":
        screen.print(HELP, markup=False)
    else:
        raise ValueError(f"{name}: no such command; /help lists them")
    return alignment


def _check(fader: Fader, alignment: Alignment, sampling: Mapping[str, Any]) -> None:
    """Raises `Invalid` with all for which no question could be answered so."""
    asked = fader.check("hello", alignment=alignment, **_suited(sampling, alignment))
    Faults(found=asked).raise_any()


# where a request says too much for the model or its KV memory; a shorter conversation may fit
_TOO_LONG = (
    *("messages", "alignment", "alignment.search"),
    *("sampling.n", "sampling.max_tokens"),
)


def _turn(
    fader: Fader,
    turns: list[dict[str, str]],
    alignment: Alignment,
    sampling: Mapping[str, Any],
) -> list[dict[str, str]]:
    """Answer the last of these turns, and show it; the conversation with the answer. The oldest
    turns are left out, and that is said, where the conversation outgrows the model."""
    fields = {"alignment": alignment, **_suited(sampling, alignment)}
    whole = len(turns)
    while len(turns) > 1 and any(f.path in _TOO_LONG for f in fader.check(turns, **fields)):
        turns = turns[2:]
    if len(turns) < whole:
        screen.print(f"(the first {whole - len(turns)} turns no longer fit and are left out)")
    said = ""
    for chunk in fader.stream(turns, _say_dropped, **fields):
        said += chunk.text
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if not said.strip():
        screen.print("(the model answered nothing)")
        return turns[:-1]
    return [*turns, {"role": "assistant", "content": said}]


def _suited(sampling: Mapping[str, Any], alignment: Alignment) -> dict[str, Any]:
    """The sampling with the temperature that suits the alignment, where none was given."""
    usual = 0.0 if is_greedy(alignment.search) else 0.7
    given = sampling["temperature"]
    return {**sampling, "temperature": usual if given is None else given}


@app.command(epilog="Example: `fader schema > request.schema.json`")
def schema() -> None:
    """The JSON Schema of a request."""
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")


@app.command(epilog="Example: `fader bench decode --json`")
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help=(
                "A script under benchmarks/: decode, guide, pad, vectors, knob, prompts, shape,"
                " deal, llama, serve, vllm."
            )
        ),
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
