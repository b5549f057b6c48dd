"""A short run of every benchmark: the rows have the form that is promised. Times are not judged
here."""

import importlib
import json
from functools import partial

import pytest
from typer.testing import CliRunner

from benchmarks import against, guide
from fader.cli import app

CASES = {
    "decode": ({"tokens": 2, "rounds": 1}, ["batch-1", "batch-8", "batch-16"]),
    "guide": ({"tokens": 2, "rounds": 1}, ["batch-1", "batch-8"]),
    "pad": (
        {"tokens": 2, "rounds": 1, "longest": 3},
        ["batch-1", "batch-8", "batch-32", "three", "against-released"],
    ),
    "vectors": ({"tokens": 1, "rounds": 1}, ["against-none", "against-peft"]),
    "knob": ({"rounds": 2}, ["change"]),
    "prompts": (
        {"rounds": 1, "requests": 3, "system": 80, "conversation": 80},
        ["same-system", "next-turn"],
    ),
    "shape": (
        {"rounds": 1, "tokens": 2, "long": 100, "answer": 8, "requests": 2},
        ["beside-long"],
    ),
    "serve": (
        {"requests": 10, "streams": 4, "tokens": 2, "turns": 1, "starts": 1},
        ["streams-32", "wrong", "admission", "idle", "ttft", "memory"],
    ),
    "deal": (
        {"count": 1, "tokens": 3, "rounds": 1},
        [
            "against-reference",
            "against-greedy",
            "against-reference-32",
            "against-greedy-32",
            "against-greedy-together",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
def test_rows(name):
    settings, cases = CASES[name]
    bench = importlib.import_module(f"benchmarks.{name}")
    assert list(bench.TARGETS) == cases
    rows = list(bench.run(**settings))
    assert [row["case"] for row in rows] == cases
    for row in rows:
        assert {"name", "case", "ratio", "ours", "theirs", "unit", "n", "low", "high"} <= row.keys()
        assert row["name"] == name
        assert row["target"] == bench.TARGETS[row["case"]]
        assert row["ratio"] > 0
        ours, theirs = row["ours"], row["theirs"]
        if row["unit"] == "answers":  # of those compared, the wrong ones
            better = 1 - ours / theirs
        else:
            better = theirs / ours if row["unit"] in ("ms", "MiB") else ours / theirs
        assert row["ratio"] == pytest.approx(better, rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_case_is_refused(name):
    bench = importlib.import_module(f"benchmarks.{name}")
    known = ", ".join(bench.TARGETS)
    with pytest.raises(ValueError, match=f"--case: no case 'other'; known: {known}"):
        next(bench.run(case="other"))


@pytest.mark.long
def test_the_command_line_runs_one_case_and_refuses_an_unknown_one(monkeypatch):
    monkeypatch.setattr(guide, "run", partial(guide.run, tokens=2, rounds=1))
    found = CliRunner().invoke(app, ["bench", "guide", "--case", "batch-8", "--json"])
    assert [json.loads(line)["case"] for line in found.stdout.splitlines()] == ["batch-8"]
    found = CliRunner().invoke(app, ["bench", "guide", "--case", "batch-9"])
    assert isinstance(found.exception, ValueError)
    assert "known: batch-1, batch-8" in str(found.exception)
    found = CliRunner().invoke(app, ["bench", "against"])
    assert "no benchmark 'against'" in str(found.exception)


TOY = """
import time
from benchmarks.interleave import compare

def side(seconds):
    time.sleep(seconds)
    return 1.0

def run():
    for case in ("short", "long"):
        yield compare("toy", case, lambda: side({seconds}), lambda: 1 / 0, None)
"""


@pytest.mark.long
def test_two_checkouts_side_by_side(tmp_path, monkeypatch):
    for name, seconds in (("here", 0.05), ("there", 0.1)):
        folder = tmp_path / name / "benchmarks"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "interleave.py").write_text("compare = None")
        (folder / "toy.py").write_text(TOY.format(seconds=seconds))
    monkeypatch.chdir(tmp_path / "here")
    rows = list(against.run(tmp_path / "there", "toy", None, 3))
    assert [row["case"] for row in rows] == ["short", "long"]
    assert all(1.5 < row["ratio"] < 2.5 for row in rows)
    rows = list(against.run(tmp_path / "there", "toy", "long", 1))
    assert [row["case"] for row in rows] == ["long"]
    with pytest.raises(OSError, match="ended with status 1"):
        list(against.run(tmp_path / "there", "missing", None, 1))
