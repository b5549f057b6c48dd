"""What a reward is, and what it may use beside the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from fader.rewards.judge import LLMJudge

Interval = tuple[float, float]
"""From the least to the most."""


ANY: Interval = (float("-inf"), float("inf"))


UNIT: Interval = (0.0, 1.0)


END = ""
"""As a proposal: the end of the answer."""


def _unknown(_: str) -> Interval:
    return ANY


@dataclass(frozen=True, eq=False)
class Reward:
    """A reward as searches use it."""

    score: Callable[[Sequence[str], Sequence[str]], list[float]]
    """score(prompts, texts): one float per text."""
    bounds: Interval = ANY
    """Of any text."""
    prefix_bounds: Callable[[str], Interval] = _unknown
    """Between which values the reward of any text that begins with this one must lie. Left out:
    `bounds`."""
    propose: Callable[[str], Sequence[str]] | None = None
    """Texts by which this unfinished one might well go on."""
    slow: bool = False
    """Whether a call may take long: the engine does not wait for it. No second call is made before
    the first has answered."""
    name: str = "rewards"
    """What it is called in an error."""

    def __post_init__(self) -> None:
        if self.prefix_bounds is _unknown:
            object.__setattr__(self, "prefix_bounds", lambda _: self.bounds)


@dataclass(frozen=True)
class Resources:
    """What rewards may use beside the text. It is declared when the program starts; a request can
    only name it."""

    callables: Mapping[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = field(
        default_factory=dict
    )
    """Rewards in Python: f(prompts, texts) gives one finite float per text."""
    judges: Mapping[str, LLMJudge] = field(default_factory=dict)
    """Language models that give marks."""
    classifiers: Mapping[str, str] = field(default_factory=dict)
    """Sequence-classification models: folders, or ids on the Hugging Face hub."""
    embedders: Mapping[str, str] = field(default_factory=dict)
    """Sentence-embedding models: folders, or ids on the Hugging Face hub."""
    made: WeakValueDictionary[str, Reward] = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )
    """The rewards in use. Requests with the same settings share one, and so its calls."""


NOTHING = Resources()
