"""Programs: how a method is written, and what it may ask.

A program is a generator that writes one answer. It yields what it needs to know, or a list of such
asks, and receives the answer, or the list of answers. It never touches a cache, a batch or a
thread; `loop.py` runs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from fader.engine.prefix import Policy, Prefix

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]
"""score(prompts, texts): one float per text, higher is better."""


@dataclass(frozen=True, eq=False)
class NextLogits:
    """Asks for the next-token logits of each prefix as read by `policy`: [prefixes, vocabulary]."""

    policy: Policy
    prefixes: Sequence[Prefix]


@dataclass(frozen=True, eq=False)
class SequenceLogits:
    """Asks for the logits from which each of the last `length` tokens of `prefix` was chosen:
    [length, vocabulary]. One pass."""

    policy: Policy
    prefix: Prefix
    length: int


@dataclass(frozen=True, eq=False)
class Score:
    """Asks for the reward of each text as an answer to its prompt: a list of floats."""

    reward: Reward
    prompts: Sequence[str]
    texts: Sequence[str]
    slow: bool = False
    """Whether the reward may take long, as over a network: it is then called in a thread of its
    own, and the engine goes on with other jobs."""


@dataclass(frozen=True, eq=False)
class Emit:
    """Hands `item` to whoever waits for the job; answered with None at once."""

    item: Any


@dataclass(frozen=True, eq=False)
class UsageSoFar:
    """Asks what the job has cost until now: a `Usage`, at once."""


@dataclass(frozen=True, eq=False)
class Remember:
    """Says that a later job may go on from this prefix, as the next turn of a conversation does:
    what these policies have read of it is kept while memory lasts. Answered with None at once.
    (Prompts are kept without being asked for.)"""

    policies: Sequence[Policy]
    prefix: Prefix


Ask = NextLogits | SequenceLogits | Score | Emit | UsageSoFar | Remember
Program = Generator[Ask | list[Ask], Any, Any]


def together(programs: Sequence[Program]) -> Program:
    """Run several programs as one: what they ask at the same time is asked together. Returns their
    results in order."""
    results: list[Any] = [None] * len(programs)
    asking: dict[int, Ask | list[Ask]] = {}

    def resume(index: int, answer: Any) -> None:
        try:
            asking[index] = programs[index].send(answer)
        except StopIteration as stop:
            asking.pop(index, None)
            results[index] = stop.value

    try:
        for index in range(len(programs)):
            resume(index, None)
        while asking:
            turn = dict(asking)
            flat = [
                ask
                for asks in turn.values()
                for ask in (asks if isinstance(asks, list) else [asks])
            ]
            answers = deque((yield flat))
            for index, asks in turn.items():
                resume(
                    index,
                    (
                        [answers.popleft() for _ in asks]
                        if isinstance(asks, list)
                        else answers.popleft()
                    ),
                )
        return results
    finally:
        asking.clear()  # an error that somebody holds would keep its prefixes, and so their memory
        for program in programs:
            program.close()
