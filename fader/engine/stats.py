"""How busy an engine is: `Stats`, and the `Meter` that they are read from."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

WINDOW = 10.0  # seconds over which rates are averaged


@dataclass(frozen=True)
class Stats:
    """How busy an engine is."""

    live: int
    """Jobs that run."""
    waiting: int
    """Jobs that wait for memory."""
    rows_per_second: float
    """Rows read by forward passes, averaged over the last 10 seconds."""
    tokens_per_second: float
    """Tokens read, prompts included, averaged in the same way."""
    kv_used: int
    """Bytes of KV memory that belong to rows in use."""
    kv_reserved: int
    """Bytes of KV memory that are set aside, in use or not."""
    prompt_share_from_memory: float
    """Of the prompt tokens that new rows began with, the share that was in memory already, since
    the engine began; 0 before the first."""
    kv_remembered: int = 0
    """Bytes of keys and values that are kept beside the rows, for later requests that begin with
    the same tokens."""


class Meter:
    """What forwards have read: lately, and of prompts in all. Written by the engine's thread, read
    by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._reads: deque[tuple[float, int, int]] = deque()  # time, rows, tokens
        self._prompt_tokens = self._from_memory = 0

    def count(self, rows: int, tokens: int) -> None:
        """A forward pass has read this."""
        with self._lock:
            self._reads.append((time.monotonic(), rows, tokens))
            self._forget_old()

    def count_prompt(self, tokens: int, from_memory: int) -> None:
        """A new row has a prompt of so many tokens, of which so many were in memory."""
        with self._lock:
            self._prompt_tokens += tokens
            self._from_memory += from_memory

    def rates(self) -> tuple[float, float, float]:
        """Rows per second, tokens per second, share of prompt tokens from memory."""
        with self._lock:
            self._forget_old()
            seconds = min(WINDOW, time.monotonic() - self._since) or WINDOW
            rows, tokens = (sum(read[kind] for read in self._reads) for kind in (1, 2))
            share = self._from_memory / self._prompt_tokens if self._prompt_tokens else 0.0
        return rows / seconds, tokens / seconds, share

    def _forget_old(self) -> None:
        while self._reads and self._reads[0][0] < time.monotonic() - WINDOW:
            self._reads.popleft()
