"""Words of texts as numbers, for classifiers (scikit-learn, of the extra `eval`)."""

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
