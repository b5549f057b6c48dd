"""Makes data of any kind by asking a teacher in rounds.

All open questions of a stage are asked at once, and the replies are checked in the order of the
questions. Where a reply breaks a rule, the question is asked again with the fault named. So the
outcome does not depend on which reply came first. Replies are kept beside the data: a stopped run
goes on, and a repeated one asks nothing. What was written is remembered, so that corrections made
by hand are not written over.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from fader.data.check import Fault, Seen
from fader.data.prompts import AGAIN
from fader.data.splits import NAMES
from fader.endpoint import Advice, Client, Endpoint, Reply, run, together
from fader.files import SCRATCH, json_lines, write_whole

Messages = list[dict[str, str]]
Checker = Callable[[int, str], list[Fault]]
"""check(place, text): what is wrong with the text at a place."""
Tell = Callable[[str, int, int], None]  # (stage, replies so far, replies expected)
Asked = tuple[Messages, int]
"""A request, and the words of the reply to it, for an estimate."""
TOKENS_PER_WORD = 1.4  # of English; other languages need up to three times that


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

    @staticmethod
    def estimated(asked: Sequence[Asked], prices: Prices | None) -> Cost:
        """What some requests will cost."""
        read = sum(len(message["content"].split()) for messages, _ in asked for message in messages)
        written = sum(words for _, words in asked)
        return Cost.of(
            len(asked), round(read * TOKENS_PER_WORD), round(written * TOKENS_PER_WORD), prices
        )


class WithSplit(Protocol):
    """An item of data that is marked train, dev or test."""

    @property
    def split(self) -> str:
        """One of the three."""


Item = TypeVar("Item", bound=WithSplit, covariant=True)


@dataclass(frozen=True)
class Made(Generic[Item]):
    """What was made. `dropped` are items given up, `refused` replies that broke a rule, both by
    stage and rule; `now` was paid in this run, `cached` of all replies were kept ones, `days` are
    the first and the last on which they were given."""

    items: tuple[Item, ...]
    dropped: dict[str, int]
    refused: dict[str, int]
    now: Cost
    whole: Cost
    cached: int
    days: tuple[str, str]

    @property
    def splits(self) -> dict[str, int]:
        """Items per split."""
        found = Counter(item.split for item in self.items)
        return {name: found[name] for name in NAMES}


@dataclass(frozen=True)
class Place:
    """Where made data goes: `out`, a datasheet beside it, and a hidden folder with the replies.
    With `force` a file that was not made here, or was changed since, is written over."""

    out: Path
    force: bool = False

    @property
    def sheet(self) -> Path:
        """The datasheet."""
        return self.out.with_name(f"{self.out.stem}.datasheet.md")

    @property
    def part(self) -> Path:
        """The folder with the replies."""
        return self.out.with_name(f".{self.out.name}.part")

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the data is made. Raises ValueError where another run makes it, and for files that
        would be lost."""
        if self.out.exists() and not self.force and not self.part.is_dir():
            raise ValueError(
                f"out: {self.out} exists and was not made here; choose another file, remove it or"
                " give --force to write over it"
            )
        self.part.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.part / "lock", timeout=0):
                self._unchanged()
                for scratch in self.part.glob(SCRATCH):
                    scratch.unlink()
                yield
        except Timeout:
            raise ValueError(
                f"out: another run is writing into {self.part}; wait for it or choose another file"
            ) from None

    def write(self, rows: Sequence[Mapping[str, Any]], sheet: str) -> None:
        """The records and their datasheet, each whole or as it was before. Raises ValueError where
        somebody has changed one of them meanwhile."""
        self._unchanged()
        text = json_lines(rows)
        new = {_digest(text.encode()), _digest(sheet.encode())}
        # remembered first: a run that is killed before the files are there has lost nothing
        write_whole(self.part / "written", "\n".join(sorted(self._written() | new)))
        write_whole(self.sheet, sheet)
        write_whole(self.out, text)

    def _written(self) -> set[str]:
        """The hashes of all that was ever written here."""
        file = self.part / "written"
        return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()

    def _unchanged(self) -> None:
        for file in (self.out, self.sheet):
            if (
                file.exists()
                and not self.force
                and _digest(file.read_bytes()) not in self._written()
            ):
                raise ValueError(
                    f"out: {file} was changed since it was made, and the changes would be lost;"
                    " choose another --out, or give --force to write over it"
                )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class Rounds:
    """One run of a teacher through the stages of some data, with its counts. `dropped` are items
    given up, `refused` replies that broke a rule, both by stage and rule."""

    def __init__(
        self,
        client: Client,
        seed: int,
        tries: int,
        expected: int,
        prices: Prices | None,
        tell: Tell,
    ) -> None:
        self.client, self.seed, self.tries, self.tell = client, seed, tries, tell
        self.expected, self.prices, self.replies = expected, prices, list[Reply]()
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def settle(
        self, stage: str, prompts: Mapping[int, Messages], check: Checker, after: int
    ) -> dict[int, str]:
        """A usable text for every prompt, in rounds; those without one after the last round are
        dropped. `after`: the requests that each of them leads to in the stages that follow."""
        found: dict[int, str] = {}
        faults: dict[int, list[Fault]] = {place: [] for place in prompts}
        seen = Seen()
        for attempt in range(self.tries):
            still = [place for place in prompts if place not in found]
            self.expected += len(still) if attempt else 0
            asked = [_again(prompts[place], attempt, faults[place]) for place in still]
            for place, reply in zip(still, await self.ask(stage, asked, attempt), strict=True):
                faults[place] = cut(reply) or check(place, reply.text) or seen.fault(reply.text)
                self.refused.update(f"{stage}: {fault.rule}" for fault in faults[place][:1])
                if not faults[place]:
                    found[place] = reply.text
                    seen.add(reply.text)
        lost = [place for place in prompts if place not in found]
        self.dropped.update(f"{stage}: {faults[place][0].rule}" for place in lost)
        self.expected -= len(lost) * after
        return found

    async def ask(self, stage: str, asked: Sequence[Messages], attempt: int = 0) -> list[Reply]:
        """A reply to each of some messages, all asked at once; told one by one to whoever
        watches."""

        async def one(messages: Messages) -> Reply:
            reply = await self.client.ask(messages, seed=self.seed, attempt=attempt)
            self.replies.append(reply)
            self.tell(stage, len(self.replies), self.expected)
            return replace(reply, text=bare(reply.text))

        return await together(one(messages) for messages in asked)

    def made(self, items: Sequence[Item]) -> Made[Item]:
        """The items, with what became of the others and what it took."""
        new = [reply for reply in self.replies if not reply.kept]
        days = sorted(reply.asked for reply in self.replies)
        return Made(
            tuple(items),
            dict(sorted(self.dropped.items())),
            dict(sorted(self.refused.items())),
            Cost.of_replies(new, self.prices),
            Cost.of_replies(self.replies, self.prices),
            len(self.replies) - len(new),
            (days[0], days[-1]),
        )


