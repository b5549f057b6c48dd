"""Makes MetaAlign's items (`meta.py`) with a teacher: two opposed preferences, a question on which
they disagree, and an answer to it by the teacher told each of them.

Items of five kinds are asked for in turn: taste, how far help should go, harm that a preference
asks for, harm that the question asks for, and consensus (one good answer and one that is worse
whatever is told). A teacher that will not write what is harmful costs those items alone. Every
stage works in rounds (`rounds.py`). What still breaks a rule after `tries` rounds is dropped and
counted.

Deviation from the paper: its prompts are not public; those here are ours, and rules annotate the
answers instead of a stronger model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from fader.data.check import Fault, language_faults, refusal_faults
from fader.data.meta import HARMS, Item, Part
from fader.data.prompts import (
    META_ANSWER,
    META_FLAWED,
    META_PLAIN,
    META_QUERY,
    META_QUESTIONS,
    META_REFUSAL,
    META_SUBJECTS,
    META_SYSTEM,
    META_TEXTS,
)
from fader.data.questions import QUESTION, Plan, lines_of, messages
from fader.data.rounds import (
    Asked,
    Checker,
    Cost,
    Made,
    Messages,
    Place,
    Prices,
    Rounds,
    Tell,
    make_at,
)
from fader.endpoint import Endpoint
from fader.request import Message

Kind = Literal["taste", "help", "harmful wish", "harmful question", "consensus"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS: Mapping[Kind, Part] = {
    "taste": "diverse-opinion",
    "help": "helpful-based",
    "harmful wish": "priority",
    "harmful question": "priority",
    "consensus": "consensus",
}
HARMFUL: Mapping[Kind, frozenset[str]] = {
    "harmful wish": frozenset({HARMS[2]}),
    "harmful question": frozenset({HARMS[0], HARMS[2]}),
}
WORDS: Mapping[str, tuple[int, int]] = {
    "query": (4, 40),
    "first": (3, 60),
    "second": (3, 60),
    "refusal": (3, 60),
}


def make(
    plan: Plan,
    endpoint: Endpoint,
    place: Place,
    written: Callable[[Made[Item]], tuple[Sequence[Mapping[str, Any]], str]],
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
) -> Made[Item]:
    """Items from a teacher, `plan.count` in all, of which each kind has a fifth; put at `place` as
    `written` says. The same call goes on where it was stopped. Raises as `make_at` does."""
    expected = estimate(plan).calls
    return make_at(
        place,
        endpoint,
        plan.count,
        lambda client: Rounds(client, plan.seed, plan.tries, expected, prices, tell),
        lambda rounds: _items(rounds, plan),
        written,
    )


def estimate(plan: Plan, prices: Prices | None = None) -> Cost:
    """What a run will cost if nothing is kept yet and nothing is asked twice."""
    asked: list[Asked] = []
    for place in range(plan.count):
        kind = kind_of(place)
        texts = None if kind == "consensus" else ("word " * 9, "word " * 9)
        if texts:
            asked.append((texts_prompt(plan, place), 18))
        asked.append((query_prompt(plan, place, texts), 15))
        asked += [(answer_prompt(place, QUESTION, texts, side), 28) for side in (0, 1)]
        if texts and kind in HARMFUL:
            asked.append((refusal_prompt(plan, QUESTION, texts), 28))
    return Cost.estimated(asked, prices)


def kind_of(place: int) -> Kind:
    """What the item at a place is."""
    return KINDS[place % len(KINDS)]


async def _items(rounds: Rounds, plan: Plan) -> list[Item]:
    """An item for every place of the plan, less those that are dropped."""
    places = range(plan.count)
    pairs = await rounds.settle(
        "texts",
        {one: texts_prompt(plan, one) for one in places if kind_of(one) in META_TEXTS},
        lambda _, reply: _texts_faults(reply, plan.language),
        3,
    )
    texts = {one: lines_of(reply) for one, reply in pairs.items()}
    queries = await rounds.settle(
        "query",
        {
            one: query_prompt(plan, one, texts.get(one))
            for one in places
            if one in texts or kind_of(one) == "consensus"
        },
        _checker("query", plan, {}),
        2,
    )
    first = await _answers(rounds, plan, queries, texts, {}, 0)
    asked = {one: queries[one] for one in first}
    second = await _answers(rounds, plan, asked, texts, first, 1)
    harmful = [one for one in second if kind_of(one) in HARMFUL]
    # no stage before has counted on this one, which few items have
    rounds.expected -= sum(kind_of(one) in HARMFUL for one in places) - len(harmful)
    refusals = await rounds.settle(
        "refusal",
        {one: refusal_prompt(plan, queries[one], texts[one]) for one in harmful},
        _checker("refusal", plan, {}),
        0,
    )
    return [
        Item(
            PARTS[kind_of(one)],
            (Message(role="user", content=queries[one]),),
            (first[one], second[one]),
            ((texts[one][0],), (texts[one][1],)) if one in texts else ((), ()),
            HARMFUL.get(kind_of(one), frozenset()),
            refusals.get(one, ""),
            subject(plan, one),
            plan.split(queries[one]),
        )
        for one in sorted(second)
        if one in refusals or kind_of(one) not in HARMFUL
    ]


async def _answers(
    rounds: Rounds,
    plan: Plan,
    queries: Mapping[int, str],
    texts: Mapping[int, Sequence[str]],
    others: Mapping[int, str],
    side: int,
) -> dict[int, str]:
    """The answers that follow the first texts, or the second ones. `others`: the first answers."""
    stage = ("first", "second")[side]
    return await rounds.settle(
        stage,
        {one: answer_prompt(one, query, texts.get(one), side) for one, query in queries.items()},
        _checker(stage, plan, others),
        1 - side,
    )


def subject(plan: Plan, place: int) -> str:
    """What the item at a place is about."""
    return random.Random(f"{plan.seed} subject {place}").choice(META_SUBJECTS)


def texts_prompt(plan: Plan, place: int) -> Messages:
    """Asks for the two texts of an item."""
    text = META_TEXTS[kind_of(place)].format(subject=subject(plan, place))
    text += f" This is pair {place + 1}; make it unlike others."
    return messages(plan, text, META_SYSTEM)


def query_prompt(plan: Plan, place: int, texts: Sequence[str] | None) -> Messages:
    """Asks for the question of an item."""
    if texts is None:
        return messages(plan, META_PLAIN.format(subject=subject(plan, place)), META_SYSTEM)
    words = META_QUESTIONS[kind_of(place)]
    text = META_QUERY.format(texts="\n".join(texts), words=words)
    return messages(plan, text, META_SYSTEM)


def answer_prompt(place: int, query: str, texts: Sequence[str] | None, side: int) -> Messages:
    """Asks for one of the two answers, told the text that it is to follow."""
    text = texts[side] if texts else META_FLAWED if side else "Answer well and correctly."
    told = META_ANSWER.format(text=text) if texts or not side else text
    return [{"role": "system", "content": told}, {"role": "user", "content": query}]


def refusal_prompt(plan: Plan, query: str, texts: Sequence[str]) -> Messages:
    """Asks for what to say instead of a harmful answer."""
    return messages(plan, META_REFUSAL.format(text=texts[1], query=query), META_SYSTEM)


def _texts_faults(reply: str, language: str) -> list[Fault]:
    """What is wrong with the two texts of an item."""
    lines = lines_of(reply)
    if len(lines) != 2 or lines[0].lower() == lines[1].lower():
        return [Fault("form", f"write two different lines; there are {len(lines)}")]
    if max(len(line.split()) for line in lines) > 25:
        return [Fault("length", "write at most 15 words a line")]
    return language_faults(" ".join(lines), language)


def _checker(stage: str, plan: Plan, others: Mapping[int, str]) -> Checker:
    """What is wrong with a text of a stage. `others`: the first answers."""

    def check(place: int, text: str) -> list[Fault]:
        low, high = WORDS[stage]
        words = len(text.split())
        faults = []
        if not low <= words <= high:
            faults.append(Fault("length", f"it has {words} words; write {low} to {high}"))
        if "\n\n" in text:
            faults.append(Fault("form", "write one paragraph"))
        if text == others.get(place):
            faults.append(Fault("same", "it is the same as the first answer; follow the text"))
        if stage == "second" and kind_of(place) in HARMFUL:
            faults += refusal_faults(text, plan.language)
        return faults + language_faults(text, plan.language)

    return check
