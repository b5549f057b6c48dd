"""Commands that make and check training data."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fader.cli.show import (
    AsJson,
    Rating,
    SkipBad,
    commands,
    needing,
    print_json,
    screen,
    table,
)
from fader.data.records import read
from fader.data.splits import NAMES, marked, row_of
from fader.endpoint import Endpoint
from fader.files import write_whole
from fader.starter.shipped import starter_items

if TYPE_CHECKING:
    from fader.data.rounds import Cost

app = commands("Training data: make and check (needs the extra `data`).")
messages = Console(stderr=True)
Language = Annotated[str, typer.Option(help="ISO 639-1 code of the language the data is in.")]


@app.command(
    "levels",
    epilog=(
        "Example: `fader data levels tax-law --count 120 --out tax.jsonl --endpoint"
        " http://localhost:8000/v1 --teacher some-model --dry-run`"
    ),
)
def levels_command(
    domain: Annotated[str, typer.Argument(help="What the questions are about, such as tax-law.")],
    out: Annotated[
        str,
        typer.Option(
            help=(
                "JSONL file to write. The datasheet goes beside it, replies into a hidden folder"
                " beside it."
            )
        ),
    ],
    endpoint: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server.")],
    teacher: Annotated[str, typer.Option(help="Model that the endpoint serves.")],
    count: Annotated[int, typer.Option(help="Items to ask for.")] = 120,
    key_env: Annotated[
        str,
        typer.Option(
            help=(
                "Environment variable that holds the endpoint's key; may be unset where none is"
                " needed."
            )
        ),
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Most requests at once.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one try may take.")] = 120.0,
    retries: Annotated[
        int, typer.Option(help="Further tries of a request that fails on the way.")
    ] = 5,
    most_tokens: Annotated[
        int, typer.Option(help="Most tokens of one reply, its thoughts included.")
    ] = 4096,
    temperature: Annotated[
        float | None, typer.Option(help="Of the teacher; left out: the endpoint's own.")
    ] = None,
    tries: Annotated[int, typer.Option(help="Most attempts at a text that breaks a rule.")] = 4,
    language: Language = "en",
    seed: Annotated[int, typer.Option(help="Another seed, other data.")] = 0,
    personas: Annotated[
        str | None,
        typer.Option(help="Your own personas: a text file, one a line, or JSONL with `persona`."),
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens read.")] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million tokens written.")
    ] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, dev and test.")] = "0.6,0.15,0.25",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate requests, tokens and cost.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write over a file that was not made here, or was changed since."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make level data in any domain with a teacher model: questions of invented people, each
    answered at three levels. Resumable."""
    with needing("making data", "data"):
        import openai  # noqa: F401  (missed here, before anything is made)

        from fader.data.levels import Plan, estimate, make, read_personas
        from fader.data.rounds import Place, Prices

    plan = Plan(domain, count, language, seed, tries, _shares(splits))
    if (price_in is None) != (price_out is None):
        raise ValueError("price-in, price-out: give both or neither")
    prices = None if price_in is None or price_out is None else Prices(price_in, price_out)
    people = read_personas(personas) if personas else []
    reached = Endpoint(
        endpoint,
        teacher,
        os.environ.get(key_env),
        timeout,
        retries,
        concurrency,
        temperature,
        most_tokens,
    )
    expected = estimate(plan, people, prices)
    if dry_run:
        (
            print_json(_money(expected))
            if as_json
            else screen.print(f"A run from nothing would be {_spoken(expected)}.", highlight=False)
        )
        return
    messages.print(
        f"About {_spoken(expected)}, less what is kept from an earlier run.", highlight=False
    )
    file = Path(out)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
    ) as bar:
        task = bar.add_task("persona", total=expected.calls)
        made = make(
            plan,
            reached,
            file,
            people,
            prices,
            lambda stage, done, total: bar.update(
                task, description=stage, completed=done, total=total
            ),
            force,
        )
    row = {
        "file": str(file),
        "datasheet": str(Place(file).sheet),
        "items": len(made.items),
        "splits": made.splits,
        "dropped": made.dropped,
    }
    row |= {
        "refused": made.refused,
        **_money(made.now),
        "cached": made.cached,
        "whole": _money(made.whole),
    }
    print_json(row) if as_json else screen.print(row)


