"""The scripts that measure the papers' claims, every part of them, on a tiny model: with one or a
few items of each kind, and public data on a small folder made here."""

import gzip
import json
from dataclasses import replace

import pytest
from conftest import random_vectors, trains

from fader import Vector
from fader.cli.evaluate import PERSONAL, TIERS
from fader.evaluation.cache import ResultCache
from fader.evaluation.metrics import exactly
from fader.evaluation.suite import Suite
from fader.evaluation.tasks import TASKS
from fader.starter.shipped import DOMAINS
from reproductions import pad
from reproductions.search import LOOKAHEADS, _rewards, bound, implicit
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


@pytest.mark.long
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
    "plain": {"plain"},
    "public": {"public"},
}


def test_every_task_of_the_evaluation_is_part_of_the_reproductions():
    assert TASKS_OF.keys() == PARTS.keys()
    own = {"pairs", "judges"}  # of one's own data, and run by `fader eval` itself
    alone = {*own, *PERSONAL, *TIERS}
    assert TASKS.keys() - alone <= set().union(*TASKS_OF.values())


@pytest.mark.parametrize("name", ["levels", "curve", "prompting", "generation", "general"])
@pytest.mark.long
def test_parts_that_ask_give_figures(suite, name, capsys):
    figures = list(PARTS[name](suite))
    assert {figure.task for figure in figures} == TASKS_OF[name]
    assert len(figures) == len(
        {(figure.task, figure.method, figure.case, figure.metric) for figure in figures}
    )
    assert all(figure.low <= figure.value <= figure.high for figure in figures)
    assert not capsys.readouterr().out  # where the figures are printed


@trains
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


