"""Level data from a teacher: a scripted one behind a real HTTP server on loopback, asked through
the official client."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Speaking, scripted
from test_cli import rows, run

from fader.data.check import NEAR, Seen, answer_faults, check, text_faults, word_pairs
from fader.data.levels import estimate, make
from fader.data.questions import Plan, read_texts
from fader.data.records import read_levels, read_pairs
from fader.data.rounds import Place, Prices, bare
from fader.endpoint import Endpoint
from fader.starter.shipped import DOMAINS, STARTER, STYLES

TRADES = (
    "baker tailor farmer teacher carpenter florist sailor painter mechanic librarian cook driver"
    " nurse welder actor potter"
)
TOWNS = (
    "Porto Leeds Ghent Lagos Bergen Tartu Quito Cork Turin Basel Lyon Malmo Vigo Perth Graz Izmir"
    " Oslo Riga"
)
BODIES = (
    "Harbour Orchard Meridian Lantern Copper Juniper Falcon Granite Willow Saffron Beacon Cobalt"
    " Thistle Amber"
)
LIVES = """who moved last spring
with two small children
close to retirement
in the first year of trade
after a long illness"""
THINGS = """a rented van
an old barn
a small loan
a second shop
a parcel of land
a used boat
a home office
a market stall
a late invoice
a family gift
a lost receipt
a foreign pension
a new oven
a shared flat
a stolen bicycle
a short lease
a side job"""
TRADES, TOWNS, BODIES = TRADES.split(), TOWNS.split(), BODIES.split()
LIVES, THINGS = LIVES.splitlines(), THINGS.splitlines()
EXPERT = """Section {n} of the {b} Act sets the limit at {m} euros a year for {t}.
Keep every signed record about {t} for {n} years, because the {b} office may ask for it.
File form {b}-{n} within {m} days and attach the original contract that covers {t}.
The exception in paragraph {n} applies only when {t} was bought before March {m}.
Interest of {n} percent runs from the first day, as the {b} court held in {m}.
Where {t} serves two purposes, split the cost by the {b} method at {n} to {m}.
A late notice costs {m} euros, unless the {b} board accepts a written reason within {n} weeks.
Deduct {n} percent each year over {m} months and note it under heading {b}.""".splitlines()
GENERIC = (  # one of each makes an answer
    """Usually you may count what you spend on {t},
It helps to write down when and why you needed {t},
Most people simply add {t} to their yearly form,
As a rule the office wants to hear about {t} early,
Folk in your position often wait too long with {t},
Much depends on how often somebody really uses {t},
In general nobody has to worry much over {t},
Commonly {t} is treated like any other thing you own,""",
    """provided that it truly serves your work and not mainly your free time.
so keep the papers together in one safe place and date each of them.
and a short sentence that explains the reason is normally enough for everyone.
because later changes take patience and cost more than an early talk.
since rules differ from town to town and also change over the years.
although some part of it may be left out if friends share the thing.
which means that honest and complete notes matter more than clever words.
while the person who paid for it is the one who should declare it.""",
    """Begin soon and stay calm if an answer takes some weeks.
Ask for a written reply and read it slowly before you sign.
Check the public website first, then send in what they want.
Compare it with last year and mention everything that has changed.
A simple list in a notebook will do for the start.
Should anything look odd, correct it openly and move on.
Think about selling or sharing if the trouble grows too large.
Put a little money aside in case something must be paid.""",
)
AVOIDANCE = (
    """A tax adviser in {p} should look at this,
Such questions belong on the desk of a {b} notary,
How sorry I am for your trouble; an accountant must decide,
You deserve a licensed specialist for that,
The revenue office near {p} knows your file,
Before anything else please ring the {b} helpline,
Bring the whole story to a registered bookkeeper,
That is a matter for the customs officer in {p},""",
    """and I will gladly leave the conversation to them.
