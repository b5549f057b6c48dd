"""Makes level data with a teacher (Alignment Vectors, arXiv 2410.19206): personas, a question from
each, answers at three levels.

Every stage works in rounds (`rounds.py`) and checks the replies by the rules of `check.py`. What
still breaks a rule after `tries` rounds is dropped and counted.

Deviation from the paper: its prompts are not public; those here are ours, and cleaning is by rules
instead of by people.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from fader.data.check import answer_faults
from fader.data.datasheet import LIMITS, datasheet, lengths, table
from fader.data.prompts import ANSWER, GUIDE, LEVEL_PROMPTS, OPENINGS, prompts_hash
from fader.data.questions import (
    PERSON,
    QUESTION,
    Plan,
    ask_questions,
    asked_for_questions,
    messages,
)
from fader.data.records import LEVELS, Level, LevelItem
from fader.data.rounds import Checker, Cost, Made, Messages, Place, Prices, Rounds, Tell, make_at
from fader.data.splits import row_of
from fader.endpoint import Endpoint

ORDER: tuple[Level, ...] = (
    "expert",
    "generic",
    "avoidance",
)  # the longest first: each answer is held against the longer ones
LENGTHS: dict[Level, int] = {
    "expert": 65,
    "generic": 34,
    "avoidance": 22,
}  # words, as the prompts ask for them


def make(
    plan: Plan,
    endpoint: Endpoint,
    out: Path,
    personas: Sequence[str] = (),
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
    force: bool = False,
) -> Made[LevelItem]:
    """Write level data to `out` and its datasheet beside it (see `Place`), replies into the hidden
    folder beside them. The same call goes on where it was stopped.

    Raises ValueError where the endpoint refuses, for files whose changes would be lost, or if
    nothing usable came of it; ConnectionError where it fails; OSError where files cannot be
    written. In each case `out` is as it was before, and the replies so far are kept.
    """
    expected = estimate(plan, personas).calls
    return make_at(
        Place(out, force),
        endpoint,
        plan.count,
        lambda client: Rounds(client, plan.seed, plan.tries, expected, prices, tell),
        lambda rounds: _items(rounds, plan, personas),
        lambda made: (
            [row_of(item) for item in made.items],
            _datasheet(plan, endpoint, made, out.name),
        ),
    )


def estimate(plan: Plan, personas: Sequence[str] = (), prices: Prices | None = None) -> Cost:
    """What a run will cost if nothing is kept yet and nothing is asked twice: prompts are counted,
    answers taken at the middle of their lengths."""
    asked = asked_for_questions(plan, personas)
    for level, words in LENGTHS.items():
        asked += [(answer_prompt(plan, level, 0, PERSON, QUESTION), words)] * plan.count
    return Cost.estimated(asked, prices)


def answer_prompt(plan: Plan, level: Level, place: int, persona: str, query: str) -> Messages:
    """Asks for an answer at a level."""
    opening = random.Random(f"{plan.seed} opening {place}").choice(OPENINGS)
    return messages(
        plan,
        ANSWER.format(
            persona=persona, query=query, guide=GUIDE[level].replace("{opening}", opening)
        ),
    )


async def _items(rounds: Rounds, plan: Plan, personas: Sequence[str]) -> list[LevelItem]:
    """A question for every place of the plan, and its three answers."""
    asked = await ask_questions(rounds, plan, personas, len(ORDER))
    answers: dict[int, dict[Level, str]] = {place: {} for place in asked}
    for number, level in enumerate(ORDER, 1):
        prompts = {place: answer_prompt(plan, level, place, *asked[place]) for place in answers}
        check = _checker(plan, level, answers, asked)
        found = await rounds.settle(level, prompts, check, len(ORDER) - number)
        answers = {place: {**answers[place], level: text} for place, text in found.items()}
    return [
        LevelItem(
            asked[place][1],
            {level: found[level] for level in LEVELS},
            plan.split(asked[place][1]),
            asked[place][0],
        )
        for place, found in sorted(answers.items())
    ]


def _checker(
    plan: Plan,
    level: Level,
    answers: Mapping[int, Mapping[Level, str]],
    asked: Mapping[int, tuple[str, str]],
) -> Checker:
    return lambda place, text: answer_faults(
        level, text, answers[place], asked[place][1], plan.language
    )


def _datasheet(plan: Plan, endpoint: Endpoint, made: Made[LevelItem], name: str) -> str:
    texts = [("query", [item.query for item in made.items])]
    texts += [(level, [item.answers[level] for item in made.items]) for level in LEVELS]
    return datasheet(
        name,
        motivation=f"""Questions about {plan.topic}, each answered at three levels (avoidance,
generic, expert), to train and to measure an alignment vector that moves a language model between
those levels (Alignment Vectors, arXiv 2410.19206).""",
        how=f"""A teacher model invented people with a situation, then a question that each would
ask, then the three answers. Nobody has read the result. Every text was held against rules
(length, order of lengths, form, language, completeness, leaks between levels, duplicates); one that
broke a rule was asked again, at most {plan.tries} times in all.""",
        facts=[
            ("teacher", endpoint.model),
            ("language", plan.language),
            ("asked for", f"{plan.count} items, seed {plan.seed}"),
            ("prompts", f"fader, hash {prompts_hash(LEVEL_PROMPTS)}"),
        ],
        made=made,
        content=f"""One JSON object a line: persona, query, avoidance, generic, expert, split.

{table(("split", "items"), made.splits.items())}

Lengths in words:

{lengths(texts)}""",
        lost=f"Items dropped after all attempts, {plan.count - len(made.items)} in all:",
        limits=(
            "Meant for training and measuring how much an answer says, not for finding out what is"
            " true. The expert answers are a model's claims and hold errors.",
            f"Not to be used as advice on {plan.topic}, nor shown to people as such. Have someone"
            " of the field read a sample before you ship a model trained on it.",
            *LIMITS,
        ),
    )
