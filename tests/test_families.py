"""Preference data from a teacher: a scripted one behind a real HTTP server on loopback."""

import json
import random
import re
import threading
from collections import Counter
from pathlib import Path

import pytest
from conftest import Speaking, scripted
from test_cli import rows, run
from test_levels import LIVES, THINGS, TOWNS, endpoint, words_for

from fader.data.check_preferences import check_preferences
from fader.data.families import (
    Axis,
    PreferencePlan,
    estimate_preferences,
    make_preferences,
    read_axis,
)
from fader.data.preferences import flips_of, read_judged, unflipped
from fader.data.questions import Plan
from fader.data.rounds import Place

LENGTH = Axis("length", ("short answers", "thorough answers"))
TONE = Axis("tone", ("a warm tone", "a sober tone"))
MANNERS = (
    "Please keep to {} from now on",
    "The reader always asks for {}",
    "Nothing but {} suits my eyes",
    "At work everybody loves {} so much",
    "My teacher insists upon {} each day",
    "Could you manage {} this time",
    "Grandmother taught us to like {} best",
    "I fall asleep without {} in front of me",
)


class Script(Speaking):
    """Speaks /v1/chat/completions; `server.wrong`: a text by (stage, number of the request)."""

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        user = json.loads(body)["messages"][-1]["content"]
        stage = stage_of(user)
        with server.guard:
            number = server.asked[stage]
            server.asked[stage] += 1
        text = server.wrong.get((stage, number), said(stage, user, random.Random(body)))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        row = {"id": "x", "object": "chat.completion", "created": 1, "model": "scripted"}
        return self.say(200, json.dumps({**row, "choices": [choice], "usage": usage}).encode())


def stage_of(user):
    marks = {
        "can\ndiffer": "family",
        "texts from which": "wordings",
        "Invent ": "persona",
        "types into a chat": "query",
        "Answer the question, correctly": "first",
        "Rewrite it for": "second",
    }
    return next(stage for mark, stage in marks.items() if mark in user)


def said(stage, user, draw):
    """A plausible reply."""
    if stage in ("persona", "query"):
        return words_for(stage, draw)
    if stage == "family":
        return "1. Length: short answers / thorough answers\n- tone: a warm tone / a sober tone"
    if stage == "wordings":
        wish = re.search(r"answers of this kind: (.+?)\. Not", user)[1]
        return "\n".join(
            f"{number}. {manner.format(wish)}, {draw.choice(LIVES)}, beside {draw.choice(THINGS)}"
            f" and {draw.choice(THINGS)} in {draw.choice(TOWNS)}."
            for number, manner in enumerate(MANNERS, 1)
        )
    text = words_for("generic" if stage == "first" else "expert", draw)
    return text + (" Good luck to you!" if stage == "first" else "")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with scripted(Script, guard=threading.Lock(), wrong={}, asked=Counter()) as made:
        yield made


def plan(count=20, axes=(LENGTH, TONE), **changes):
    return PreferencePlan(Plan("tax-law", count, tries=3), axes, **changes)


@pytest.mark.long
def test_a_run_makes_flips_and_a_second_one_asks_nothing(server, tmp_path):
    out = tmp_path / "mine.jsonl"
    given = ["--family", "length=short answers/thorough answers"]
    given += ["--family", "tone=a warm tone/a sober tone", "--held-out", "1", "--count", "12"]
    command = ["data", "preferences", "tax-law", "--out", str(out), "--endpoint", server.url]
    command += ["--teacher", "scripted", "--json", *given]
    [first] = rows(run(*command))
    records = read_judged(out)
    assert first["items"] == len(records) > 30
    assert first["splits"] == {
        name: sum(one.split == name for one in records) for name in ("train", "dev", "test")
    }
    assert unflipped(records) == []
    assert all(len(flip) == 2 for flip in flips_of(records))
    assert {(one.family, one.pole) for one in records} == {
        (axis.name, pole) for axis in (LENGTH, TONE) for pole in axis.poles
    }
    assert {one.source for one in records} == {"scripted"}
    assert {one.split for one in records if one.family == "tone"} == {"test"}
    taught = {text for one in records if one.split == "train" for text in one.wordings}
    measured = {text for one in records if one.split != "train" for text in one.wordings}
    assert len(taught) == 2 * 6
    assert not taught & measured
    report = check_preferences(out)
    assert report.findings == ()
    assert [one.held_out for one in report.families] == [False, True]
    before, asked = out.read_bytes(), sum(server.asked.values())
    [second] = rows(run(*command))
    assert (second["calls"], second["cached"]) == (0, first["calls"])
    assert out.read_bytes() == before
    assert sum(server.asked.values()) == asked


def test_families_are_asked_of_the_teacher(server, tmp_path):
    server.wrong = {("family", 0): "nonsense\nLength: brief / brief\nlength: short / thorough"}
    out = tmp_path / "mine.jsonl"
    made = make_preferences(plan(axes=(), families=2), endpoint(server), out)
    assert server.asked["family"] == 2
    assert made.refused["family: form"] == 2
    assert made.refused["family: duplicate"] == 1
    assert {one.family for one in made.items} == {"length", "tone"}
    sheet = Place(out).sheet.read_text()
    for text in (
        "# Datasheet: mine.jsonl",
        "| teacher | scripted |",
        "| length | short / thorough |",
        "| family: form | 2 |",
        "## Use and limits",
    ):
        assert text in sheet


