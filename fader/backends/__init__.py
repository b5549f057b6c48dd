"""Backends: what turns a request into answers. The front, the command line, evaluation and the
server speak to one of these and know no engine.

`local` is our own engine in this process. Another one (vLLM, Ray) is a class with these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fader.answer import Chunk, Likelihood, Result
from fader.engine.running import Running
from fader.engine.stats import Stats
from fader.request import Request
from fader.schema import Invalid

EngineName = Literal["torch", "llama.cpp", "vllm"]
"""Who runs the model: our engine on PyTorch, our engine on llama.cpp, or vLLM."""


@dataclass(frozen=True)
class About:
    """What is known of a model from outside."""

    name: str
    max_length: int
    """Tokens that it reads at most, prompt and answer together."""
    vocabulary: int
    end_tokens: tuple[int, ...]
    tokenizer: Mapping[str, Any]
    """The tokenizer's own settings: its class, control tokens, chat template."""


class Backend(Protocol):
    """Answers requests, many at once, from any thread.

    `submit` and `score` give a `Running`: it ends with the result, or with the error that ended the
    request. Cancelling it frees what the request holds.
    """

    @property
    def models(self) -> list[str]:
        """Names of the models that a request may ask for, the one that answers by default first."""

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors in use so far; others are found when a request names them."""

    def about(self, model: str) -> About:
        """What is known of a model. Raises `Invalid` for one that is not loaded."""

    def encode(self, model: str, request: Request | str, begin: bool = True) -> list[int]:
        """The token ids of a text, in which control tokens are tokens, after the tokenizer's own
        begin tokens or without; or those that a request's own policy reads."""

    def decode(self, model: str, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids; control tokens are left out of it, or spelled."""

    def needs(self, request: Request) -> Mapping[str, tuple[int, int]]:
        """What a request takes at one time: for each model that reads for it, how many rows, and
        the positions of the longest. Raises `Invalid` with all its faults."""

    def check(
        self, request: Request, answers: Sequence[str | Sequence[int]] | None = None
    ) -> list[Invalid]:
        """Every fault for which the request would be refused, each with its path; an empty list if
        it can run. With `answers`: for which scoring them would be refused. Runs nothing."""

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None] = ...) -> Running[Result]:
        """Start a request; `on_chunk` is called with each piece as it is decided, from the
        backend's thread. Raises `Invalid` with all faults before anything runs."""

    def submit_all(
        self, requests: Sequence[Request], on_chunk: Callable[[int, Chunk], None] = ...
    ) -> list[Running[Result]]:
        """Start requests together. `on_chunk` is told the place of the request too. Raises as
        `submit`, and then none of them goes on."""

    def score(
        self, request: Request, answers: Sequence[str | Sequence[int]]
    ) -> Running[list[Likelihood]]:
        """How likely each of some given answers is, texts or token ids. Raises `Invalid` before
        anything runs."""

    def identity(self, model: str) -> str:
        """A hash of all that a model's answers depend on besides the request."""

    def stats(self) -> Stats:
        """How busy the backend is."""

    def fault(self) -> str:
        """Why no request can be answered until the backend is made anew; empty while they can."""

    def close(self) -> None:
        """Cancel all requests and stop what runs for them."""
