"""Who may use a server, and what one client can take from the others."""

import json
import os
import re
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from conftest import random_vector, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import serve

from fader import Fader, load
from fader.engine.running import Busy
from fader.request import Request
from fader.schema import Invalid
from fader.server import guard, run
from fader.server.app import ENDPOINTS, OWN
from fader.server.keys import Keys
from fader.server.limits import Limits, explored_at_most
from fader.server.responses import Answered
from fader.server.run import prepare
from fader.server.wire import Chat, Completion

URL = "/v1/chat/completions"
SEA = [{"role": "user", "content": "the sea"}]
LONG = {"max_tokens": 400, "temperature": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def served(tiny):
    with serve(tiny.backend) as found:
        yield found


def live(served):
    return served.serving.backend.stats().live


# Keys


def test_a_key_is_needed_where_there_are_keys(tiny, tmp_path):
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("me")
    with serve(tiny.backend, keys.file) as served:
        assert served.error("/v1/models", 401, "GET")["type"] == "authentication_error"
        for wrong in ("", "x", f"{key}x", key[:-1]):
            with pytest.raises(openai.AuthenticationError):
                served.client(wrong or "none").models.list()
        assert served.client(key).models.list().data
        assert served.http.get("/health").status_code == 200
        served.error("/openapi.json", 401, "GET")
        served.error("/nope", 401, "GET")
        keys.revoke("me")  # of the last key too: the server stays closed
        served.error("/v1/models", 401, "GET", headers={"Authorization": f"Bearer {key}"})
        keys.file.unlink()
        served.error("/v1/models", 401, "GET", headers={"Authorization": f"Bearer {key}"})


def test_only_hashes_of_keys_are_kept(tmp_path):
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("me")
    assert key not in keys.file.read_text()
    assert stat.S_IMODE(keys.file.stat().st_mode) == 0o600
    assert keys.find(key).name == "me"
    for wrong in ("me", "../x", ""):
        with pytest.raises(Invalid):
            keys.add(wrong)
    with pytest.raises(Invalid, match="there is no key"):
        keys.revoke("you")


def test_without_keys_any_bearer_is_accepted(served):
    for said in ("Bearer", "Bearer x", "Basic eDp5", "x"):
        answer = served.http.get("/v1/models", headers={"Authorization": said})
        assert answer.status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_machines_need_keys(tmp_path, host):
    keys = Keys(tmp_path / "keys.json")
    with pytest.raises(Invalid, match="no API key is needed"):
        run.check_address(host, keys)
    run.check_address("127.0.0.1", keys)
    keys.add("me")
    run.check_address(host, keys)


# Web pages elsewhere


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
def test_another_host_is_refused(served, host):
    assert served.error(URL, 403, json={"messages": SEA}, headers={"Host": host})["code"] == "host"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_elsewhere_is_refused(served, origin):
    headers = {"Origin": origin}
    found = served.error(URL, 403, json={"messages": SEA}, headers=headers)
    assert found["code"] == "origin"
    served.error(URL, 403, "OPTIONS", headers=headers)
    own = served.chat(headers={"Origin": served.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_a_page_that_is_allowed_may(tiny):
    with serve(tiny.backend, origins=["https://good.example"]) as served:
        headers = {"Origin": "https://good.example"}
        asked = served.http.options(URL, headers=headers)
        assert asked.status_code == 204
        assert served.chat(headers=headers).headers["access-control-allow-origin"] == (
            "https://good.example"
        )
        served.error(URL, 403, json={}, headers={"Origin": "https://evil.example"})


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nope", "/metrics"])
def test_every_response_has_the_security_headers(served, path):
    headers = served.http.get(path).headers
    for name, value in guard.SECURITY.items():
        assert headers[name] == value
    assert "server" not in headers


# Limits


@pytest.mark.long
def test_headers_and_bodies_are_bounded(served):
    served.error("/health", 431, "GET", headers={"X-Long": "x" * 20000})

    def pieces():
        for _ in range(40):
            yield b"x" * (1 << 16)

    assert served.error(URL, 413, content=pieces())["code"] == "too_large"
    with socket.create_connection(_address(served)) as raw:
        raw.sendall(_head(served, length=1 << 30))
        assert b"413" in raw.recv(100)


def _address(served):
    return served.http.base_url.host, served.http.base_url.port


def _head(served, length):
    return (
        f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_slow_body_is_not_waited_for(tiny):
    with (
        serve(tiny.backend, limits=Limits(body_seconds=0.3)) as served,
        socket.create_connection(_address(served)) as raw,
    ):
        raw.sendall(_head(served, length=100) + b"{")
        assert b"408" in raw.recv(100)


def test_connections_that_say_nothing_are_closed(tiny, monkeypatch):
    monkeypatch.setattr(run, "REQUEST_SECONDS", 1.0)
    with serve(tiny.backend) as served:
        slow = [socket.create_connection(_address(served)) for _ in range(100)]
        for one in slow:
            one.sendall(b"P")
        assert served.chat(max_tokens=2).status_code == 200  # nobody is kept from an answer
        for one in slow:
            one.settimeout(20)
            assert one.recv(1) == b""
            one.close()


def test_rows_messages_and_searches_are_bounded(tiny):
    with serve(tiny.backend, limits=Limits(rows=8, messages=2, search_tokens=100)) as served:
        found = served.error(URL, json={"messages": SEA, "n": 9})
        assert found["param"] == "n"
        guide = {"kind": "contrast", "principle": "be a cat"}
        body = {"messages": SEA, "n": 5, "alignment": {"guides": [guide]}, "max_tokens": 4}
        assert served.error(URL, json=body)["param"] == "alignment"
        body = {"prompt": ["a"] * 9, "max_tokens": 4}
        assert "9 rows" in served.error("/v1/completions", json=body)["message"]
        assert served.error(URL, json={"messages": SEA * 3, "max_tokens": 4})["param"] == "messages"
        search = {"kind": "best-of-n", "n": 4, "rewards": [{"kind": "keywords", "words": ["sea"]}]}
        body = {"messages": SEA, "max_tokens": 50, "alignment": {"search": search}}
        assert served.error(URL, json=body)["param"] == "alignment.search"
        search["budget"] = {"tokens": 90}
        assert served.chat(max_tokens=50, temperature=1, alignment={"search": search}).is_success


@pytest.mark.parametrize(
    ("search", "tokens"),
    [
        ({"kind": "blockwise", "n": 3}, 30),
        ({"kind": "segments", "tries": 5}, 50),
        ({"kind": "lookahead", "top_k": 4, "beams": 2, "lookahead": 6}, 560),
        ({"kind": "lookahead", "top_k": 1, "lookahead": "end"}, 110),
    ],
)
def test_what_a_search_may_explore_is_known_before(search, tokens):
    search["rewards"] = [{"kind": "keywords", "words": ["sea"]}]
    request = Request.of("x", max_tokens=10, alignment={"search": search})
    assert explored_at_most(request) == tokens


def test_a_full_queue_answers_429(served, monkeypatch):
    monkeypatch.setattr(served.serving.backend.engine, "max_waiting", 0)
    answer = served.chat()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    with pytest.raises(openai.RateLimitError):
        served.client().chat.completions.create(model=served.model, messages=SEA)
    assert issubclass(Busy, RuntimeError)


def test_one_key_has_so_many_under_way(tiny):
    with serve(tiny.backend, limits=Limits(per_key=1)) as served:
        with served.http.stream("POST", URL, json={"messages": SEA, **LONG, "stream": True}) as one:
            lines = one.iter_lines()  # held: without it the response is closed
            next(lines)
            answer = served.chat()
            assert answer.status_code == 429, answer.text
            assert answer.headers["retry-after"] == "1"
        until(lambda: served.chat(max_tokens=1).status_code == 200)


def test_a_request_has_so_much_time(tiny):
    with serve(tiny.backend, limits=Limits(seconds=0.2)) as served:
        answer = served.chat(**LONG)
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        lines = served.chat(**LONG, stream=True).text.strip().split("\n\n")
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2][6:])["error"]["code"] == "timeout"
        until(lambda: live(served) == 0)


# One engine, many users


def test_a_client_that_goes_away_frees_its_rows(served):
    with served.http.stream("POST", URL, json={"messages": SEA, **LONG, "stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        until(lambda: live(served) == 1)
    until(lambda: live(served) == 0)
    for path, body in ((URL, {"messages": SEA}), ("/v1/completions", {"prompt": ["a", "b"]})):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(served.url + path, json={**body, **LONG}, timeout=0.3)
        until(lambda: live(served) == 0)
    until(lambda: not served.serving.running)


def test_full_memory_makes_requests_wait(tiny_folder):
    with (
        Fader(load(str(tiny_folder), kv_bytes=1 << 18)) as small,
        serve(small.backend) as served,
        ThreadPoolExecutor(12) as pool,
    ):
        found = [*pool.map(lambda seed: served.chat(max_tokens=100, seed=seed), range(12))]
        assert [answer.status_code for answer in found] == [200] * 12
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in found}) == 1


def test_many_at_once_are_answered_as_alone(served, tiny):
    tiny.add_vector(random_vector(tiny, "loud", 5))
    alignments = [
        {},
        {"vectors": {"loud": 0.5}},
        {"vectors": {"loud": -0.5}},
        {"preferences": {"user": "be brief"}},
        {"guides": [{"kind": "contrast", "principle": "be a cat"}]},
    ]
    alone = [served.chat(alignment=one).json()["choices"] for one in alignments]
    with ThreadPoolExecutor(10) as pool:
        found = pool.map(lambda place: served.chat(alignment=alignments[place % 5]), range(20))
        for place, answer in enumerate(found):
            assert answer.json()["choices"] == alone[place % 5]


def test_an_error_ends_its_own_stream_alone(served, monkeypatch):
    from fader.methods import decode

    drawn = decode.draw

    def draw(scores, how, seen, chance):
        if how.seed == 13 and len(seen) >= 3:
            raise ZeroDivisionError("a secret")
        return drawn(scores, how, seen, chance)

    monkeypatch.setattr(decode, "draw", draw)
    fields = {"max_tokens": 30, "temperature": 1, "stream": True, "ignore_eos": True}
    with ThreadPoolExecutor(2) as pool:
        bad, good = pool.map(lambda seed: served.chat(**fields, seed=seed), (13, 14))
    assert bad.status_code == 200
    lines = bad.text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in bad.text
    assert '"finish_reason": "length"' in good.text
    with pytest.raises(openai.APIError):
        list(
            served.client().chat.completions.create(
                model=served.model, messages=SEA, stream=True, seed=13, max_tokens=30
            )
        )


def test_a_silent_stream_is_kept_alive(tiny, monkeypatch):
    from fader.methods import decode

    drawn = decode.draw

    def slow(*given):
        time.sleep(0.4)
        return drawn(*given)

    monkeypatch.setattr(decode, "draw", slow)
    with serve(tiny.backend, limits=Limits(keep_alive=0.1)) as served:
        assert ": still at it\n\n" in served.chat(max_tokens=2, stream=True).text


def test_a_stream_that_nobody_reads_holds_nobody_up(served):
    body = json.dumps({"messages": SEA, **LONG, "stream": True, "logprobs": True}).encode()
    with socket.create_connection(_address(served)) as raw:
        raw.sendall(_head(served, len(body)) + body)
        assert served.chat().status_code == 200
        until(lambda: live(served) == 0, 30)


@pytest.mark.parametrize("grace", [20.0, 0.2])
def test_a_shutdown_finishes_streams_or_says_so(tiny, grace):
    with serve(tiny.backend, limits=Limits(grace=grace)) as served:
        lines = []

        def read():
            body = {"messages": SEA, **LONG, "stream": True}
            with httpx.stream("POST", served.url + URL, json=body, timeout=60) as stream:
                lines.extend(line for line in stream.iter_lines() if line)

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: live(served) == 1)
        served.server.should_exit = True
        thread.join(40)
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    if grace > 1:
        assert last["choices"][0]["finish_reason"] == "length"
    else:
        assert "shutting down" in last["error"]["message"]


def test_the_metrics_tell_what_was_done(served):
    served.chat(alignment={"preferences": {"user": "be brief"}})
    served.http.get("/nope/anything")
    text = served.http.get("/metrics").text
    for said in (
        'fader_requests_total{endpoint="/v1/chat/completions",method="POST",status="200"}',
        'fader_requests_total{endpoint="none",method="GET",status="404"}',
        'fader_answers_total{alignment="preferences"}',
        *("fader_queue_length ", "fader_rows_per_second ", "fader_tokens_per_second "),
        *("fader_prompt_share_from_memory ", "fader_kv_used_bytes ", "fader_running "),
        "fader_kv_remembered_bytes ",
        *("fader_time_to_first_token_seconds_count ", "fader_inter_token_seconds_count "),
    ):
        assert f"\n{said}" in text
    assert "anything" not in text


# What is named, and what is sent


@pytest.mark.parametrize(
    "name", ["../loud", "/tmp/loud", "link", "http://x.org/loud", "loud/../loud"]
)
def test_vectors_of_requests_stay_in_their_folders(served, tiny, tmp_path, monkeypatch, name):
    random_vector(tiny, "loud", 5).save(tmp_path / "loud")
    inside = tmp_path / "vectors"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "loud")
    monkeypatch.setenv("FADER_VECTORS", str(inside))
    body = {"messages": SEA, "alignment": {"vectors": {name: 1}}}
    assert "no such vector" in served.error(URL, json=body)["message"]
    assert "link" not in {row["name"] for row in served.http.get("/v1/vectors").json()["data"]}


