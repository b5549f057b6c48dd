"""What one request, one key and the whole server may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fader.request import BestOfN, Blockwise, Lookahead, Request, Search, Segments
from fader.schema import Invalid
from fader.server.errors import busy


@dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    body: int = 2 << 20
    """Bytes of a request's body."""
    headers: int = 16 << 10
    """Bytes of a request's headers."""
    body_seconds: float = 30.0
    """How long a client may take to send its body."""
    messages: int = 1000
    """Messages of a conversation."""
    prompts: int = 128
    """Prompts of one completion."""
    max_tokens: int = 512
    """`max_tokens` of a chat that gives none."""
    rows: int = 256
    """Rows that one request may hold in memory at one time, all its prompts together."""
    search_tokens: int = 1_000_000
    """Tokens that one request's searches may explore."""
    seconds: float = 600.0
    """How long a request may take, waiting included."""
    per_key: int = 64
    """Requests that one key may have under way; without keys: all clients together."""
    waiting: int = 256
    """Requests that may wait for memory, of all keys."""
    keep_alive: float = 10.0
    """Seconds of silence after which a stream gets a comment."""
    grace: float = 20.0
    """Seconds that running requests have to end when the server is shut down."""


class Underway:
    """How many requests each key has under way. Of one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._counts = limits, Counter[str]()

    @contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Around a request of that key. Raises `Refused` (429) where it has as many as it may."""
        if self._counts[key] >= self._limits.per_key:
            raise busy(
                f"{self._limits.per_key} requests of this key are under way, as many as may be; try"
                " again when one has ended"
            )
        self._counts[key] += 1
        try:
            yield
        finally:
            self._counts[key] -= 1
            self._counts += Counter()  # forgets keys with none


def check_size(
    limits: Limits, requests: Sequence[Request], needs: Sequence[Mapping[str, tuple[int, int]]]
) -> None:
    """Raises `Invalid` for requests that take more rows, or search more, than is allowed."""
    rows = sum(sum(count for count, _ in one.values()) for one in needs)
    if rows > limits.rows:
        raise Invalid(
            f"takes {rows} rows at one time, this server allows {limits.rows}; give fewer guides or"
            " prompts, or a smaller n, width or beams",
            "alignment" if requests[0].alignment.search or requests[0].alignment.guides else "n",
        )
    for request in requests:
        if len(request.messages) > limits.messages:
            raise Invalid(
                f"are {len(request.messages)}, this server allows {limits.messages}", "messages"
            )
    explored = sum(map(explored_at_most, requests))
    if explored > limits.search_tokens:
        raise Invalid(
            f"may explore {explored} tokens, this server allows {limits.search_tokens}; lower"
            " max_tokens, or give `budget.tokens`",
            "alignment.search",
        )


def explored_at_most(request: Request) -> int:
    """How many tokens a request's searches may explore, at most."""
    wanted, sampling = request.alignment.search, request.sampling
    if wanted is None:
        return 0
    most = _hypotheses(wanted, sampling.max_tokens) * sampling.max_tokens
    return sampling.n * min(most, wanted.budget.tokens or most)


def _hypotheses(wanted: Search, max_tokens: int) -> int:
    """How many tokens are explored, at most, for each token of the answer."""
    match wanted:
        case BestOfN() | Blockwise():
            return wanted.n
        case Segments():
            return wanted.tries
        case Lookahead():
            ahead = wanted.lookahead if isinstance(wanted.lookahead, int) else max_tokens
            return wanted.beams * wanted.top_k * (1 + ahead)
