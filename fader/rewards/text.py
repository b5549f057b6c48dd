"""The rewards that ship.

A reward says of each text how good it is as an answer to its prompt: one float per text, higher is
better. It judges each text by itself, so that a batch equals its members. Where it has bounds, of
any text or of the continuations of one, it states them: searches leave out what can no longer win.
To add one: its settings in `specs.py`, a function here that makes it from them, and one line in
`table.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from fader.rewards.judge import marks
from fader.rewards.models import load, package
from fader.rewards.patterns import SECONDS, compiled
from fader.rewards.reward import ANY, END, UNIT, Interval, Resources, Reward
from fader.rewards.specs import (
    ClassifierSpec,
    ForbiddenSpec,
    JudgeSpec,
    KeywordsSpec,
    LengthSpec,
    PythonSpec,
    ReadabilitySpec,
    RegexSpec,
    SentimentSpec,
    SimilaritySpec,
)
from fader.rewards.words import in_order, rest, settled, spots
from fader.schema import Invalid, short


def keywords(spec: KeywordsSpec, resources: Resources) -> Reward:
    """The share of the words that the text holds; 1 for all or nothing (hard), or of those at the
    list's beginning in their order (ordered)."""
    find = spots(spec.words, spec.match, spec.lang)

    def held(text: str) -> list[bool]:
        return in_order(find(text)) if spec.ordered else [bool(places) for places in find(text)]

    def value(text: str) -> float:
        covered = sum(held(text))
        return float(covered == len(spec.words)) if spec.hard else covered / len(spec.words)

    def propose(text: str) -> list[str]:
        missing = [word for word, there in zip(spec.words, held(text), strict=True) if not there]
        return (
            []
            if text.endswith("\ufffd")
            else [
                rest(text, word if isinstance(word, str) else word[0])
                for word in (missing[:1] if spec.ordered else dict.fromkeys(missing))
            ]
        )

    return Reward(_each(value), UNIT, lambda text: (value(settled(text)), 1.0), propose)


def forbidden(spec: ForbiddenSpec, resources: Resources) -> Reward:
    """1 for a text that holds none of the words, else 0; soft: 1 - the share of them that it
    holds."""
    find = spots(spec.words, spec.match, spec.lang)

    def value(text: str) -> float:
        held = sum(map(bool, find(text)))
        return float(not held) if spec.hard else 1 - held / len(spec.words)

    return Reward(_each(value), UNIT, lambda text: (0.0, value(settled(text))))


_MARK, _WIDE = (
    ".!?\u2026\u3002\uff01\uff1f",
    "\u3002\uff01\uff1f",
)  # a wide one ends a sentence without a space
_CLOSERS = "\"'\u201d\u2019\u00bb)\\]\u300d\u300f\uff09"
_SENTENCES = regex.compile(
    rf"[{_MARK}][{_CLOSERS}]*\s+(?=\S)|[{_WIDE}][{_CLOSERS}]*(?=[^\s{_MARK}{_CLOSERS}])"
)
_CLOSED = regex.compile(rf"[{_MARK}][{_CLOSERS}]*\s*\Z")
NEAR = {"words": 3, "sentences": 0, "characters": 20}
"""This near to `at_most` or `about`, the end of the text is proposed."""


def count(text: str, unit: str) -> int:
    """How many words, sentences or characters a text has. Never falls when something is
    appended."""
    if unit == "words":
        return len(text.split())
    bare = text.strip()
    return len(text) if unit == "characters" else len(_SENTENCES.findall(bare)) + bool(bare)


def length(spec: LengthSpec, resources: Resources) -> Reward:
    """1 for a length within the limits; soft: the ratio of the length and the nearest limit, the
    smaller by the larger."""
    least, most = spec.about or spec.at_least or 0, spec.about or spec.at_most or math.inf

    def score(size: int) -> float:
        fits = least <= size <= most
        return 1.0 if fits else 0.0 if spec.hard else size / least if size < least else most / size

    def prefix_bounds(text: str) -> Interval:
        size = count(text.rstrip("\ufffd"), spec.unit)
        return (score(size) if most == math.inf else 0.0), score(max(size, least))

    def propose(text: str) -> list[str]:
        size = count(text, spec.unit)
        if size < max(most - NEAR[spec.unit], spec.at_least or 0) or text.endswith("\ufffd"):
            return []
        return (
            [END]
            if _CLOSED.search(text[-100:])
            else [".", "!", "?", *([END] if size >= most else [])]
        )

    return Reward(_each(lambda text: score(count(text, spec.unit))), UNIT, prefix_bounds, propose)


# With these in a pattern, `regex` takes some beginnings of matching texts for hopeless: groups with
# a question mark, \b, back references, ...
_UNSURE = regex.compile(r"\(\?(?!:)|\\[^dDwWsSntpP\W]|[*+?}]\+|\{[^\d,}]")


def pattern(spec: RegexSpec, resources: Resources) -> Reward:
    """1 for a text that the pattern matches, else 0."""
    [found] = compiled([spec.pattern], "pattern")

    def value(text: str) -> float:
        try:
            return float(
                (found.search if spec.match == "search" else found.fullmatch)(text, timeout=SECONDS)
                is not None
            )
        except TimeoutError:
            return 0.0

    def whole(_: str) -> Interval:
        return UNIT

    def prefix_bounds(text: str) -> Interval:
        try:
            return 0.0, float(
                found.fullmatch(text.rstrip("\ufffd"), partial=True, timeout=SECONDS) is not None
            )
        except TimeoutError:
            return UNIT

    return Reward(
        _each(value),
        UNIT,
        prefix_bounds if spec.match == "fullmatch" and not _UNSURE.search(spec.pattern) else whole,
    )


