"""Makes level data with a teacher (Alignment Vectors, arXiv 2410.19206): personas, a question from
each, answers at three levels.

Every stage works in rounds (`rounds.py`) and checks the replies by the rules of `check.py`. What
still breaks a rule after `tries` rounds is dropped and counted.

Deviation from the paper: its prompts are not public; those here are ours, and cleaning is by rules
instead of by people.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fader.data.check import Seen, answer_faults, check_language, text_faults
from fader.data.prompts import (
    ANGLES,
    ANSWER,
    GUIDE,
    KINDS,
    OPENINGS,
    PERSONA,
    QUERY,
    SYSTEM,
    USED,
    prompts_hash,
)
from fader.data.records import LEVELS, Level, LevelItem, read_rows
from fader.data.rounds import (
    ADVICE,
    Checker,
    Cost,
    Messages,
    Place,
    Prices,
    Rounds,
    Tell,
    cut,
    markdown_table,
)
from fader.endpoint import Client, Endpoint, Reply, run

SPLITS = ("train", "dev", "test")
ORDER: tuple[Level, ...] = (
    "expert",
    "generic",
    "avoidance",
)  # the longest first: each answer is held against the longer ones
STAGES = ("query", *ORDER)  # of every item
# personas in one request, and such requests in one round; fixed, so that a larger count asks the
# same first
BATCH, WIDTH = 10, 8
LENGTHS: dict[Level, int] = {
    "expert": 65,
    "generic": 34,
    "avoidance": 22,
}  # words, as the prompts ask for them
TOKENS_PER_WORD = 1.4  # of English; other languages need up to three times that


@dataclass(frozen=True)
class Plan:
    """What is to be made. `splits` are the shares of train, dev and test. Raises ValueError for a
    value out of range."""

    domain: str
    count: int = 120
    language: str = "en"
    seed: int = 0
    tries: int = 4
    splits: tuple[float, ...] = (0.6, 0.15, 0.25)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w -]*", self.domain):
            raise ValueError(
                "domain: must be a name of letters, digits, spaces, - and _, such as tax-law (got"
                f" {self.domain!r})"
            )
        if self.count < 1:
            raise ValueError(f"count: must be at least 1 (got {self.count})")
        if self.tries < 1:
            raise ValueError(f"tries: must be at least 1 (got {self.tries})")
        if (
            len(self.splits) != len(SPLITS)
            or min(self.splits) < 0
            or not abs(sum(self.splits) - 1) <= 1e-6
        ):
            raise ValueError(
                "splits: must be three shares (train, dev, test) that sum to 1, such as"
                f" 0.6,0.15,0.25 (got {self.splits})"
            )
        check_language(self.language)

    @property
    def topic(self) -> str:
        """The domain as words."""
        return re.sub(r"[-_]+", " ", self.domain)

    def split(self, query: str) -> str:
        """The split of a query: by its hash, so that it stays the same whatever else is made."""
        place = int(hashlib.sha256(query.encode()).hexdigest()[:8], 16) / 2**32
        return (
            SPLITS[0]
            if place < self.splits[0]
            else SPLITS[1]
            if place < self.splits[0] + self.splits[1]
            else SPLITS[2]
        )


@dataclass(frozen=True)
class Made:
    """What was made. `dropped` are items given up, `refused` replies that broke a rule, both by
    stage and rule; the rest is what was `Paid`."""

    items: tuple[LevelItem, ...]
    dropped: dict[str, int]
    refused: dict[str, int]
    now: Cost
    whole: Cost
    cached: int
    days: tuple[str, str]

    @property
    def splits(self) -> dict[str, int]:
        """Items per split."""
        found = Counter(item.split for item in self.items)
        return {name: found[name] for name in SPLITS}


def make(
    plan: Plan,
    endpoint: Endpoint,
    out: Path,
    personas: Sequence[str] = (),
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
    force: bool = False,
) -> Made:
    """Write level data to `out` and its datasheet beside it (see `Place`), replies into the hidden
    folder beside them. The same call goes on where it was stopped.

    Raises ValueError where the endpoint refuses, for files whose changes would be lost, or if
    nothing usable came of it; ConnectionError where it fails; OSError where files cannot be
    written. In each case `out` is as it was before, and the replies so far are kept.
    """
    place = Place(out, force)
    with place.held():
        reached = replace(endpoint, folder=place.part)
        made = run(_make(plan, reached, personas, prices, tell))
        if not made.items:
            raise ValueError(
                f"teacher: no item of {plan.count} could be used (dropped: {made.dropped}, refused:"
                f" {made.refused}); look at the replies in {place.part} or take a stronger model"
            )
        rows = [
            {"persona": item.persona, "query": item.query, **item.answers, "split": item.split}
            for item in made.items
        ]
        place.write(rows, datasheet(plan, endpoint, made, out.name))
    return made


def read_personas(file: Path | str) -> list[str]:
    """Personas from a text file, one a line, or from the field `persona` of a .jsonl file. Raises
    ValueError if there are none."""
    if Path(file).suffix == ".jsonl":
        found = [row.get("persona") for _, row in read_rows(file)]
    else:
        found = [
            line.strip()
            for line in Path(file).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    if not found or not all(isinstance(persona, str) and persona.strip() for persona in found):
        raise ValueError(
            f"personas: {file} must hold one persona a line, or records with `persona`"
        )
    return [str(persona) for persona in found]


def estimate(plan: Plan, personas: Sequence[str] = (), prices: Prices | None = None) -> Cost:
    """What a run will cost if nothing is kept yet and nothing is asked twice: prompts are counted,
    answers taken at the middle of their lengths."""
    persona, query = "word " * 18, "word " * 20
    batches = 0 if personas else -(-plan.count // BATCH)
    asked = [(persona_prompt(plan, 0, ["word " * 6] * 30), BATCH * 18)] * batches
    asked += [(query_prompt(plan, 0, persona, 1), 20)] * plan.count
    for level, words in LENGTHS.items():
        asked += [(answer_prompt(plan, level, 0, persona, query), words)] * plan.count
    read = sum(len(message["content"].split()) for messages, _ in asked for message in messages)
    written = sum(words for _, words in asked)
    return Cost.of(
        len(asked), round(read * TOKENS_PER_WORD), round(written * TOKENS_PER_WORD), prices
    )


def persona_prompt(plan: Plan, number: int, taken: Sequence[str]) -> Messages:
    """Asks for a batch of personas; `taken` are those that there are, of which the latest 60 are
    named by their first words."""
    roles = "\n".join(" ".join(persona.split()[:8]) for persona in taken[-60:])
    used = USED.format(roles=roles) if roles else ""
    angle = random.Random(f"{plan.seed} angle {number}").choice(ANGLES)
    return _messages(
        plan,
        PERSONA.format(batch=BATCH, domain=plan.topic, number=number + 1, angle=angle, used=used),
    )


def query_prompt(plan: Plan, place: int, persona: str, number: int) -> Messages:
    """Asks for a persona's question; `number` counts this persona's questions from 1."""
    kind = random.Random(f"{plan.seed} kind {place}").choice(KINDS)
    further = (
        f" It is question {number} of this person, on another matter than those before."
        if number > 1
        else ""
    )
    return _messages(
        plan, QUERY.format(persona=persona, domain=plan.topic, kind=kind, number=further)
    )


def answer_prompt(plan: Plan, level: Level, place: int, persona: str, query: str) -> Messages:
    """Asks for an answer at a level."""
    opening = random.Random(f"{plan.seed} opening {place}").choice(OPENINGS)
    return _messages(
        plan,
        ANSWER.format(
            persona=persona, query=query, guide=GUIDE[level].replace("{opening}", opening)
        ),
    )


def _messages(plan: Plan, text: str) -> Messages:
    return [
        {"role": "system", "content": SYSTEM.format(domain=plan.topic, language=plan.language)},
        {"role": "user", "content": text},
    ]


async def _make(
    plan: Plan,
    endpoint: Endpoint,
    personas: Sequence[str],
    prices: Prices | None,
    tell: Tell,
) -> Made:
    expected = estimate(plan, personas).calls
    async with Client(endpoint, ADVICE) as client:
        rounds = Rounds(client, plan.seed, plan.tries, STAGES, expected, tell)
        people = list(personas) or await _personas(rounds, plan)
        items = await _items(rounds, plan, people) if people else []
        return Made(
            tuple(items),
            dict(sorted(rounds.dropped.items())),
            dict(sorted(rounds.refused.items())),
            *rounds.paid(prices),
        )


async def _personas(rounds: Rounds, plan: Plan) -> list[str]:
    """As many new personas as the plan counts, or fewer if the teacher has no more to give."""
    found: list[str] = []
    seen, number = Seen(), 0
    for _ in range(-(-plan.count // (BATCH * WIDTH)) + plan.tries):
        width = min(WIDTH, -(-(plan.count - len(found)) // BATCH))
        if not width:
            break
        prompts = [persona_prompt(plan, number + place, found) for place in range(width)]
        rounds.expected += max(0, number + width - max(number, -(-plan.count // BATCH)))
        number += width
        for reply in await rounds.ask("persona", prompts):
            for persona in personas_of(reply):
                faults = text_faults("persona", persona, plan.language) + seen.fault(persona)
                rounds.refused.update(f"persona: {fault.rule}" for fault in faults[:1])
                if not faults:
                    found.append(persona)
                    seen.add(persona)
    return found[: plan.count]


async def _items(rounds: Rounds, plan: Plan, people: Sequence[str]) -> list[LevelItem]:
    """A question for every place of the plan, people in turn, and its three answers."""
    who = {place: people[place % len(people)] for place in range(plan.count)}
    queries = await rounds.settle(
        "query",
        {place: query_prompt(plan, place, who[place], 1 + place // len(people)) for place in who},
        lambda _, text: text_faults("query", text, plan.language),
    )
    answers: dict[int, dict[Level, str]] = {place: {} for place in queries}
    for level in ORDER:
        prompts = {
            place: answer_prompt(plan, level, place, who[place], queries[place])
            for place in answers
        }
        found = await rounds.settle(level, prompts, _checker(plan, level, answers, queries))
        answers = {place: {**answers[place], level: text} for place, text in found.items()}
    return [
        LevelItem(
            queries[place],
            {level: found[level] for level in LEVELS},
            plan.split(queries[place]),
            who[place],
        )
        for place, found in sorted(answers.items())
    ]


def _checker(
    plan: Plan,
    level: Level,
    answers: Mapping[int, Mapping[Level, str]],
    queries: Mapping[int, str],
) -> Checker:
    return lambda place, text: answer_faults(
        level, text, answers[place], queries[place], plan.language
    )


def personas_of(reply: Reply) -> list[str]:
    """The personas of a batch: its lines without marks and numbers; an unfinished last line is left
    out."""
    lines = [
        re.sub(r"^\s*([-*•]|\d+[.):])\s*", "", line).strip() for line in reply.text.splitlines()
    ]
    return [line for line in (lines[:-1] if cut(reply) else lines) if line]


def datasheet(plan: Plan, endpoint: Endpoint, made: Made, name: str) -> str:
    """The data's datasheet, in Markdown (after Gebru et al., Datasheets for Datasets, arXiv
    1803.09010)."""
    lengths = {
        field: sorted(len(text.split()) for text in texts)
        for field, texts in (
            ("query", [item.query for item in made.items]),
            *((level, [item.answers[level] for item in made.items]) for level in LEVELS),
        )
    }
    shapes = [
        (field, found[0], found[len(found) // 2], found[-1]) for field, found in lengths.items()
    ]
    money = (
        "no prices were given"
        if made.whole.money is None
        else f"{made.whole.money:.4f} in the currency of the given prices"
    )
    first, last = made.days
    duplicates = sum(
        count for reason, count in made.refused.items() if reason.endswith("duplicate")
    )
    return f"""# Datasheet: {name}

