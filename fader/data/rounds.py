"""Asking a teacher in rounds: what it costs, and what is asked again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

from fader.data.check import Fault
from fader.data.prompts import (
    AGAIN,
)
from fader.training.teacher import Reply

Tell = Callable[[str, int, int], None]  # (stage, replies so far, replies expected)


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, read and written. Raises ValueError for a negative one."""

    tokens_in: float
    tokens_out: float

    def __post_init__(self) -> None:
        if not (0 <= self.tokens_in < math.inf and 0 <= self.tokens_out < math.inf):
            raise ValueError(
                f"price-in, price-out: must be numbers of at least 0 (got {self.tokens_in},"
                f" {self.tokens_out})"
            )


@dataclass(frozen=True)
class Cost:
    """Requests, tokens and, where prices are known, money."""

    calls: int
    tokens_in: int
    tokens_out: int
    money: float | None

    @staticmethod
    def of(calls: int, tokens_in: int, tokens_out: int, prices: Prices | None) -> Cost:
        """The cost at some prices."""
        money = (
            round((tokens_in * prices.tokens_in + tokens_out * prices.tokens_out) / 1e6, 6)
            if prices
            else None
        )
        return Cost(calls, tokens_in, tokens_out, money)

    @staticmethod
    def of_replies(replies: Sequence[Reply], prices: Prices | None) -> Cost:
        """What some replies cost."""
        return Cost.of(
            len(replies),
            sum(reply.tokens_in for reply in replies),
            sum(reply.tokens_out for reply in replies),
            prices,
        )


async def _together(asked: Sequence[Coroutine[None, None, Reply]]) -> list[Reply]:
    """All replies in order; if one fails, the others are ended first, so that nothing is written
    afterwards."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _cut(reply: Reply) -> list[Fault]:
    if not reply.text:
        return [Fault("empty", "it is empty")]
    return (
        [Fault("unfinished", "it was cut off; write less")]
        if reply.finish in ("length", "content_filter")
        else []
    )


def _again(
    messages: list[dict[str, str]], attempt: int, faults: Sequence[Fault]
) -> list[dict[str, str]]:
    if not attempt:
        return messages
    reason = "; ".join(fault.detail for fault in faults)
    return [
        *messages[:-1],
        {
            "role": "user",
            "content": messages[-1]["content"] + AGAIN.format(number=attempt + 1, faults=reason),
        },
    ]


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(
        [
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(lines or ["| none |" + " 0 |" * (len(head) - 1)]),
        ]
    )
