"""`fader serve` and `fader keys` as a person starts them: a process of its own, signals, a kill."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from test_cli import rows, run

MAIN = "from fader.cli import main; main()"


def start(model, port, *more, folder=None):
    """`fader serve` in that folder, once it takes requests."""
    command = [sys.executable, "-c", MAIN, "serve", "--model", model, "--port", port, *more]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([*map(str, command)], cwd=folder or model, env=here)
    end = time.monotonic() + 600
    while True:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
            return process
        except httpx.TransportError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.mark.long
def test_a_server_survives_a_kill_and_ends_in_order(tiny_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(tiny_folder, port, "--name", "tiny", "--keys", tmp_path / "none.json")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the sea"}],
        "max_tokens": 200,
        "stream": True,
        "extra_body": {"ignore_eos": True},
    }
    try:
        next(iter(client.chat.completions.create(**ask)))
        process.kill()
        process.wait(20)
        process = start(tiny_folder, port, "--name", "tiny", "--keys", tmp_path / "none.json")
        [model] = [row.id for row in client.models.list() if ":" not in row.id]
        assert model == "tiny"
        ends = []

        def read():
            for part in client.chat.completions.create(**ask):
                ends.append(part.choices[0].finish_reason)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(ends) < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert ends.count("length") == 3  # what ran has been answered
    finally:
        client.close()
        process.kill()


def test_keys_are_made_listed_and_revoked(tmp_path):
    file = tmp_path / "keys.json"
    made = run("keys", "add", "ward-3", "--admin", "--keys", str(file))
    assert made.stdout.startswith("fader-")
    assert made.stdout.strip() not in file.read_text()
    [row] = rows(run("keys", "list", "--keys", str(file), "--json"))
    assert row == {"name": "ward-3", "admin": True}
    assert run("keys", "revoke", "ward-3", "--keys", str(file)).returncode == 0
    assert rows(run("keys", "list", "--keys", str(file), "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--host", "0.0.0.0"], "host: '0.0.0.0' can be reached from other machines"),
        (["serve", "--align", '{"vectorz": 1}'], "alignment.vectorz: no such field"),
        (["keys", "add", "../x"], "name: '../x' must be"),
        (["keys", "revoke", "x"], "name: there is no key"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path, arguments, said):
    done = run(*arguments, "--keys", str(tmp_path / "keys.json"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--replica-cpus", "2"], "--replica-cpus: is for --replicas; give that too"),
        (["--replica-gpus", "1"], "--replica-gpus: is for --replicas; give that too"),
        (["--align", '{"vectors": {"medcal": 1}}'], "--align: alignment.vectors.medcal: "),
    ],
)
def test_what_no_request_could_have_is_refused_before_it_serves(tiny_folder, tmp_path, more, said):
    keys = str(tmp_path / "keys.json")
    done = run("serve", "--model", str(tiny_folder), "--port", "0", "--keys", keys, *more)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
