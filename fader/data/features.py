"""Words of texts as numbers: for classifiers (scikit-learn, of the extra `eval`), and how much a
text repeats itself."""

from __future__ import annotations

from typing import Any


def words(tokens: str) -> Any:
    """Words and word pairs, as the pattern `tokens` divides texts, by how often they stand in a
    text and how rare they are."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        preprocessor=plain, ngram_range=(1, 2), sublinear_tf=True, token_pattern=tokens
    )


def plain(text: str) -> str:
    """The text in small letters. Digits become one sign, so that it counts that there are figures,
    not which."""
    return "".join("0" if sign.isdigit() else sign for sign in text.lower())


def distinct(text: str, size: int = 2) -> float:
    """distinct-n: the share of a text's word n-grams that are different (1 for texts shorter than n
    words). Low: it repeats itself."""
    words = text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
