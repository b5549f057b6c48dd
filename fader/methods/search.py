"""Search over sequences: which continuation is kept, by a reward."""

from __future__ import annotations

from fader.engine.prefix import Prefix
from fader.engine.program import Emit, Program, Reward, Score, together
from fader.methods.decode import Answer, Chunk, Task, decode, quiet
from fader.methods.guidance import Aligned


def best_of_n(aligned: Aligned, root: Prefix, task: Task, index: int, n: int, reward: Reward, prompt: str) -> Program:
    """Draw n answers and keep the one of the highest reward (the first of equals). Its text is emitted whole; returns the `Answer`."""
    answers: list[Answer] = yield from together([quiet(decode(aligned, root, task, index * n + i)) for i in range(n)])
    scores: list[float] = yield Score(reward, [prompt] * n, [answer.text for answer in answers])
    best = answers[max(range(n), key=lambda i: (scores[i], -i))]
    yield Emit(Chunk(index, best.text, best.token_ids, best.logprobs or (), best.finish_reason))
    return best