@pytest.mark.long
def test_what_breaks_a_rule_is_asked_again_and_then_dropped(server, tmp_path):
    few = "\n".join(manner.format("length") for manner in MANNERS[:3])
    server.wrong = {
        ("wordings", 0): few,
        ("first", 0): "Too short.",
        ("first", 1): "I'm sorry, but I cannot say anything about that.",
        ("second", 0): " ".join(["word"] * 200),
        **{("first", number): "No." for number in (20, 21, 22)},
    }
    told = []
    made = make_preferences(
        plan(),
        endpoint(server, concurrency=1),
        tmp_path / "a.jsonl",
        tell=lambda *a: told.append(a),
    )
    assert {"wordings: count", "first answer: length", "first answer: refusal"} <= {*made.refused}
    assert made.refused["second answer: length"] == 1
    assert told[-1][1] == told[-1][2]  # the bar ends full
    server.wrong = {("first", number): "No." for number in range(1000)}
    with pytest.raises(ValueError, match="no item of 8 could be used"):
        make_preferences(plan(4), endpoint(server), tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_the_second_answer_differs_from_the_first(server, tmp_path):
    server.wrong = {("first", 0): words_for("generic", random.Random(1))}
    server.wrong["second", 0] = server.wrong["first", 0]
    made = make_preferences(plan(2), endpoint(server, concurrency=1), tmp_path / "a.jsonl")
    assert made.refused["second answer: same"] == 1
    assert all(one.pair.chosen != one.pair.rejected for one in made.items)


@pytest.mark.long
def test_a_run_that_stops_half_way_goes_on(server, tmp_path):
    out = tmp_path / "mine.jsonl"

    def stop(stage, done, total):
        if done == 25:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        make_preferences(plan(12), endpoint(server, concurrency=1), out, tell=stop)
    assert not out.exists()
    made = make_preferences(plan(12), endpoint(server, concurrency=1), out)
    assert made.cached == 25
    assert check_preferences(out).findings == ()
    expected = estimate_preferences(plan(12)).calls
    assert made.whole.calls == expected + sum(made.refused.values())


def test_questions_of_your_own_and_their_leaks(server, tmp_path):
    """Of two nearly equal questions in different splits the taught one goes."""
    asked = Plan("tax-law", 2)
    base = "May I deduct the cost of a second bicycle that I ride to work"
    near = {asked.split(text): text for text in (f"{base} since {n}?" for n in range(1900, 2000))}
    own = tmp_path / "own.txt"
    own.write_text("\n".join([near["train"], near["test"], "Who pays for a lost parcel abroad?"]))
    out = tmp_path / "mine.jsonl"
    command = ["data", "preferences", "tax-law", "--questions", str(own), "--out", str(out)]
    command += ["--family", "length=short answers/thorough answers"]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--json"]
    [row] = rows(run(*command))
    assert server.asked["query"] == server.asked["persona"] == 0
    assert row["dropped"] == {"query: leak": 1}
    assert near["train"] not in {one.pair.messages[0].content for one in read_judged(out)}
    own.write_text("Why?\nWhy?")
    assert "questions: " + str(own) + " holds 'Why?' twice" in run(*command).stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--family", "length"], "family: must be NAME=WISH/OPPOSITE"),
        (["--family", "a=b/b"], "family: must be NAME=WISH/OPPOSITE"),
        (["--family", "a=b/c", "--family", "a=d/e"], "family: each must have a name of its own"),
        (["--families", "0"], "families: must be at least 1 (got 0)"),
        (["--wordings", "3"], "wordings: must be at least 4 (got 3)"),
        (["--held-out", "6"], "held-out: must be at least 0 and leave one of the 6 families"),
        (["--count", "0"], "count: must be at least 1"),
    ],
)
def test_bad_input_is_one_message(server, tmp_path, more, said):
    command = ["data", "preferences", "tax-law", "--out", str(tmp_path / "a.jsonl")]
    done = run(*command, "--endpoint", server.url, "--teacher", "scripted", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not server.asked


def test_a_dry_run_only_estimates(server, tmp_path):
    command = ["data", "preferences", "tax-law", "--out", str(tmp_path / "a.jsonl"), "--dry-run"]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--count", "10", "--json"]
    [row] = rows(run(*command))
    assert row["calls"] == 1 + 2 * 6 + 6 + 60 + 2 * 60
    assert not server.asked
    assert [*tmp_path.iterdir()] == []


def test_a_family_is_read_of_one_text():
    assert read_axis("length = short / long and thorough") == Axis(
        "length", ("short", "long and thorough")
    )


def test_help_has_an_example():
    done = run("data", "preferences", "--help")
    assert "Example" in done.stdout


def test_the_documented_rules_are_those_there_are():
    from fader.data.check_preferences import RULES

    text = (Path(__file__).parent.parent / "docs" / "preference-data.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.MULTILINE)) == RULES


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--questions", "q.txt", "--count", "5"], "--count: with --questions all of these are"),
        (["--family", "x=a/b", "--families", "3"], "--families: with --family those are made"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, more, said):
    command = ["data", "preferences", "tax-law", "--out", str(tmp_path / "x.jsonl")]
    command += ["--endpoint", "http://localhost:1/v1", "--teacher", "x", *more]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
