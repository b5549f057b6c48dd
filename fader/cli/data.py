"""Commands on training data: check, split, take from ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fader.cli.show import (
    AsJson,
    Rating,
    SkipBad,
    commands,
    named_value,
    needing,
    print_json,
    screen,
    table,
)
from fader.data.preferences import is_judged, lists_families
from fader.data.preferences import row_of as judged_row
from fader.data.rated import Attribute, Gap, read_rated
from fader.data.records import read
from fader.data.splits import NAMES, marked, row_of
from fader.files import write_rows

if TYPE_CHECKING:
    from fader.data.check import Report
    from fader.data.check_preferences import FamilyReport, PreferenceReport

app = commands("Training data: make and check (needs the extra `data`).")
messages = Console(stderr=True)
Language = Annotated[str, typer.Option(help="ISO 639-1 code of the language the data is in.")]


@app.command("check", epilog="Example: `fader data check tax.jsonl`")
def check_command(
    file: Annotated[
        str,
        typer.Argument(
            help=(
                "Level data (query, avoidance, generic, expert), preference records (preference,"
                " family, pole and a pair), a list of families (family, poles, wordings; their"
                " pairs beside it), or pairs in any common form: JSONL, JSON, CSV, parquet, a"
                " folder, or a data set's hub id."
            )
        ),
    ],
    language: Language = "en",
    rating: Rating = None,
    skip_bad: SkipBad = 0,
    as_json: AsJson = False,
) -> None:
    """Check level data, preference records or pairs by the rules. Exit status 0 without a fault, 1
    with one, 2 if the file cannot be read."""
    with needing("checking data", "data"):
        from fader.data.check import RULES, check
        from fader.data.check_preferences import RULES as PREFERENCE_RULES
        from fader.data.check_preferences import check_preferences

    if is_judged(file) or lists_families(file):
        if rating is not None or skip_bad:
            raise ValueError(
                f"--rating, --skip-bad: {file} holds preference records, which have a chosen answer"
                " and must all be right; leave the option out"
            )
        with needing("the nearness of families", "eval"):
            judged = check_preferences(file, language)
        families = [_family_row(one) for one in judged.families]
        _report(file, "preferences", judged, PREFERENCE_RULES, as_json, families)
        return
    report = check(file, language, rating, skip_bad)
    for note in report.notes:
        messages.print(note, markup=False, highlight=False, soft_wrap=True)
    _report(file, report.kind, report, RULES, as_json)


def _report(
    file: str,
    kind: str,
    report: Report | PreferenceReport,
    rules: Mapping[str, str],
    as_json: bool,
    families: Sequence[dict[str, Any]] = (),
) -> None:
    """Show what a check found, and end with status 1 where it found a fault."""
    if as_json:
        findings = [
            {"line": found.line, "field": found.field, **asdict(found.fault)}
            for found in report.findings
        ]
        row: dict[str, Any] = {"file": file, "kind": kind, "items": report.items}
        row |= {"families": families} if families else {}
        print_json({**row, "faults": report.counts, "findings": findings})
    else:
        if families:
            table(f"{file}: families", [_as_cells(row) for row in families])
        table(
            f"{file}: {report.items} records of {kind}",
            [{"rule": r, "asks that": rules[r], "faults": n} for r, n in report.counts.items()],
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


def _family_row(family: FamilyReport) -> dict[str, Any]:
    near = None if family.nearness is None else round(family.nearness, 3)
    return {**asdict(family), "nearness": near, "kind": family.kind}


def _as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A family's row for a table, in few and short columns."""
    near = "" if row["nearness"] is None else f" ({row['nearness']:.2f} to {row['nearest']})"
    return {
        "family": row["family"] or "(none)",
        "poles": " / ".join(row["poles"]),
        "wordings, unseen": f"{row['wordings']}, {row['unseen']}",
        "/".join(row["splits"]): "/".join(map(str, row["splits"].values())),
        "unflipped": row["unflipped"],
        "leaks": row["leaks"],
        "is": row["kind"] + near,
    }


@app.command(
    "rated",
    epilog=(
        "Example: `fader data rated helpsteer.jsonl --out verbosity.jsonl --attribute"
        " verbosity='Tell me everything.' --opposite verbosity='Be brief.'`"
    ),
)
def rated_command(
    file: Annotated[
        str,
        typer.Argument(
            help=(
                "Answers with scores, as HelpSteer (response and columns), UltraFeedback"
                " (completions) and PKU-SafeRLHF (response_0, response_1) have them."
            )
        ),
    ],
    out: Annotated[str, typer.Option(help="JSONL file to write; one that is there is not.")],
    attribute: Annotated[
        list[str],
        typer.Option(
            help="COLUMN=WORDING: what somebody says who likes its higher scores; may be repeated."
        ),
    ],
    opposite: Annotated[
        list[str],
        typer.Option(help="COLUMN=WORDING of somebody who likes its lower scores."),
    ],
    gap: Annotated[float, typer.Option(help="How far the two scores of a pair are apart.")] = 1.0,
    most_gap: Annotated[
        float, typer.Option(help="How far they may be apart; PAD takes 0.5 to 1.5.")
    ] = float("inf"),
    splits: Annotated[
        str | None,
        typer.Option(help="Shares of train, dev and test; left out: the data's own splits."),
    ] = None,
    skip_bad: SkipBad = 0,
    as_json: AsJson = False,
) -> None:
    """Make preference records of rated answers: each pair of answers whose scores differ, liked one
    way round by who wants much of an attribute and the other by who wants little."""
    if Path(out).exists():
        raise ValueError(f"--out: {out} is there already; choose another file, or remove it")
    much, little = _wordings(attribute, "--attribute"), _wordings(opposite, "--opposite")
    attributes = [
        Attribute(name, much.get(name, ()), little.get(name, ()))
        for name in dict.fromkeys([*much, *little])
    ]
    parts = None if splits is None else shares(splits)
    found = read_rated(file, attributes, Gap(gap, most_gap), parts, skip_bad)
    for note in found.notes:
        messages.print(note, markup=False, highlight=False, soft_wrap=True)
    records = [judged for family in found.families for judged in family.records()]
    write_rows(Path(out), [judged_row(judged) for judged in records])
    row = {
        "file": out,
        "items": len(records),
        "splits": {name: sum(judged.split == name for judged in records) for name in NAMES},
        "attributes": {name: dict(counts) for name, counts in found.counts.items()},
    }
    print_json(row) if as_json else screen.print(row)


def _wordings(given: Sequence[str], option: str) -> dict[str, tuple[str, ...]]:
    """The wordings of each column."""
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, wording = named_value(text, f"{option} COLUMN=WORDING")
        found[name] = (*found.get(name, ()), wording)
    return found


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
    items = marked(found.items, shares(splits))
    for note in found.notes():
        messages.print(note, markup=False, highlight=False, soft_wrap=True)
    write_rows(Path(out), [row_of(item) for item in items])
    counts = {name: sum(item.split == name for item in items) for name in NAMES}
    row = {"file": out, "items": len(items), "splits": counts}
    print_json(row) if as_json else screen.print(row)


def shares(text: str) -> tuple[float, ...]:
    """The shares of train, dev and test."""
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(
            "splits: must be three shares (train, dev, test) that sum to 1, such as 0.6,0.15,0.25"
            f" (got {text!r})"
        ) from None
