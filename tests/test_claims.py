"""The claims' scripts, in short: the part on public data, on a small folder made here and a tiny model."""

import gzip
import json

import pytest
from conftest import random_vectors

from claims.search import PARTS as SEARCHES
from claims.search import Bench, bound
from claims.vectors import PARTS, public_pairs
from fader import Vector
from fader.evaluation.ledger import Ledger
from fader.evaluation.tasks import TASKS

WORDS = " ".join(["word"] * 40)


def make_folder(root):
    for name in ("medquad", "fintextqa", "cochrane_plain"):
        (root / name).mkdir()
    rows = [{"question": f"q{i}", "answer": f"{WORDS} {i}"} for i in range(3)] + [{"question": "short", "answer": "too short"}]
    with gzip.open(root / "medquad" / "qa.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    (root / "fintextqa" / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with gzip.open(root / "cochrane_plain" / "val.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"technical": f"{WORDS} t", "plain": f"{WORDS} p"}))
    return root


def test_public_pairs_are_read_where_they_are(tmp_path):
    found = {name: (domain, pairs) for domain, name, pairs in public_pairs(make_folder(tmp_path))}
    assert set(found) == {"medquad against refusals", "fintextqa against refusals", "cochrane technical against plain"}
    domain, pairs = found["medquad against refusals"]
    assert domain == "medical"
    assert sorted(query for query, _, _ in pairs) == ["q0", "q1", "q2"]
    assert found["cochrane technical against plain"][1] == [("What did this review find?", f"{WORDS} t", f"{WORDS} p")]


def test_public_data_gives_figures(lab, tmp_path, monkeypatch, capsys):
    assert not list(PARTS["public"](lab))
    assert "FADER_DATA names no folder" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FADER_DATA", str(make_folder(tmp_path / "data")))
    figures = list(PARTS["public"](lab))
    assert len(figures) == 3 * 5
    assert {figure.metric for figure in figures} == {"expert_preferred"}
    assert {figure.n for figure in figures} == {3, 1}


def test_every_task_of_the_evaluation_is_part_of_the_claims(lab):
    figures = [figure.task for figure in PARTS["curve"](lab)]
    assert set(figures) == {"curve"}
    assert {"levels", "curve", "prompting", "generation"} <= TASKS.keys() & PARTS.keys()


@pytest.fixture
def bench(fader, tmp_path):
    for name, folder in random_vectors(fader, tmp_path / "aims", ["harmless", "helpful"]).items():
        fader.add_vector(Vector.load(folder, name))
    return Bench(Ledger(fader, tmp_path / "ledger.jsonl", quiet=True), limit=1)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_part_on_searches_gives_figures(bench, name, monkeypatch):
    monkeypatch.delenv("FADER_DATA", raising=False)
    monkeypatch.setattr("claims.search.LOOKAHEADS", {"lookahead": {"kind": "lookahead", "top_k": 2, "lookahead": 2, "weight": 10}})
    monkeypatch.setattr("claims.search.toward", lambda harmless, helpful: {"vectors": {"harmless": harmless, "helpful": helpful}})
    monkeypatch.setattr("claims.search.bound", lambda bench: iter(()))
    figures = list(SEARCHES[name](bench))
    assert {figure.task for figure in figures} == {name}
    assert {figure.n for figure in figures} == {1}
    assert len({(figure.method, figure.case, figure.metric) for figure in figures}) == len(figures)


def test_the_weight_for_a_bound_is_found(bench):
    figures = {figure.method: figure.value for figure in bound(bench, samples=3)}
    assert figures["predicted on the same samples"] >= figures["stated"] - 1e-3
    assert figures["found from base samples"] > 0