def test_only_safetensors_are_read(served, tiny, tmp_path, monkeypatch):
    random_vector(tiny, "pickled", 5).save(tmp_path / "pickled")
    weights = tmp_path / "pickled" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    monkeypatch.setenv("FADER_VECTORS", str(tmp_path))
    body = {"messages": SEA, "alignment": {"vectors": {"pickled": 1}}}
    assert served.error(URL, json=body)["param"].startswith("alignment.vectors.pickled")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = sorted({*Chat.model_fields, *Completion.model_fields, *Answered.model_fields, "tools"})
VALID = {"messages": SEA, "prompt": "the sea", "input": "the sea", "id": "x", "tokens": [5]}


@settings(
    max_examples=int(os.environ.get("FADER_FUZZ_SERVER", 60)),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    path=st.sampled_from([path for method, path, _, _ in ENDPOINTS if method == "POST"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=3),
)
@pytest.mark.long
def test_whatever_is_sent_is_answered_or_refused(served, path, fields):
    """By hand, for many more: FADER_FUZZ_SERVER=10000."""
    body = {"max_tokens": 2, "max_output_tokens": 2, **VALID, **fields}
    content = json.dumps(body, ensure_ascii=True)
    answer = served.http.post(path, content=content, timeout=60)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_description_of_the_server_is_whole(served):
    described = served.http.get("/openapi.json").json()
    told = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(described))
    assert len(told) > 10
    for path in told:
        found = described
        for part in path.split("/"):
            found = found[part]
    for method, path, _, schema in ENDPOINTS:
        body = described["paths"][path.replace(":path", "")][method.lower()].get("requestBody")
        assert (body is not None) == (schema is not None)


def test_the_table_of_threats_names_tests_that_there_are():
    root = Path(__file__).parent.parent
    told = set(re.findall(r"`(test_\w+)`", (root / "docs" / "security.md").read_text()))
    there = {
        name
        for file in root.glob("tests/test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(told) > 15
    assert told <= there


def test_the_table_of_endpoints_is_whole():
    text = (Path(__file__).parent.parent / "docs" / "server.md").read_text()
    for _, path, _, _ in (*ENDPOINTS, *OWN):
        assert path.replace("{id:path}", "{id}") in text


def test_what_is_sent_is_sent_at_once():
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        connection, _ = listening.accept()
        with connection:
            prepare(connection)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
