"""The rules for preference data, what families it holds, and how near the held-out ones are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fader.data.check import Fault, Finding, Seen, check_language, language_faults
from fader.data.nearness import near_or_far, nearness
from fader.data.preferences import (
    Family,
    Judged,
    apart,
    families_of,
    flips_of,
    lists_families,
    numbered,
    numbered_families,
    unflipped,
)
from fader.data.splits import NAMES

RULES = {
    "pole": "a family has two poles",
    "wording": "no wording stands under two poles of a family",
    "flip": "each answer is chosen as often as it is rejected",
    "leak": "no question is nearly one of another split, by its characters",
    "language": "the answers are in the language asked for",
    "duplicate": "no question with its answers nearly repeats an earlier one",
}


@dataclass(frozen=True)
class FamilyReport:
    """What there is of a family. `unseen`: the wordings that are not taught; `nearness`: of a
    held-out family to the `nearest` taught one, None where it cannot be measured."""

    family: str
    poles: tuple[str, ...]
    wordings: int
    unseen: int
    splits: dict[str, int]
    unflipped: int
    leaks: int
    held_out: bool
    nearness: float | None = None
    nearest: str = ""

    @property
    def kind(self) -> str:
        """seen, near, between or far; nothing where it could not be measured."""
        if not self.held_out:
            return "seen"
        return "" if self.nearness is None else near_or_far(self.nearness)


@dataclass(frozen=True)
class PreferenceReport:
    """What a check of preference records found."""

    items: int
    findings: tuple[Finding, ...]
    families: tuple[FamilyReport, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Faults per rule."""
        found = Counter(finding.fault.rule for finding in self.findings)
        return {rule: found[rule] for rule in RULES}


def check_preferences(file: Path | str, language: str = "en") -> PreferenceReport:
    """Check preference records by the rules, or the pairs of the families that a file lists, whose
    shared sources lie in the folder above it; a finding then names its family's line.

    Raises ValueError for a record that cannot be read and for a language that is not known, OSError
    for a file that cannot be read.
    """
    check_language(language)
    if lists_families(file):
        listed = numbered_families(Path(file), Path(file).parent.parent)
        places = [(line, judged) for line, family in listed for judged in family.records()]
        families = [family for _, family in listed]
    else:
        places = numbered(file)
        families = families_of(judged for _, judged in places)
    lines: dict[Judged, int] = {}
    for line, judged in places:
        lines.setdefault(judged, line)
    records = [judged for _, judged in places]
    flips = flips_of(records)
    sound = {*apart(flips)}
    leaks = [flip for flip in flips if flip not in sound]
    findings = [
        Finding(lines[flip[0]], "prompt", Fault("leak", "another split holds nearly this question"))
        for flip in leaks
    ]
    findings += _text_findings(flips, lines, language)
    findings += _flip_findings(records, lines)
    findings += _pole_findings(records, lines)
    return PreferenceReport(
        len(records),
        tuple(sorted(findings, key=lambda finding: finding.line)),
        _families(records, families, leaks),
    )


def _text_findings(
    flips: Sequence[tuple[Judged, ...]], lines: dict[Judged, int], language: str
) -> list[Finding]:
    seen, findings = Seen(), []
    pairs: set[object] = set()
    for first, *_ in flips:
        pair = first.pair
        if pair.key in pairs:  # of another family or split
            continue
        pairs.add(pair.key)
        whole = "\n".join([pair.messages[-1].content, pair.chosen, pair.rejected])
        faults = [("chosen", fault) for fault in language_faults(pair.chosen, language)]
        faults += [("rejected", fault) for fault in language_faults(pair.rejected, language)]
        faults += [("prompt", fault) for fault in seen.fault(whole)]
        seen.add(whole)
        findings += [Finding(lines[first], field, fault) for field, fault in faults]
    return findings


def _flip_findings(records: Sequence[Judged], lines: dict[Judged, int]) -> list[Finding]:
    """One for each answer that is liked too often or too seldom, at its first record."""
    odd, findings = {*unflipped(records)}, []
    for judged in records:
        for field in ("chosen", "rejected"):
            text = getattr(judged.pair, field)
            if text in odd:
                odd.remove(text)
                detail = "it is not chosen as often as rejected; add the record of the other pole"
                findings.append(Finding(lines[judged], field, Fault("flip", detail)))
    return findings


def _pole_findings(records: Sequence[Judged], lines: dict[Judged, int]) -> list[Finding]:
    found: dict[str, dict[str, set[str]]] = {}
    first: dict[str, int] = {}
    for judged in records:
        first.setdefault(judged.family, lines[judged])
        found.setdefault(judged.family, {}).setdefault(judged.pole, set()).update(judged.wordings)
    findings = []
    for name, poles in found.items():
        if len(poles) != 2:
            detail = (
                f"family {name!r} has {len(poles)} ({', '.join(map(repr, poles))}); give it two"
            )
            findings.append(Finding(first[name], "pole", Fault("pole", detail)))
        counts = Counter(text for wordings in poles.values() for text in wordings)
        for text in sorted(text for text, count in counts.items() if count > 1):
            detail = f"family {name!r} says {text!r} for more than one pole; reword one"
            findings.append(Finding(first[name], "preference", Fault("wording", detail)))
    return findings


def _families(
    records: Sequence[Judged], families: Sequence[Family], leaks: Sequence[tuple[Judged, ...]]
) -> tuple[FamilyReport, ...]:
    """`families`: those of the records that have two poles."""
    taught = [one for one in families if not one.held_out and len(one.pairs) > 1]
    held_out = [one for one in families if one.held_out]
    untaught = {one.name for one in held_out}
    near = nearness([*taught, *held_out]) if taught and held_out else {}
    named: dict[str, list[Judged]] = {}
    for judged in records:
        named.setdefault(judged.family, []).append(judged)
    found = []
    for name, group in named.items():
        splits = Counter(judged.split for judged in group)
        kept = name in untaught or not splits["train"]
        taught_here = [] if kept else [one for one in group if one.split == "train"]
        in_training = {text for one in taught_here for text in one.wordings}
        every = {text for one in group for text in one.wordings}
        value, nearest = near.get(name, (None, ""))
        found.append(
            FamilyReport(
                name,
                tuple(dict.fromkeys(judged.pole for judged in group)),
                len(every),
                len(every - in_training),
                {split: splits[split] for split in NAMES},
                len(unflipped(group)),
                sum(any(judged.family == name for judged in flip) for flip in leaks),
                kept,
                value,
                nearest,
            )
        )
    return tuple(found)