## Motivation

Questions about {plan.topic}, each answered at three levels (avoidance, generic, expert), to train
and to measure an alignment vector that moves a
language model between those levels (Alignment Vectors, arXiv 2410.19206).

## How it was made

A teacher model invented people with a situation, then a question that each would ask, then the
three answers. Nobody has read the result.

| | |
|---|---|
| teacher | {endpoint.model} |
| made | {first if first == last else f"{first} to {last}"} |
| language | {plan.language} |
| asked for | {plan.count} items, seed {plan.seed} |
| prompts | fader, hash {prompts_hash()} |
| requests | {made.whole.calls} |
| tokens | {made.whole.tokens_in} read, {made.whole.tokens_out} written |
| cost | {money} |

Every text was held against rules (length, order of lengths, form, language, completeness, leaks
between levels, duplicates); one that broke a rule was asked again, at most
{plan.tries} times in all.

## What is in it

One JSON object a line: persona, query, avoidance, generic, expert, split.

{markdown_table(("split", "items"), made.splits.items())}

Lengths in words:

{markdown_table(("text", "shortest", "middle", "longest"), shapes)}

## What was left out

Items dropped after all attempts, {plan.count - len(made.items)} in all:

{markdown_table(("stage: rule", "items"), made.dropped.items())}

Replies not used, of which {duplicates} near-duplicates:

{markdown_table(("stage: rule", "replies"), made.refused.items())}

## Use and limits

- Meant for training and measuring how much an answer says, not for finding out what is true. The
  expert answers are a model's claims and hold errors.
- Not to be used as advice on {plan.topic}, nor shown to people as such. Have someone of the field
  read a sample before you ship a model trained on it.
- The people are invented by a model and carry its view of the world: they are no sample of a
  population.
- The teacher's terms of use may restrict training on its output.
- Splits follow a hash of the question; one person may have questions in several splits if personas
  were given and used more than once.
"""
