"""Commands that make data with a teacher, level data, preference data and preferences in two tiers;
the last also of files and of the model's own answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fader.cli import own as own_answers
from fader.cli.data import Language, messages, shares
from fader.cli.show import AsJson, Model, given_options, needing, print_json, screen
from fader.endpoint import Endpoint
from fader.engine import builtin
from fader.starter.shipped import starter_items

if TYPE_CHECKING:
    from fader.data.meta_builder import Built
    from fader.data.rounds import Cost, Made, Place, Prices, Tell

Out = Annotated[
    str,
    typer.Option(
        help=(
            "JSONL file to write. The datasheet goes beside it, replies into a hidden folder beside"
            " it."
        )
    ),
]
Address = Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server.")]
Teacher = Annotated[str, typer.Option(help="Model that the endpoint serves.")]
KeyEnv = Annotated[
    str,
    typer.Option(
        help=(
            "Environment variable that holds the endpoint's key; may be unset where none is needed."
        )
    ),
]
Concurrency = Annotated[int, typer.Option(help="Most requests at once.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one try may take.")]
Retries = Annotated[int, typer.Option(help="Further tries of a request that fails on the way.")]
MostTokens = Annotated[int, typer.Option(help="Most tokens of one reply, its thoughts included.")]
Temperature = Annotated[
    float | None, typer.Option(help="Of the teacher; left out: the endpoint's own.")
]
Tries = Annotated[int, typer.Option(help="Most attempts at a text that breaks a rule.")]
Seed = Annotated[int, typer.Option(help="Another seed, other data.")]
PriceIn = Annotated[float | None, typer.Option(help="Price of a million tokens read.")]
PriceOut = Annotated[float | None, typer.Option(help="Price of a million tokens written.")]
Splits = Annotated[str, typer.Option(help="Shares of train, dev and test.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only estimate requests, tokens and cost.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Write over a file that was not made here, or was changed since."),
]


def levels(
    domain: Annotated[str, typer.Argument(help="What the questions are about, such as tax-law.")],
    out: Out,
    endpoint: Address,
    teacher: Teacher,
    count: Annotated[int, typer.Option(help="Items to ask for.")] = 120,
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    most_tokens: MostTokens = 4096,
    temperature: Temperature = None,
    tries: Tries = 4,
    language: Language = "en",
    seed: Seed = 0,
    personas: Annotated[
        str | None,
        typer.Option(help="Your own personas: a text file, one a line, or JSONL with `persona`."),
    ] = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    splits: Splits = "0.6,0.15,0.25",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make level data in any domain with a teacher model: questions of invented people, each
    answered at three levels. Resumable."""
    with _needing_data():
        from fader.data.levels import estimate, make
        from fader.data.questions import Plan, read_texts

    plan = Plan(domain, count, language, seed, tries, shares(splits))
    prices = _prices(price_in, price_out)
    people = read_texts(personas, "persona") if personas else []
    key = os.environ.get(key_env)
    reached = Endpoint(
        endpoint, teacher, key, timeout, retries, concurrency, temperature, most_tokens
    )
    expected = estimate(plan, people, prices)
    if dry_run:
        _say_estimate(expected, as_json)
        return
    with _bar(expected) as tell:
        made = make(plan, reached, Path(out), people, prices, tell, force)
    _show(made, Path(out), as_json)


