"""The rules for level data and pairs. A text keeps or breaks each, and a fault says in words what
is wrong.

The rules on form (length, order, form, unfinished, language, duplicate, same) hold in every
language that puts spaces between words. The rules on content look at figures and shared words;
where they look for English words (refusal, referral) they are passed over in other languages. Rules
find clear faults; they cannot tell whether an expert answer is true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasketch import MinHash, MinHashLSH
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from fader.data.records import LEVELS, Level, LevelItem, Pair, read

RULES = {
    "empty": "there is a text",
    "length": "persona 4-45 words, query 6-60, avoidance 12-35, generic 22-48, expert 45-85",
    "order": (
        "the avoidance is shorter than the generic answer, and that one shorter than the expert"
        " answer"
    ),
    "form": "one plain paragraph: no list, heading, label or preamble",
    "unfinished": "it ends with a sentence mark, and was not cut off",
    "language": "it is in the language asked for",
    "leak": "an avoidance gives no yes or no, no figure, and little of what the other answers say",
    "referral": "an avoidance speaks for itself or names who should answer instead (English only)",
    "refusal": "a generic or expert answer does not decline (English only)",
    "vague": "an expert answer holds a figure or a name",
    "same": "the answers of one record differ",
    "duplicate": (
        "no text nearly repeats an earlier record's; of pairs, the question with its answers"
    ),
}
RANGES = {
    "persona": (4, 45),
    "query": (6, 60),
    "avoidance": (12, 35),
    "generic": (22, 48),
    "expert": (45, 85),
}
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo", "dz")
# shared word pairs of two texts, as a share of all their word pairs; unrelated answers to related
# questions stay below 0.25
NEAR = 0.5
SHARED = 8  # long words of an avoidance that also stand in the answers it should not give

_FIGURE = re.compile(r"\w*\d[\w.,]*")
_EMERGENCY = {"000", "110", "111", "112", "118", "119", "911", "988", "999"}
_YES_OR_NO = re.compile(r"(yes|no|correct|true|false)\s*[,.;:!]", re.IGNORECASE)
_ITEM = re.compile(r"[-*•#]\s|\d+[.)]\s")
_LABEL = re.compile(
    r"\W*(expert|generic|avoidance|answer|question|query|persona)( answer)?\W*:|(sure|certainly|of"
    r" course|here (is|are))\b[^.?!]*:",
    re.I,
)
_REFUSAL = re.compile(
    r"\bas an ai\b|\bi('m| am) (sorry|afraid|unable|not (able|qualified|in a position))\b"
    r"|\bi (can't|cannot|won't|will not|must not|shouldn't|should not|must"
    r" decline|decline)\b|\bi('d| would) (rather|prefer) not\b",
    re.IGNORECASE,
)
_REFERRAL = re.compile(
    r"\b(i|i'm|i'd|i'll|i've|me|my|mine|myself|we|us|our|assistant|chatbot|software|doctor|physician|nurse|midwife|pharmacist|dentist|therapist"
    r"|clinic|clinics|lawyer|attorney|solicitor|notary|counsel|counsell?or|advis[eo]r|planner|broker|accountant|auditor|engineer|inspector|officer"
    r"|specialist|professional|expert|helpline|hotline|triage|team|office|agency|authority|staff|qualified|licensed|certified|registered|\w+ologist"
    r"|\w+iatrist|\w+tician|\w+trician)s?\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<![.?!:]) [\"'(“]*[A-ZÀ-Þ]\w")
_NUMBER_WORD = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|hundred|thousand|half|third|quarter|tenth|double)\b",
    re.I,
)


@dataclass(frozen=True)
class Fault:
    """A rule that a text breaks, and how, in words that also tell a teacher what to do better."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Finding:
    """A fault with its place in a file."""

    line: int
    field: str
    fault: Fault


