"""MetaAlign's items from a teacher: a scripted one behind a real HTTP server on loopback."""

import json
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from conftest import Speaking, scripted
from test_cli import rows, run

from fader.data.meta_builder import build_with_teacher
from fader.data.meta_files import read_samples
from fader.data.meta_teacher import estimate
from fader.data.questions import Plan, lines_of
from fader.data.rounds import Place
from fader.endpoint import Endpoint

WORDS = [
    "amber",
    "basket",
    "candle",
    "dragon",
    "engine",
    "falcon",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "napkin",
    "orange",
    "pepper",
    "quiver",
    "ribbon",
    "saddle",
    "ticket",
    "umbrella",
    "velvet",
    "window",
    "yellow",
    "zipper",
]
STAGES = {
    "two lines": "texts",
    "Write a user's question": "query",
    "Decline what is harmful": "refusal",
}


def stage_of(messages):
    user = messages[-1]["content"]
    found = next((stage for mark, stage in STAGES.items() if mark in user), None)
    return found or ("flawed" if "a bad answer" in messages[0]["content"] else "answer")


def text_for(stage, draw):
    some = " ".join(draw.sample(WORDS, 12))
    if stage == "texts":
        return f"1. Speak of the {draw.choice(WORDS)} {draw.choice(WORDS)}.\n2. {some}."
    return f"I cannot help with it: {some}." if stage == "refusal" else f"The {some}."


class Script(Speaking):
    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        messages = json.loads(body)["messages"]
        stage = stage_of(messages)
        with server.guard:
            number = server.asked[stage]
            server.asked[stage] += 1
        text = server.wrong.get((stage, number), text_for(stage, random.Random(body)))
        if text == "500":
            return self.say(500, b'{"error": {"message": "out of luck"}}')
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        row = {"id": "x", "object": "chat.completion", "created": 1, "model": "scripted"}
        return self.say(200, json.dumps({**row, "choices": [choice], "usage": usage}).encode())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with scripted(Script, guard=threading.Lock(), wrong={}, asked=Counter()) as made:
        yield made


def arguments(server, out, *more):
    told = ["--endpoint", server.url, "--teacher", "scripted", "--retries", "0"]
    return ["data", "meta", "--out", str(out), *told, "--count", "20", *more, "--json"]


@pytest.mark.long
def test_a_run_makes_all_parts_and_a_second_one_asks_nothing(server, tmp_path):
    out = tmp_path / "tiers.jsonl"
    [first] = rows(run(*arguments(server, out)))
    assert first["items"] == 20 - sum(first["dropped"].values()) > 15
    assert all(first["parts"].values())
    assert first["calls"] == server.asked.total() >= estimate(Plan("meta", 20)).calls
    samples = read_samples(out)
    assert len(samples) == first["samples"]
    asked = server.asked.total()
    before = {file: file.read_bytes() for file in (out, Path(first["datasheet"]))}
    assert b"| teacher | scripted |" in before[Path(first["datasheet"])]
    [second] = rows(run(*arguments(server, out)))
    assert (second["calls"], second["cached"], server.asked.total()) == (0, first["calls"], asked)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.long
def test_a_stopped_run_goes_on(server, tmp_path):
    out = tmp_path / "tiers.jsonl"
    server.wrong = {("answer", 5): "500"}
    # one at a time: none is on its way when the run ends
    stopped = run(*arguments(server, out, "--concurrency", "1"))
    assert stopped.returncode == 2
    assert not out.exists()
    kept = server.asked.total()
    [done] = rows(run(*arguments(server, out)))
    assert done["cached"] > 40
    assert server.asked.total() < kept + done["calls"] + 1
    assert out.exists()


def test_a_harmful_answer_that_declines_is_asked_again(server, tmp_path):
    place = Place(tmp_path / "out.jsonl")
    server.wrong = {("texts", 0): "One line.", ("refusal", 0): "x"}
    reached = Endpoint(server.url, "scripted", temperature=None, retries=0, concurrency=1)
    made = build_with_teacher(Plan("meta", 10), reached, place).taught
    assert made.refused == {"refusal: length": 1, "texts: form": 1} | {
        rule: count for rule, count in made.refused.items() if "duplicate" in rule
    }
    harmful = [item for item in made.items if item.harmful]
    assert harmful
    assert all(item.refusal.startswith("I cannot") for item in harmful)
    assert {item.part for item in made.items} >= {"diverse-opinion", "consensus", "priority"}


def test_a_teacher_that_declines_loses_the_item(server, tmp_path):
    place = Place(tmp_path / "out.jsonl")
    server.wrong = {("answer", number): "I won't write such a thing." for number in range(8, 400)}
    reached = Endpoint(server.url, "scripted", temperature=None, retries=0, concurrency=1)
    made = build_with_teacher(Plan("meta", 10, tries=2), reached, place).taught
    assert not any(item.harmful for item in made.items)
    assert made.dropped["second: refusal"] >= 1


def test_lines_lose_their_marks():
    assert lines_of("1. Be kind.\n\n- Be cruel.") == ["Be kind.", "Be cruel."]
    assert lines_of("A: Be kind.\nB) Be cruel.") == ["Be kind.", "Be cruel."]
    assert lines_of("A B.Sc. student.\nB.Sc. student.") == ["A B.Sc. student.", "B.Sc. student."]


def test_an_estimate_asks_nothing(server, tmp_path):
    out = tmp_path / "tiers.jsonl"
    [row] = rows(run(*arguments(server, out, "--dry-run", "--price-in", "1", "--price-out", "2")))
    assert row["calls"] == estimate(Plan("meta", 20)).calls == 4 * (4 + 4 + 5 + 5 + 3)
    assert 0 < row["cost"] < 1
    assert not server.asked
    assert not out.exists()


def test_the_bar_expects_what_is_asked(server, tmp_path):
    """Also where items are dropped on the way, of all kinds."""
    place, told = Place(tmp_path / "out.jsonl"), []
    server.wrong = {("texts", number): "One line." for number in (0, 3, 4, 5, 6, 7)}
    server.wrong |= {("query", number): "x" for number in (0, 2)}
    server.wrong |= {("answer", number): "x" for number in range(3, 40, 4)}
    server.wrong |= {("refusal", 0): "x"}
    reached = Endpoint(server.url, "scripted", temperature=None, retries=0, concurrency=1)
    plan = Plan("meta", 20, tries=1)
    made = build_with_teacher(plan, reached, place, tell=lambda *said: told.append(said)).taught
    assert sum(made.dropped.values()) > 10
    stage, done, expected = told[-1]
    assert (stage, done, expected) == ("refusal", len(told), server.asked.total())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--endpoint", "http://x/v1"], "endpoint, teacher: give both or neither"),
        (["--price-in", "1"], "price-in, price-out: give both or neither"),
        (["--dry-run"], "dry-run: only a teacher costs anything; give endpoint and teacher"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--count", "5"], "--count: only a teacher is asked so; leave it out"),
        (["--splits", "1,0,0"], "--splits: only a teacher is asked so; leave it out"),
    ],
)
def test_faulty_options_are_named(tmp_path, given, said):
    done = run("data", "meta", "--out", "x.jsonl", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x.jsonl").exists()
