"""The server against the engine itself: `fader serve` in its own process, asyncio clients here.

`streams-32`: 32 streams at a time, 200 requests under 32 alignments (preferences, mixtures of
vectors, guides, one in eight a search), of which clients cut off one in ten; tokens per second that
reach the clients, against the same requests run offline in one batch, those cut off for as long as
they were read. `wrong`: answers of these that differ from their offline run, ties within 1e-4
aside, of those compared; its ratio is the share of right ones. `memory`: the server's MiB after the
load, against those before it, when it has answered as large a load already (`cold`: after 32
requests): what grows with every load is lost. Its `--kv-bytes` are few, so that remembered prompts
have reached that bound before; MiB of keys and values, after and before, are `bounded`, and are not
counted.
`idle`: tokens per second of 8 streams without an alignment, against the same batch on the engine.
`ttft`: their milliseconds to the first token, each as [p50, p95], and those of the 32 streams as
`under_load`. `admission`: milliseconds that a request takes beside its forward passes, through the
server (HTTP, parsing, planning, the answer) and offline.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.interleave import TOPICS, chosen, main, row
from fader import Fader, Request, Result
from fader.engine import builtin

TARGETS: dict[str, float | None] = {
    "streams-32": 0.8,
    "wrong": 1.0,
    "admission": None,
    "idle": 0.97,
    "ttft": None,
    "memory": 0.95,
}
LOADED = ("streams-32", "wrong")
KV_BYTES = "1GB"
"""What the server of `memory` has for keys and values."""
TIE = 1e-4
"""Log-probabilities that are as near as this may be taken for equal in either run."""
TOGETHER = 8
"""Streams of `idle`."""
VECTORS = ("formal", "warm", "concise", "cautious", "plain", "humorous")


@dataclass(frozen=True)
class Asked:
    """One request of the load."""

    prompt: str
    alignment: Mapping[str, Any]
    tokens: int
    cut: int | None = None
    """After how many tokens its client goes away."""

    @property
    def searches(self) -> bool:
        """Whether a search writes the answer: it ends where it wants to."""
        return "search" in self.alignment

    def body(self) -> dict[str, Any]:
        """What is sent to the server."""
        return {
            "messages": [{"role": "user", "content": self.prompt}],
            "alignment": self.alignment,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": not self.searches,
            "stream": True,
            "return_token_ids": True,
        }

    def offline(self, **fields: Any) -> Request:
        """The same for the engine, as long as its client would read."""
        sampling = {"max_tokens": self.cut or self.tokens, "ignore_eos": not self.searches}
        return Request.of(self.prompt, alignment=self.alignment, **{**sampling, **fields})


@dataclass(frozen=True)
class Read:
    """What a client got."""

    ids: tuple[int, ...]
    first: float
    """Seconds to the first token."""


def alignment(place: int) -> dict[str, Any]:
    """One of 32 alignments: of eight in a row one is a search, two are told preferences, two mix
    vectors, two are guided, and one is all three."""
    kind, turn = place % 8, place // 8 % 4
    tone = ("brief", "warm", "formal", "playful")[turn]
    told = {"user" if kind % 2 else "provider": f"Be {tone}."}
    one, two = VECTORS[turn], VECTORS[(turn + 1 + kind % 2) % len(VECTORS)]
    mixed = {one: 0.5, two: 0.25 * (1 + turn)}
    guide = {"kind": "contrast", "principle": f"Answer in a {tone} tone.", "weight": 0.5 + kind / 8}
    match kind:
        case 0:
            rewards = [{"kind": "keywords", "words": ["light", "water", tone]}]
            search = {"kind": "lookahead", "top_k": 4, "lookahead": 4, "weight": 10}
            return {"search": {**search, "rewards": rewards}}
        case 1 | 2:
            return {"preferences": told}
        case 3 | 4:
            return {"vectors": mixed}
        case 5 | 6:
            return {"guides": [guide]}
        case _:
            return {"preferences": told, "vectors": {one: 0.5}, "guides": [guide]}


def load(count: int, tokens: int, turn: int, cut: int = 10) -> list[Asked]:
    """The requests of one round, each with a prompt of its own; every `cut`-th is cut off."""
    return [
        Asked(
            f"Write a story about {TOPICS[place % len(TOPICS)]}, the {turn}.{place} of its kind.",
            alignment(place % 32),
            tokens,
            cut=max(1, tokens // 4) if cut and place % cut == cut - 1 else None,
        )
        for place in range(count)
    ]


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own: its address and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]
    words = ["serve", "--model", model, "--port", port, "--keys", "none.json", *options]
    command = [sys.executable, "-c", "from fader.cli import main; main()", *map(str, words)]
    with (
        tempfile.TemporaryDirectory() as folder,  # without anybody's keys and profiles
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            while not _ready(url):
                if process.poll() is not None:
                    raise OSError(f"the server ended with status {process.returncode}")
                time.sleep(0.2)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").is_success
    except httpx.TransportError:
        return False


def read_all(url: str, asked: Sequence[Asked], together: int) -> tuple[list[Read], float]:
    """What clients get, `together` of them at a time, and the seconds that it took."""

    async def run() -> list[Read]:
        places, found = iter(range(len(asked))), dict[int, Read]()

        async def work() -> None:
            for place in places:
                found[place] = await _read(url, asked[place])

        await asyncio.gather(*(work() for _ in range(together)))
        return [found[place] for place in range(len(asked))]

    start = time.perf_counter()
    found = asyncio.run(run())
    return found, time.perf_counter() - start


async def _read(url: str, asked: Asked) -> Read:
    """One client. It reads its socket, and looks into what it got when all of it is there, unless
    it has to know earlier: a whole HTTP client takes more time for each token than the server, of
    the cores that the engine computes on."""
    start, first, ids = time.perf_counter(), 0.0, list[int]()
    host = url.removeprefix("http://")
    body = json.dumps(asked.body()).encode()
    reader, writer = await asyncio.open_connection(*host.split(":"))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    try:
        if b" 200 " not in await reader.readline():
            raise OSError((await reader.read()).decode())
        got = b""
        while piece := await reader.read(2**16):
            got += piece
            if not first or asked.cut is not None:
                *lines, got = got.split(b"\n")
                ids += _ids(lines)
                first = first or (time.perf_counter() - start if ids else 0.0)
                if asked.cut is not None and len(ids) >= asked.cut:
                    break
        ids += _ids(got.split(b"\n"))
    finally:
        writer.close()
    return Read(tuple(ids[: asked.cut]), first)


def _ids(lines: Sequence[bytes]) -> list[int]:
    """The token ids in lines of a stream: events, heads, and the sizes of chunks. Raises OSError
    for an event that is an error."""
    found: list[int] = []
    for line in lines:
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise OSError(event["error"]["message"])
            for choice in event["choices"]:
                found += choice.get("token_ids", ())
    return found


def is_tie(fader: Fader, asked: Asked, ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether two answers first differ in tokens of the same probability, as near as floats say."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), None)
    if place is None or asked.searches:
        return False
    how = {"max_tokens": 1, "logprobs": 20, **({"prefill": tuple(ours[:place])} if place else {})}
    [found] = fader.generate(asked.offline(**how)).answers[0].logprobs or ()
    known = dict(found.top)
    return abs(known.get(ours[place], 0.0) - known.get(theirs[place], 1.0)) <= TIE


def run(
    case: str | None = None,
    rounds: int = 1,
    requests: int = 200,
    streams: int = 32,
    tokens: int = 64,
    turns: int = 3,
    starts: int = 4,
    model: str = builtin.NAME,
) -> Iterator[dict[str, Any]]:
    """All cases. `rounds`: how often the load comes; `turns`: those of the other cases; `starts`:
    how often both sides of `idle` and `ttft` are started, since one process of the same program is
    by as much as 5% slower than another for as long as it lives."""
    cases = chosen(case, TARGETS)
    under_load: list[float] = []
    if {*LOADED, "admission"} & cases.keys():
        with served(model) as (url, _), Fader(model) as fader:
            if loaded := [name for name in LOADED if name in cases]:
                size = rounds, requests, streams, tokens
                yield from _loaded(loaded, url, fader, size, under_load)
            if "admission" in cases:
                yield _admission(url, fader, turns)
    if {"idle", "ttft"} & cases.keys():
        yield from _idle(cases, model, tokens, (starts, turns), under_load)
    if "memory" in cases:
        with served(model, "--kv-bytes", KV_BYTES) as (url, process):
            yield _grown(url, process, rounds, requests, streams, tokens)


def _grown(
    url: str, process: psutil.Process, rounds: int, requests: int, streams: int, tokens: int
) -> dict[str, Any]:
    """The case `memory`."""
    read_all(url, load(min(requests, 32), tokens, 0), streams)
    cold = _memory(url, process)
    read_all(url, load(requests, tokens, rounds + 1), streams)
    before = _memory(url, process)
    for turn in range(1, rounds + 1):
        read_all(url, load(requests, tokens, turn), streams)
    after = _memory(url, process)
    return {
        **row("serve", "memory", [after[0]], [before[0]], TARGETS["memory"], "MiB"),
        "n": rounds * requests,
        "cold": round(cold[0], 1),
        "bounded": [round(after[1], 1), round(before[1], 1)],
    }


def _loaded(
    cases: Sequence[str],
    url: str,
    fader: Fader,
    size: tuple[int, int, int, int],
    under_load: list[float],
) -> Iterator[dict[str, Any]]:
    """The cases of the load; the times to the first token are added to `under_load`."""
    rounds, requests, streams, tokens = size
    warm = load(min(requests, 32), tokens, 0)
    read_all(url, warm, streams)  # memory is set aside, kernels are chosen
    fader.batch([one.offline() for one in warm])
    speeds: tuple[list[float], list[float]] = ([], [])
    wrong = compared = 0
    for turn in range(1, rounds + 1):
        asked = load(requests, tokens, turn)
        got, seconds = read_all(url, asked, streams)
        speeds[0].append(sum(len(one.ids) for one in got) / seconds)
        under_load += [one.first for one in got]
        start = time.perf_counter()
        results = fader.batch([one.offline() for one in asked])
        expected = [result.answers[0].token_ids for result in results]
        speeds[1].append(sum(map(len, expected)) / (time.perf_counter() - start))
        for one, mine, theirs in zip(asked, got, expected, strict=True):
            if one.cut is None:
                compared += 1
                wrong += mine.ids != theirs and not is_tie(fader, one, mine.ids, theirs)
    for name in cases:
        if name == "streams-32":
            yield row("serve", name, *speeds, TARGETS[name])
        else:
            yield {
                **row("serve", name, [wrong], [compared], TARGETS[name], "answers"),
                "ratio": round(1 - wrong / compared, 3),
                "n": compared,
            }


def _memory(url: str, process: psutil.Process) -> tuple[float, float]:
    """MiB of the server without keys and values, and of these."""
    text = httpx.get(f"{url}/metrics").text
    lines = [line.split() for line in text.splitlines() if line.startswith("fader_kv_")]
    found = {name: float(value) for name, value in lines}
    bounded = found["fader_kv_reserved_bytes"] + found["fader_kv_remembered_bytes"]
    return (process.memory_info().rss - bounded) / 2**20, bounded / 2**20


def _idle(
    cases: Mapping[str, float | None],
    model: str,
    tokens: int,
    size: tuple[int, int],
    under_load: Sequence[float],
) -> Iterator[dict[str, Any]]:
    starts, turns = size
    speeds: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    asked = [Asked(f"Write a long story about {topic}.", {}, tokens) for topic in TOPICS[:TOGETHER]]
    for _ in range(starts):
        with served(model) as (url, _process), Fader(model) as fader:
            for turn in range(turns + 1):  # the first does not count
                both = _through_both(url, fader, asked)
                for kept, values in zip((*speeds, *firsts), both, strict=True):
                    kept.extend(values if turn else ())
    if "idle" in cases:
        yield row("serve", "idle", *speeds, TARGETS["idle"])
    if "ttft" in cases:
        found = row("serve", "ttft", *firsts, TARGETS["ttft"], "ms")
        shown = {"p50_p95": [_p50_p95(one) for one in firsts]}
        if under_load:
            shown["under_load"] = [_p50_p95([seconds * 1000 for seconds in under_load])]
        yield {**found, **shown}


def _through_both(
    url: str, fader: Fader, asked: Sequence[Asked]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens per second through the server and on the engine, and milliseconds to the first token
    of each stream."""
    got, seconds = read_all(url, asked, len(asked))
    mine = sum(len(one.ids) for one in got) / seconds
    requests = [one.offline() for one in asked]
    start, first, written = time.perf_counter(), dict[int, float](), 0
    for place, chunk in fader.stream_batch(requests):
        first.setdefault(place, time.perf_counter() - start)
        written += len(chunk.token_ids)
    theirs = written / (time.perf_counter() - start)
    later = [seconds * 1000 for seconds in first.values()]
    return [mine], [theirs], [one.first * 1000 for one in got], later


def _p50_p95(values: Sequence[float]) -> list[float]:
    ranked = sorted(values)
    return [round(ranked[int(share * (len(ranked) - 1))], 1) for share in (0.5, 0.95)]


def _admission(url: str, fader: Fader, turns: int) -> dict[str, Any]:
    """One request at a time, each of one token, under all alignments in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    asked = [
        Asked(f"Name a river, {turn}.", alignment(place), 1)
        for turn in range(turns)
        for place in range(32)
    ]
    with httpx.Client(base_url=url, timeout=None) as client:
        for place, one in enumerate(asked):
            start = time.perf_counter()
            answer = client.post("/v1/chat/completions", json={**one.body(), "stream": False})
            seconds = time.perf_counter() - start
            ran = answer.raise_for_status().json()["usage"]["alignment"]["seconds"]
            start = time.perf_counter()
            result: Result = fader.generate(one.offline())
            if place >= 32 or turns == 1:  # the first of each kind loads its vectors
                times[0].append((seconds - ran) * 1000)
                times[1].append((time.perf_counter() - start - result.usage.seconds) * 1000)
    return row("serve", "admission", *times, TARGETS["admission"], "ms")


if __name__ == "__main__":
    main(run)
