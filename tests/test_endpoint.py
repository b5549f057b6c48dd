"""The chat client against a real HTTP server on loopback that says what each test scripts."""

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from conftest import Quiet, Speaking, until

from fader import endpoint as module
from fader.endpoint import Advice, Client, Endpoint, run, together

ADVICE = Advice(
    ("key", "mend the key"),
    ("model", "name another"),
    ("url", "start it"),
    ("pressed", "wait"),
)


def message(content, finish="stop", **more):
    return {"choices": [{"finish_reason": finish, "message": {"content": content, **more}}]}


class Script(Speaking):
    """Says what lies in `server.script`, one after the other, then always "fine"."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.guard:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.running += 1
            server.most = max(server.most, server.running)
            step = server.script.popleft() if server.script else message("fine")
        try:
            time.sleep(server.delay)
            step(self) if callable(step) else self.answer(step)
        finally:
            with server.guard:
                server.running -= 1

    def answer(self, step, status=200, **headers):
        content = step if isinstance(step, bytes) else json.dumps(step).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def status(number, said="out of luck", **headers):
    return lambda handler: handler.answer({"error": {"message": said}}, number, **headers)


def drop(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def half(handler):
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"id":')
    drop(handler)


def drip(handler):
    """Never silent for long, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def hang(handler):
    handler.server.release.wait(30)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_kept", {})
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    made = Quiet(("127.0.0.1", 0), Script)
    made.guard, made.script, made.bodies, made.times = threading.Lock(), deque(), [], []
    made.running, made.most, made.delay, made.release = 0, 0, 0.0, threading.Event()
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.release.set()
    made.shutdown()
    made.server_close()


def ask(server, *texts, say=module.say, settings=None, **changes):
    """The replies to some texts, asked together."""
    reached = Endpoint(**{"url": server.url, "model": "m", "retries": 0, **changes})

    async def work():
        async with Client(reached, ADVICE, say) as client:
            return await together(
                client.ask([{"role": "user", "content": text}], **(settings or {}))
                for text in texts
            )

    return run(work())


