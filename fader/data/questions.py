"""Questions that a teacher invents: people with a situation, and what each of them would ask.

After Alignment Vectors (arXiv 2410.19206), which makes its questions from personas. Level data and
preference data both begin with them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fader.data.check import Seen, check_language, text_faults
from fader.data.prompts import ANGLES, KINDS, PERSONA, QUERY, SYSTEM, USED
from fader.data.records import read_rows
from fader.data.rounds import Asked, Messages, Rounds, cut
from fader.data.splits import NAMES
from fader.endpoint import Reply
from fader.files import read_text, repeated

# personas in one request, and such requests in one round; fixed, so that a larger count asks the
# same first
BATCH, WIDTH = 10, 8
PERSON, QUESTION = "word " * 18, "word " * 20  # of middling length, for estimates


@dataclass(frozen=True)
class Plan:
    """What is to be made: `count` questions. `splits` are the shares of train, dev and test. Raises
    ValueError for a value out of range."""

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
            len(self.splits) != len(NAMES)
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
            NAMES[0]
            if place < self.splits[0]
            else NAMES[1]
            if place < self.splits[0] + self.splits[1]
            else NAMES[2]
        )


def read_texts(file: Path | str, field: str) -> list[str]:
    """Personas, or questions, from a text file, one a line, or from the field `field` of a .jsonl
    file. Raises ValueError if there are none, and for one that is there twice."""
    if Path(file).suffix == ".jsonl":
        found = [row.get(field) for _, row in read_rows(file)]
    else:
        content = read_text(Path(file).read_bytes(), str(file))
        found = [line.strip() for line in content.splitlines() if line.strip()]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(
            f"{field}s: {file} must hold one {field} a line, or records with `{field}`"
        )
    texts = [str(text) for text in found]
    if (twice := repeated(texts)) is not None:
        raise ValueError(f"{field}s: {file} holds {twice!r} twice; keep one of them")
    return texts


def asked_for_questions(plan: Plan, personas: Sequence[str]) -> list[Asked]:
    """The requests for questions, if nothing is kept and nothing asked twice, for an estimate."""
    batches = 0 if personas else -(-plan.count // BATCH)
    asked = [(persona_prompt(plan, 0, ["word " * 6] * 30), BATCH * 18)] * batches
    return asked + [(query_prompt(plan, 0, PERSON, 1), 20)] * plan.count


async def ask_questions(
    rounds: Rounds, plan: Plan, personas: Sequence[str], after: int
) -> dict[int, tuple[str, str]]:
    """A person and that person's question for the places of the plan, people in turn. `after`: the
    requests that each question leads to."""
    people = list(personas) or await _personas(rounds, plan)
    if not people:
        return {}
    who = {place: people[place % len(people)] for place in range(plan.count)}
    queries = await rounds.settle(
        "query",
        {place: query_prompt(plan, place, who[place], 1 + place // len(people)) for place in who},
        lambda _, text: text_faults("query", text, plan.language),
        after,
    )
    return {place: (who[place], query) for place, query in queries.items()}


def persona_prompt(plan: Plan, number: int, taken: Sequence[str]) -> Messages:
    """Asks for a batch of personas; `taken` are those that there are, of which the latest 60 are
    named by their first words."""
    roles = "\n".join(" ".join(persona.split()[:8]) for persona in taken[-60:])
    used = USED.format(roles=roles) if roles else ""
    angle = random.Random(f"{plan.seed} angle {number}").choice(ANGLES)
    return messages(
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
    return messages(
        plan, QUERY.format(persona=persona, domain=plan.topic, kind=kind, number=further)
    )


def messages(plan: Plan, text: str, system: str = SYSTEM) -> Messages:
    """A request to the teacher, under what it is told in all of them."""
    return [
        {"role": "system", "content": system.format(domain=plan.topic, language=plan.language)},
        {"role": "user", "content": text},
    ]


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


def personas_of(reply: Reply) -> list[str]:
    """The personas of a batch: its lines without marks and numbers; an unfinished last line is left
    out."""
    lines = lines_of(reply.text)
    return lines[:-1] if cut(reply) else lines


def lines_of(text: str) -> list[str]:
    """The lines of a text that say something, without the marks and numbers before them."""
    lines = [re.sub(r"^\s*([-*•]|\d+[.):])\s*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]