def readability(spec: ReadabilitySpec, resources: Resources) -> Reward:
    """Flesch's reading ease / 100, clipped to [0, 1]; with a grade: 1 up to this Flesch-Kincaid
    grade, grade / the text's own beyond."""
    textstat = package("textstat")

    def value(text: str) -> float:
        if not any(map(str.isalpha, text)):
            return 0.0
        if spec.grade is None:
            return min(1.0, max(0.0, float(textstat.flesch_reading_ease(text)) / 100))
        return min(1.0, spec.grade / max(float(textstat.flesch_kincaid_grade(text)), 1e-9))

    return Reward(_each(value), UNIT)


PIECE = 500
"""VADER is made for short texts, and slow for long ones: of a text of more words, the mean over
pieces of so many counts."""
_TOWARD: Mapping[str, Callable[[float], float]] = {
    "positive": lambda compound: (compound + 1) / 2,
    "negative": lambda compound: (1 - compound) / 2,
    "neutral": lambda compound: 1 - abs(compound),
}


def sentiment(spec: SentimentSpec, resources: Resources) -> Reward:
    """VADER's compound, from -1 to 1, as nearness to `toward` in [0, 1]."""
    analyzer = _vader(package("vaderSentiment.vaderSentiment"))

    def value(text: str) -> float:
        words = text.split()
        pieces = (
            [text]
            if len(words) <= PIECE
            else [" ".join(words[i : i + PIECE]) for i in range(0, len(words), PIECE)]
        )
        return _TOWARD[spec.toward](
            sum(float(analyzer.polarity_scores(piece)["compound"]) for piece in pieces)
            / len(pieces)
        )

    return Reward(_each(value), UNIT)


def similarity(spec: SimilaritySpec, resources: Resources) -> Reward:
    """The cosine of the embeddings of the text and of `to`, or of their counts of 3 to 5
    characters; at least 0."""
    if spec.model is None:
        counts = package("sklearn.feature_extraction.text").HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 5), norm="l2", alternate_sign=False
        )
        aim = counts.transform([spec.to])
        return Reward(
            _each(lambda text: min(1.0, float((counts.transform([text]) @ aim.T).sum()))), UNIT
        )
    model = load("AutoModel", _named("model", spec.model, resources.embedders, "embedders"))
    wanted = model.embeddings([spec.to])[0]

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [min(1.0, max(0.0, float(row @ wanted))) for row in model.embeddings(texts)]

    return Reward(score, UNIT)


def classifier(spec: ClassifierSpec, resources: Resources) -> Reward:
    """One output of a sequence-classification model that reads prompt and text, as it is or
    squashed into [0, 1]."""
    model = load(
        "AutoModelForSequenceClassification",
        _named("model", spec.model, resources.classifiers, "classifiers"),
    )
    names = [str(name) for _, name in sorted(model.model.config.id2label.items())]
    known = f"it has {', '.join(f'{i} ({name})' for i, name in enumerate(names))}"
    if spec.label is None and len(names) > 1:
        raise Invalid(f"{spec.model!r} has several outputs; name one: {known}", "label")
    output = names.index(spec.label) if spec.label in names else spec.label or 0
    if not isinstance(output, int) or not 0 <= output < len(names):
        raise Invalid(f"{spec.model!r} has no output {spec.label!r}; {known}", "label")
    if spec.normalize == "softmax" and len(names) == 1:
        raise Invalid("softmax of one output is always 1; use sigmoid", "normalize")

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        logits = model.logits(prompts, texts)  # [texts, outputs]
        values = {"none": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1)}[
            spec.normalize
        ]
        return [row[output] for row in values.tolist()]

    return Reward(score, ANY if spec.normalize == "none" else UNIT)


def judge(spec: JudgeSpec, resources: Resources) -> Reward:
    """The mark of 0 to 10 that a language model gives the text for a criterion, / 10."""
    package("openai")
    asked = _named("judge", spec.judge, resources.judges, "judges")
    return Reward(
        lambda prompts, texts: [
            mark / 10 for mark in marks(spec.judge, asked, spec.criterion, prompts, texts)
        ],
        UNIT,
        slow=True,
    )


def python(spec: PythonSpec, resources: Resources) -> Reward:
    """What a declared function returns, checked."""
    function = _named("name", spec.name, resources.callables, "callables")

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        try:
            values = [float(value) for value in function(prompts, texts)]
        except TypeError as error:
            raise ValueError(
                f"rewards.python: {spec.name!r} must return one number per text ({error})"
            ) from error
        if len(values) != len(texts) or not all(map(math.isfinite, values)):
            raise ValueError(
                f"rewards.python: {spec.name!r} must return one finite number per text (got"
                f" {short(values)} for {len(texts)} texts)"
            )
        return values

    return Reward(score, slow=True)


# What the rewards are made with.


def _each(value: Callable[[str], float]) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    return lambda prompts, texts: [value(text) for text in texts]


def _named(field: str, name: str, resources: Mapping[str, Any], argument: str) -> Any:
    if name not in resources:
        known = ", ".join(resources) or "none yet"
        raise Invalid(
            f"{name!r} is not declared; declared: {known}; name it in"
            f" Fader(resources=Resources({argument}={{...}}))",
            field,
        )
    return resources[name]


@lru_cache(maxsize=1)
def _vader(module: Any) -> Any:
    return module.SentimentIntensityAnalyzer()
