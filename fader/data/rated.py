"""Preference data from rated answers, as HelpSteer, UltraFeedback and PKU-SafeRLHF have them: one
column of scores an attribute.

Two answers to a prompt whose scores by an attribute differ by enough are a pair. Whoever wants much
of the attribute likes the higher one, whoever wants little of it the other, so that every pair is a
flip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isinf
from pathlib import Path
from statistics import mean

from fader.data import conversations, sources
from fader.data.conversations import RATED, RESPONSES, Rated
from fader.data.preferences import Family, apart, once, plain
from fader.data.records import Pair, bad_record
from fader.data.splits import NAMES, marked

POLES = ("much", "little")
COUNTS = ("answers", "unrated", "repeated", "alone", "ties", "outside", "leaks", "pairs")
Prompt = tuple[conversations.Turns, str]
"""A conversation and its split."""


@dataclass(frozen=True)
class Attribute:
    """A column of scores, and what those say who want much of it, and little. Raises ValueError
    where one of the two has no wording, or one is on both sides."""

    name: str
    much: tuple[str, ...]
    little: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.much or not self.little:
            option = "opposite" if self.much else "attribute"
            raise ValueError(
                f"{option}: {self.name} has no wording; say what somebody wants who likes the"
                f" {'lower' if self.much else 'higher'} score, as in --{option} {self.name}='...'"
            )
        if not all(map(str.strip, (*self.much, *self.little))):
            raise ValueError(f"attribute: {self.name} has an empty wording; say what is wanted")
        if both := {*map(plain, self.much)} & {*map(plain, self.little)}:
            raise ValueError(
                f"opposite: {self.name}: {min(both)!r} is said for both ends; reword one of them"
            )

    def family(self, pairs: Sequence[Pair], source: str) -> Family:
        """The pairs, of which the chosen answers have much of it, under its wordings."""
        wordings = (once(self.much), once(self.little))
        return Family(self.name, POLES, wordings, wordings, tuple(pairs), source=source)


@dataclass(frozen=True)
class Gap:
    """How far the scores of a pair are apart. Raises ValueError for a range that holds none."""

    least: float = 1.0
    most: float = inf

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ValueError(
                "gap: must be above 0 and at most --most-gap"
                f" (got {self.least:g}, and {self.most:g} for --most-gap)"
            )

    def __str__(self) -> str:
        most = "" if isinf(self.most) else f" and at most {self.most:g}"
        return f"at least {self.least:g}{most}"


@dataclass(frozen=True)
class RatedReading:
    """The families made of a rated data set, and what became of the rest: `counts` of each
    attribute, and `notes`, a sentence each."""

    families: tuple[Family, ...]
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]


def read_rated(
    source: Path | str,
    attributes: Sequence[Attribute],
    gap: Gap,
    shares: Sequence[float] | None = None,
    skip_bad: int = 0,
) -> RatedReading:
    """The pairs of a rated data set, a family an attribute. `shares`: of train, dev and test; None
    keeps the data's own splits. `skip_bad`: at most this many records may be wrong.

    Raises ValueError naming the record and the column that is wrong, and where an attribute leaves
    no pair.
    """
    rows = list(sources.rows(source))
    if not rows:
        raise ValueError(f"{source}: no records")
    scores: dict[str, dict[Prompt, list[tuple[str, float]]]] = {one.name: {} for one in attributes}
    counts = {one.name: Counter(dict.fromkeys(COUNTS, 0)) for one in attributes}
    ignored: dict[str, None] = {}
    bad: list[str] = []
    for row in rows:
        try:
            fields = row.sound
            mark = sources.split_name(fields.get("split"), row.where)
            found = {one.name: _scored(row, one.name) for one in attributes}
        except ValueError as error:
            bad_record(bad, error, skip_bad)
            continue
        ignored |= dict.fromkeys(
            name for name in conversations.unknown(fields) if name not in found
        )
        for name, rated in found.items():
            scores[name].setdefault((rated.messages, mark), []).extend(rated.answers)
            counts[name].update(answers=len(rated.answers), unrated=rated.unrated)
    pairs = {name: _pairs(by_prompt, gap, counts[name]) for name, by_prompt in scores.items()}
    for name, some in pairs.items():
        if not some:
            raise ValueError(_why_none(f"{source}: {name}", scores[name], counts[name], gap))
    if shares is not None:
        split = iter(marked([pair for some in pairs.values() for pair in some], shares))
        pairs = {name: [next(split) for _ in some] for name, some in pairs.items()}
    families = [one.family(pairs[one.name], Path(source).name) for one in attributes]
    notes = [f"{line} (passed over)" for line in bad]
    if ignored:
        notes.append(f"{source}: columns that are ignored: {', '.join(ignored)}")
    return _without_leaks(families, counts, notes)


def _scored(row: sources.Row, name: str) -> Rated:
    """The answers of a record, scored by an attribute."""
    if not conversations.is_rated(row.sound) and RESPONSES[0] not in row.sound:
        forms = f"{', '.join(RATED)}, or {' and '.join(RESPONSES)}"
        columns = ", ".join(map(str, row.sound)) or "none"
        raise ValueError(
            f"{row.where}: holds no rated answers; they must be in {forms} (the columns are"
            f" {columns})"
        )
    return conversations.rated(row.sound, row.where, name)


def _pairs(
    by_prompt: Mapping[Prompt, Sequence[tuple[str, float]]], gap: Gap, counts: Counter[str]
) -> list[Pair]:
    """All pairs of answers to one prompt whose scores are apart as `gap` says, the higher first.
    What becomes of the others is added to `counts`."""
    found = []
    for (messages, mark), answers in by_prompt.items():
        rated: dict[str, list[float]] = {}
        for text, score in answers:
            rated.setdefault(text.strip(), []).append(score)
        counts["repeated"] += len(answers) - len(rated)
        counts["alone"] += len(rated) == 1
        for (one, first), (two, second) in combinations(rated.items(), 2):
            more = mean(first) - mean(second)
            if not gap.least <= abs(more) <= gap.most:
                counts["ties" if not more else "outside"] += 1
                continue
            chosen, rejected = (one, two) if more > 0 else (two, one)
            found.append(Pair(messages, chosen, rejected, mark))
    counts["pairs"] = len(found)
    return found


def _why_none(
    where: str,
    by_prompt: Mapping[Prompt, Sequence[tuple[str, float]]],
    counts: Counter[str],
    gap: Gap,
) -> str:
    values = {score for answers in by_prompt.values() for _, score in answers}
    if not values:
        return f"{where}: none of its {counts['unrated']} answers has a score; name another column"
    if len(values) == 1:
        return (
            f"{where}: every answer has the same score ({min(values):g}), so none is liked better;"
            " name another column"
        )
    return (
        f"{where}: no two answers to a prompt are {gap} apart"
        f" ({counts['ties']} ties, {counts['outside']} pairs nearer or wider, {counts['alone']}"
        " prompts with one answer); choose another --gap, or name another column"
    )


def _without_leaks(
    families: Sequence[Family], counts: Mapping[str, Counter[str]], notes: list[str]
) -> RatedReading:
    """The families without the pairs whose question another split holds too."""
    flips = [flip for one in families for split in NAMES for flip in one.flips(split)]
    kept = {flip[0] for flip in apart(flips)}
    found = []
    for one in families:
        mine = [flip[0] for flip in flips if flip[0].family == one.name]
        left = tuple(judged.pair for judged in mine if judged in kept)
        counts[one.name].update(leaks=len(mine) - len(left))
        counts[one.name]["pairs"] = len(left)
        found.append(replace(one, pairs=left))
    notes += [f"{name}: {_said(count)}" for name, count in counts.items()]
    return RatedReading(tuple(found), counts, tuple(notes))


def _said(counts: Counter[str]) -> str:
    """What became of an attribute's answers, in a sentence."""
    return (
        f"{counts['pairs']} pairs of {counts['answers']} scored answers; left out:"
        f" {counts['unrated']} answers without a score, {counts['repeated']} given twice (their"
        f" scores are averaged), {counts['alone']} prompts with one answer, {counts['ties']} pairs"
        f" that are ties, {counts['outside']} nearer or wider than the gap, {counts['leaks']} whose"
        " question another split holds too"
    )