@trains
def test_the_plain_recipe_stands_beside_the_shipped_vectors(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("reproductions.vectors.RUNS", tmp_path / "runs")
    monkeypatch.setattr("reproductions.vectors.GRID", (-1.0, 0.0, 1.0))
    fader = suite.cache.fader
    for domain in DOMAINS:
        card = {"seconds": 40.0, "lessons": 8, "trained_with": list(DOMAINS)}
        fader.add_vector(replace(fader.vector(domain), card=card))
    there = 2 * fader.vector("legal")  # one that is there already is taken as it is
    there = replace(there, card={"seconds": 7.0, "lessons": 5, "trained_with": ["legal-plain"]})
    there.named("legal-plain").save(tmp_path / "runs" / "plain" / "legal-plain")
    figures = {(m.method, m.case, m.metric): m for m in PARTS["plain"](suite)}
    sides = {
        method: {(case, metric) for side, case, metric in figures if side == method}
        for method in ("plain DPO", "line-trained")
    }
    for side in sides.values():
        assert {("medical", "best_expert"), ("all", "combinations_reached")} <= side
        assert {("medical -1.5", "first_expert"), ("legal expert on other", "moved")} <= side
        assert len([case for case, metric in side if metric == "worst_case_accuracy"]) == 27
    trained = Vector.load(tmp_path / "runs" / "plain" / "medical-plain")
    assert trained.card["recipe"]["loss"] == "dpo"
    assert trained.card["lessons"] == 3
    assert figures["plain DPO", "all", "training_lessons"].value == 3 + 5 + 3
    assert figures["line-trained", "all", "training_lessons"].value == 8  # one run for all three
    assert figures["line-trained", "all", "training_seconds"].value == 40


@trains
def test_the_forms_of_the_personalised_model_stand_beside_each_other(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("reproductions.pad.RUNS", tmp_path / "runs")
    families = [
        replace(
            family,
            pairs=tuple(
                replace(pair, split=pair.split.replace("test", "dev")) for pair in family.pairs
            ),
        )
        for family in suite.families
    ]
    suite = replace(suite, families=families)
    assert {"stage-1", "plain", "map", "weights", "per-token"} <= pad.PARTS.keys()
    for form in ("weights", "map", "stage-1"):
        found = {(one.case, one.metric): one for one in pad.PARTS[form](suite)}
        assert found["all", "training_lessons"].value > 0
        assert 0 <= found["seen", "accuracy"].value <= 1
        assert (("seen", "over_stage_1") in found) == (form != "stage-1")
        assert (("seen", "raw") in found) == (form != "weights")
        again = {(one.case, one.metric): one for one in pad.PARTS[form](suite)}
        assert again == found  # what was trained is found again
    assert sorted(place.name for place in (tmp_path / "runs").iterdir()) == [
        *(".stage-1-first", "map", "stage-1", "weights")
    ]
    assert Vector.load(tmp_path / "runs" / "map").card["started_from"][0]["lessons"] > 0


def test_figures_are_readable_on_a_terminal():
    from reproductions.runner import _line

    (figure,) = [exactly("pad", "map", "seen", "accuracy", 0.5)]
    assert _line(figure) == "pad map seen accuracy: 0.500 (0.500 to 0.500, n = 1)"


@pytest.fixture
def search_suite(fader, tmp_path):
    for name, folder in random_vectors(fader, tmp_path / "aims", ["harmless", "helpful"]).items():
        fader.add_vector(Vector.load(folder, name))
    return Suite(ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True), limit=1)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.long
def test_every_part_on_searches_gives_figures(search_suite, name, monkeypatch):
    """With the searches as they are, but for fewer candidates a step where words are looked for:
    each look-ahead, to the end, with proposals, after words, lengths and implicit rewards."""
    monkeypatch.delenv("FADER_DATA", raising=False)
    fewer = {method: {**settings, "top_k": 2} for method, settings in LOOKAHEADS.items()}
    monkeypatch.setattr("reproductions.search.LOOKAHEADS", fewer)
    figures = list(SEARCHES[name](search_suite))
    assert {figure.task for figure in figures} - {"bound"} == {name} - {"bound"}
    assert any(figure.method == "judge" for figure in figures) == (name in ("tradeoff", "attack"))
    paired = {"commongen": "hard_over_prompt", "length": "satisfied_over_base"}
    paired |= {"tradeoff": "harmless_over_base", "attack": "harmless_over_none"}
    assert name not in paired or paired[name] in {figure.metric for figure in figures}
    assert len({(figure.method, figure.case, figure.metric) for figure in figures}) == len(figures)
    if name == "commongen":
        rows = {figure.method: figure.value for figure in figures if figure.metric == "rows"}
        assert all(rows[method] > rows["prompt"] for method in LOOKAHEADS)


@trains
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


@pytest.mark.long
def test_the_weight_for_a_bound_is_found_and_searched_with(search_suite):
    found = {
        (figure.method, figure.case, figure.metric): figure
        for figure in bound(replace(search_suite, limit=2), samples=3)
    }
    target = found["stated", "harmless reward", "bound"].value
    same = found["predicted on the same samples", "harmless reward", "mean"]
    assert same.value >= target - 1e-3
    assert same.n == 2
    assert found["found from base samples", "harmless", "weight"].value > 0
    for method in ("lookahead at the weight found", "best of 3 at the weight found"):
        mean = found[method, "harmless reward", "mean"].value
        assert found[method, "harmless reward", "over_bound"].value == pytest.approx(
            mean - target, abs=1e-3
        )
    weighted = found["best of 3 at the weight found", "harmless reward", "mean"].value
    assert weighted > 0


def test_a_searched_answer_is_worth_what_the_search_says(search_suite):
    search = {"kind": "best-of-n", "n": 1, "rewards": [implicit("harmless", 1.0)]}
    asked = [
        {
            "prompt": "the sea is wide",
            "sampling": {"max_tokens": 2, "temperature": 1.0, "seed": seed},
            "alignment": {"search": search},
        }
        for seed in range(24)
    ]
    said = search_suite.wrote("t", "m", asked)
    texts = [one.text for one in said]
    rewards = _rewards(search_suite, "harmless", ["the sea is wide"] * len(said), texts)
    fader = search_suite.cache.fader
    same = [  # the text says which tokens were drawn, and no end token was
        place
        for place, one in enumerate(said)
        if one.finish == "length"
        and len(fader.score("the sea is wide", one.text).tokens) == 2
        and one.text.isascii()
    ]
    assert len(same) > 2
    for place in same:
        assert rewards[place] == pytest.approx(said[place].reward, abs=1e-3)
