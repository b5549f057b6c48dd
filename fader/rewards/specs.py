"""The rewards that a request may ask for, and their settings. `rewards/table.py` makes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fader.schema import NUMBER, Finite, Frozen, Positive, Text, listed

Forms = Annotated[tuple[Text, ...], Field(min_length=1)]
Words = Annotated[tuple[Text | Forms, ...], Field(min_length=1), BeforeValidator(listed)]
Match = Literal["lemma", "form"]
Count = Annotated[int, Field(ge=1), NUMBER]


class _Weighted(Frozen):
    weight: Finite = 1.0
    """Its share in the weighted sum; negative: the less the better."""


class _Matched(_Weighted):
    words: Words
    """Words or phrases; a list in place of one: any of its forms will do."""
    match: Match = "lemma"
    """`lemma`: any form of the word counts ("ran" is "run"); `form`: the word as it stands. Whole
    words, in upper or lower case."""
    lang: Text = "en"
    """The language of the lemmas."""


class KeywordsSpec(_Matched):
    """Reward: the share of the words that the text holds, in [0, 1]."""

    kind: Literal["keywords"]
    hard: bool = False
    """1 for a text that holds all of them, else 0."""
    ordered: bool = False
    """Only the beginning of the list counts that the text holds in the order of the list."""
    propose: bool = False
    """Let a search try the words that are missing."""


class ForbiddenSpec(_Matched):
    """Reward: 1 for a text that holds none of the words, else 0."""

    kind: Literal["forbidden"]
    hard: bool = True
    """False: 1 - the share of the words that the text holds."""


class LengthSpec(_Weighted):
    """Reward: 1 for a text whose length is within the limits, falling towards 0 the further it is
    from them; in [0, 1]."""

    kind: Literal["length"]
    unit: Literal["words", "sentences", "characters"] = "words"
    """What is counted. Characters are Unicode's."""
    at_most: Count | None = None
    """The most there may be."""
    at_least: Count | None = None
    """The least there may be."""
    about: Count | None = None
    """Exactly this long is best."""
    hard: bool = False
    """1 for a text whose length is within the limits, else 0."""
    propose: bool = False
    """Let a search try to end the sentence and the text near `at_most` or `about`."""

    @model_validator(mode="after")
    def _one_length(self) -> LengthSpec:
        if self.about is not None and (self.at_most is not None or self.at_least is not None):
            raise ValueError("`about` goes without `at_most` and `at_least`; give either")
        if self.about is None and self.at_most is None and self.at_least is None:
            raise ValueError("give `at_most`, `at_least` or `about`")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError(
                f"`at_least` must not be above `at_most` (got {self.at_least} and {self.at_most})"
            )
        if self.propose and self.about is None and self.at_most is None:
            raise ValueError("`propose` needs `at_most` or `about`: near them it proposes to end")
        return self


class RegexSpec(_Weighted):
    """Reward: 1 for a text that the pattern matches, else 0. A text that takes longer than 0.1
    seconds does not match."""

    kind: Literal["regex"]
    pattern: Text = Field(max_length=1000)
    """In the syntax of the Python package `regex`, at most 1000 characters."""
    match: Literal["search", "fullmatch"] = "search"
    """`search`: somewhere in the text; `fullmatch`: the whole text."""


class JsonSchemaSpec(_Weighted):
    """Reward: 1 for JSON that is valid by the schema, 0.5 for other JSON, 0 for what is none. One
    fenced block counts as its content."""

    kind: Literal["json-schema"]
    of: dict[str, Any]
    """The JSON Schema. It may refer only to itself."""


class ReadabilitySpec(_Weighted):
    """Reward: how easily English text reads, in [0, 1]: Flesch's reading ease / 100, clipped. 0 for
    a text without letters."""

    kind: Literal["readability"]
    grade: Positive | None = None
    """A US school grade: 1 for a text of at most this Flesch-Kincaid grade, grade / its own grade
    beyond."""


class SentimentSpec(_Weighted):
    """Reward: how positive, negative or neutral an English text is, by VADER, in [0, 1]."""

    kind: Literal["sentiment"]
    toward: Literal["positive", "negative", "neutral"] = "positive"
    """Which sentiment is rewarded."""


class SimilaritySpec(_Weighted):
    """Reward: how near the text is to another one, in [0, 1]: the cosine of their embeddings, or of
    their counts of 3 to 5 characters."""

    kind: Literal["similarity"]
    to: Text
    """The text to be near to."""
    model: Text | None = None
    """The declared name of a sentence-embedding model. Left out: character counts."""


class ClassifierSpec(_Weighted):
    """Reward: what a sequence-classification model, such as a reward model, says of prompt and
    text."""

    kind: Literal["classifier"]
    model: Text
    """The declared name of the model."""
    label: Annotated[int, NUMBER] | Text | None = None
    """Which of its outputs, by number or name; a model of one output needs none."""
    normalize: Literal["none", "sigmoid", "softmax"] = "none"
    """`none`: the logit as it is; `sigmoid`, `softmax`: in [0, 1]."""


class JudgeSpec(_Weighted):
    """Reward: the mark that a language model gives the text, in [0, 1]."""

    kind: Literal["judge"]
    judge: Text
    """The declared name of the judge."""
    criterion: Text
    """What the mark is for, such as "Is it friendly?"."""


class PythonSpec(_Weighted):
    """Reward: what a declared Python function returns."""

    kind: Literal["python"]
    name: Text
    """The declared name of the function."""


TextRewardSpec = (
    KeywordsSpec
    | ForbiddenSpec
    | LengthSpec
    | RegexSpec
    | JsonSchemaSpec
    | ReadabilitySpec
    | SentimentSpec
    | SimilaritySpec
    | ClassifierSpec
    | JudgeSpec
    | PythonSpec
)
"""The rewards that judge the text alone, or the prompt and the text."""
