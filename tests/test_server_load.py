"""A server under load, as others may give it: kills, ends, slow clients, huge bodies."""

import asyncio
import json
import re
import signal
import socket
import statistics
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
from conftest import until
from serving import serve
from test_serve import start

from fader.profiles import find_profile, profiles
from fader.server import run as running
from fader.server.keys import Keys
from fader.server.limits import Limits

URL = "/v1/chat/completions"
SEA = [{"role": "user", "content": "the sea"}]
PUT = re.compile(r"p\d")
LONG = {"messages": SEA, "max_tokens": 400, "temperature": 1, "ignore_eos": True}
MIB = 2**20


class Process:
    """`fader serve` on the tiny model, in a process of its own."""

    def __init__(self, model, folder):
        self.folder, self._model = folder, model
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys = Keys(folder / "keys.json")
        self.headers = {"Authorization": f"Bearer {self.keys.add('me', admin=True)}"}
        self.start()

    def start(self):
        self.process = start(
            self._model, self.port, "--name", "tiny", "--keys", self.keys.file, folder=self.folder
        )

    @property
    def memory(self):
        return psutil.Process(self.process.pid).memory_info().rss

    def chat(self, **fields):
        body = {"messages": SEA, "max_tokens": 4, "temperature": 0, **fields}
        return httpx.post(self.url + URL, json=body, headers=self.headers, timeout=300)

    @contextmanager
    def load(self, clients=8):
        """Streams, and profiles that are written all the time. Gives the lines of the streams that
        have ended."""
        begun, ends, over = [], [], threading.Event()

        def read():
            lines = []
            with suppress(httpx.TransportError):
                body = {**LONG, "stream": True}
                with httpx.stream(
                    "POST", self.url + URL, json=body, headers=self.headers, timeout=300
                ) as stream:
                    begun.append(stream.status_code)
                    lines = [line for line in stream.iter_lines() if line]
            ends.append(lines)

        def write():
            alignment = {"preferences": {"user": ["be brief"] * 2000}}
            for place in range(10**6):
                if over.is_set():
                    return
                with suppress(httpx.TransportError):
                    httpx.put(
                        f"{self.url}/v1/profiles/p{place % 5}",
                        json={"alignment": alignment},
                        headers=self.headers,
                    )

        threads = [threading.Thread(target=read) for _ in range(clients)]
        threads.append(threading.Thread(target=write))
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(begun) == clients and self._profiles() == 5, 300)
            yield ends
        finally:
            over.set()
            for thread in threads:
                thread.join(300)

    def _profiles(self):
        url = f"{self.url}/v1/profiles"
        rows = httpx.get(url, headers=self.headers, timeout=300).json()["data"]
        return sum(PUT.fullmatch(row["id"]) is not None for row in rows)


@pytest.fixture(scope="module")
def process(tiny_folder, tmp_path_factory):
    found = Process(tiny_folder, tmp_path_factory.mktemp("served"))
    yield found
    found.process.kill()
    found.process.wait(20)


@pytest.mark.long
def test_a_kill_under_load_corrupts_nothing(process, monkeypatch):
    for _ in range(2):
        with process.load():
            process.process.send_signal(signal.SIGKILL)
            process.process.wait(20)
        monkeypatch.chdir(process.folder)
        monkeypatch.setattr("fader.profiles.user_config_path", lambda name: process.folder)
        written = [name for name in profiles() if PUT.fullmatch(name)]
        assert sorted(written) == [f"p{place}" for place in range(5)]
        for name in written:
            assert len(find_profile(name).preferences.user) == 2000
        assert [key.name for key in Keys(process.keys.file).known()] == ["me"]
        process.start()
        assert process.chat().status_code == 200
        assert process.chat(model="tiny:p1", max_tokens=1).status_code in (200, 400)


@pytest.mark.long
def test_a_signal_under_load_ends_every_stream(process):
    with process.load(clients=24) as ends:
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(300) in (0, -signal.SIGTERM)
    assert len(ends) == 24
    for lines in ends:
        assert lines[-1] == "data: [DONE]"
        last = json.loads(lines[-2].removeprefix("data: "))
        assert "error" in last or last["choices"][0]["finish_reason"] == "length"
    process.start()
    assert process.chat().status_code == 200


