"""What all searches share: hypotheses of an answer, the budget, and the output of what is
decided."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fader.answer import Answer, Chunk, FinishReason, SearchReport, TokenLogprob
from fader.engine.prefix import Prefix
from fader.engine.program import Emit, Program, Remember
from fader.methods.decode import IncrementalDetokenizer, Task, first_stop
from fader.methods.guidance import GuidedPolicy
from fader.methods.objective import Objective
from fader.request import Budget


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """An answer so far."""

    prefix: Prefix
    text: str = ""
    finish: FinishReason | None = None
    reports: tuple[TokenLogprob, ...] = ()
    """On each of its tokens, where the request asks for them."""
    reward: float = 0.0
    """h of its text, once it was scored."""

    def then(self, token: int, task: Task, report: Sequence[TokenLogprob] = ()) -> Hypothesis:
        """This hypothesis continued by a token. An end token, a stop string or the last token that
        may be written finishes it."""
        prefix = self.prefix.then(token)
        reports = (*self.reports, *report)
        if token in task.end_tokens:
            return Hypothesis(prefix, self.text, "stop", reports)
        text = task.decode([*task.context, *prefix.tokens])[len(task.decode(task.context)) :]
        found = first_stop(text, task.sampling.stop)
        if found >= 0:
            return Hypothesis(prefix, text[:found], "stop", reports)
        return Hypothesis(
            prefix, text, "length" if prefix.length == task.sampling.max_tokens else None, reports
        )


class Spent:
    """The budget of a search, and what it has spent."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.rows = self.tokens = 0
        self._started: float | None = None

    def pay(self, rows: int, tokens: int) -> None:
        """Note rows that were read, and the tokens that were explored by them."""
        self.rows += rows
        self.tokens += tokens

    @property
    def exhausted(self) -> str | None:
        """The limit of the budget that is reached, if one is. Seconds count from the first call:
        waiting for room in the engine is free."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        spent = {"rows": self.rows, "tokens": self.tokens, "seconds": now - self._started}
        return next(
            (name for name, limit in self.budget if limit is not None and spent[name] >= limit),
            None,
        )


@dataclass(frozen=True)
class SearchContext:
    """What a search works with: the guided policy, where it starts, the task, the objective and the
    budget."""

    guided: GuidedPolicy
    root: Prefix
    task: Task
    objective: Objective
    spent: Spent
    index: int
    start: float = 0.0
    """h of the empty answer, where the search needs it."""

    def scored(self, hypotheses: Sequence[Hypothesis]) -> Program:
        """The hypotheses with their rewards."""
        rewards = yield from self.objective.of(
            [hypothesis.prefix for hypothesis in hypotheses],
            [hypothesis.text for hypothesis in hypotheses],
        )
        return [
            replace(hypothesis, reward=reward)
            for hypothesis, reward in zip(hypotheses, rewards, strict=True)
        ]


class Output:
    """Hands out the tokens that are decided, each as a `Chunk`, and the `Answer` at the end."""

    def __init__(self, context: SearchContext) -> None:
        task = context.task
        self.task, self.index = task, context.index
        self._policies = context.guided.policies
        self.written: list[int] = []
        self._text = IncrementalDetokenizer(task.decode, task.sampling.stop, task.context)

    def decided(self, hypotheses: Sequence[Hypothesis]) -> Program:
        """Hand out the tokens that all kept hypotheses have in common. The last token of a finished
        one waits for `end`."""
        shortest = min(
            hypothesis.prefix.length - (hypothesis.finish is not None) for hypothesis in hypotheses
        )
        lines = [hypothesis.prefix.tokens[:shortest] for hypothesis in hypotheses]
        common = next(
            (
                place
                for place, tokens in enumerate(zip(*lines, strict=True))
                if len(set(tokens)) > 1
            ),
            shortest,
        )
        yield from self._hand_out(hypotheses[0], lines[0][:common], None)

    def end(self, hypothesis: Hypothesis, report: SearchReport) -> Program:
        """Hand out the rest of the best hypothesis; returns the `Answer`. One that is not finished
        was cut short by the budget."""
        finish: FinishReason = hypothesis.finish or "budget"
        yield from self._hand_out(hypothesis, hypothesis.prefix.tokens, finish)
        yield Remember(self._policies, hypothesis.prefix)
        logprobs = None if self.task.sampling.logprobs is None else hypothesis.reports
        return Answer(self._text.emitted, tuple(self.written), finish, logprobs, report)

    def _hand_out(
        self, hypothesis: Hypothesis, tokens: list[int], finish: FinishReason | None
    ) -> Program:
        new = tokens[len(self.written) :]
        for place, token in enumerate(new, len(self.written)):
            last = finish is not None and place == len(tokens) - 1
            piece = "" if token in self.task.end_tokens else self._text.add(token)
            if last:
                piece += self._text.rest()
            self.written.append(token)
            yield Emit(
                Chunk(
                    self.index,
                    piece,
                    (token,),
                    hypothesis.reports[place : place + 1],
                    finish if last else None,
                )
            )
        if finish is not None and not new:
            yield Emit(Chunk(self.index, self._text.rest(), (), (), finish))


def ends_sentence(text: str) -> bool:
    """Whether the text ends where a sentence does."""
    return re.search(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d\u2019\u00bb]*\s*$", text) is not None