@app.command("check", epilog="Example: `fader data check tax.jsonl`")
def check_command(
    file: Annotated[
        str,
        typer.Argument(
            help=(
                "Level data (query, avoidance, generic, expert) or pairs in any common form: JSONL,"
                " JSON, CSV, parquet, a folder, or a data set's hub id."
            )
        ),
    ],
    language: Language = "en",
    rating: Rating = None,
    skip_bad: SkipBad = 0,
    as_json: AsJson = False,
) -> None:
    """Check level data or pairs by the rules. Exit status 0 without a fault, 1 with one, 2 if
    the file cannot be read."""
    with needing("checking data", "data"):
        from fader.data.check import RULES, check

    report = check(file, language, rating, skip_bad)
    for note in report.notes:
        messages.print(note, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        findings = [
            {"line": found.line, "field": found.field, **asdict(found.fault)}
            for found in report.findings
        ]
        print_json(
            {
                "file": file,
                "kind": report.kind,
                "items": report.items,
                "faults": report.counts,
                "findings": findings,
            }
        )
    else:
        table(
            f"{file}: {report.items} records of {report.kind}",
            [{"rule": r, "asks that": RULES[r], "faults": n} for r, n in report.counts.items()],
        )
        for found in report.findings:
            screen.print(
                f"{file}:{found.line}: {found.field}: {found.fault.rule}: {found.fault.detail}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if report.findings:
        raise typer.Exit(1)


@app.command(
    "meta",
    epilog=(
        "Example: `fader data meta --out tiers.jsonl`, then `fader train meta mine --data"
        " tiers.jsonl`"
    ),
)
def meta_command(
    out: Annotated[
        str,
        typer.Option(
            help=(
                "JSONL file of samples to write. The datasheet goes beside it, replies into a"
                " hidden folder beside it."
            )
        ),
    ],
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
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base address of an OpenAI-compatible server that makes items too."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model that the endpoint serves.")] = None,
    count: Annotated[int, typer.Option(help="Items to ask the teacher for.")] = 100,
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Most requests at once.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one try may take.")] = 120.0,
    retries: Annotated[
        int, typer.Option(help="Further tries of a request that fails on the way.")
    ] = 5,
    temperature: Annotated[
        float | None, typer.Option(help="Of the teacher; left out: the endpoint's own.")
    ] = None,
    tries: Annotated[int, typer.Option(help="Most attempts at a text that breaks a rule.")] = 4,
    language: Language = "en",
    seed: Annotated[int, typer.Option(help="Another seed, other data.")] = 0,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens read.")] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million tokens written.")
    ] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, dev and test.")] = "0.6,0.15,0.25",
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write over a file that was not made here, or was changed since."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make MetaAlign's data: answers ranked under preferences in two tiers, of files or with a
    teacher model. Resumable."""
    with needing("making data", "data"):
        import openai  # noqa: F401  (missed here, before anything is made)

        from fader.data.meta_builder import build, gather
        from fader.data.meta_teacher import Plan, expected
        from fader.data.rounds import Place, Prices

    if (endpoint is None) != (teacher is None):
        raise ValueError("endpoint, teacher: give both or neither")
    if (price_in is None) != (price_out is None):
        raise ValueError("price-in, price-out: give both or neither")
    prices = None if price_in is None or price_out is None else Prices(price_in, price_out)
    items, alone = gather(data or [])
    if not data and endpoint is None:
        items = starter_items()
    place = Place(Path(out), force)
    if endpoint is None or teacher is None:
        made = build(items, alone, place, seed)
    else:
        plan = Plan(count, language, seed, tries, _shares(splits))
        reached = Endpoint(
            endpoint,
            teacher,
            os.environ.get(key_env),
            timeout,
            retries,
            concurrency,
            temperature,
        )
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=messages,
        ) as bar:
            task = bar.add_task("texts", total=expected(plan))
            made = build(
                items,
                alone,
                place,
                seed,
                plan,
                reached,
                prices,
                lambda stage, done, total: bar.update(
                    task, description=stage, completed=done, total=total
                ),
            )
    row = {
        "file": out,
        "datasheet": str(place.sheet),
        "samples": len(made.samples),
        "items": made.items,
        "parts": made.parts,
        "preferences": made.preferences,
        "flip_rates": made.flip_rates,
        "twice": made.twice,
        "alone": made.alone,
    }
    if taught := made.taught:
        row |= {
            "dropped": taught.dropped,
            "refused": taught.refused,
            **_money(taught.paid.now),
            "cached": taught.paid.cached,
            "whole": _money(taught.paid.whole),
        }
    print_json(row) if as_json else screen.print(row)


@app.command("split", epilog="Example: `fader data split mine.jsonl --out pairs.jsonl`")
def split_command(
    file: Annotated[str, typer.Argument(help="Pairs or level data, as for `data check`.")],
    out: Annotated[str, typer.Option(help="JSONL file to write; one that is there is not.")],
    splits: Annotated[str, typer.Option(help="Shares of train, dev and test.")] = "0.6,0.15,0.25",
    rating: Rating = None,
    skip_bad: SkipBad = 0,
    as_json: AsJson = False,
) -> None:
    """Write any preference data as JSONL, each record marked train, dev or test; no question is in
    two of them."""
    found = read(file, rating, skip_bad)
    if Path(out).exists():
        raise ValueError(f"--out: {out} is there already; choose another file, or remove it")
    items = marked(found.items, _shares(splits))
    for note in found.notes():
        messages.print(note, markup=False, highlight=False, soft_wrap=True)
    lines = [json.dumps(row_of(item), ensure_ascii=False) + "\n" for item in items]
    write_whole(Path(out), "".join(lines))
    counts = {name: sum(item.split == name for item in items) for name in NAMES}
    row = {"file": out, "items": len(items), "splits": counts}
    print_json(row) if as_json else screen.print(row)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(
            "splits: must be three shares (train, dev, test) that sum to 1, such as 0.6,0.15,0.25"
            f" (got {text!r})"
        ) from None


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
