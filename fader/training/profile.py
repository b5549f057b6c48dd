"""A profile's text from a person's past choices, by asking a model guiding questions, as MetaAlign
(arXiv 2410.14184) writes users' profiles from raw histories. The questions are ours.

The model is shown the choices, the newest that it has room for, and asked one question at a time
about the answers that the person likes: their length, tone, form and content. From its notes it
then writes the text that requests will say in the user's tier. Who is asked is a function from a
prompt to a reply, so that a loaded model and an endpoint are the same here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fader.data import sources
from fader.files import write_whole
from fader.methods.prompt import newest_that_fit
from fader.request import Choice, Preferences
from fader.schema import parse, short

Ask = Callable[[str], str]
"""A model's reply to a prompt."""
QUESTIONS = (
    "Compared with the others, are the answers that this person likes shorter or longer, and how"
    " detailed are they?",
    "In what tone are the answers that this person likes?",
    "What form do the answers that this person likes have: prose, lists, steps, headings?",
    "What do the answers that this person likes say, or leave out, unlike the others: examples,"
    " figures, reasons, warnings, questions, jokes?",
)
MOST_WORDS = 60
"""Of a profile's text."""


@dataclass(frozen=True)
class Learned:
    """What was learned of a person."""

    text: str
    """What they want from answers, in at most `MOST_WORDS` words."""
    notes: tuple[str, ...]
    """The replies to the guiding questions."""
    unanswered: tuple[str, ...]
    """The guiding questions to which nothing was replied."""
    choices: int
    """Of the newest choices, how many the model was shown."""
    left_out: int
    """Of the oldest, how many it had no room for."""


def read_history(source: Path | str) -> tuple[tuple[Choice, ...], list[str]]:
    """Past choices from a file, the oldest first, and the columns that nothing is taken from. A
    record has the texts `chosen`, `rejected` and, where it is known, `prompt`.

    Raises ValueError naming the file, the line and the field that is wrong.
    """
    found: list[Choice] = []
    ignored: dict[str, None] = {}
    for row in sources.rows(source):
        choice = {name: row.sound[name] for name in Choice.model_fields if name in row.sound}
        for name in ("chosen", "rejected", *(["prompt"] if choice.get("prompt") else [])):
            if not isinstance(choice.get(name), str) or not choice[name].strip():
                raise ValueError(
                    f"{row.where}: {name} must be a text (got {short(choice.get(name))}); other"
                    " forms of pairs become texts by `fader data split`"
                )
        if choice["chosen"].strip() == choice["rejected"].strip():
            raise ValueError(f"{row.where}: chosen and rejected are the same; take the record out")
        found.append(parse(Choice, {**choice, "prompt": choice.get("prompt") or None}, row.where))
        ignored |= dict.fromkeys(name for name in row.sound if name not in choice)
    if not found:
        raise ValueError(
            f"{source}: no choices; write one a line, such as"
            ' {"prompt": "...", "chosen": "...", "rejected": "..."}'
        )
    return tuple(found), list(ignored)


def learn(history: Sequence[Choice], ask: Ask, fits: Callable[[str], bool]) -> Learned:
    """The text of a profile from past choices, the oldest first. `fits`: whether the model can
    read a prompt.

    Raises ValueError where not even one choice fits, and where the model says nothing.
    """
    longest = max(QUESTIONS, key=len)
    (kept,), left_out = newest_that_fit(
        [Preferences(history=tuple(history))],
        lambda told: fits(question_about(told[0].history, longest)),
    )
    if not kept.history:
        raise ValueError(
            "history: the newest choice alone is longer than the model can read; shorten its"
            " answers, or raise --room"
        )
    replies = {one: " ".join(ask(question_about(kept.history, one)).split()) for one in QUESTIONS}
    notes = [reply for reply in replies.values() if reply]
    unanswered = tuple(question for question, reply in replies.items() if not reply)
    text = _few_words(ask(_summary(notes))) if notes else ""
    if not text:
        raise ValueError("model: said nothing about the history; ask another model")
    return Learned(text, tuple(notes), unanswered, len(kept.history), left_out)


def question_about(choices: Sequence[Choice], question: str) -> str:
    """The prompt that shows choices and asks a question about who made them. Prompts about the
    same choices begin alike, so that these are read once."""
    shown = []
    for number, choice in enumerate(choices, 1):
        asked = f"Question: {choice.prompt}\n" if choice.prompt else ""
        shown.append(
            f"Choice {number}\n{asked}Liked: {choice.chosen}\nLiked less: {choice.rejected}"
        )
    return "\n\n".join(
        [
            "A person was shown two answers at a time and said which one they like better.",
            *shown,
            f"{question} Reply in one short sentence about all of the choices.",
        ]
    )


def _summary(notes: Sequence[str]) -> str:
    return "\n".join(
        [
            "Notes on the answers that a person likes:",
            *(f"- {note}" for note in notes),
            "",
            f"Write from these notes, in at most {MOST_WORDS} words, how an assistant should answer"
            " this person. Write only these instructions, in plain sentences.",
        ]
    )


def _few_words(text: str) -> str:
    """A text on one line, without quotation marks around it: its first sentences, or its first
    words where there is no sentence of so few."""
    text = " ".join(text.split()).strip("\"“”' ")
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if len(f"{kept} {sentence}".split()) > MOST_WORDS:
            break
        kept = f"{kept} {sentence}".strip()
    return kept or " ".join(text.split()[:MOST_WORDS])


def remembering(ask: Ask, file: Path, who: str) -> Ask:
    """An `ask` that keeps replies in a file, so that a stopped run goes on from there; empty ones
    are asked for anew. `who`: what else a reply depends on. Raises ValueError for a file that holds
    no replies."""
    known: dict[str, str] = _replies(file)

    def remembered(prompt: str) -> str:
        key = hashlib.sha256(json.dumps([who, prompt]).encode()).hexdigest()[:32]
        if key in known:
            return known[key]
        reply = ask(prompt)
        if reply.strip():
            known[key] = reply
            write_whole(file, json.dumps(known, ensure_ascii=False))
        return reply

    return remembered


def _replies(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        found: Any = json.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"{file}: holds no replies; delete it")
    return found
