"""Words in a text: which of them stand where, in any of their forms, and what a text has to go on
by to hold one.

A text is a row of words and single marks, of which appending can only change the last word: that
may still grow, letters and marks may be put to it, and a "\\ufffd" at the end is a character of
which bytes are missing. Scripts without spaces are read by characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

import regex  # type: ignore[import-untyped]

from fader.rewards.models import package

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKENS = regex.compile(rf"(?V1)[\w--[{_UNSPACED}]]+|\S")
GROWS = regex.compile(rf"(?V1)[\w--[{_UNSPACED}]]")


def settled(text: str) -> str:
    """The text without its last word, unless that is followed by something that ends it: what stays
    whatever is appended."""
    end = len(text)
    while end and (text[end - 1] == "\ufffd" or GROWS.match(text[end - 1])):
        end -= 1
    return text[:end]


@lru_cache(maxsize=2**17)
def folded(word: str) -> str:
    """A word as it is compared: composed, without case, with straight apostrophes."""
    return unicodedata.normalize("NFC", word).casefold().replace("\u2019", "'")


@lru_cache(maxsize=2**17)
def lemma(word: str, lang: str) -> str:
    """The dictionary form of a word. Raises ValueError for an unknown language."""
    return folded(package("simplemma").lemmatize(unicodedata.normalize("NFC", word), lang))


@lru_cache(maxsize=2**17)
def inflections(word: str) -> frozenset[str]:
    """The regular English inflections of a word of at least three letters: dogs, boxes, tried,
    hoping, hopping."""
    if len(word) < 3 or not word.isalpha():
        return frozenset()
    found = {word + "s", word + "es"}
    if word[-1] == "e":
        found |= {word + "d", word[:-1] + "ing"}
    elif word[-1] == "y" and word[-2] not in "aeiou":
        found |= {word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    else:
        doubles = word[-1] not in "aeiouwxy" and word[-2] in "aeiou" and word[-3] not in "aeiou"
        twice = {word + word[-1] + ending for ending in ("ed", "ing")} if doubles else set()
        short_word = doubles and not set(word[:-2]) & set(
            "aeiouy"
        )  # of one syllable: hopping, never hoping
        found |= twice if short_word else twice | {word + "ed", word + "ing"}
    return frozenset(found)


def same_word(one: str, other: str, lang: str | None) -> bool:
    """Whether two words are equal but for case, or (`lang` given) forms of one word."""
    a, b = folded(one), folded(other)
    if a == b or lang is None:
        return a == b
    return lemma(one, lang) == lemma(other, lang) or (
        lang == "en" and (a in inflections(b) or b in inflections(a))
    )


Spots = Callable[[str], list[list[tuple[int, int]]]]
"""Of each of some words or phrases, between which words of a text it stands."""


def spots(words: Sequence[str | Sequence[str]], match: str, lang: str, where: str) -> Spots:
    """A function that says of each of some words or phrases (or lists of forms) between which words
    of a text it stands: [(start, end), ...]."""
    forms = [
        [_TOKENS.findall(form) for form in ([word] if isinstance(word, str) else word)]
        for word in words
    ]
    distinct = list(
        dict.fromkeys(token for phrases in forms for phrase in phrases for token in phrase)
    )
    tongue = lang if match == "lemma" else None
    if tongue:
        package("simplemma")
        try:
            lemma("word", tongue)
        except ValueError as error:
            raise ValueError(
                f"{where}.lang: {error} (got {lang!r}); name one that simplemma has, or set `match`"
                " to `form`"
            ) from None

    @lru_cache(maxsize=2**16)
    def alike(token: str) -> frozenset[str]:
        return frozenset(word for word in distinct if same_word(token, word, tongue))

    def of(text: str) -> list[list[tuple[int, int]]]:
        row = [alike(token) for token in _TOKENS.findall(text)]
        some = [i for i, words in enumerate(row) if words]

        def stands(phrase: list[str], i: int) -> bool:
            return i + len(phrase) <= len(row) and all(
                word in row[i + j] for j, word in enumerate(phrase)
            )

        return [
            sorted((i, i + len(phrase)) for phrase in phrases for i in some if stands(phrase, i))
            for phrases in forms
        ]

    return of


def in_order(found: list[list[tuple[int, int]]]) -> list[bool]:
    """Of each word whether it and all those before it stand one after the other."""
    held: list[bool] = []
    end = 0
    for places in found:
        after = (
            min(
                (place for place in places if place[0] >= end),
                key=lambda place: place[1],
                default=None,
            )
            if all(held)
            else None
        )
        held.append(after is not None)
        end = after[1] if after else end
    return held


def rest(text: str, word: str) -> str:
    """What a text has to go on by to hold a word: its rest where the text ends in the beginning of
    it, else the word, after a space if need be."""
    grows = GROWS.match(word)
    for cut in range(min(len(word) - 1, len(text)), 0, -1):
        before = text[-cut - 1 : -cut]
        if text[-cut:].casefold() == word[:cut].casefold() and not (
            grows and before and GROWS.match(before)
        ):
            return word[cut:]
    return word if not text or text[-1].isspace() or not grows else f" {word}"
