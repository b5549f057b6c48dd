"""The scripts that measure the papers' claims, every part of them, on a tiny model: with one or a
few items of each kind, and public data on a small folder made here."""

import gzip
import json
from dataclasses import replace

import pytest
from conftest import random_vectors, warnings_of_the_trainer

from fader import Vector
from fader.evaluation.cache import ResultCache
from fader.evaluation.suite import Suite
from fader.evaluation.tasks import TASKS
from fader.starter.shipped import DOMAINS
from reproductions.search import LOOKAHEADS, bound
from reproductions.search import PARTS as SEARCHES
from reproductions.vectors import PARTS, public_pairs

WORDS = " ".join(["word"] * 40)


def make_folder(root):
    for name in ("medquad", "fintextqa", "cochrane_plain"):
        (root / name).mkdir()
    rows = [{"question": f"q{i}", "answer": f"{WORDS} {i}"} for i in range(3)] + [
        {"question": "short", "answer": "too short"}
    ]
    with gzip.open(root / "medquad" / "qa.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    (root / "fintextqa" / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with gzip.open(root / "cochrane_plain" / "val.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"technical": f"{WORDS} t", "plain": f"{WORDS} p"}))
    return root


def test_public_pairs_are_read_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("FADER_DATA", str(make_folder(tmp_path)))
    found = {name: (domain, pairs) for domain, name, pairs in public_pairs()}
    assert set(found) == {
        "medquad against refusals",
        "fintextqa against refusals",
        "cochrane technical against plain",
    }
    domain, pairs = found["medquad against refusals"]
    assert domain == "medical"
    assert sorted(query for query, _, _ in pairs) == ["q0", "q1", "q2"]
    assert found["cochrane technical against plain"][1] == [
        ("What did this review find?", f"{WORDS} t", f"{WORDS} p")
    ]


def test_public_data_gives_figures(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FADER_DATA", raising=False)
    assert not list(PARTS["public"](suite))
    assert "medquad/qa.jsonl.gz: not in the folder that FADER_DATA names" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FADER_DATA", str(make_folder(tmp_path / "data")))
    figures = list(PARTS["public"](suite))
    assert len(figures) == 3 * 5
    assert {figure.metric for figure in figures} == {"expert_preferred"}
    assert {figure.n for figure in figures} == {3, 1}


TASKS_OF = {
    "levels": {"levels"},
    "curve": {"curve"},
    "prompting": {"prompting"},
    "generation": {"generation"},
    "joint": {"joint"},
    "transfer": {"transfer"},
    "spillover": {"spillover"},
    "general": {"fluency", "ability", "styles"},
    "public": {"public"},
}


def test_every_task_of_the_evaluation_is_part_of_the_reproductions():
    assert TASKS_OF.keys() == PARTS.keys()
    assert TASKS.keys() - {"pairs"} <= set().union(*TASKS_OF.values())  # pairs are one's own


@pytest.mark.parametrize("name", ["levels", "curve", "prompting", "generation", "general"])
def test_parts_that_ask_give_figures(suite, name, capsys):
    figures = list(PARTS[name](suite))
    assert {figure.task for figure in figures} == TASKS_OF[name]
    assert len(figures) == len(
        {(figure.task, figure.method, figure.case, figure.metric) for figure in figures}
    )
    assert all(figure.low <= figure.value <= figure.high for figure in figures)
    assert not capsys.readouterr().out  # where the figures are printed


@warnings_of_the_trainer
@pytest.mark.parametrize("name", ["joint", "transfer", "spillover"])
def test_parts_that_train_give_figures(suite, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reproductions.vectors.RUNS", tmp_path / "runs")
    for domain in (
        DOMAINS
    ):  # the tiny model's vectors were not trained; their cards say nothing of how long that took
        suite.cache.fader.add_vector(
            replace(
                suite.cache.fader.vector(domain),
                card={
                    "seconds": 40.0,
                    "lessons": 8,
                    "started_from": [{"seconds": 20.0, "lessons": 2}],
                },
            )
        )
    first = list(PARTS[name](suite))
    assert {figure.task for figure in first} == TASKS_OF[name]
    assert len({(figure.method, figure.case, figure.metric) for figure in first}) == len(first) > 5
    assert not capsys.readouterr().out  # where the figures are printed
    assert [figure.value for figure in PARTS[name](suite)] == [
        figure.value for figure in first
    ]  # what was trained is found again
    if name == "joint":
        times = {
            figure.method: figure.value for figure in first if figure.metric == "training_seconds"
        }
        assert times["vectors"] == 40 + 20
        assert times["joint training"] == pytest.approx(
            27 * Vector.load(tmp_path / "runs" / "joint").card["seconds"]
        )


@pytest.fixture
def search_suite(fader, tmp_path):
    for name, folder in random_vectors(fader, tmp_path / "aims", ["harmless", "helpful"]).items():
        fader.add_vector(Vector.load(folder, name))
    return Suite(ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True), limit=1)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_part_on_searches_gives_figures(search_suite, name, monkeypatch):
    """With the searches as they are, but for fewer candidates a step where words are looked for:
    each look-ahead, to the end, with proposals, after words, lengths and implicit rewards."""
    monkeypatch.delenv("FADER_DATA", raising=False)
    fewer = {method: {**settings, "top_k": 2} for method, settings in LOOKAHEADS.items()}
    monkeypatch.setattr("reproductions.search.LOOKAHEADS", fewer)
    figures = list(SEARCHES[name](search_suite))
    assert {figure.task for figure in figures} - {"bound"} == {name}
    assert len({(figure.method, figure.case, figure.metric) for figure in figures}) == len(figures)
    if name == "commongen":
        rows = {figure.method: figure.value for figure in figures if figure.metric == "rows"}
        assert all(rows[method] > rows["prompt"] for method in LOOKAHEADS)


@warnings_of_the_trainer
def test_public_preferences_train_vectors_of_their_own(search_suite, tmp_path, monkeypatch):
    monkeypatch.setattr("reproductions.search.RUNS", tmp_path / "runs")
    monkeypatch.setenv("FADER_DATA", str(tmp_path / "data"))
    transcripts = [
        {side: f"\n\nHuman: q{i}\n\nAssistant: {side} {i}" for side in ("chosen", "rejected")}
        for i in range(120)
    ]
    votes = [
        {"prompt": f"p{i // 10}", "response1": "one", "response2": "two", "votes": [2, 2, 1]}
        for i in range(120)
    ]
    for name, file, rows in (
        ("hh_harmless", "pairs.jsonl.gz", transcripts),
        ("pandalm", "pairs.jsonl", votes),
    ):
        (tmp_path / "data" / name).mkdir(parents=True)
        opener = gzip.open if file.endswith(".gz") else open
        with opener(tmp_path / "data" / name / file, "wt") as stream:
            stream.write("\n".join(map(json.dumps, rows)))
    found = {(figure.method, figure.case) for figure in SEARCHES["preferences"](search_suite)}
    public = {
        case for case in ("hh_harmless", "pandalm") if (f"implicit reward of {case}", case) in found
    }
    assert public == {"hh_harmless", "pandalm"}
    assert Vector.load(tmp_path / "runs" / "pandalm").card["lessons"] == search_suite.limit


def test_the_weight_for_a_bound_is_found(search_suite):
    figures = {figure.method: figure.value for figure in bound(search_suite, samples=3)}
    assert figures["predicted on the same samples"] >= figures["stated"] - 1e-3
    assert figures["found from base samples"] > 0
