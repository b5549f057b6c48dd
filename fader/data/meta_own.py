"""MetaAlign's items (`meta.py`) of the model's own samples: on-policy pairs (arXiv 2402.04792), so
that training compares what it would say, not only what others have written.

The model answers the question of an item several times, told either of the item's texts. Of all
these answers the one that surest follows the first text and the one that surest follows the second
are the answers of a new item. Who says so is a judge for each family, the words classifier of
`nearness.py`, fitted to half of the family's pairs; it has earned its say where it ranks at least
`EARNED` of the other half right. Its probabilities are calibrated on that half by Platt's sigmoid,
which ranks alike: so few pairs leave the classifier's own near .5. Families whose judge has not
earned its say are left out. Of one family, the first texts of all items are to ask for the same.

Deviation from MetaAlign (arXiv 2410.14184), which compares answers that stronger models wrote: a
classifier that has been tested judges, and no model.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fader.data.features import distinct
from fader.data.meta import Item, Part, flip
from fader.data.nearness import pole_classifier, ranked_right
from fader.data.preferences import plain
from fader.request import Alignment, Request, Sampling

EARNED = 0.85
"""Accuracy on held-out pairs from which on a judge has its say."""
LEAST = 8
"""Questions in either half of a family: with fewer, a high accuracy may be chance."""
SURE = 0.75
"""Probability from which on an answer follows a text."""
SAMPLES = 4
"""Answers under either text of an item."""
LENGTH = 96
"""Tokens of an answer, at most."""
TEMPERATURE, TOP_P = 0.7, 0.9
"""Of the sampling; hotter, a small model wanders off."""
DISTINCT = 0.7
"""distinct-2 below which an answer repeats itself."""
SENTENCE_END = re.compile(r"""(?<!\d)[.!?…]["')*\u2019\u201d]*(?=\s|$)|\n""")
MARKS = re.compile(r"""[\s.,;:!?…"'()*_#\[\]\u2018-\u201d-]*""")
"""A sentence without words: nothing but these."""


class Written(NamedTuple):
    """An answer of the model. `ended`: by the model itself, not cut off."""

    text: str
    ended: bool


Write = Callable[[Sequence[Request]], Sequence[Written]]
"""The model's answer to each request, in order."""


@dataclass(frozen=True)
class Judge:
    """Says by their words which text of a family answers follow."""

    part: Part
    family: str
    held_out: int
    """Pairs on which it was tested; none where the family has too few."""
    accuracy: float
    """The share of these that it ranks right."""
    classifier: Any = field(default=None, repr=False, compare=False)

    @property
    def earned(self) -> bool:
        """Whether it has its say."""
        return self.held_out > 0 and self.accuracy >= EARNED

    def follows_first(self, answers: Sequence[str]) -> list[float]:
        """Of each answer [answers], the probability that it follows the family's first text."""
        return [float(one) for one in self.classifier.predict_proba(answers)[:, 1]]


@dataclass(frozen=True)
class OwnPlan:
    """Which items the model answers, with which vector, and who judges its answers."""

    vector: str
    drawn: tuple[Item, ...]
    judges: Mapping[tuple[Part, str], Judge]
    """By part and family, also those that have not earned their say."""
    seed: int = 0

    @property
    def requests(self) -> list[Request]:
        """What the model is asked: for each item `SAMPLES` times under its first text, then as
        often under its second. Wordings and samples are drawn by the seed and the item's place."""
        return [
            request
            for place, item in enumerate(self.drawn)
            for request in _requests(item, self.vector, f"{self.seed} {place}")
        ]


@dataclass(frozen=True)
class Own:
    """The items that came of a plan."""

    items: tuple[Item, ...]
    plan: OwnPlan
    dropped: Mapping[str, int]
    """Items that were given up, by the reason."""
    unused: Mapping[str, int]
    """Answers that were never a choice, by what is wrong with them."""


