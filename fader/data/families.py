"""Makes preference data with a teacher: families of two opposite wishes, wordings of each, and
questions with one answer for either (PAD, arXiv 2410.04070; MetaAlign, arXiv 2410.14184).

The second answer is the first one rewritten for the opposite wish, so that the two differ in little
else. Every pair becomes two records, one a wish: each answer is liked as often as disliked. The
last quarter of the wordings is never taught.

Every stage works in rounds (`rounds.py`). What still breaks a rule after `tries` rounds is dropped
and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fader.data.check import Fault, Seen, language_faults, refusal_faults
from fader.data.datasheet import LIMITS, datasheet, lengths, table
from fader.data.preferences import Family, Judged, apart, row_of
from fader.data.prompts import (
    FAMILIES,
    OPPOSITE,
    PREFERENCE_PROMPTS,
    PREFERENCE_SYSTEM,
    PREFERRED,
    USED_FAMILIES,
    WORDINGS,
    prompts_hash,
)
from fader.data.questions import (
    QUESTION,
    Plan,
    ask_questions,
    asked_for_questions,
    lines_of,
    messages,
)
from fader.data.records import Pair
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
    cut,
    make_at,
)
from fader.endpoint import Endpoint
from fader.request import Message

ANSWER_WORDS, WORDING_WORDS = (5, 150), (2, 40)
ANSWER = "word " * 60  # of middling length, for estimates


@dataclass(frozen=True)
class Axis:
    """Two opposite wishes, and a name for what they are about."""

    name: str
    poles: tuple[str, str]


@dataclass(frozen=True)
class PreferencePlan:
    """What is to be made: `questions.count` questions in all, dealt to the families in turn.
    `axes`: the families; without them, as many as `families` says are asked of the teacher.
    `wordings`: of each wish. `held_out`: how many families, the last ones, are kept from training.
    Raises ValueError for a value out of range."""

    questions: Plan
    axes: tuple[Axis, ...] = ()
    families: int = 6
    wordings: int = 8
    held_out: int = 0

    def __post_init__(self) -> None:
        if self.families < 1:
            raise ValueError(f"families: must be at least 1 (got {self.families})")
        if self.wordings < 4:
            raise ValueError(f"wordings: must be at least 4 (got {self.wordings})")
        if not 0 <= self.held_out < self.wanted:
            raise ValueError(
                f"held-out: must be at least 0 and leave one of the {self.wanted} families to"
                f" teach (got {self.held_out})"
            )
        names = [axis.name for axis in self.axes]
        if len({*names}) < len(names):
            raise ValueError(f"family: each must have a name of its own (got {', '.join(names)})")

    @property
    def wanted(self) -> int:
        """How many families there are to be."""
        return len(self.axes) or self.families

    @property
    def taught(self) -> int:
        """How many wordings of a wish are taught; the others are kept for measuring."""
        return self.wordings - max(1, self.wordings // 4)


def read_axis(text: str) -> Axis:
    """A family from `NAME=WISH/OPPOSITE`. Raises ValueError for another form."""
    name, _, wishes = text.partition("=")
    poles = [wish.strip() for wish in wishes.split("/")]
    if not name.strip() or len(poles) != 2 or not all(poles) or poles[0] == poles[1]:
        raise ValueError(
            "family: must be NAME=WISH/OPPOSITE, such as 'length=short answers/thorough answers'"
            f" (got {text!r})"
        )
    return Axis(name.strip(), (poles[0], poles[1]))


def make_preferences(
    plan: PreferencePlan,
    endpoint: Endpoint,
    out: Path,
    questions: Sequence[str] = (),
    prices: Prices | None = None,
    tell: Tell = lambda *_: None,
    force: bool = False,
) -> Made[Judged]:
    """Write preference records to `out` and their datasheet beside it (see `Place`). `questions`:
    your own ones. The same call goes on where it was stopped. Raises as `make_at` does."""
    expected = estimate_preferences(plan, questions).calls
    asked = plan.questions
    return make_at(
        Place(out, force),
        endpoint,
        2 * asked.count,
        lambda client: Rounds(client, asked.seed, asked.tries, expected, prices, tell),
        lambda rounds: _records(rounds, plan, questions),
        lambda made: (
            [row_of(judged) for judged in made.items],
            _datasheet(plan, endpoint, made, out.name),
        ),
    )


def estimate_preferences(
    plan: PreferencePlan, questions: Sequence[str] = (), prices: Prices | None = None
) -> Cost:
    """What a run will cost if nothing is kept yet and nothing is asked twice."""
    axis = Axis("name", ("word " * 5, "word " * 5))
    asked: list[Asked] = []
    if not plan.axes:
        asked.append((axes_prompt(plan, plan.families, []), 12 * plan.families))
    asked += [(wordings_prompt(plan, axis, 0), 14 * plan.wordings)] * (2 * plan.wanted)
    asked += [] if questions else asked_for_questions(plan.questions, ())
    count = plan.questions.count
    asked += [(preferred_prompt(plan, axis, QUESTION), 60)] * count
    asked += [(opposite_prompt(plan, axis, QUESTION, ANSWER), 60)] * count
    return Cost.estimated(asked, prices)


def axes_prompt(plan: PreferencePlan, count: int, taken: Sequence[Axis]) -> Messages:
    """Asks for families; `taken` are those that there are."""
    names = "\n".join(axis.name for axis in taken)
    used = USED_FAMILIES.format(names=names) if names else ""
    text = FAMILIES.format(count=count, domain=plan.questions.topic, used=used)
    return messages(plan.questions, text, PREFERENCE_SYSTEM)


def wordings_prompt(plan: PreferencePlan, axis: Axis, pole: int) -> Messages:
    """Asks for the wordings of a wish."""
    text = WORDINGS.format(
        domain=plan.questions.topic,
        pole=axis.poles[pole],
        other=axis.poles[1 - pole],
        count=plan.wordings,
    )
    return messages(plan.questions, text, PREFERENCE_SYSTEM)


def preferred_prompt(plan: PreferencePlan, axis: Axis, query: str) -> Messages:
    """Asks for an answer for the first wish."""
    text = PREFERRED.format(query=query, pole=axis.poles[0], other=axis.poles[1])
    return messages(plan.questions, text, PREFERENCE_SYSTEM)


def opposite_prompt(plan: PreferencePlan, axis: Axis, query: str, answer: str) -> Messages:
    """Asks for the answer rewritten for the second wish."""
    text = OPPOSITE.format(
        query=query,
        other=axis.poles[0],
        answer=answer,
        pole=axis.poles[1],
        words=len(answer.split()),
    )
    return messages(plan.questions, text, PREFERENCE_SYSTEM)


async def _records(rounds: Rounds, plan: PreferencePlan, questions: Sequence[str]) -> list[Judged]:
    """The records of all families, those of one after those of another."""
    axes = list(plan.axes) or await _axes(rounds, plan)
    wordings = await _wordings(rounds, plan, axes)
    axes = [axis for axis in axes if axis.name in wordings]
    if not axes:
        return []
    if questions:
        queries = dict(enumerate(questions))
    else:
        asked = await ask_questions(rounds, plan.questions, (), 2)
        queries = {place: query for place, (_, query) in asked.items()}
    of = {place: axes[place % len(axes)] for place in queries}
    held_out = axes[max(1, len(axes) - plan.held_out) :]
    pairs: dict[str, list[Pair]] = {axis.name: [] for axis in axes}
    for place, answers in (await _answers(rounds, plan, of, queries)).items():
        query = queries[place]
        split = "test" if of[place] in held_out else plan.questions.split(query)
        said = (Message(role="user", content=query),)
        pairs[of[place].name].append(Pair(said, *answers, split))
    source = rounds.client.endpoint.model
    families = [
        Family(
            axis.name,
            axis.poles,
            _halved(wordings[axis.name], 0, plan.taught),
            _halved(wordings[axis.name], plan.taught, plan.wordings),
            tuple(pairs[axis.name]),
            axis in held_out,
            source,
        )
        for axis in axes
    ]
    return _without_leaks(rounds, families)


def _without_leaks(rounds: Rounds, families: Sequence[Family]) -> list[Judged]:
    """The records of the families, but none whose question another split holds too, or nearly."""
    records = [judged for family in families for judged in family.records()]
    flips = list(zip(records[::2], records[1::2], strict=True))
    kept = {*apart(flips)}
    if len(kept) < len(flips):
        rounds.dropped["query: leak"] += len(flips) - len(kept)
    return [judged for flip in flips if flip in kept for judged in flip]


def _halved(
    texts: tuple[list[str], list[str]], start: int, end: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, second = (tuple(some[start:end]) for some in texts)
    return first, second


async def _axes(rounds: Rounds, plan: PreferencePlan) -> list[Axis]:
    """As many families as the plan counts, or fewer if the teacher has no more to give."""
    found: dict[str, Axis] = {}
    for attempt in range(plan.questions.tries):
        rounds.expected += 1 if attempt else 0
        missing = plan.families - len(found)
        [reply] = await rounds.ask("family", [axes_prompt(plan, missing, [*found.values()])])
        faults = cut(reply)
        rounds.refused.update(f"family: {fault.rule}" for fault in faults)
        for line in lines_of(reply.text) if not faults else []:
            axis = _axis_of(line)
            if axis is None or axis.name in found:
                rounds.refused["family: form" if axis is None else "family: duplicate"] += 1
            elif len(found) < plan.families:
                found[axis.name] = axis
        if len(found) == plan.families:
            break
    missing = plan.families - len(found)
    rounds.expected -= 2 * missing
    if missing:
        rounds.dropped["family: missing"] += missing
    return [*found.values()]


def _axis_of(line: str) -> Axis | None:
    """A family from a line `name: a wish / its opposite`."""
    name, _, wishes = line.partition(":")
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    try:
        return read_axis(f"{slug}={wishes}")
    except ValueError:
        return None


async def _wordings(
    rounds: Rounds, plan: PreferencePlan, axes: Sequence[Axis]
) -> dict[str, tuple[list[str], list[str]]]:
    """The wordings of both wishes of each family; a family without them is dropped."""
    found: dict[int, list[list[str]]] = {place: [] for place in range(len(axes))}
    for pole in (0, 1):
        texts = await rounds.settle(
            "wordings",
            {place: wordings_prompt(plan, axes[place], pole) for place in found},
            _wordings_checker(plan, found),
            1 - pole,
        )
        found = {
            place: [*found[place], lines_of(text)[: plan.wordings]] for place, text in texts.items()
        }
    return {axes[place].name: (both[0], both[1]) for place, both in sorted(found.items())}


def _wordings_checker(plan: PreferencePlan, found: Mapping[int, Sequence[list[str]]]) -> Checker:
    return lambda place, text: wordings_faults(
        lines_of(text),
        plan.wordings,
        [line for lines in found[place] for line in lines],
        plan.questions.language,
    )


def wordings_faults(
    lines: Sequence[str], count: int, others: Sequence[str], language: str
) -> list[Fault]:
    """What is wrong with the wordings of a wish. `others` are those of the opposite wish."""
    low, high = WORDING_WORDS
    faults = []
    if len(lines) < count:
        faults.append(Fault("count", f"there are {len(lines)} lines; write {count}"))
    if odd := [line for line in lines if not low <= len(line.split()) <= high]:
        faults.append(Fault("length", f"{odd[0]!r} has not {low} to {high} words"))
    seen = Seen()
    for line in lines:
        faults += seen.fault(line)
        seen.add(line)
    if {line.lower() for line in lines} & {other.lower() for other in others}:
        faults.append(Fault("same", "a line also stands for the opposite kind; write others"))
    return faults + language_faults("\n".join(lines), language)


async def _answers(
    rounds: Rounds, plan: PreferencePlan, of: Mapping[int, Axis], queries: Mapping[int, str]
) -> dict[int, tuple[str, str]]:
    """The answers to each question for either wish of its family."""
    language = plan.questions.language
    first = await rounds.settle(
        "first answer",
        {place: preferred_prompt(plan, of[place], query) for place, query in queries.items()},
        lambda _, text: wished_faults(text, "", language),
        1,
    )
    second = await rounds.settle(
        "second answer",
        {
            place: opposite_prompt(plan, of[place], queries[place], answer)
            for place, answer in first.items()
        },
        lambda place, text: wished_faults(text, first[place], language),
        0,
    )
    return {place: (first[place], text) for place, text in sorted(second.items())}


def wished_faults(text: str, other: str, language: str) -> list[Fault]:
    """What is wrong with an answer for a wish. `other` is the answer for the opposite wish."""
    low, high = ANSWER_WORDS
    words = len(text.split())
    faults = []
    if not low <= words <= high:
        faults.append(Fault("length", f"it has {words} words; write {low} to {high}"))
    if text.split() == other.split():
        faults.append(Fault("same", "it is the answer for the opposite wish; change it"))
    return faults + refusal_faults(text, language) + language_faults(text, language)


def _datasheet(plan: PreferencePlan, endpoint: Endpoint, made: Made[Judged], name: str) -> str:
    asked, questions = plan.questions, made.items[::2]  # one of each flip
    poles: dict[str, dict[str, None]] = {}
    for judged in made.items:
        poles.setdefault(judged.family, {})[judged.pole] = None
    rows = [
        (
            family,
            " / ".join(names),
            *(
                sum(one.family == family and one.split == part for one in questions)
                for part in made.splits
            ),
        )
        for family, names in poles.items()
    ]
    texts = [
        ("question", [one.pair.messages[-1].content for one in questions]),
        ("answer", [text for one in questions for text in (one.pair.chosen, one.pair.rejected)]),
        ("wording", [text for one in made.items for text in one.wordings]),
    ]
    return datasheet(
        name,
        motivation=f"""Questions about {asked.topic}, each with two answers and, in words, who likes
