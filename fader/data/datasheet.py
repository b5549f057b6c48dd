"""Datasheets of made data, in Markdown (after Gebru et al., Datasheets for Datasets, arXiv
1803.09010)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fader.data.rounds import Item, Made

LIMITS = (
    "The people are invented by a model and carry its view of the world: they are no sample of a"
    " population.",
    "The teacher's terms of use may restrict training on its output.",
    "Splits follow a hash of the question; one person may have questions in several splits if"
    " personas were given and used more than once.",
)
"""What holds of all data that begins with people and their questions."""


def datasheet(
    name: str,
    motivation: str,
    how: str,
    facts: Sequence[tuple[str, object]],
    made: Made[Item],
    content: str,
    lost: str,
    limits: Sequence[str],
) -> str:
    """The datasheet of data in a file called `name`. `motivation`, `how`, `content` and `lost` (how
    many items were dropped) are text; `facts` are said of how it was made beside day and cost."""
    first, last = made.days
    money = (
        "no prices were given"
        if made.whole.money is None
        else f"{made.whole.money:.4f} in the currency of the given prices"
    )
    taken = [
        ("made", first if first == last else f"{first} to {last}"),
        ("requests", made.whole.calls),
        ("tokens", f"{made.whole.tokens_in} read, {made.whole.tokens_out} written"),
        ("cost", money),
    ]
    duplicates = sum(
        count for reason, count in made.refused.items() if reason.endswith("duplicate")
    )
    listed = "\n".join(f"- {limit}" for limit in limits)
    return f"""# Datasheet: {name}

## Motivation

{motivation}

## How it was made

{how}

{table(("", ""), [*facts, *taken])}

## What is in it

{content}

## What was left out

{lost}

{table(("stage: rule", "items"), made.dropped.items())}

Replies not used, of which {duplicates} near-duplicates:

{table(("stage: rule", "replies"), made.refused.items())}

## Use and limits

{listed}
"""


def lengths(texts: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A table of lengths in words, of named texts."""
    found = [(name, sorted(len(text.split()) for text in some)) for name, some in texts]
    return table(
        ("text", "shortest", "middle", "longest"),
        [(name, some[0], some[len(some) // 2], some[-1]) for name, some in found],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table; a row of "none" where there are none."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(
        [
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(lines or ["| none |" + " 0 |" * (len(head) - 1)]),
        ]
    )