def own_plan(items: Sequence[Item], vector: str, count: int, seed: int = 0) -> OwnPlan:
    """At most `count` of the items, each at most once, of families whose judge has earned its say.
    More of them begin with the same ones.

    Raises ValueError where there is no such item, or for a `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count: must be at least 1 (got {count})")
    opposed = [
        item
        for item in dict.fromkeys(items)
        if item.part in ("diverse-opinion", "helpful-based")
        and item.split == "train"
        and item.family
    ]
    if not opposed:
        raise ValueError(
            f"data: none of the {len(items)} items is of diverse-opinion or helpful-based, of the"
            " split train, and names its family; give such items"
        )
    found = judges(opposed, seed)
    judged = [item for item in opposed if found[item.part, item.family].earned]
    if not judged:
        best = max(found.values(), key=lambda judge: judge.accuracy)
        raise ValueError(
            "data: in no family do the words of answers tell which text they follow: a judge has to"
            f" rank {EARNED} of the held-out pairs right (the best: {best.family},"
            f" {best.accuracy:.2f} of {best.held_out}); give families of clearer pairs, each of at"
            f" least {2 * LEAST} questions"
        )
    drawn = random.Random(seed).sample(judged, len(judged))[:count]
    return OwnPlan(vector, tuple(drawn), found, seed)


def judges(items: Sequence[Item], seed: int = 0) -> dict[tuple[Part, str], Judge]:
    """The judge of each family, by part and name, fitted to the items of half of its questions,
    drawn by `seed`, and tested on the others."""
    families: dict[tuple[Part, str], list[Item]] = {}
    for item in items:
        families.setdefault((item.part, item.family), []).append(item)
    return {of: _judge(*of, mine, random.Random(seed)) for of, mine in families.items()}


def _judge(part: Part, family: str, items: Sequence[Item], dice: random.Random) -> Judge:
    questions = [*dict.fromkeys(item.messages for item in items)]
    if len(questions) < 2 * LEAST:
        return Judge(part, family, 0, 0.0)
    half = {*dice.sample(questions, len(questions) // 2)}
    classifier = pole_classifier([item.answers for item in items if item.messages in half])
    kept = [item.answers for item in items if item.messages not in half]
    accuracy = float(ranked_right(classifier, kept).mean())
    return Judge(part, family, len(kept), accuracy, _calibrated(classifier, kept))


def _calibrated(classifier: Any, pairs: Sequence[tuple[str, str]]) -> Any:
    """The classifier with probabilities that fit pairs that it has not seen, by Platt's sigmoid of
    its scores."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    model = CalibratedClassifierCV(FrozenEstimator(classifier), method="sigmoid", ensemble=False)
    return model.fit([text for two in pairs for text in two], [1, 0] * len(pairs))


def _requests(item: Item, vector: str, seed: str) -> list[Request]:
    dice = random.Random(seed)
    return [
        Request(
            messages=item.messages,
            sampling=Sampling(
                max_tokens=LENGTH,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                seed=dice.randrange(2**32),
            ),
            alignment=Alignment(preferences=sample.told, vectors={vector: 1.0}),
        )
        for sample in flip(item, seed=dice.randrange(2**32))
        for _ in range(SAMPLES)
    ]


def own_items(plan: OwnPlan, write: Write) -> Own:
    """The new items that the model's answers make. `write` is called once, with all requests."""
    answers = write(plan.requests)
    assert len(answers) == 2 * SAMPLES * len(plan.drawn)
    items: list[Item] = []
    dropped: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for place, item in enumerate(plan.drawn):
        usable: list[Written] = []
        for answer in answers[place * 2 * SAMPLES : (place + 1) * 2 * SAMPLES]:
            text = answer.text if answer.ended else until_cut(answer.text)
            wrong = "cut in its first sentence" if answer.text and not text else fault(text)
            if wrong:
                unused[wrong] += 1
            else:
                usable.append(Written(text.strip(), answer.ended))
        chosen = choice(usable, plan.judges[item.part, item.family])
        if isinstance(chosen, str):
            dropped[chosen] += 1
        else:
            items.append(replace(item, answers=chosen))
    return Own(tuple(items), plan, dict(sorted(dropped.items())), dict(sorted(unused.items())))


def choice(answers: Sequence[Written], judge: Judge) -> tuple[str, str] | str:
    """Of some answers the one that surest follows the first text of the judge's family and the one
    that surest follows the second; or the reason why there are no such two. Of answers that surely
    follow a text, those that ended come before those that were cut."""
    if not answers:
        return "no usable answer"
    first = judge.follows_first([answer.text for answer in answers])
    sides = [[*first], [1 - one for one in first]]
    best = [
        max(
            range(len(answers)),
            key=lambda place: (side[place] >= SURE, answers[place].ended, side[place]),
        )
        for side in sides
    ]
    texts = answers[best[0]].text, answers[best[1]].text
    if plain(texts[0]) == plain(texts[1]):
        return "the same answer"
    unsure = [
        name
        for name, side, place in zip(("first", "second"), sides, best, strict=True)
        if side[place] < SURE
    ]
    return f"no answer that surely follows the {' or the '.join(unsure)} text" if unsure else texts


def until_cut(text: str) -> str:
    """The whole sentences, or lines, of an answer that was cut off."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def fault(text: str) -> str:
    """What is wrong with an answer by itself: a sentence without words, or the same again and
    again; empty where nothing is."""
    if any(MARKS.fullmatch(part) for part in re.split(r"(?<=[.!?…])\s+|\n", text.strip())):
        return "an empty sentence"
    return "repeats itself" if distinct(text) < DISTINCT else ""