READ = {
    "a text": (message("Yes."), "Yes.", "stop"),
    "spaces": (message("  Yes.\n"), "Yes.", "stop"),
    "parts": (
        message([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s."}]),
        "Yes.",
        "stop",
    ),
    "thoughts in parts": (
        message([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}]),
        "Yes.",
        "stop",
    ),
    "a number": (message(7), "7", "stop"),
    "thoughts": (message("<think>3?\n4?</think>\n Yes."), "Yes.", "stop"),
    "thoughts without a beginning": (message("3?\n4?</think>Yes."), "Yes.", "stop"),
    "thoughts cut off": (message("<think>\nA first guess would be 3 but"), "", "length"),
    "cut off in a thought of its own field": (
        message(None, "length", reasoning_content="hm"),
        "",
        "length",
    ),
    "cut off": (message("Yes, if", "length"), "Yes, if", "length"),
    "filtered": (message(None, "content_filter"), "", "content_filter"),
    "filtered without a message": (
        {"choices": [{"finish_reason": "content_filter", "message": None}]},
        "",
        "content_filter",
    ),
    "a refusal": (message(None, refusal="I will not."), "I will not.", "stop"),
    "no reason": ({"choices": [{"message": {"content": "Yes."}}]}, "Yes.", ""),
    "half a character": (message("Yes \ud83d"), "Yes ?", "stop"),
    "no error": ({**message("Yes."), "error": None}, "Yes.", "stop"),
    "an odd usage": ({**message("Yes."), "usage": {"prompt_tokens": "7"}}, "Yes.", "stop"),
    "nothing": (message(""), "", "stop"),
    **{
        f"{encoding} with a byte order mark": (
            json.dumps(message("Où ?"), ensure_ascii=False).encode(encoding),
            "Où ?",
            "stop",
        )
        for encoding in ("utf-8-sig", "utf-16", "utf-32")
    },
}


@pytest.mark.parametrize("kind", READ)
def test_what_servers_really_send_is_read(server, kind):
    body, text, finish = READ[kind]
    server.script.append(body)
    [reply] = ask(server, "q")
    assert (reply.text, reply.finish, reply.kept) == (text, finish, False)
    assert (reply.tokens_in, reply.tokens_out) == (0, 0)


def test_tokens_are_counted(server):
    server.script.append({**message("Yes."), "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    [reply] = ask(server, "q")
    assert (reply.tokens_in, reply.tokens_out) == (3, 2)


PASSING = {
    "status 500": (status(500), "keeps failing (status 500: out of luck;"),
    "status 429": (status(429), "keeps failing (status 429: .*out of luck"),
    "status 408": (status(408), "keeps failing (status 408"),
    "status 502 in HTML": (
        lambda handler: handler.answer(b"<html>Bad gateway</html>", 502),
        "keeps failing (status 502: <html>Bad gateway</html>;",
    ),
    "a lost connection": (drop, "cannot be reached or does not answer"),
    "a body cut off": (half, "cannot be reached or does not answer"),
    "an error with status 200": (
        {"error": {"message": "slow down", "code": 429}},
        "keeps failing (an error with status 200: slow down; model",
    ),
    "an error as text": (
        {"error": "overloaded"},
        "keeps failing (an error with status 200: overloaded;",
    ),
    "an error without words": (
        {"error": {"why": 1}},
        'keeps failing (an error with status 200: .*{"why": 1}',
    ),
    "an error in the choice": (
        {"choices": [{"error": {"code": 502, "message": "upstream"}}]},
        "keeps failing (an error with status 200: upstream",
    ),
    "vLLM's error": (
        {"object": "error", "message": "engine is dead", "code": 500},
        "keeps failing (an error with status 200: engine is dead",
    ),
    "a null message": ({"choices": [{"message": None}]}, "without a text .*choices"),
    "a message that is a text": ({"choices": [{"message": "Yes."}]}, "without a text .*Yes"),
    "an empty choice": ({"choices": [{}]}, "without a text"),
    "a null choice": ({"choices": [None]}, "without a text"),
    "null content": (message(None), "without a text"),
    "no parts": (message([]), "without a text"),
    "content that is an object": (message({"text": "Yes."}), "without a text"),
    "content that is a truth value": (message(True), "without a text"),
    "no choices": ({"choices": []}, "without a text"),
    "choices that are none": ({"choices": "Yes."}, "without a text"),
    "half JSON": (b'{"choices": [{"mes', 'half a reply with status 200: {"choices": [{"mes'),
    "nothing at all": (b"", "half a reply"),
    "nested without end": (b'{"a":' * 100_000, "half a reply"),
}
FINAL = {
    "status 401": (
        status(401),
        "key: .* refuses the key (status 401: out of luck; model 'm'); mend the key",
    ),
    "an error with a byte order mark": (
        lambda handler: handler.answer('\ufeff{"error": {"message": "too long"}}'.encode(), 400),
        "refuses the request .*(status 400: too long)",
    ),
    "status 403": (status(403), "key: .* refuses the key (status 403"),
    "status 404": (status(404), "model: .* finds no model 'm' .*name another"),
    "status 400": (status(400, "too long"), "url: .* refuses the request .*status 400: .*too long"),
    "an error with status 200": (
        {"error": {"message": "too long", "code": 400}},
        "refuses the request .*an error with status 200: too long",
    ),
    "a key refused in words": (
        {"error": {"message": "bad key", "code": "invalid_api_key"}},
        "refuses the key (an error with status 200: bad key",
    ),
    "a model refused in words": (
        {"error": {"message": "no m", "code": "model_not_found"}},
        "finds no model 'm'",
    ),
    "HTML": (
        b"<html>login</html>",
        "does not speak chat completions, it said '<html>login</html>'",
    ),
    "plain text": (b"Ollama is running", "does not speak chat completions, it said 'Ollama is"),
    "a list": ([message("Yes.")], "does not speak chat completions"),
    "another API": ({"response": "Yes."}, 'does not speak chat completions, it said \'{"response"'),
    "nested lists": (b"[" * 100_000, "does not speak chat completions"),
}


def plain(pattern: str) -> str:
    """A pattern in which brackets and braces stand for themselves."""
    for sign in "()[]{}":
        pattern = pattern.replace(sign, "\\" + sign)
    return pattern


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.long
def test_what_may_pass_is_tried_again_and_else_one_message(server, tmp_path, kind):
    step, said = PASSING[kind]
    server.script.extend([step, step])
    assert ask(server, "q", retries=2)[0].text == "fine"
    assert len(server.bodies) == 3
    server.script.extend([step, step])
    with pytest.raises(ConnectionError, match=plain(said)) as caught:
        ask(server, "another", retries=1, folder=tmp_path)
    for part in (server.url, "'m'", "2 tries"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 500
    assert list(tmp_path.iterdir()) == []  # an outage is never kept as an answer


@pytest.mark.parametrize("kind", FINAL)
def test_what_does_not_pass_is_one_message_at_once(server, tmp_path, kind):
    step, said = FINAL[kind]
    server.script.append(step)
    with pytest.raises(ValueError, match=plain(said)) as caught:
        ask(server, "q", retries=3, folder=tmp_path, key="secret")
    assert server.url in str(caught.value)
    assert "'m'" in str(caught.value)
    assert "secret" not in str(caught.value) + repr(Endpoint(server.url, "m", "secret"))
    assert len(server.bodies) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "header",
    ["0.6", format_datetime(datetime.now(UTC) + timedelta(days=400)), "soon", "-3", "nan"],
    ids=["seconds", "date", "soon", "negative", "nan"],
)
def test_retry_after_is_heeded(server, header):
    server.script.append(status(429, retry_after=header))
    if "20" in header:  # a date
        with pytest.raises(ConnectionError, match=r"it asks to wait .* s; .*one try"):
            ask(server, "q", retries=3)
        assert len(server.bodies) == 1
        return
    assert ask(server, "q", retries=1)[0].text == "fine"
    waited = server.times[1] - server.times[0]
    assert waited >= 0.6 if header == "0.6" else waited < 0.5


@pytest.mark.parametrize("step", [hang, drip])
def test_a_try_ends_when_its_time_is_over(server, step):
    server.script.append(step)
    assert ask(server, "q", timeout=0.3, retries=1)[0].text == "fine"
    server.script.append(step)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no reply within 0.3 s, one try, model 'm'"):
        ask(server, "another", timeout=0.3)
    assert time.monotonic() - began < 2


def test_waiting_is_visible(server, monkeypatch, capfd):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    server.script.append(hang)
    said = []

    def heard(text):
        said.append(text)
        if len(said) == 2:
            server.release.set()

    with pytest.raises(ConnectionError):  # released without a word
        ask(server, "q", say=heard, timeout=20)
    assert len(said) == 2
    for text in said:
        assert re.fullmatch(
            rf"waiting for {server.url} \(model 'm'\), \d s; a try ends after 20 s, at most one"
            r" try",
            text,
        )
    server.script.append(drip)
    with pytest.raises(ConnectionError):
        ask(server, "q", timeout=0.3)
    assert "waiting for" in capfd.readouterr().err
    ask(server, "q", say=said.append)
    assert len(said) == 2  # who is answered says nothing


def test_a_reply_is_kept_for_its_messages_model_and_settings_whatever_the_address(server, tmp_path):
    other = server.url.replace("127.0.0.1", "localhost")

    def calls(*texts, url=server.url, **changes):
        before = len(server.bodies)
        replies = ask(server, *texts, url=url, folder=tmp_path, **changes)
        assert sum(not reply.kept for reply in replies) == len(server.bodies) - before
        return len(server.bodies) - before

    assert calls("a", "b") == 2
    assert calls("a", "b") == calls("a", url=other) == calls("a", timeout=9, key="k") == 0
    assert calls("a", settings={"seed": 1}) == calls("a", model="n") == 1
    assert calls("a", temperature=None) == calls("a", most_tokens=9) == 1
    assert calls("a", settings={"seed": 1}) == 0
    assert server.bodies[0]["temperature"] == 0
    assert "temperature" not in server.bodies[-2]
    assert all("seed" not in body for body in server.bodies)


def test_without_a_folder_replies_are_kept_in_memory_for_the_address(server):
    other = server.url.replace("127.0.0.1", "localhost")
    ask(server, "a")
    assert ask(server, "a")[0].kept
    ask(server, "a", url=other)
    assert len(server.bodies) == 2


def test_a_kept_file_that_is_none_is_named(server, tmp_path):
    ask(server, "a", folder=tmp_path)
    [file] = tmp_path.iterdir()
    for content in (b"{", b"[]", b'{"reply": {"text": "a"}}', b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file.name}: not a kept reply .*; delete it"):
            ask(server, "a", folder=tmp_path)


def test_nothing_is_kept_of_silence(server, tmp_path):
    server.script.append(message(""))
    assert ask(server, "a", folder=tmp_path)[0].text == ""
    assert ask(server, "a", folder=tmp_path)[0].text == "fine"


def test_concurrency_is_bounded_over_all_threads(server):
    server.delay = 0.03
    with ThreadPoolExecutor(3) as pool:
        list(
            pool.map(
                lambda name: ask(server, *(f"{name}{i}" for i in range(5)), concurrency=2), "abc"
            )
        )
    assert server.most == 2
    assert len(server.bodies) == 15


def test_one_failure_ends_the_others(server):
    server.script.extend([status(400), hang, hang])
    began = time.monotonic()
    with pytest.raises(ValueError, match="refuses the request"):
        ask(server, "a", "b", "c")
    assert time.monotonic() - began < 5


def test_asking_works_inside_an_event_loop_too(server):
    async def notebook():
        return ask(server, "a")

    assert asyncio.run(notebook())[0].text == "fine"


PROGRAM = """
import signal, sys, threading
from fader.endpoint import Advice, Client, Endpoint, run

signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
advice = Advice(*[("a", "b")] * 4)

async def work():
    async with Client(Endpoint(sys.argv[1], "m"), advice) as client:
        await client.fetch([])

if sys.argv[2] == "thread":
    threading.Thread(target=run, args=[work()], daemon=True).start()
    sys.stdin.readline()
else:
    try:
        run(work())
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.long
def test_a_program_can_always_end(server):
    """By Ctrl-C, or by reaching its end, while an endpoint is silent."""
    server.script.extend([hang, hang])
    programs = {
        where: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, server.url, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
        )
        for where in ("main", "thread")
    }
    until(lambda: len(server.bodies) == 2, 60)
    programs["main"].send_signal(signal.SIGINT)
    for where, program in programs.items():
        out, err = program.communicate("\n", timeout=20)
        assert (program.returncode, out, err) == (0, "interrupted\n" * (where == "main"), "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost"},
        {"url": "ftp://a"},
        {"url": "http://"},
        {"url": "http://a b/v1"},
        {"url": "http://a:99999/v1"},
        {"model": " "},
        {"key": "line\n"},
        {"key": "schlüssel"},
        {"timeout": 0},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"concurrency": 0},
        {"retries": -1},
        {"temperature": -1},
        {"most_tokens": 0},
    ],
)
def test_an_endpoint_is_declared_rightly(wrong):
    with pytest.raises(ValueError, match=f"endpoint.{next(iter(wrong))}: must") as caught:
        Endpoint(**{"url": "http://a", "model": "m"} | wrong)
    assert "schlüssel" not in str(caught.value)


def test_without_the_package_the_fix_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"needs openai: pip install 'fader\[data\]'"):
        ask(server, "a")
