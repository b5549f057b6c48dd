"""Makes level data with a teacher (Alignment Vectors, arXiv 2410.19206): personas, a question from
each, answers at three levels.

Every stage works in rounds: all open requests are asked at once, then judged in their order, and
what breaks a rule of `check` is asked again with the fault named. So the outcome does not depend on
which reply came first, and a run that goes on after a kill takes the same way. What still breaks a
rule after `tries` rounds is dropped and counted.

Deviation from the paper: its prompts are not public; those here are ours, and cleaning is by rules
instead of by people.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fader.data.check import Fault, Seen, answer_faults, check_language, text_faults
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
from fader.data.rounds import Cost, Prices, Tell, _again, _cut, _rows, _together
from fader.files import write_whole
from fader.training.teacher import Endpoint, Reply, Teacher

Checker = Callable[[int, str], list[Fault]]
SPLITS = ("train", "dev", "test")
ORDER: tuple[Level, ...] = (
    "expert",
    "generic",
    "avoidance",
)  # the longest first: each answer is held against the longer ones
STAGES = ("query", *ORDER)  # of every item
BATCH, WIDTH = (
    10,
    8,
    # personas in one request, and such requests in one round; fixed, so that a larger count asks
    # the
    # same first
)
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
    stage and rule; `now` was paid in this run."""

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
) -> Made:
    """Write level data to `out` and its datasheet beside it; replies are kept in
    `part_folder(out)`. The same call goes on where it was stopped.

    Raises ValueError where the endpoint refuses, or nothing usable came of it; ConnectionError
    where it fails; OSError where files cannot be written. In each case `out` is as it was before,
    and the replies so far are kept.
    """
    part = part_folder(out)
    if out.exists() and not part.is_dir():
        raise ValueError(
            f"out: {out} exists and was not made here; choose another file or remove it"
        )
    made = asyncio.run(_make(plan, endpoint, part, personas, prices, tell))
    if not made.items:
        raise ValueError(
            f"teacher: no item of {plan.count} could be used (dropped: {made.dropped}); look at the"
            f" replies in {part} or take a stronger model"
        )
    rows = [
        {"persona": item.persona, "query": item.query, **item.answers, "split": item.split}
        for item in made.items
    ]
    write_whole(sheet_file(out), datasheet(plan, endpoint, made, out.name), part)
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), part)
    return made


def part_folder(out: Path) -> Path:
    """Where the replies of the data in `out` are kept."""
    return out.with_name(f".{out.name}.part")


def sheet_file(out: Path) -> Path:
    """Where the datasheet of the data in `out` is."""
    return out.with_name(f"{out.stem}.datasheet.md")


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
    """What a run will cost from nothing, without what must be asked again: prompts counted, answers
    taken at the middle of their lengths."""
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


def persona_prompt(plan: Plan, number: int, taken: Sequence[str]) -> list[dict[str, str]]:
    """Asks for a batch of personas; `taken` are those that there are, of which the latest 60 are
    named by their first words."""
    roles = "\n".join(" ".join(persona.split()[:8]) for persona in taken[-60:])
    used = USED.format(roles=roles) if roles else ""
    angle = random.Random(f"{plan.seed} angle {number}").choice(ANGLES)
    return _messages(
        plan,
        PERSONA.format(batch=BATCH, domain=plan.topic, number=number + 1, angle=angle, used=used),
    )


def query_prompt(plan: Plan, place: int, persona: str, number: int) -> list[dict[str, str]]:
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


def answer_prompt(
    plan: Plan, level: Level, place: int, persona: str, query: str
) -> list[dict[str, str]]:
    """Asks for an answer at a level."""
    opening = random.Random(f"{plan.seed} opening {place}").choice(OPENINGS)
    return _messages(
        plan,
        ANSWER.format(
            persona=persona, query=query, guide=GUIDE[level].replace("{opening}", opening)
        ),
    )


def _messages(plan: Plan, text: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": SYSTEM.format(domain=plan.topic, language=plan.language)},
        {"role": "user", "content": text},
    ]


async def _make(
    plan: Plan,
    endpoint: Endpoint,
    part: Path,
    personas: Sequence[str],
    prices: Prices | None,
    tell: Tell,
) -> Made:
    async with Teacher(endpoint, part) as teacher:
        run = _Run(teacher, plan, tell, estimate(plan, personas).calls)
        people = list(personas) or await run.personas()
        items = await run.items(people) if people else []
        days = sorted(reply.asked for reply in teacher.used)
        return Made(
            tuple(items),
            dict(sorted(run.dropped.items())),
            dict(sorted(run.refused.items())),
            Cost.of_replies(teacher.fresh, prices),
            Cost.of_replies(teacher.used, prices),
            len(teacher.used) - len(teacher.fresh),
            (days[0], days[-1]),
        )


