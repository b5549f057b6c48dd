"""Commands on profiles: list them, and learn one from a person's past choices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fader import Fader
from fader.cli.show import AsJson, Model, commands, given_options, print_json, screen, show
from fader.cli.teacher import KeyEnv, Retries, Temperature, Timeout
from fader.endpoint import Advice, Client, Endpoint, run
from fader.engine import builtin
from fader.profiles import load_alignment, profile_folders, profile_place, profiles, save_profile
from fader.training.profile import QUESTIONS, Ask, learn, read_history, remembering

app = commands("Named alignments: list them, and learn one from a person's past choices.")
app.info.no_args_is_help = False
messages = Console(stderr=True)
ADVICE = Advice(
    key=("key-env", "put a valid key into the environment variable that --key-env names"),
    model=("teacher", "name one that it serves"),
    address=("endpoint", "start the server, or correct --endpoint; what was said so far is kept"),
    pressed=("endpoint", "wait, and give the same command again; what was said so far is kept"),
)

OF_ENDPOINTS = ("key_env", "timeout", "retries", "temperature")
"""Options of `learn` that say how an endpoint is asked."""


@app.callback(
    invoke_without_command=True,
    epilog=(
        "Example: put `pirate.yaml` with `guides: [{kind: contrast, principle: Answer like a"
        " pirate.}]` into `.fader/profiles`"
    ),
)
def list_profiles(context: typer.Context, as_json: AsJson = False) -> None:
    """The named alignments: the project's, the user's, and those that ship; or a command on
    them."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise ValueError("--json: put it behind the command")
        return
    found = []
    for name, file in profiles().items():
        try:
            said = load_alignment(name).model_dump(mode="json", exclude_defaults=True)
            found.append({"name": name, "file": str(file), "alignment": said})
        except ValueError as error:
            found.append({"name": name, "file": str(file), "error": str(error)})
    show(
        "Profiles",
        found,
        as_json,
        f"No profiles yet; put YAML files into {' or '.join(map(str, profile_folders()))}",
    )


@app.command(
    "learn",
    epilog=(
        "Example: `fader profiles learn --history ada.jsonl`, then `fader generate '…' --align ada`"
    ),
)
def learn_command(
    context: typer.Context,
    history: Annotated[
        str,
        typer.Option(
            help=(
                "The person's past choices, the oldest first: JSONL, JSON, CSV or parquet with"
                " `chosen`, `rejected` and, where it is known, `prompt`."
            )
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the profile; left out: the history's file name.")
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(
            help=(
                "What else the profile is to hold: JSON text, a file or a profile's name; what is"
                " learned is added to its user's preferences."
            )
        ),
    ] = None,
    model: Model = builtin.NAME,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Ask an OpenAI-compatible server instead: its base address."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model that the endpoint serves.")] = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    temperature: Temperature = 0.0,
    room: Annotated[
        int,
        typer.Option(
            min=1, help="Characters of choices that are shown; the oldest of more are left out."
        ),
    ] = 24_000,
    force: Annotated[bool, typer.Option("--force", help="Write over a profile.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn what a person wants from answers, as a profile: a model reads their past choices and
    answers a few questions about them. Resumable."""
    if (endpoint is None) != (teacher is None):
        raise ValueError("endpoint, teacher: give both or neither")
    for option, flag in given_options(context).items():
        if endpoint is None and option in OF_ENDPOINTS:
            raise ValueError(f"{flag}: only an endpoint is asked so; give one, or leave it out")
        if endpoint is not None and option == "model":
            raise ValueError(f"{flag}: the endpoint's model is asked; name it by --teacher")
    name = Path(history).name.partition(".")[0] if name is None else name
    file = profile_place(name)
    if file.exists() and not force:
        raise ValueError(
            f"--name: there is a profile {name!r} already ({file}); choose another name, or give"
            " --force"
        )
    begun = load_alignment(align if align is not None else {})
    choices, ignored = read_history(history)
    if ignored:
        _say(f"{history}: nothing is taken from {', '.join(ignored)}")
    kept = file.with_name(f".{name}.replies")
    if endpoint is None or teacher is None:
        reached = _model(model)
    else:
        key = os.environ.get(key_env)
        reached = _endpoint(Endpoint(endpoint, teacher, key, timeout, retries, 1, temperature))
    with reached as asked, Progress(console=messages, transient=True) as bar:
        task = bar.add_task("asking", total=len(QUESTIONS) + 1)

        def ask(prompt: str) -> str:
            reply = asked.ask(prompt)
            bar.advance(task)
            return reply

        learned = learn(
            choices,
            remembering(ask, kept, asked.who),
            lambda prompt: len(prompt) <= room and asked.fits(prompt),
        )
    for question in learned.unanswered:
        _say(f"model: nothing was replied to {question!r}; the profile says nothing of it")
    if learned.left_out:
        _say(
            f"{history}: the newest {learned.choices} of {len(choices)} choices were shown; the"
            f" oldest {learned.left_out} did not fit"
        )
    preferences = begun.preferences
    told = preferences.model_copy(update={"user": (*preferences.user, learned.text)})
    save_profile(name, begun.model_copy(update={"preferences": told}))
    kept.unlink(missing_ok=True)
    row = {
        "name": name,
        "file": str(file),
        "text": learned.text,
        "notes": list(learned.notes),
        "unanswered": list(learned.unanswered),
        "choices": learned.choices,
        "left_out": learned.left_out,
    }
    print_json(row) if as_json else screen.print(row)


@dataclass(frozen=True)
class _Asked:
    """Who is asked."""

    who: str
    """What a reply depends on beside the prompt."""
    ask: Ask
    fits: Callable[[str], bool] = lambda prompt: True


@contextmanager
def _model(name: str) -> Iterator[_Asked]:
    """A model that is loaded here."""
    said = {"max_tokens": 100, "repetition_penalty": 1.1}
    with Fader(name) as fader:
        yield _Asked(
            fader.backend.identity(fader.model),
            lambda prompt: fader.generate(prompt, **said).text,
            lambda prompt: not fader.check(prompt, **said),
        )


@contextmanager
def _endpoint(reached: Endpoint) -> Iterator[_Asked]:
    """A model behind an endpoint."""

    async def reply(prompt: str) -> str:
        async with Client(reached, ADVICE) as client:
            return (await client.ask([{"role": "user", "content": prompt}])).text

    who = f"{reached.model} at {reached.url}, temperature {reached.temperature}"
    yield _Asked(who, lambda prompt: run(reply(prompt)))


def _say(line: str) -> None:
    messages.print(line, markup=False, highlight=False, soft_wrap=True)