@pytest.mark.long
def test_a_thousand_slow_connections_keep_nobody_out(process):
    """A third send a head, a third a body, a third a head after a first request, a byte a second
    each; requests of others are answered as fast as without them."""

    def median():
        times = []
        for _ in range(9):
            begun = time.perf_counter()
            assert process.chat().status_code == 200
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in process.headers.items())
    before, alone = process.memory, median()
    ready, over = threading.Event(), threading.Event()
    closed = []

    async def slow(place):
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        if place % 3 == 1:
            writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode())
        elif place % 3 == 2:
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"}")
        gone = asyncio.ensure_future(reader.read())
        try:
            while not over.is_set() and not gone.done():
                writer.write(b"P")
                await asyncio.sleep(1)
        finally:
            closed.append(gone.done())
            writer.close()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def all_of_them():
        tasks = [asyncio.ensure_future(slow(place)) for place in range(1000)]
        await asyncio.sleep(5)
        ready.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 120)

    thread = threading.Thread(target=asyncio.run, args=[all_of_them()])
    thread.start()
    try:
        assert ready.wait(300)
        assert not any(closed)
        assert median() < 5 * alone + 1
        assert process.memory - before < 200 * MIB
        until(lambda: len(closed) == 1000, 90)  # the server has closed them
        assert all(closed)
    finally:
        over.set()
        thread.join(120)


@pytest.mark.long
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_gigabyte_is_refused_early(process, chunked):
    process.chat()
    before, sent, piece = process.memory, 0, b"x" * MIB
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {1 << 30}"
    head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\n{how}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in process.headers.items())
    highest, answer = before, b""
    with socket.create_connection(("127.0.0.1", process.port)) as raw:
        raw.settimeout(60)
        raw.sendall(f"{head}\r\n".encode())
        with suppress(ConnectionError):
            while sent < 1 << 30:
                raw.sendall(b"%x\r\n%s\r\n" % (MIB, piece) if chunked else piece)
                sent += MIB
                highest = max(highest, process.memory)
                raw.setblocking(False)
                with suppress(BlockingIOError):
                    answer += raw.recv(1000)
                raw.settimeout(60)
        with suppress(ConnectionError):
            answer += raw.recv(1000)
    assert sent < 100 * MIB
    assert b" 413 " in answer
    assert highest - before < 32 * MIB
    assert process.chat().status_code == 200


@pytest.mark.long
def test_a_stream_that_nobody_reads_ends_with_its_time(tiny, monkeypatch):
    """More than the sockets hold is written: its client is not waited for beyond the limit."""
    monkeypatch.setattr(running, "UNREAD_SECONDS", 2.0)
    body = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    content = json.dumps(body).encode()
    with (
        serve(tiny.backend, limits=Limits(seconds=3.0, per_key=1)) as served,
        socket.socket() as raw,
    ):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((served.http.base_url.host, served.http.base_url.port))
        connections = served.server.server_state.connections
        until(lambda: connections)
        [one] = connections
        one.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        raw.sendall(head.encode() + content)
        # it has the only place, for as long as it may
        until(lambda: served.chat(max_tokens=1).status_code == 429, 30)
        until(lambda: served.chat(max_tokens=1).status_code == 200, 30)
        assert served.serving.backend.stats().live == 0
        # its connection is closed too: only those of the tests' own client are left
        until(lambda: len(connections) <= 1, 30)


@pytest.mark.long
def test_small_requests_beside_a_chat_do_not_stall_it(tiny):
    """Front ends ask for a title, tags and what to ask next beside each message: while these are
    read and written, the chat gets a token at nearly every step."""
    history = "the sea is wide and a cat sat on a mat . " * 8

    async def read(client, marks, name, **fields):
        body = {**LONG, **fields, "stream": True, "return_token_ids": True}
        async with client.stream("POST", URL, json=body) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    marks.extend(name for _ in choice.get("token_ids", ()))

    async def both(url):
        marks = []
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            chat = asyncio.ensure_future(read(client, marks, "chat"))
            while marks.count("chat") < 20:
                await asyncio.sleep(0.01)
            turns = [{"role": "user", "content": f"{history} {place}"} for place in range(4)]
            asked = [
                read(client, marks, place, messages=[turn], max_tokens=40)
                for place, turn in enumerate(turns)
            ]
            began = len(marks)
            await asyncio.gather(*asked)
            during = marks[began:]
            await chat
        return during

    with serve(tiny.backend) as served:
        during = asyncio.run(both(served.url))
    for place in range(4):
        assert during.count(place) == 40
    assert during.count("chat") >= 30  # about as many as each of the others, in the same time
