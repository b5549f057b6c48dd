"""Backends: what turns a request into answers. The front, the command line, evaluation and the
server speak to one of these and know no engine.

`local` is our own engine in this process. Another one (vLLM, Ray) is a class with these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fader.answer import Chunk, Likelihood, Result
from fader.engine.running import Running
from fader.engine.stats import Stats
from fader.request import Request
from fader.schema import Invalid


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

    def check(self, request: Request, answers: Sequence[str] | None = None) -> list[Invalid]:
        """Every fault for which the request would be refused, each with its path; an empty list if
        it can run. With `answers`: for which scoring them would be refused. Runs nothing."""

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None] = ...) -> Running[Result]:
        """Start a request; `on_chunk` is called with each piece as it is decided, from the
        backend's thread. Raises `Invalid` with all faults before anything runs."""

    def score(self, request: Request, answers: Sequence[str]) -> Running[list[Likelihood]]:
        """How likely each of some given answers is. Raises `Invalid` before anything runs."""

    def identity(self, model: str) -> str:
        """A hash of all that a model's answers depend on besides the request."""

    def stats(self) -> Stats:
        """How busy the backend is."""

    def close(self) -> None:
        """Cancel all requests and stop what runs for them."""