def preferences(
    context: typer.Context,
    subject: Annotated[
        str, typer.Argument(help="What the questions are about, such as home-cooking.")
    ],
    out: Out,
    endpoint: Address,
    teacher: Teacher,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "NAME=WISH/OPPOSITE, such as 'length=short answers/thorough answers'; may be"
                " repeated. Left out: the teacher is asked."
            )
        ),
    ] = None,
    families: Annotated[
        int, typer.Option(help="Families to ask the teacher for, where none is given.")
    ] = 6,
    count: Annotated[int, typer.Option(help="Questions a family.")] = 60,
    wordings: Annotated[
        int, typer.Option(help="Wordings of each wish; the last quarter is not taught.")
    ] = 8,
    held_out: Annotated[
        int, typer.Option(help="Families, the last ones, that are kept from training.")
    ] = 0,
    questions: Annotated[
        str | None,
        typer.Option(
            help=(
                "Your own questions: a text file, one a line, or JSONL with `question`; they are"
                " dealt to the families in turn."
            )
        ),
    ] = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    most_tokens: MostTokens = 4096,
    temperature: Temperature = None,
    tries: Tries = 4,
    language: Language = "en",
    seed: Seed = 0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    splits: Splits = "0.6,0.15,0.25",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make preference data with a teacher model: opposite wishes in several wordings, and questions
    with an answer for either wish. Resumable."""
    with _needing_data():
        from fader.data.families import (
            PreferencePlan,
            estimate_preferences,
            make_preferences,
            read_axis,
        )
        from fader.data.questions import Plan, read_texts

    given = given_options(context)
    if questions is not None and "count" in given:
        raise ValueError("--count: with --questions all of these are asked; leave it out")
    if family and "families" in given:
        raise ValueError("--families: with --family those are made; leave it out")
    own = read_texts(questions, "question") if questions else []
    axes = tuple(map(read_axis, family or ()))
    total = len(own) if own else count * max(1, len(axes) or families)
    asked = Plan(subject, total, language, seed, tries, shares(splits))
    plan = PreferencePlan(asked, axes, families, wordings, held_out)
    prices = _prices(price_in, price_out)
    key = os.environ.get(key_env)
    reached = Endpoint(
        endpoint, teacher, key, timeout, retries, concurrency, temperature, most_tokens
    )
    expected = estimate_preferences(plan, own, prices)
    if dry_run:
        _say_estimate(expected, as_json)
        return
    with _bar(expected) as tell:
        made = make_preferences(plan, reached, Path(out), own, prices, tell, force)
    _show(made, Path(out), as_json)


WITHOUT_A_TEACHER = {"out", "data", "seed", "force", "as_json"}
"""The options of `meta` that are read where items come from files alone."""


def meta(
    context: typer.Context,
    out: Out,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Items {part, prompt, texts, answers, ...}, or preference data of which pairs stand"
                " under two opposite preferences. Repeatable; left out, and without an endpoint:"
                " the items that ship."
            )
        ),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(
            help=(
                "Vector, by name or folder, with which the model answers the questions of the items"
                " itself (left out: of those that `train meta` teaches); the answers that surest"
                " follow either text are the new items. Needs the extras `train` and `eval`."
            )
        ),
    ] = None,
    model: Model = builtin.NAME,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base address of an OpenAI-compatible server whose model makes items too."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model that the endpoint serves.")] = None,
    count: Annotated[
        int, typer.Option(help="Items to ask the teacher for, or, with --own, to try at most.")
    ] = 100,
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    most_tokens: MostTokens = 4096,
    temperature: Temperature = None,
    tries: Tries = 4,
    language: Language = "en",
    seed: Seed = 0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    splits: Splits = "0.6,0.15,0.25",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make MetaAlign's data: answers ranked under preferences in two tiers, of files, with a
    teacher model, or of the model's own answers. Resumable."""
    with _needing_data():
        from fader.data.meta_builder import build, build_with_teacher, gather
        from fader.data.meta_teacher import estimate
        from fader.data.questions import Plan
        from fader.data.rounds import Place

    place = Place(Path(out), force)
    given = given_options(context)
    if own is not None:
        for name, option in given.items():
            if name not in own_answers.READ_BY_OWN:
                raise ValueError(
                    f"{option}: with --own the model answers, no teacher; leave it out"
                )
        read, alone = gather(data) if data else (None, 0)
        vector, drawn = own_answers.planned(own, read, count, seed)
        if dry_run:
            row = own_answers.row_of(drawn)
            print_json(row) if as_json else screen.print(row)
            return
        _show_built(own_answers.build(vector, drawn, model, place, alone), place, as_json)
        return
    if "model" in given:
        raise ValueError("--model: writes answers only with --own; give it too, or leave this out")
    prices = _prices(price_in, price_out)
    if endpoint is None or teacher is None:
        if endpoint or teacher:
            raise ValueError("endpoint, teacher: give both or neither")
        if dry_run:
            raise ValueError("dry-run: only a teacher costs anything; give endpoint and teacher")
        for name, option in given.items():
            if name not in WITHOUT_A_TEACHER:
                raise ValueError(f"{option}: only a teacher is asked so; leave it out")
        items, alone = gather(data) if data else (starter_items(), 0)
        _show_built(build(items, alone, place, seed), place, as_json)
        return
    plan = Plan("meta", count, language, seed, tries, shares(splits))
    key = os.environ.get(key_env)
    reached = Endpoint(
        endpoint, teacher, key, timeout, retries, concurrency, temperature, most_tokens
    )
    expected = estimate(plan, prices)
    if dry_run:
        _say_estimate(expected, as_json)
        return
    items, alone = gather(data or [])
    with _bar(expected) as tell:
        built = build_with_teacher(plan, reached, place, items, alone, prices, tell)
    _show_built(built, place, as_json)