@dataclass(frozen=True)
class Report:
    """What a check of a file found. `kind` is levels or pairs; `items` counts the records."""

    kind: str
    items: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What was passed over, left out or ignored while reading."""

    @property
    def counts(self) -> dict[str, int]:
        """Faults per rule, for every rule that applies to this kind of data."""
        found = Counter(finding.fault.rule for finding in self.findings)
        return {
            rule: found[rule]
            for rule in (RULES if self.kind == "levels" else ("language", "same", "duplicate"))
        }


class Seen:
    """Texts so far; knows whether a new one nearly repeats one of them (MinHash finds candidates,
    the exact share of word pairs decides)."""

    def __init__(self) -> None:
        self._index = MinHashLSH(threshold=NEAR - 0.1, num_perm=128)
        self._pairs: dict[str, frozenset[str]] = {}

    def fault(self, text: str) -> list[Fault]:
        """A fault that quotes the earlier text which `text` nearly repeats; none if it is new."""
        pairs = word_pairs(text)
        for earlier in self._index.query(_hashed(pairs)):
            if _share(pairs, self._pairs[earlier]) >= NEAR:
                return [Fault("duplicate", f"it nearly repeats an earlier one: {earlier!r}")]
        return []

    def add(self, text: str) -> None:
        """Remember a text."""
        if text not in self._pairs:
            self._pairs[text] = word_pairs(text)
            self._index.insert(text, _hashed(self._pairs[text]))


def check(
    file: Path | str, language: str = "en", rating: str | None = None, skip_bad: int = 0
) -> Report:
    """Check a level file or a pairs file by the rules. `rating` and `skip_bad`: see
    `records.read`.

    Raises ValueError for a record that cannot be read, OSError for a file that cannot, ValueError
    for a language that is not known.
    """
    check_language(language)
    found = read(file, rating, skip_bad)
    numbered = list(zip(found.places, found.items, strict=True))
    levels = [(line, item) for line, item in numbered if isinstance(item, LevelItem)]
    pairs = [(line, item) for line, item in numbered if isinstance(item, Pair)]
    findings = _level_findings(levels, language) + _pair_findings(pairs, language)
    findings += [
        Finding(line, "rejected", Fault("same", why))
        for why, lines in found.left_out.items()
        for line in lines
    ]
    return Report(
        "levels" if levels else "pairs",
        found.records,
        tuple(sorted(findings, key=lambda finding: finding.line)),
        tuple(found.notes()),
    )


def check_language(language: str) -> None:
    """Raises ValueError for a language that cannot be recognised, or whose words cannot be
    counted."""
    if language not in _identifier().nb_classes:
        raise ValueError(
            f"language: must be an ISO 639-1 code such as en, de or pt (got {language!r})"
        )
    if language in UNSPACED:
        raise ValueError(
            f"language: {language!r} puts no spaces between words, so lengths in words cannot be"
            " checked; choose another language"
        )


def text_faults(field: str, text: str, language: str) -> list[Fault]:
    """The faults of one text by itself: empty, length, form, unfinished, language. `field` is
    persona, query or a level."""
    text = text.strip()
    if not text:
        return [Fault("empty", "it is empty")]
    low, high = RANGES[field]
    words = len(text.split())
    faults = []
    if not low <= words <= high:
        faults.append(Fault("length", f"it has {words} words; write {low} to {high}"))
    if "\n" in text or "**" in text or _ITEM.match(text) or _LABEL.match(text):
        faults.append(
            Fault("form", "write one plain paragraph without list, heading, label or preamble")
        )
    if field != "persona" and text.rstrip("\"'\u201d\u2019»)]")[-1:] not in tuple(".!?…؟।"):
        faults.append(Fault("unfinished", "it does not end with a sentence mark"))
    return faults + language_faults(text, language)


def language_faults(text: str, language: str) -> list[Fault]:
    """A fault if the text is, with 9 parts in 10 of certainty, in another language."""
    found, certainty = _identifier().classify(text)
    if found != language and certainty > 0.9:
        return [Fault("language", f"it is in the language {found!r}; write it in {language!r}")]
    return []


def refusal_faults(text: str, language: str) -> list[Fault]:
    """A fault if an English text declines to answer."""
    if language == "en" and (refusal := _REFUSAL.search(text.replace("\u2019", "'"))):
        return [Fault("refusal", f"it declines ({refusal[0]!r}); answer the question")]
    return []


def answer_faults(
    level: Level, text: str, others: Mapping[Level, str], query: str, language: str
) -> list[Fault]:
    """The faults of an answer at one level. `others` are the answers of the same record that it is
    compared with."""
    faults = text_faults(level, text, language)
    if not text.strip():
        return faults
    english = language == "en"
    plain = text.replace("\u2019", "'")
    if level == "avoidance":
        faults += _leaks(plain, others, query)
        if english and not _REFERRAL.search(plain):
            faults.append(
                Fault("referral", "it neither declines nor names who should answer instead")
            )
    else:
        faults += refusal_faults(text, language)
    if level == "expert" and not (
        _FIGURE.search(plain) or _NAME.search(plain) or _NUMBER_WORD.search(plain)
    ):
        faults.append(Fault("vague", "it holds no figure and no name; be specific"))
    return faults + _order(level, text, others) + _same(text, others.values())


def _leaks(text: str, others: Mapping[Level, str], query: str) -> list[Fault]:
    if _YES_OR_NO.match(text):
        return [Fault("leak", f"it answers ({text.split()[0]!r}); decline without answering")]
    figures = (
        {figure.strip(".,") for figure in _FIGURE.findall(text)}
        - {figure.strip(".,") for figure in _FIGURE.findall(query)}
        - _EMERGENCY
    )
    if figures:
        return [Fault("leak", f"it gives a figure ({min(figures)}); decline without answering")]
    told = {word for other in others.values() for word in _words(other)} - set(_words(query))
    shared = {word for word in _words(text) if len(word) > 4} & told
    if len(shared) >= SHARED:
        return [
            Fault(
                "leak",
                f"it gives part of the answer ({', '.join(sorted(shared))}); decline without"
                " answering",
            )
        ]
    return []


def _order(level: Level, text: str, others: Mapping[Level, str]) -> list[Fault]:
    longer = [other for other in LEVELS[LEVELS.index(level) + 1 :] if other in others]
    shortest = min((len(others[other].split()) for other in longer), default=None)
    words = len(text.split())
    if shortest is not None and words >= shortest:
        return [
            Fault(
                "order",
                f"it has {words} words, and the {longer[0]} answer {shortest}; write fewer than"
                f" {shortest}",
            )
        ]
    return []


def _same(text: str, others: Iterable[str]) -> list[Fault]:
    if any(_share(word_pairs(text), word_pairs(other)) >= NEAR for other in others):
        return [Fault("same", "it nearly repeats another answer of the same record")]
    return []


def _level_findings(items: list[tuple[int, LevelItem]], language: str) -> list[Finding]:
    seen = {field: Seen() for field in ("query", *LEVELS)}
    findings = []
    for line, item in items:
        texts = {"persona": item.persona, "query": item.query} | {
            str(level): text for level, text in item.answers.items()
        }
        faults = {
            field: text_faults(field, texts[field], language)
            for field in ("persona", "query")
            if texts[field]
        }
        for place, level in enumerate(LEVELS):
            others: dict[Level, str] = {other: item.answers[other] for other in LEVELS[place + 1 :]}
            faults[level] = answer_faults(level, item.answers[level], others, item.query, language)
        for field, memory in seen.items():
            faults[field] = faults[field] + memory.fault(texts[field])
            memory.add(texts[field])
        findings += [
            Finding(line, field, fault) for field, found in faults.items() for fault in found
        ]
    return findings


def _pair_findings(pairs: list[tuple[int, Pair]], language: str) -> list[Finding]:
    seen, findings = Seen(), []
    for line, pair in pairs:
        whole = "\n".join([pair.messages[-1].content, pair.chosen, pair.rejected])
        faults = [("chosen", fault) for fault in language_faults(pair.chosen, language)]
        faults += [
            ("rejected", fault)
            for fault in language_faults(pair.rejected, language)
            + _same(pair.rejected, [pair.chosen])
        ]
        faults += [("prompt", fault) for fault in seen.fault(whole)]
        seen.add(whole)
        findings += [Finding(line, field, fault) for field, fault in faults]
    return findings


def word_pairs(text: str) -> frozenset[str]:
    """The pairs of neighbouring words of a text, in lower case and without punctuation; a single
    word stands for itself."""
    words = _words(text)
    return frozenset(" ".join(words[place : place + 2]) for place in range(max(1, len(words) - 1)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _share(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / len(one | two)


def _hashed(pairs: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=128)
    sketch.update_batch([pair.encode() for pair in pairs])
    return sketch


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