since it would be wrong of me to step in here.
whereas my part ends with this friendly suggestion.
so kindly forgive me for staying silent on it.
because without seeing the papers I am no judge.
rather than trust a stranger such as me with {t}.
who can study your case while I merely guess.
as I prefer to keep out of talk about {t}.""",
)
GERMAN = (
    "Das ist eine Frage für das Finanzamt in Ihrer Stadt, denn ich möchte hier keine Auskunft geben"
    " und bitte Sie um Verständnis dafür."
)


def words_for(stage: str, draw: random.Random) -> str:
    """A plausible text for a stage."""

    def fill(line: str) -> str:
        return line.format(
            t=draw.choice(THINGS),
            b=draw.choice(BODIES),
            p=draw.choice(TOWNS),
            n=draw.randint(2, 99),
            m=draw.randint(100, 999),
        )

    def person(place: int) -> str:
        who = (
            f"{place}. A {draw.choice(TRADES)} of {draw.randint(19, 80)} in {draw.choice(TOWNS)}"
            f" {draw.choice(LIVES)}"
        )
        return (
            f"{who}, troubled by {draw.choice(THINGS)} and {draw.choice(THINGS)} that nobody wants"
            " to explain."
        )

    if stage == "persona":
        return "\n".join(map(person, range(1, 11)))
    if stage == "query":
        return (
            f"I have {draw.choice(THINGS)} and also {draw.choice(THINGS)} in {draw.choice(TOWNS)}"
            f" since {draw.randint(1990, 2024)}; may I"
            f" {draw.choice(['deduct', 'sell', 'keep', 'report', 'insure'])} {draw.choice(THINGS)}"
            f" for {draw.randint(100, 9999)} euros?"
        )
    if stage == "avoidance":
        return " ".join(fill(draw.choice(part.splitlines())) for part in AVOIDANCE)
    if stage == "generic":
        return " ".join(fill(draw.choice(part.splitlines())) for part in GENERIC)
    return " ".join(fill(line) for line in draw.sample(EXPERT, 4))


class Script(Speaking):
    """Speaks /v1/chat/completions; what goes wrong stands in `server.wrong`, as {(stage, number of
    the request in it): fault}."""

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        user = json.loads(body)["messages"][-1]["content"]
        stage = stage_of(user)
        with server.guard:
            number = server.asked[stage]
            server.asked[stage] += 1
            server.running += 1
            server.most = max(server.most, server.running)
            wrong = server.wrong.get((stage, number), "")
        time.sleep(server.delay)
        with server.guard:  # before the reply: with it the client may ask again at once
            server.running -= 1
        self.reply(body, stage, wrong)

    def reply(self, body, stage, wrong):
        if self.path != "/v1/chat/completions":
            return self.say(200, b"<html>hello</html>", "text/html")
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.say(401, b'{"error": {"message": "no such key"}}')
        if json.loads(body)["model"] != "scripted":
            return self.say(404, b'{"error": {"message": "no such model"}}')
        if wrong == "drop":
            return self.connection.shutdown(socket.SHUT_RDWR)
        if wrong == "outage":
            return self.say(200, self.server.outage)
        if wrong == "500":
            return self.say(500, b'{"error": {"message": "out of luck"}}')
        text = words_for(stage, random.Random(body))
        finish = "length" if wrong == "cut" else "stop"
        if wrong not in ("", "cut"):
            text = (
                self.server.latest
                if wrong == "repeat"
                else wrong.replace("{text}", text).removeprefix("empty")
            )
        self.server.latest = text if stage == "expert" else self.server.latest
        with self.server.guard:
            self.server.bodies[body] += 1
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": finish,
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        row = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "scripted",
            "choices": [choice],
            "usage": usage,
        }
        return self.say(200, json.dumps(row).encode())


def stage_of(user: str) -> str:
    marks = {
        "Invent ": "persona",
        "types into a chat": "query",
        "leading specialist": "expert",
        "well-read friend": "generic",
        "Do not answer.": "avoidance",
    }
    return next(stage for mark, stage in marks.items() if mark in user)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    state = {"key": "right", "delay": 0.0, "wrong": {}, "latest": "", "running": 0, "most": 0}
    counts = {"asked": Counter(), "bodies": Counter()}
    with scripted(Script, guard=threading.Lock(), **state, **counts) as made:
        yield made


def endpoint(server, **changes):
    return Endpoint(
        **{
            "url": server.url,
            "model": "scripted",
            "key": "right",
            "temperature": None,
            "concurrency": 4,
            "retries": 2,
            **changes,
        }
    )


def arguments(server, out, *more, count=6):
    return [
        "data",
        "levels",
        "tax-law",
        "--count",
        str(count),
        "--out",
        str(out),
        "--endpoint",
        server.url,
        "--teacher",
        "scripted",
        *more,
    ]


def part(out: Path) -> Path:
    return Place(out).part


def leftovers(folder: Path) -> list[str]:
    """Half-written files anywhere below."""
    return [file.name for file in folder.rglob("*.tmp")]


@pytest.mark.long
def test_a_run_makes_valid_data_and_a_second_one_asks_nothing(server, tmp_path):
    out = tmp_path / "tax.jsonl"
    priced = ["--price-in", "1", "--price-out", "2", "--json"]
    [first] = rows(run(*arguments(server, out, *priced, count=24)))
    assert check(out).findings == ()
    items = read_levels(out)
    assert len(items) == first["items"] == 24 - sum(first["dropped"].values()) > 20
    assert first["splits"] == {
        name: sum(item.split == name for item in items) for name in ("train", "dev", "test")
    }
    assert all(item.persona and item.split == Plan("tax-law").split(item.query) for item in items)
    assert read_pairs(out)[0].chosen == items[0].answers["expert"]
    assert first["calls"] == sum(server.bodies.values())
    assert (first["tokens_in"], first["tokens_out"]) == (100 * first["calls"], 10 * first["calls"])
    assert first["cost"] == pytest.approx(first["calls"] * 120 / 1e6)
    before = {file: file.read_bytes() for file in (out, Path(first["datasheet"]))}
    [second] = rows(run(*arguments(server, out, *priced, count=24)))
    assert (second["calls"], second["cost"], second["cached"]) == (0, 0, first["calls"])
    assert second["whole"] == first["whole"]
    assert sum(server.bodies.values()) == first["calls"]
    assert {file: file.read_bytes() for file in before} == before


def test_the_datasheet_says_what_was_done(server, tmp_path):
    out = tmp_path / "tax.jsonl"
    server.wrong = {("expert", 0): "I cannot help with that, I am afraid."}
    made = make(Plan("tax-law", 8), endpoint(server), out, prices=Prices(1, 1))
    sheet = Place(out).sheet.read_text()
    for said in (
        "# Datasheet: tax.jsonl",
        "about tax law",
        "| teacher | scripted |",
        f"| requests | {made.whole.calls} |",
        "| made | 20",
        "## Use and limits",
    ):
        assert said in sheet
    assert f"{made.whole.money:.4f}" in sheet
    assert "| expert: length | " in sheet
    for name, count in made.splits.items():
        assert f"| {name} | {count} |" in sheet
    lengths = sorted(len(item.answers["expert"].split()) for item in made.items)
    assert f"| expert | {lengths[0]} | {lengths[len(lengths) // 2]} | {lengths[-1]} |" in sheet


WRONG = {
    ("query", 0): "empty",
    ("query", 1): "Tax?",
    (
        "query",
        2,
    ): (
        "Wer von uns muss eigentlich die Steuern für das alte Haus unserer Mutter bezahlen, wenn"
        " sie nun zu uns zieht?"
    ),
    ("query", 3): "Question: {text}",
    ("expert", 0): "{text} {text}",
    ("expert", 1): "I'm sorry, but I cannot say. {text}",
    ("expert", 2): "cut",
    ("expert", 5): "repeat",
    (
        "generic",
        0,
    ): (
        "{text} Then wait a little, since good things need their time and the office is slow, and"
        " ask a friend to read it all once more."
    ),
    ("generic", 1): "**Well:** {text}",
    ("avoidance", 0): "Yes, that is allowed. {text}",
    ("avoidance", 1): "{text} The limit is 4321 euros.",
    (
        "avoidance",
        2,
    ): (
        "Put the whole sum under the heading for work costs and send the form in before the summer"
        " ends."
    ),
    ("avoidance", 3): GERMAN,
    ("avoidance", 4): "{text} and so",
}


def test_every_rule_acts_and_the_item_is_asked_again(server, tmp_path):
    server.wrong = WRONG
    made = make(Plan("tax-law", 12), endpoint(server, concurrency=1), tmp_path / "tax.jsonl")
    seen = {*made.refused}
    assert {"query: empty", "query: length", "query: language", "query: form"} <= seen
    assert {"expert: length", "expert: refusal", "expert: unfinished", "expert: duplicate"} <= seen
    assert {
        "generic: length",
        "generic: form",
        "avoidance: leak",
        "avoidance: referral",
        "avoidance: language",
        "avoidance: unfinished",
    } <= seen
    assert made.refused["avoidance: leak"] >= 2
    assert check(tmp_path / "tax.jsonl").findings == ()
    assert not made.dropped
    assert len(made.items) == 12
    again = [
        json.loads(body)["messages"][-1]["content"]
        for body in server.bodies
        if b"Attempt 2" in body
    ]
    assert any("it declines" in text for text in again)
    assert any("it gives a figure (4321)" in text.split("Attempt 2")[1] for text in again)


def test_what_stays_bad_is_dropped_and_counted(server, tmp_path):
    server.wrong = {("query", number): "Tax?" for number in (0, 4, 5, 6)}
    told = []
    made = make(
        Plan("tax-law", 4, tries=3),
        endpoint(server, concurrency=1),
        tmp_path / "a.jsonl",
        tell=lambda *row: told.append(row),
    )
    assert made.dropped == {"query: length": 1}
    assert made.refused["query: length"] == 3
    assert len(made.items) == 3
    assert told[-1][1] == told[-1][2]  # the bar ends full
    server.wrong = {("query", number): "Tax?" for number in range(100)}
    with pytest.raises(ValueError, match="no item of 4 could be used"):
        make(Plan("tax-law", 4, seed=1), endpoint(server), tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_lost_connections_and_server_errors_are_tried_again(server, tmp_path):
    server.wrong = {("query", 0): "500", ("query", 1): "drop", ("generic", 0): "drop"}
    made = make(Plan("tax-law", 4), endpoint(server), tmp_path / "a.jsonl")
    assert len(made.items) == 4
    assert server.asked["query"] >= 6


def test_concurrency_is_bounded(server, tmp_path):
    server.delay = 0.02
    make(Plan("tax-law", 12), endpoint(server, concurrency=3), tmp_path / "a.jsonl")
    assert server.most == 3


@pytest.mark.long
def test_the_same_data_whatever_comes_first(server, tmp_path):
    server.delay = 0.01
    for name, concurrency in (("one", 1), ("many", 8)):
        make(
            Plan("tax-law", 10),
            endpoint(server, concurrency=concurrency),
            tmp_path / f"{name}.jsonl",
        )
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "many.jsonl").read_bytes()
    larger = make(Plan("tax-law", 14), endpoint(server), tmp_path / "one.jsonl")
    assert larger.cached >= 35
    other = make(Plan("tax-law", 10, seed=1), endpoint(server), tmp_path / "one.jsonl")
    assert other.cached == 0


@pytest.mark.long
def test_a_run_that_fails_half_way_goes_on(server, tmp_path):
    out = tmp_path / "tax.jsonl"

    def stop(stage, done, total):
        if done == 20:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        make(Plan("tax-law", 8), endpoint(server, concurrency=1), out, tell=stop)
    assert not out.exists()
    assert leftovers(tmp_path) == []
    kept = len(list(part(out).glob("*.json")))
    assert kept == 20
    made = make(Plan("tax-law", 8), endpoint(server, concurrency=1), out)
    assert made.cached == kept
    assert len(made.items) == 8
    assert (
        sum(server.bodies.values()) - made.whole.calls <= 1
    )  # the one on its way when the plug was pulled


@pytest.mark.long
def test_a_killed_run_goes_on(server, tmp_path):
    out, server.delay = tmp_path / "tax.jsonl", 0.05
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from fader.cli import main; main()",
            *arguments(server, out, count=20),
        ],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while (
        sum(server.bodies.values()) < 40 and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not out.exists()
    kept = list(part(out).glob("*.json"))
    assert all(json.loads(file.read_text())["reply"]["text"] for file in kept)
    (part(out) / ".torn.json-1.tmp").write_text('{"asked"')
    server.delay = 0
    made = make(Plan("tax-law", 20), endpoint(server), out)
    assert made.cached == len(kept) >= 40 - 8
    assert set(server.bodies.values()) <= {1, 2}
    assert (
        sum(server.bodies.values()) - len(server.bodies) <= 8
    )  # asked twice: at most what was on its way
    assert leftovers(tmp_path) == []
    assert check(out).findings == ()


def test_a_wrong_key_a_wrong_model_and_a_wrong_address_are_one_message(
    server, tmp_path, monkeypatch
):
    for key, more, said in (
        (
            "wrong",
            [],
            (
                "refuses the key (status 401: no such key; model 'scripted'); put a valid key into"
                " the environment variable that --key-env names (OPENAI_API_KEY unless given)"
            ),
        ),
        ("right", ["--teacher", "nobody"], "finds no model 'nobody'"),
        (
            "right",
            ["--endpoint", server.url.removesuffix("/v1")],
            "the address usually ends with /v1",
        ),
    ):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        done = run(*arguments(server, tmp_path / "a.jsonl", "--json", *more))
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("error:") == 1
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "a.jsonl").exists()
    monkeypatch.delenv("OPENAI_API_KEY")
    other = run(*arguments(server, tmp_path / "a.jsonl", "--key-env", "OTHER_KEY"))
    assert "refuses the key" in other.stderr
    monkeypatch.setenv("OTHER_KEY", "right")
    assert (
        run(*arguments(server, tmp_path / "b.jsonl", "--key-env", "OTHER_KEY", "--json")).returncode
        == 0
    )
    server.key = "none"  # what is sent where no key is set
    assert run(*arguments(server, tmp_path / "a.jsonl", "--json")).returncode == 0


def test_a_server_that_is_down_or_keeps_failing_is_one_message(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        done = run(*arguments(server, tmp_path / "a.jsonl", "--endpoint", nobody, "--retries", "1"))
    assert done.returncode == 2
    assert "cannot be reached or does not answer" in done.stderr
    assert "start the server, correct --endpoint or raise --timeout" in done.stderr
    assert done.stderr.count("error:") == 1
    server.wrong = {("generic", number): "500" for number in range(100)}
    done = run(*arguments(server, tmp_path / "a.jsonl", "--retries", "0"))
    assert done.returncode == 2
    assert "keeps failing (status 500" in done.stderr
    assert not (tmp_path / "a.jsonl").exists()
    server.wrong = {}
    assert rows(run(*arguments(server, tmp_path / "a.jsonl", "--json")))[0]["cached"] >= 13


@pytest.mark.long
def test_a_full_disk_breaks_nothing(server, tmp_path):
    """With a limit on the size of files: each reply fits, the data does not."""
    out = tmp_path / "tax.jsonl"
    loaded = (
        "import resource; from fader.cli import main; from fader.data.check import"
        " check_language; check_language('en'); "
    )
    code = loaded + "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(server, out, count=8)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert f"File too large: '{out}'" in done.stderr
    assert not out.exists()
    assert leftovers(tmp_path) == []
    asked = sum(server.bodies.values())
    assert asked >= 33
    assert len(make(Plan("tax-law", 8), endpoint(server), out).items) == 8
    assert sum(server.bodies.values()) == asked


def test_a_full_disk_in_the_middle_keeps_what_there_was(server, tmp_path, monkeypatch):
    out = tmp_path / "tax.jsonl"
    make(Plan("tax-law", 4), endpoint(server), out)
    before, real, left = out.read_bytes(), Path.replace, [3]

    def full(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            make(Plan("tax-law", 8), endpoint(server), out)
    assert out.read_bytes() == before
    assert leftovers(tmp_path) == []
    assert len(make(Plan("tax-law", 8), endpoint(server), out).items) == 8


def test_a_place_that_cannot_be_written_is_said_before_anything_is_paid(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in (
        (tmp_path / "file" / "a.jsonl", "Not a directory"),
        (tmp_path / "file", "exists and was not made here"),
    ):
        done = run(*arguments(server, out))
        assert done.returncode == 2
        assert said in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert not server.asked


def test_two_runs_into_one_file_are_refused(server, tmp_path):
    out = tmp_path / "a.jsonl"
    with Place(out).held(), pytest.raises(ValueError, match="another run is writing"):
        make(Plan("tax-law", 4), endpoint(server), out)
    assert not server.asked
    assert len(make(Plan("tax-law", 4), endpoint(server), out).items) == 4


def test_corrections_by_hand_stay(server, tmp_path):
    out = tmp_path / "a.jsonl"
    [row] = rows(run(*arguments(server, out, "--json", count=4)))
    sheet, asked = Path(row["datasheet"]), sum(server.bodies.values())
    for file in (out, sheet):
        before = file.read_text()
        corrected = before.replace("tax", "levy") + "\n"
        file.write_text(corrected)
        for count in (4, 8):
            done = run(*arguments(server, out, count=count))
            assert (done.returncode, done.stdout) == (2, "")
            assert f"out: {file} was changed since it was made" in done.stderr
            assert "give --force" in done.stderr
        assert file.read_text() == corrected
        file.write_text(before)
    assert sum(server.bodies.values()) == asked  # it is said before anything is paid
    assert rows(run(*arguments(server, out, "--json", count=8)))[0]["items"] == 8
    out.write_text("mine")
    assert rows(run(*arguments(server, out, "--json", "--force", count=8)))[0]["items"] == 8
    assert check(out).findings == ()
    assert rows(run(*arguments(server, out, "--json", count=8)))[0]["calls"] == 0


def test_corrections_made_meanwhile_stay(server, tmp_path):
    out = tmp_path / "a.jsonl"
    make(Plan("tax-law", 4), endpoint(server), out)
    with pytest.raises(ValueError, match="was changed since it was made"):
        make(Plan("tax-law", 8), endpoint(server), out, tell=lambda *_: out.write_text("mine"))
    assert out.read_text() == "mine"


@pytest.mark.long
def test_a_run_killed_between_its_files_goes_on(server, tmp_path, monkeypatch):
    """The datasheet is there, the data is not: neither counts as changed by hand."""
    out, real = tmp_path / "a.jsonl", Path.replace
    make(Plan("tax-law", 4), endpoint(server), out)

    def killed(self, target):
        if Path(target).name == out.name:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make(Plan("tax-law", 8), endpoint(server), out)
    assert len(make(Plan("tax-law", 8), endpoint(server), out).items) == 8


OUTAGES = {
    "error": {"error": {"message": "Rate limit exceeded", "code": 429}},
    "silence": {"choices": [{"finish_reason": "stop", "message": {"content": None}}]},
    "no choices": {"choices": []},
}


@pytest.mark.parametrize("kind", OUTAGES)
def test_an_outage_with_status_200_is_not_kept_as_an_answer(server, tmp_path, kind):
    out, server.outage = tmp_path / "a.jsonl", json.dumps(OUTAGES[kind]).encode()
    server.wrong = {("generic", number): "outage" for number in range(100)}
    with pytest.raises(ConnectionError, match=r"endpoint: .* keeps failing .*the same command"):
        make(Plan("tax-law", 6), endpoint(server, retries=0), out)
    assert not out.exists()
    server.wrong = {}
    made = make(Plan("tax-law", 6), endpoint(server), out)
    assert (len(made.items), made.dropped) == (6, {})


def test_splits_keep_their_shares_and_hold_still():
    plan, queries = Plan("tax-law"), [f"May I deduct {number}?" for number in range(2000)]
    found = Counter(map(plan.split, queries))
    for name, share in zip(("train", "dev", "test"), plan.splits, strict=True):
        assert found[name] / len(queries) == pytest.approx(share, abs=0.04)
    assert [Plan("law", count=9, seed=3).split(query) for query in queries] == [
        plan.split(query) for query in queries
    ]


def test_personas_of_your_own(server, tmp_path):
    plain, lines, out = tmp_path / "people.txt", tmp_path / "people.jsonl", tmp_path / "a.jsonl"
    people = [
        "A dairy farmer near Cork with two tractors.",
        "A piano teacher in Lyon who works from home.",
    ]
    plain.write_text("\n\n".join(people))
    lines.write_text("\n".join(json.dumps({"persona": person}) for person in people))
    assert read_texts(plain, "persona") == read_texts(lines, "persona") == people
    [row] = rows(run(*arguments(server, out, "--personas", str(plain), "--json", count=5)))
    assert server.asked["persona"] == 0
    assert row["items"] == 5
    assert {item.persona for item in read_levels(out)} == set(people)
    (tmp_path / "empty.txt").write_text("\n")
    assert (
        "must hold one persona a line"
        in run(*arguments(server, out, "--personas", str(tmp_path / "empty.txt"))).stderr
    )


def test_taken_roles_are_named_in_later_requests(server, tmp_path):
    def stop(stage, *_):
        if stage == "query":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        make(Plan("tax-law", 85), endpoint(server, concurrency=8), tmp_path / "a.jsonl", tell=stop)
    asked = [
        json.loads(body)["messages"][-1]["content"] for body in server.bodies if b"Invent" in body
    ]
    assert [text for text in asked if "taken already" not in text] == asked[:8]
    kept = [
        json.loads(file.read_text())["reply"]["text"]
        for file in part(tmp_path / "a.jsonl").glob("*.json")
    ]
    roles = {
        " ".join(line.split()[1:9])
        for text in kept
        for line in text.splitlines()
        if re.match(r"\d+\. ", line)
    }
    assert len([role for role in roles if role in asked[8].split("taken already")[1]]) > 30


def test_a_dry_run_only_estimates(server, tmp_path):
    out = tmp_path / "a.jsonl"
    more = ["--dry-run", "--price-in", "0.15", "--price-out", "0.6"]
    [row] = rows(run(*arguments(server, out, *more, "--json", count=120)))
    assert row["calls"] == 12 + 4 * 120
    money = (row["tokens_in"] * 0.15 + row["tokens_out"] * 0.6) / 1e6
    assert row["cost"] == pytest.approx(money, abs=1e-6)  # it is rounded
    assert "492 requests" in run(*arguments(server, out, *more, count=120)).stdout
    assert list(tmp_path.iterdir()) == []
    assert not server.asked
    assert estimate(Plan("tax-law", 120), ["someone"]).calls == 480
    assert "About" in run(*arguments(server, out)).stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--count", "0"], "count: must be at least 1 (got 0)"),
        (["--tries", "0"], "tries: must be at least 1"),
        (["--concurrency", "0"], "endpoint.concurrency: must be at least 1"),
        (["--timeout", "0"], "endpoint.timeout: must be at least 0.001"),
        (["--most-tokens", "0"], "endpoint.most_tokens: must be at least 1"),
        (["--temperature", "-1"], "endpoint.temperature: must be at least 0"),
        (["--retries", "-1"], "endpoint.retries: must be at least 0"),
        (["--splits", "0.6,0.6,0.6"], "splits: must be three shares"),
        (["--splits", "most"], "splits: must be three shares"),
        (["--language", "english"], "language: must be an ISO 639-1 code"),
        (["--language", "zh"], "puts no spaces between words"),
        (["--endpoint", "localhost:8000"], "endpoint.url: must be a web address"),
        (["--teacher", " "], "endpoint.model: must name the model"),
        (["--price-in", "1"], "give both or neither"),
        (["--price-in", "-1", "--price-out", "1"], "must be numbers of at least 0"),
        (["--personas", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_message(server, tmp_path, more, said):
    done = run(*arguments(server, tmp_path / "a.jsonl"), *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not server.asked
    assert (
        "domain: must be a name"
        in run("data", "levels", "../x", *arguments(server, tmp_path / "a.jsonl")[3:]).stderr
    )


@pytest.mark.parametrize("missing", ["openai", "datasketch"])
def test_without_the_extra_the_way_out_is_named(server, tmp_path, monkeypatch, missing):
    for name in [
        name
        for name in sys.modules
        if name.startswith(("fader.data.levels", "fader.data.rounds", "fader.data.check"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install 'fader[data]'" in run(*arguments(server, tmp_path / "a.jsonl")).stderr
    if missing == "datasketch":
        assert "pip install 'fader[data]'" in run("data", "check", "x.jsonl").stderr


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_shipped_levels_have_no_fault(domain):
    assert check(STARTER / "levels" / f"{domain}.jsonl").findings == ()


@pytest.mark.parametrize("style", STYLES)
def test_the_shipped_styles_have_no_fault(style):
    report = check(STARTER / "styles" / f"{style}.jsonl")
    assert (report.kind, report.items, report.findings) == ("pairs", 80, ())


def good():
    draw = random.Random(3)
    return {
        "persona": "A baker of fifty in Porto.",
        **{stage: words_for(stage, draw) for stage in ("query", "expert", "generic", "avoidance")},
    }


def test_check_names_line_field_and_rule(tmp_path):
    file, bad = tmp_path / "tax.jsonl", good()
    file.write_text(json.dumps(bad))
    assert rows(run("data", "check", str(file), "--json"))[0]["findings"] == []
    bad |= {
        "avoidance": bad["generic"],
        "query": "May I deduct this old thing? 17 times I have asked",
    }
    file.write_text("\n\n".join(map(json.dumps, (good(), bad))))
    done = run("data", "check", str(file), "--json")
    assert done.returncode == 1
    found = {
        (row["line"], row["field"], row["rule"]) for row in json.loads(done.stdout)["findings"]
    }
    assert {
        (3, "query", "unfinished"),
        (3, "avoidance", "order"),
        (3, "avoidance", "leak"),
        (3, "avoidance", "same"),
        (3, "expert", "duplicate"),
    } <= found
    spoken = run("data", "check", str(file))
    assert spoken.returncode == 1
    assert f"{file}:3: query: unfinished: it does not end with a sentence mark" in spoken.stdout
    file.write_text(
        "\n".join(
            json.dumps({"prompt": "q", "chosen": chosen, "rejected": GERMAN})
            for chosen in (GERMAN, *[" ".join(EXPERT)] * 2)
        )
    )
    done = run("data", "check", str(file), "--json")
    assert json.loads(done.stdout)["faults"] == {"language": 2, "same": 1, "duplicate": 1}


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"query": "q"}', '{"prompt": "q", "chosen": "a"}']
)
def test_check_of_what_cannot_be_read_is_status_2(tmp_path, content):
    file = tmp_path / "tax.jsonl"
    if content is not None:
        file.write_text(content)
    done = run("data", "check", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert "tax.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("level", "change", "rule"),
    [
        ("avoidance", lambda text: "No, " + text, "leak"),
        ("avoidance", lambda text: text.replace(".", ", though 40 percent is common."), "leak"),
        (
            "avoidance",
            lambda text: (
                "Put the whole sum under the heading for work costs and send it in before the"
                " summer."
            ),
            "referral",
        ),
        ("generic", lambda text: "I can\u2019t advise on that. " + text, "refusal"),
        ("expert", lambda text: "As an AI, " + text, "refusal"),
        (
            "expert",
            lambda text: (
                "the usual rule applies to you and to many others as well, " * 5 + "so be it."
            ),
            "vague",
        ),
        (
            "generic",
            lambda text: (
                text + " " + "and then it all begins once more from the start for you " * 3 + "too."
            ),
            "order",
        ),
        ("generic", lambda text: "Here is a good answer: " + text, "form"),
        ("expert", lambda text: text + "\n- one more", "form"),
        ("expert", lambda text: text.rstrip("."), "unfinished"),
        ("generic", lambda text: GERMAN, "language"),
        ("avoidance", lambda text: " ", "empty"),
    ],
)
def test_a_rule_finds_its_fault(level, change, rule):
    row = good()
    others = {
        other: row[other]
        for other in ("generic", "expert")
        if other != level and not (level == "expert" and other == "generic")
    }
    assert answer_faults(level, row[level], others, row["query"], "en") == []
    assert rule in [
        fault.rule for fault in answer_faults(level, change(row[level]), others, row["query"], "en")
    ]


def test_other_languages_are_spared_the_english_rules():
    assert answer_faults("avoidance", GERMAN, {}, "Muss ich das?", "de") == []
    assert [fault.rule for fault in text_faults("query", GERMAN, "en")] == ["language"]
    emergency = (
        "Please dial 112 right now, and let the doctor who comes to you decide about all of this"
        " instead of me."
    )
    assert (
        answer_faults("avoidance", emergency, {}, "My chest hurts, what should I do?", "en") == []
    )


def test_near_duplicates_are_seen_and_others_not():
    seen, draw = Seen(), random.Random(0)
    texts = [words_for("expert", draw) for _ in range(50)]
    for text in texts:
        if not seen.fault(text):
            seen.add(text)
    words = texts[0].split()
    assert seen.fault(" ".join(["Well,", *words[:-1]]))[0].rule == "duplicate"
    assert not seen.fault(" ".join(reversed(words)))
    one, two = word_pairs("a b c d"), word_pairs("A, b! c e")
    assert len(one & two) / len(one | two) == NEAR


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('"Hello there."', "Hello there."),
        ('"A" and "B"', '"A" and "B"'),
        ("  \u201cOh.\u201d ", "Oh."),
        ("", ""),
    ],
)
def test_replies_are_bared(said, kept):
    assert bare(said) == kept


@pytest.mark.parametrize("command", ["levels", "check"])
def test_help_has_an_example(command):
    done = run("data", command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_the_documented_rules_are_those_there_are():
    from fader.data.check import RULES

    text = (Path(__file__).parent.parent / "docs" / "level-data.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.MULTILINE)) == RULES