def make_at(
    place: Place,
    endpoint: Endpoint,
    count: int,
    begin: Callable[[Client], Rounds],
    work: Callable[[Rounds], Awaitable[Sequence[Item]]],
    written: Callable[[Made[Item]], tuple[Sequence[Mapping[str, Any]], str]],
) -> Made[Item]:
    """Data of any kind, made by `work` and put at `place` as `written` says: records and datasheet.
    `count`: the items that are asked for.

    Raises ValueError where the endpoint refuses, for files whose changes would be lost, or if
    nothing usable came of it; ConnectionError where it fails; OSError where files cannot be
    written. In each case the data is as it was before, and the replies so far are kept.
    """

    async def whole() -> Made[Item]:
        async with Client(replace(endpoint, folder=place.part), ADVICE) as client:
            rounds = begin(client)
            return rounds.made(await work(rounds))

    with place.held():
        made = run(whole())
        if not made.items:
            raise ValueError(
                f"teacher: no item of {count} could be used (dropped: {made.dropped}, refused:"
                f" {made.refused}); look at the replies in {place.part} or take a stronger model"
            )
        place.write(*written(made))
    return made


_ON = "Replies so far are kept: the same command goes on from here"
ADVICE = Advice(
    key=(
        "key-env",
        "put a valid key into the environment variable that --key-env names (OPENAI_API_KEY unless"
        " given)",
    ),
    model=("teacher", "name one that it serves"),
    address=("endpoint", f"start the server, correct --endpoint or raise --timeout. {_ON}"),
    pressed=("endpoint", f"lower --concurrency, raise --retries or wait. {_ON}"),
)
"""What to do when a teacher fails, in the words of the commands' options."""


def cut(reply: Reply) -> list[Fault]:
    """What is wrong with a reply before its text is looked at."""
    if not reply.text:
        return [Fault("empty", "it is empty")]
    return (
        [Fault("unfinished", "it was cut off; write less")]
        if reply.finish in ("length", "content_filter")
        else []
    )


def bare(text: str) -> str:
    """A text without the quotation marks around it and the spaces at its ends."""
    text = text.strip()
    if (
        len(text) > 1
        and text[0] + text[-1] in ('""', "“”", "«»", "„“")
        and text[0] not in text[1:-1]
    ):
        text = text[1:-1].strip()
    return text


def _again(messages: Messages, attempt: int, faults: Sequence[Fault]) -> Messages:
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
