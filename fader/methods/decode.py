"""Plain decoding of one answer from a guided policy: the program of every request without a
search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fader.answer import Answer, Chunk, FinishReason, TokenLogprob
from fader.engine.prefix import Prefix
from fader.engine.program import Emit, Program, Remember
from fader.methods.guidance import Choice, GuidedLogits, GuidedPolicy, next_scores
from fader.methods.sampling import draw, uniform, without
from fader.methods.structured import Mask
from fader.request import Sampling


@dataclass(frozen=True)
class Task:
    """What decoding needs to know of a request, apart from the policy."""

    sampling: Sampling
    end_tokens: frozenset[int]
    """The model's own, and the stop strings that are special tokens."""
    decode: Callable[[Sequence[int]], str]
    seen: tuple[int, ...]
    """The prompt's tokens, for the repetition penalty."""
    encode: Callable[[str, bool], list[int]] = lambda text, continuing: []
    """encode(text, continuing): the token ids of a text that a search proposes, at the beginning of
    the answer or continuing it."""
    masks: Callable[[], Mask] | None = None
    """Makes an answer's mask of the tokens that may come next, where the request asks for one."""
    context: tuple[int, ...] = ()
    """The prompt's last tokens where the answer continues a forced beginning: they decide whether
    it starts with a space."""


def decode(guided: GuidedPolicy, root: Prefix, task: Task, index: int = 0) -> Program:
    """Draw one answer token by token, emitting a `Chunk` each; returns the `Answer`. `index` tells
    samples of one request apart."""
    sampling = task.sampling
    prefix = root
    text = IncrementalDetokenizer(task.decode, sampling.stop, task.context)
    written: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish: FinishReason | None = None
    mask = task.masks() if task.masks else None
    ends = torch.tensor(sorted(task.end_tokens), dtype=torch.long)
    choice: Choice | None = None  # a report needs all scores, and so does what changes them
    plain = not sampling.logit_bias and not sampling.min_tokens and mask is None
    if sampling.logprobs is None and plain:
        greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
        choice = "greedy" if greedy else "drawn"
    while finish is None:
        reading = yield from next_scores(guided, [prefix], choice=choice)
        scores = reading.scores[0]
        if len(written) < sampling.min_tokens:
            scores = without(scores, ends, reading.logits[guided.base][0])
        if mask is not None:
            banned = mask.banned(len(scores))
            scores = without(scores, banned, reading.logits[guided.base][0])
        token = draw(
            scores,
            sampling,
            (*task.seen, *written),
            uniform(sampling.seed, index, len(written)),
        )
        if mask is not None:
            mask.add(token)
        written.append(token)
        prefix = prefix.then(token)
        ended = token in task.end_tokens
        piece = "" if ended else text.add(token)
        if ended or text.stopped:
            finish = "stop"
        elif len(written) == sampling.max_tokens:
            finish = "length"
        if finish is not None:
            piece += text.rest()
        found = (
            ()
            if sampling.logprobs is None
            else tuple(token_logprobs(guided, reading, [token], sampling.logprobs, task.decode))
        )
        logprobs += found
        yield Emit(Chunk(index, piece, (token,), found, finish))
    yield Remember(guided.policies, prefix)
    return Answer(
        text.emitted, tuple(written), finish, None if sampling.logprobs is None else tuple(logprobs)
    )


def token_logprobs(
    guided: GuidedPolicy,
    reading: GuidedLogits,
    tokens: Sequence[int],
    alternatives: int,
    text: Callable[[Sequence[int]], str],
) -> list[TokenLogprob]:
    """The report on each of `tokens`, one for each position of `reading`, with as many of the
    likeliest tokens there as `alternatives` says."""
    log: Tensor = reading.scores.log_softmax(-1)  # [positions, vocabulary]
    chosen = torch.tensor(tokens, device=log.device)[:, None]
    values, ids = (found.tolist() for found in log.topk(min(alternatives, log.shape[-1])))
    own: Tensor = reading.logits[guided.base].log_softmax(-1).gather(1, chosen)
    added = {
        label: scores.gather(1, chosen)[:, 0].tolist() for label, scores in reading.added.items()
    }
    return [
        TokenLogprob(
            text([token]),
            token,
            logprob,
            tuple(
                (i, value)
                for i, value in zip(ids[place], values[place], strict=True)
                if value > float("-inf")
            ),
            base,
            {label: scores[place] for label, scores in added.items()},
            advantage,
        )
        for place, (token, logprob, base, advantage) in enumerate(
            zip(
                tokens,
                log.gather(1, chosen)[:, 0].tolist(),
                own[:, 0].tolist(),
                reading.advantage.tolist(),
                strict=True,
            )
        )
    ]


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins; -1 where there is none."""
    return min((place for one in stop if (place := text.find(one)) >= 0), default=-1)


def partial_stop(text: str, stop: Sequence[str]) -> int:
    """How many of the last characters may turn out to be the beginning of a stop string."""
    return max((n for one in stop for n in range(1, len(one)) if text.endswith(one[:n])), default=0)


class IncrementalDetokenizer:
    """Text from tokens as they come: holds back unfinished characters and anything that may turn
    into a stop string."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens = list(context)
        self._start, self._known = (
            0,
            len(context),
        )  # tokens from _start are decoded; those before _known have been turned into text
        self._held = ""
        self.emitted = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._known])
        after = self._decode(self._tokens[self._start :])
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self._start, self._known = self._known, len(self._tokens)
        return self._release(after[len(before) :])

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._known])
        tail = self._release(self._decode(self._tokens[self._start :])[len(before) :])
        if not self.stopped:
            tail += self._held
            self.emitted += self._held
            self._held = ""
        return tail

    def _release(self, new: str) -> str:
        text = self._held + new
        found = first_stop(text, self._stop)
        if found >= 0:
            self.stopped, out, self._held = True, text[:found], ""
        else:
            hold = partial_stop(text, self._stop)
            out, self._held = text[: len(text) - hold], text[len(text) - hold :]
        self.emitted += out
        return out
