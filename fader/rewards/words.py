"""Words in a text: where each of them stands, in any of its forms, and how a text has to go on to
hold one.

A text is a row of words and single marks. A word is whole where no more of it stands beside it:
"well" is none in "well-known", "C" none in "C++", "S" none in "U.S.", "do" none in "don't"; of
"dog's" only the "'s" is left away, and only where forms count. Appending can only change the last
word with the marks that hold words together: it may still grow, and a "\\ufffd" at the end is a
character of which bytes are missing. Scripts without spaces are read by characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

import regex  # type: ignore[import-untyped]

from fader.rewards.forms import inflections, irregular
from fader.rewards.models import package
from fader.schema import Invalid

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKENS = regex.compile(rf"(?V1)[\w--[{_UNSPACED}]]+|\S")
GROWS = regex.compile(rf"(?V1)[\w--[{_UNSPACED}]]")


# What words are held together by, and what a sign at a word's end belongs to: C++, F#.
_JOINTS, _SIGNS = "'\u2019.-\u2010\u2011&@", "+#"
# What is written to a word without being of it, where forms count: dog's, they're.
_CLITIC = regex.compile(r"['\u2019](?:s|re|ve|ll|d|m)(?!\w)", regex.IGNORECASE)
_PLAIN = str.maketrans("\u2019\u2010\u2011", "'--")
_ELIDING = ("fr", "it", "ca")  # l'eau holds eau


def settled(text: str) -> str:
    """The text without its last word and what may hold it together with another, unless that is
    followed by something that ends it: what stays whatever is appended."""
    end = len(text)
    while end and (text[end - 1] in _JOINTS + _SIGNS + "\ufffd" or GROWS.match(text[end - 1])):
        end -= 1
    return text[:end]


def _whole(text: str, start: int, end: int, lang: str | None) -> bool:
    """Whether what stands between these characters is no part of a longer word."""
    return not (_joined_before(text, start, lang) or _joined_after(text, end, lang))


def _joined_after(text: str, end: int, lang: str | None) -> bool:
    last, following, beyond = text[end - 1], text[end : end + 1], text[end + 1 : end + 2]
    if not GROWS.match(last):  # the phrase ends with a mark: U.S. of U.S.A., C+ of C++
        if last in _SIGNS and following == last:
            return True
        return bool(last in _JOINTS + _SIGNS and following and GROWS.match(following))
    if following and following in _SIGNS:
        past = text[end:].lstrip(_SIGNS)[:1] if beyond in _SIGNS else beyond
        return not (past and GROWS.match(past))
    if not following or following not in _JOINTS or not (beyond and GROWS.match(beyond)):
        return False
    if following == ".":
        return _point_joins(text[max(0, end - 2) : end], beyond)
    if following in "'\u2019" and lang is not None:
        return not (_CLITIC.match(text, end) or (lang in _ELIDING))
    return True


def _joined_before(text: str, start: int, lang: str | None) -> bool:
    first, before, beyond = text[start], text[start - 1 : start], text[start - 2 : start - 1]
    if start == 0:
        return False
    if not GROWS.match(first):
        return bool(first in _JOINTS + _SIGNS and GROWS.match(before))
    if start == 1 or before not in _JOINTS or not GROWS.match(beyond):
        return False
    if before == ".":
        return _point_joins(text[max(0, start - 3) : start - 1], first)
    return not (before in "'\u2019" and lang in _ELIDING)


def _point_joins(before: str, after: str) -> bool:
    """Whether a point between these characters is within a word: 3.5, example.com, U.S., and not
    where a space after a sentence was forgotten."""
    alone = len(before) == 1 or not GROWS.match(before[0])
    return alone or after.islower() or after.isdigit()


@lru_cache(maxsize=2**17)
def folded(word: str) -> str:
    """A word as it is compared: composed, without case, with straight apostrophes and the plain
    hyphen."""
    return unicodedata.normalize("NFC", word).casefold().translate(_PLAIN)


@lru_cache(maxsize=2**17)
def lemma(word: str, lang: str) -> str:
    """The dictionary form of a word. Raises ValueError for an unknown language."""
    return folded(package("simplemma").lemmatize(unicodedata.normalize("NFC", word), lang))


@lru_cache(maxsize=2**17)
def lemmas(word: str, lang: str) -> frozenset[str]:
    """All the dictionary forms of a word, itself among them: of "left" leave and left."""
    return frozenset({folded(word), lemma(word, lang)}) | irregular(lang).get(
        folded(word), frozenset()
    )


def same_word(one: str, other: str, lang: str | None) -> bool:
    """Whether two words are equal but for case, or (`lang` given) forms of one word."""
    a, b = folded(one), folded(other)
    if a == b or lang is None:
        return a == b
    return bool(
        lemmas(one, lang) & lemmas(other, lang)
        or a in inflections(b, lang, lemma)
        or b in inflections(a, lang, lemma)
    )


Spots = Callable[[str], list[list[tuple[int, int]]]]
"""Of each of some words or phrases, between which words of a text it stands."""


def spots(words: Sequence[str | Sequence[str]], match: str, lang: str) -> Spots:
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
            raise Invalid(
                f"{error} (got {lang!r}); name one that simplemma has, or set `match` to `form`",
                "lang",
            ) from None

    @lru_cache(maxsize=2**16)
    def alike(token: str) -> frozenset[str]:
        return frozenset(word for word in distinct if same_word(token, word, tongue))

    def of(text: str) -> list[list[tuple[int, int]]]:
        tokens = list(_TOKENS.finditer(text))
        row = [alike(token[0]) for token in tokens]
        some = [i for i, words in enumerate(row) if words]

        def stands(phrase: list[str], i: int) -> bool:
            end = i + len(phrase)
            return (
                end <= len(row)
                and all(word in row[i + j] for j, word in enumerate(phrase))
                and _whole(text, tokens[i].start(), tokens[end - 1].end(), tongue)
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
    """How a text has to go on to hold a word: by the rest of the word, where the text ends in its
    beginning; else by the word, after a space if need be."""
    grows = GROWS.match(word)
    for cut in range(min(len(word) - 1, len(text)), 0, -1):
        start = len(text) - cut
        within = start > 0 and GROWS.match(text[start - 1])
        if text[start:].casefold() == word[:cut].casefold() and not (
            grows and (within or _joined_before(text, start, None))
        ):
            return word[cut:]
    return word if not text or text[-1].isspace() or not grows else f" {word}"