class _Run:
    """One run through the stages, with its counts."""

    def __init__(self, teacher: Teacher, plan: Plan, tell: Tell, expected: int) -> None:
        self.teacher, self.plan, self.tell = teacher, plan, tell
        self.done, self.expected = 0, expected
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def personas(self) -> list[str]:
        """As many new personas as the plan counts, or fewer if the teacher has no more to give."""
        found: list[str] = []
        seen, number = Seen(), 0
        for _ in range(-(-self.plan.count // (BATCH * WIDTH)) + self.plan.tries):
            width = min(WIDTH, -(-(self.plan.count - len(found)) // BATCH))
            if not width:
                break
            prompts = [persona_prompt(self.plan, number + place, found) for place in range(width)]
            self.expected += max(0, number + width - max(number, -(-self.plan.count // BATCH)))
            number += width
            for reply in await _together([self.ask("persona", prompt, 0) for prompt in prompts]):
                self._take(personas_of(reply), found, seen)
        return found[: self.plan.count]

    def _take(self, new: Iterable[str], found: list[str], seen: Seen) -> None:
        for persona in new:
            faults = text_faults("persona", persona, self.plan.language) + seen.fault(persona)
            self.refused.update(f"persona: {fault.rule}" for fault in faults[:1])
            if not faults:
                found.append(persona)
                seen.add(persona)

    async def items(self, people: Sequence[str]) -> list[LevelItem]:
        """A question for every place of the plan, people in turn, and its three answers."""
        plan, language = self.plan, self.plan.language
        who = {place: people[place % len(people)] for place in range(plan.count)}
        queries = await self.settle(
            "query",
            {
                place: query_prompt(plan, place, who[place], 1 + place // len(people))
                for place in who
            },
            lambda _, text: text_faults("query", text, language),
        )
        answers: dict[int, dict[Level, str]] = {place: {} for place in queries}
        for level in ORDER:
            prompts = {
                place: answer_prompt(plan, level, place, who[place], queries[place])
                for place in answers
            }
            found = await self.settle(level, prompts, self._judge(level, answers, queries))
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

    def _judge(
        self, level: Level, answers: Mapping[int, Mapping[Level, str]], queries: Mapping[int, str]
    ) -> Checker:
        return lambda place, text: answer_faults(
            level, text, answers[place], queries[place], self.plan.language
        )

    async def settle(
        self, stage: str, prompts: Mapping[int, list[dict[str, str]]], judge: Checker
    ) -> dict[int, str]:
        """A usable text for every prompt, in rounds; those without one after the last round are
        dropped."""
        found: dict[int, str] = {}
        faults: dict[int, list[Fault]] = {place: [] for place in prompts}
        seen = Seen()
        for attempt in range(self.plan.tries):
            still = [place for place in prompts if place not in found]
            self.expected += len(still) if attempt else 0
            asked = [
                self.ask(stage, _again(prompts[place], attempt, faults[place]), attempt)
                for place in still
            ]
            for place, reply in zip(still, await _together(asked), strict=True):
                faults[place] = _cut(reply) or judge(place, reply.text) or seen.fault(reply.text)
                self.refused.update(f"{stage}: {fault.rule}" for fault in faults[place][:1])
                if not faults[place]:
                    found[place] = reply.text
                    seen.add(reply.text)
        lost = [place for place in prompts if place not in found]
        self.dropped.update(f"{stage}: {faults[place][0].rule}" for place in lost)
        self.expected -= len(lost) * (len(STAGES) - 1 - STAGES.index(stage))
        return found

    async def ask(self, stage: str, messages: list[dict[str, str]], attempt: int) -> Reply:
        """One reply, told to whoever watches."""
        reply = await self.teacher.ask(messages, seed=self.plan.seed, attempt=attempt)
        self.done += 1
        self.tell(stage, self.done, self.expected)
        return reply


def personas_of(reply: Reply) -> list[str]:
    """The personas of a batch: its lines without marks and numbers; an unfinished last line is left
    out."""
    lines = [
        re.sub(r"^\s*([-*•]|\d+[.):])\s*", "", line).strip() for line in reply.text.splitlines()
    ]
    return [line for line in (lines[:-1] if _cut(reply) else lines) if line]


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
    days = made.days[0] if made.days[0] == made.days[1] else f"{made.days[0]} to {made.days[1]}"
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
| made | {days} |
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

{_rows(("split", "items"), made.splits.items())}

Lengths in words:

{_rows(("text", "shortest", "middle", "longest"), shapes)}

## What was left out

Items dropped after all attempts, {plan.count - len(made.items)} in all:

{_rows(("stage: rule", "items"), made.dropped.items())}

Replies not used, of which {duplicates} near-duplicates:

{_rows(("stage: rule", "replies"), made.refused.items())}

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
