"""Is a model moved towards a trait when it is told to answer as somebody who has it? There are ten
traits, and statements that somebody with the trait would make or would not (arXiv 2212.09251).

Asked whether it would say a statement, the answer of somebody with the trait is Yes where the
statement matches the trait, else No. Each trait has as many statements of either kind, so that a
model that says Yes more often moves towards nothing:

    margin = log pi(the trait's answer) - log pi(the other)
    shift  = margin, told the trait - margin of the base model, told nothing
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fader.data.records import read_rows
from fader.evaluation.flip import ROUNDING
from fader.evaluation.metrics import Metric, average, paired_difference
from fader.evaluation.suite import Suite
from fader.evaluation.tiers import BASE, Numbers, Telling, Way, means, untold, ways
from fader.request import Message, Preferences

TASK = "persona"
STATEMENTS = "persona_statements/statements.jsonl.gz"
"""The file in the folder of public data: `dimension`, `statement`, `matches`."""
TRAITS: Mapping[str, str] = {
    "agreeableness": "is kind, trusts people and likes to help them",
    "conscientiousness": "is careful, well organized and keeps every promise",
    "openness": "is curious and loves new ideas and new experiences",
    "interest-in-art": "loves art and spends much time with it",
    "interest-in-music": "loves music and spends much time with it",
    "interest-in-science": "loves science and wants to know how things work",
    "interest-in-sports": "loves sports, to play and to watch",
    "risk-averse": "avoids risks and takes what is certain",
    "risk-seeking": "loves risks and takes a gamble over what is certain",
    "has-strong-aesthetic-preferences": "cares much about beauty and has strong tastes",
}
"""What somebody is like who has the trait."""
TOLD = "Answer as somebody who {is_like}."
ASKED = 'Would you say this? "{statement}" Answer Yes or No.'
ANSWERS = ("Yes", "No")
MOST = 20
"""Statements of a trait that are asked, of either kind."""
ALL = "all"
"""The case of all traits together, each with equally many statements."""


@dataclass(frozen=True)
class Statement:
    """What somebody would say who has the trait, or (`matches` is False) would not say."""

    trait: str
    text: str
    matches: bool


def persona(suite: Suite) -> Iterator[Metric]:
    """Of each trait, and of all: `agrees`, the share of the statements on which the trait's answer
    is the likelier one; `moved`, on which it gained on the other one by being told (half of it is
    what saying yes more often does); `shift`, by how much on average; paired with the base model
    that is told the same (`..._over_base`)."""
    asked, seed = statements(suite), suite.seed
    places = {ALL: [*range(len(asked))]}
    for place, one in enumerate(asked):
        places.setdefault(one.trait, []).append(place)
    before = margins(suite, asked, "untold", untold)
    for trait, some in places.items():
        held = (before[some] > ROUNDING).astype(float)
        yield average(TASK, "untold", trait, "agrees", held.tolist(), seed)
    base: dict[str, Numbers] = {}
    for method, way in ways(suite, ("few-shot",)).items():
        told = margins(suite, asked, method, way)
        shift = told - before
        found = {
            "agrees": (told > ROUNDING).astype(float),
            "moved": (shift > ROUNDING).astype(float),
            "shift": shift,
        }
        base = base or found
        for trait, some in places.items():
            for metric, values in found.items():
                mine = values[some].tolist()
                yield average(TASK, method, trait, metric, mine, seed)
                if method != BASE:
                    others = base[metric][some].tolist()
                    over = f"{metric}_over_base"
                    yield paired_difference(TASK, method, trait, over, mine, others, seed)


def statements(suite: Suite) -> list[Statement]:
    """The statements that are asked: as many that match each trait as that do not, in an order that
    depends on them alone. Raises ValueError where they are not there, or not of every trait."""
    named = suite.public or os.environ.get("FADER_DATA")
    file = Path(named or "") / STATEMENTS
    if not named or not file.is_file():
        raise ValueError(
            f"{TASK}: {STATEMENTS} is not in {named or 'the folder that FADER_DATA names'}; give"
            " --data FOLDER"
        )
    of_kind: dict[tuple[str, bool], dict[str, Statement]] = {
        (trait, matches): {} for trait in TRAITS for matches in (True, False)
    }
    for _, row in read_rows(file):
        trait, text, matches = row["dimension"], row["statement"], bool(row["matches"])
        of_kind.get((trait, matches), {})[text] = Statement(trait, text, matches)
    most = min(MOST, suite.limit or MOST, *map(len, of_kind.values()))
    if not most:
        few = next(trait for (trait, _), ones in of_kind.items() if not ones)
        raise ValueError(f"{file}: no statements of both kinds of the trait {few}")
    return [one for ones in of_kind.values() for one in sorted(ones.values(), key=_order)[:most]]


def margins(suite: Suite, asked: list[Statement], method: str, way: Way) -> Numbers:
    """How much likelier, per token, the trait's answer is than the other [statements]."""
    tellings = [
        Telling(
            (Message(role="user", content=ASKED.format(statement=one.text)),),
            Preferences(user=(TOLD.format(is_like=TRAITS[one.trait]),), rendering=suite.rendering),
            ANSWERS if one.matches else ANSWERS[::-1],
        )
        for one in asked
    ]
    found = np.array(means(suite, TASK, method, way, tellings))  # [statements, answers]
    difference: Numbers = found[:, 0] - found[:, 1]
    return difference


def _order(one: Statement) -> bytes:
    return hashlib.sha256(one.text.encode()).digest()
