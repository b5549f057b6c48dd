"""A short run of every benchmark: the rows have the form that is promised. Times are not judged
here."""

import importlib

import pytest

CASES = {
    "decode": ({"tokens": 2, "rounds": 1}, ["batch-1", "batch-8", "batch-16"]),
    "guide": ({"tokens": 2, "rounds": 1}, ["batch-1", "batch-8"]),
    "vectors": ({"tokens": 1, "rounds": 1}, ["against-none", "against-peft"]),
    "knob": ({"rounds": 2}, ["change"]),
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
def test_rows(name):
    settings, cases = CASES[name]
    rows = list(importlib.import_module(f"benchmarks.{name}").run(**settings))
    assert [row["case"] for row in rows] == cases
    for row in rows:
        assert {"name", "case", "ratio", "ours", "theirs", "unit", "n"} <= row.keys()
        assert row["name"] == name
        assert row["ratio"] > 0
        better = row["theirs"] / row["ours"] if row["unit"] == "ms" else row["ours"] / row["theirs"]
        assert row["ratio"] == pytest.approx(better, rel=0.05)