@contextmanager
def _needing_data() -> Iterator[None]:
    with needing("making data", "data"):
        import openai  # noqa: F401  (missed here, before anything is made)

        yield


def _prices(price_in: float | None, price_out: float | None) -> Prices | None:
    from fader.data.rounds import Prices

    if (price_in is None) != (price_out is None):
        raise ValueError("price-in, price-out: give both or neither")
    return None if price_in is None or price_out is None else Prices(price_in, price_out)


def _say_estimate(expected: Cost, as_json: bool) -> None:
    if as_json:
        print_json(_money(expected))
    else:
        screen.print(f"A run from nothing would be {_spoken(expected)}.", highlight=False)


@contextmanager
def _bar(expected: Cost) -> Iterator[Tell]:
    """A progress bar while data is made, under what it will be about."""
    messages.print(
        f"About {_spoken(expected)}, less what is kept from an earlier run.", highlight=False
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
    ) as bar:
        task = bar.add_task("begin", total=expected.calls)
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total
        )


def _show(made: Made[Any], file: Path, as_json: bool) -> None:
    from fader.data.rounds import Place

    row = {
        "file": str(file),
        "datasheet": str(Place(file).sheet),
        "items": len(made.items),
        "splits": made.splits,
        **_replies(made),
    }
    print_json(row) if as_json else screen.print(row)


def _show_built(built: Built, place: Place, as_json: bool) -> None:
    row = {
        "file": str(place.out),
        "datasheet": str(place.sheet),
        "samples": len(built.samples),
        "items": built.items,
        "parts": built.parts,
        "preferences": built.preferences,
        "flip_rates": built.flip_rates,
        "twice": built.twice,
        "alone": built.alone,
        **(_replies(built.taught) if built.taught else {}),
        **(own_answers.row_of(built.own.plan, built.own) if built.own else {}),
    }
    print_json(row) if as_json else screen.print(row)


def _replies(made: Made[Any]) -> dict[str, Any]:
    """What became of a teacher's replies, and what they took."""
    return {
        "dropped": made.dropped,
        "refused": made.refused,
        **_money(made.now),
        "cached": made.cached,
        "whole": _money(made.whole),
    }


def _money(cost: Cost) -> dict[str, float | None]:
    return {
        "calls": cost.calls,
        "tokens_in": cost.tokens_in,
        "tokens_out": cost.tokens_out,
        "cost": cost.money,
    }


def _spoken(cost: Cost) -> str:
    money = "" if cost.money is None else f", {cost.money:.2f} at these prices"
    return (
        f"{cost.calls} requests, {cost.tokens_in} tokens read and {cost.tokens_out} written{money},"
        " without what must be asked again"
    )