which, to teach a language model to answer as somebody asks (PAD, arXiv 2410.04070; MetaAlign, arXiv
2410.14184).""",
        how=f"""A teacher model worded two opposite wishes of each family, invented people and their
questions unless these were given, answered each question for the first wish and rewrote the answer
for the second. Nobody has read the result. Every text was held against rules; one that broke a rule
was asked again, at most {asked.tries} times in all.""",
        facts=[
            ("teacher", endpoint.model),
            ("language", asked.language),
            ("asked for", f"{asked.count} questions, {plan.wanted} families, seed {asked.seed}"),
            ("prompts", f"fader, hash {prompts_hash(PREFERENCE_PROMPTS)}"),
        ],
        made=made,
        content=f"""One JSON object a line: preference (its wordings), family, pole, source, prompt,
chosen, rejected, split. Each pair is there twice, once for either wish, with its answers in either
order. The wordings of dev and test are not those of train; a family without train is held out.

Pairs:

{table(("family", "poles", *made.splits), rows)}

Lengths in words:

{lengths(texts)}""",
        lost=(
            f"Questions dropped, {asked.count - len(questions)} in all, and wishes and families"
            " without usable wordings:"
        ),
        limits=(
            "Meant for teaching preferences, not for finding out what is true. The answers are a"
            " model's claims and hold errors.",
            *LIMITS,
        ),
    )
