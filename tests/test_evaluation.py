"""Figures, the ledger, the search for strengths and every task, on a tiny model with random
vectors; the judge on the shipped answers."""

import json
import math
import shutil
import threading
from dataclasses import asdict, replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import TEMPLATE, Speaking, level_items, random_vectors
from test_cli import rows, run

from fader import Fader, Vector, load
from fader.cli.evaluate import PERSONAL, TIERS
from fader.data.features import distinct
from fader.data.records import LEVELS
from fader.endpoint import Endpoint
from fader.engine.backbone import quick_dtype
from fader.evaluation.cache import Query, ResultCache
from fader.evaluation.effect import STRENGTHS, note_effect
from fader.evaluation.judge import (
    Labelled,
    aim_accuracy,
    classifier,
    judge_accuracy,
    language_model,
    level_namings,
    verdict,
)
from fader.evaluation.metrics import (
    average,
    beside_first,
    exactly,
    how_many,
    paired_difference,
    perplexity,
    share,
    wilson,
    worst_case,
)
from fader.evaluation.report import write_report
from fader.evaluation.suite import Suite, Trial, mixed, named
from fader.evaluation.tasks import TASKS
from fader.evaluation.tune import (
    COARSE,
    NEARLY,
    alone,
    consequences,
    grid_search,
    soft_accuracy,
    strengths,
    top1,
    tune,
)
from fader.request import Request
from fader.starter.shipped import DOMAINS, starter_levels, starter_pairs, starter_rows
from fader.vectors.store import find
from recipes import starter


def test_average_and_its_interval():
    values = [0.5, 2, 1, 4, 3, 1, 2.5, 1]
    figure = average("t", "m", "c", "x", values, seed=3)
    assert (figure.value, figure.n, figure.seed) == (1.875, 8, 3)
    assert 1 < figure.low < 1.4 < 1.875 < 2.3 < figure.high < 3
    assert figure == average("t", "m", "c", "x", values, seed=3)
    with pytest.raises(ValueError, match="no items"):
        average("t", "m", "c", "x", [])
    with pytest.raises(ValueError, match="no items"):
        share("t", "m", "c", "x", [])


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (1, 1, 0.207, 1),
        (18, 18, 0.824, 1),
        (30, 30, 0.886, 1),
        (0, 30, 0, 0.114),
        (6, 8, 0.409, 0.929),
    ],
)
def test_the_interval_of_a_share_says_what_n_allows(count, n, low, high):
    figure = average("t", "m", "c", "x", [1.0] * count + [0.0] * (n - count))
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=1e-3)
    assert figure == share("t", "m", "c", "x", [True] * count + [False] * (n - count))


def test_items_of_one_prompt_are_drawn_together():
    values, prompts = [1.0] * 20 + [0.0] * 20, [place // 10 for place in range(40)]
    apart = average("t", "m", "c", "x", values)
    together = average("t", "m", "c", "x", values, prompts=prompts)  # four witnesses, not forty
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert together.n == 40
    assert average("t", "m", "c", "x", values, prompts=range(40)) == apart
    agreed = average("t", "m", "c", "x", [1.0] * 40, prompts=prompts)
    assert agreed.low == pytest.approx(wilson(4, 4)[0], abs=1e-4)
    longer = [1.5 * value for value in values]
    assert (
        average("t", "m", "c", "x", longer, prompts=prompts).low
        < average("t", "m", "c", "x", longer).low
    )


def test_methods_on_the_same_items_are_compared_item_by_item():
    base = [1.0, 0.0] * 20
    better = [1.0, 0.0] * 14 + [1.0, 1.0] * 6  # six more, none less
    figure = paired_difference("t", "m", "c", "x", better, base)
    assert figure.value == 0.15
    assert 0 < figure.low < 0.15 < figure.high
    apart = average("t", "m", "c", "x", better).low - average("t", "m", "c", "x", base).high
    assert apart < 0  # the two intervals overlap all the same
    assert paired_difference("t", "m", "c", "x", base, base).low < 0 < 0.1
    assert paired_difference("t", "m", "c", "x", [1.0], [0.0]).low < 0  # one item shows nothing
    clustered = paired_difference(
        "t", "m", "c", "x", better, base, prompts=[place // 10 for place in range(40)]
    )
    assert clustered.low < figure.low
    longer = paired_difference("t", "m", "c", "x", [3.0, 4.5, 7.0], [1.0, 3.0, 4.0])
    assert (longer.value, longer.low, longer.high) == (2.1667, 1.5, 3.0)
    with pytest.raises(ValueError, match=r"the same items twice \(got 2 and 1\)"):
        paired_difference("t", "m", "c", "x", [1.0, 2.0], [1.0])


def test_methods_stand_beside_the_one_that_came_first():
    first = {}
    rows = [
        row
        for method, values in (("base", [0.0, 1.0]), ("search", [1.0, 1.0]), ("vector", [0.0, 0.0]))
        for row in beside_first("t", method, "c", "hard", values, first)
    ]
    assert [(row.method, row.metric, row.value) for row in rows] == [
        ("base", "hard", 0.5),
        ("search", "hard", 1.0),
        ("search", "hard_over_base", 0.5),
        ("vector", "hard", 0.0),
        ("vector", "hard_over_base", -0.5),
    ]
    assert rows[2] == paired_difference("t", "search", "c", "hard_over_base", [1, 1], [0, 1])


def test_pairs_of_one_prompt_are_no_more_than_one_witness(suite):
    once = [pair for pair in suite.pairs if pair.split == "test"]
    many = replace(suite, pairs=[pair for pair in once for _ in range(4)], limit=None)
    single = list(TASKS["pairs"](replace(suite, pairs=once, limit=None)))
    for one, four in zip(single, TASKS["pairs"](many), strict=True):
        assert four.n == 4 * one.n
        if one.metric == "margin":
            assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=1e-3)


def test_a_count_of_combinations_is_resampled_by_question():
    right, half = [1.0] * 30, [1.0] * 25 + [0.0] * 5
    sure = how_many("t", "m", "c", "x", [[right, right]] * 9, 0.8)
    assert (sure.value, sure.low, sure.high, sure.n) == (9, 9, 9, 9)
    unsure = how_many("t", "m", "c", "x", [[right, half]] * 9, 0.8)
    assert (unsure.value, unsure.low, unsure.high) == (9, 0, 9)  # the same questions: all or none
    few = how_many("t", "m", "c", "x", [[[1.0] * 3, [1.0] * 3]] * 9, 0.8)
    assert few.low == 0  # three questions that agree show little
    assert how_many("t", "m", "c", "x", [[[1.0] * 4 + [0.0]]], 0.8).value == 1  # .80 is reached


def test_perplexity_is_that_of_all_tokens():
    figure = perplexity("t", "m", "c", [-1.0, -3.0], [30, 10])
    assert figure.value == pytest.approx(math.exp(1.5), abs=1e-4)
    assert math.e - 1e-4 <= figure.low <= figure.value <= figure.high <= math.exp(3) + 1e-3


def test_distinct():
    assert distinct("a b c d") == 1
    assert distinct("a b a b a b") == pytest.approx(2 / 5)
    assert distinct("word") == 1


def test_the_ledger_asks_once(fader, tmp_path, monkeypatch):
    file = tmp_path / "ledger.jsonl"
    wanted = [
        Query(
            "t",
            "m",
            "c",
            "0",
            Request.of("the sea", alignment={"vectors": {"medical": 0.5}}),
            " wide",
        ),
        Query("t", "m", "c", "1", Request.of("the sea"), " wide"),
        Query("t", "m", "c", "2", Request.of("the sea", max_tokens=4)),
    ]
    first = ResultCache(fader, file, quiet=True).ask(wanted)
    assert first[0].mean == pytest.approx(
        fader.score("the sea", " wide", alignment={"vectors": {"medical": 0.5}}).mean, abs=1e-4
    )
    assert first[2].text == fader.generate("the sea", max_tokens=4).text
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["item"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["request"]["alignment"] == {"vectors": {"medical": 0.5}}
    with file.open("a") as stream:
        stream.write('{"key": "unfinis')  # as a killed process leaves it
    asked = []
    monkeypatch.setattr(fader, "score_batch", lambda pairs: asked.extend(pairs) or [])
    assert ResultCache(fader, file, quiet=True).ask(wanted) == first
    assert not asked
    assert file.read_text().endswith("\n")


def test_a_line_that_another_process_left_unfinished_spoils_no_other(fader, tmp_path):
    wanted = [Query("t", "m", "c", "0", Request.of("the sea"), text) for text in (" wide", " mat")]
    running = ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True)
    running.ask(wanted[:1])
    with running.file.open("a") as stream:
        stream.write('{"task": "' + "x" * 100_000)
    found = running.ask(wanted)
    assert ResultCache(fader, running.file, quiet=True).ask(wanted) == found
    assert len(running.file.read_text().splitlines()) == 2


def test_the_ledger_knows_a_model_by_its_template(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    wanted = [Query("t", "m", "c", "0", Request.of("the sea"), " wide")]
    for template in (TEMPLATE, TEMPLATE, TEMPLATE.replace("<|end|>", "")):
        (folder / "chat_template.jinja").write_text(template)
        with Fader(load(str(folder))) as fader:
            ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True).ask(wanted)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_the_ledger_knows_a_vector_by_its_numbers(fader, tmp_path):
    wanted = [
        Query(
            "t",
            "m",
            "c",
            "0",
            Request.of("the sea", alignment={"vectors": {"medical": 1.0}}),
            " wide",
        )
    ]
    cache = ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True)
    before = cache.ask(wanted)
    fader.add_vector(-2 * fader.vector("medical"), "medical")
    assert cache.ask(wanted) != before


def test_a_foreign_file_is_no_ledger(fader, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl:1: not a line of an evaluation's cache"):
        ResultCache(fader, tmp_path / "other.jsonl")


def test_ranked_is_the_likelihood_per_token_under_each_mixture(suite, fader):
    items = level_items()[:2]
    moved = {"medical": -0.7, "legal": 1.2}
    found = suite.ranked(
        "t", [Trial("base", "x", items, mixed({})), Trial(named(moved), "x", items, mixed(moved))]
    )
    for means, mixture in zip(found, ({}, moved), strict=True):
        for row, item in zip(means, items, strict=True):
            one_by_one = [
                fader.score(item.query, item.answers[level], alignment={"vectors": mixture}).mean
                for level in LEVELS
            ]
            assert row.tolist() == pytest.approx(one_by_one, abs=1e-4)


def test_tune_finds_the_clearest_amount(suite):
    for level in LEVELS:
        found = tune(suite, {"medical": level})
        at = {}
        for strength in (*COARSE, found.strengths["medical"]):
            at[strength] = soft_accuracy(
                suite.ranked(
                    "t",
                    [
                        Trial(
                            "x",
                            "medical",
                            suite.items("medical", "dev"),
                            mixed({"medical": strength}),
                        )
                    ],
                )[0],
                level,
            )
        assert at[found.strengths["medical"]] >= max(at.values()) - NEARLY - 1e-3
        clear = [strength for strength in COARSE if at[strength] >= max(at.values()) - NEARLY]
        assert (
            min(clear, default=-9) - 0.1
            <= found.strengths["medical"]
            <= max(clear, default=9) + 0.1
        )
    with pytest.raises(ValueError, match="tax: no vector moves this domain"):
        tune(suite, {"tax": "expert"})


@pytest.mark.long
def test_a_card_notes_what_the_amounts_do(suite, fader, tmp_path, tiny_folder):
    items = suite.items("medical", "dev")
    noted = note_effect(fader.vector("medical"), tmp_path / "noted", items, str(tiny_folder))
    assert Vector.load(tmp_path / "noted").card["effect"] == noted.card["effect"]
    with Fader(str(tiny_folder), dtype=quick_dtype()) as quick:
        quick.add_vector(fader.vector("medical"))
        picked = alone(
            Suite(ResultCache(quick, quiet=True), suite.levels, {"medical": "medical"}, limit=3),
            "t",
        )
    assert noted.card["effect"]["levels"] == {level: picked["medical", level] for level in LEVELS}
    fader.add_vector(
        replace(
            noted, card={"effect": {**noted.card["effect"], "levels": dict.fromkeys(LEVELS, 9.0)}}
        ),
        "medical",
    )
    assert strengths(replace(suite, vectors={"medical": "medical"}), "t") == {
        ("medical", level): 9.0 for level in LEVELS
    }  # what the card notes
    other = replace(suite, vectors={"medical": "medical"}, levels={"medical": level_items()[:2]})
    assert strengths(other, "t")["medical", "expert"] != 9.0  # noted on other questions
    fader.add_vector(-fader.vector("medical"), "turned")
    turned = strengths(replace(suite, vectors={"medical": "turned"}), "t")
    assert turned["medical", "expert"] != 9.0  # noted of other numbers
    seen = note_effect(
        fader.vector("medical"), tmp_path / "seen", items, str(tiny_folder), seen=True
    )
    fader.add_vector(
        replace(
            seen, card={"effect": {**seen.card["effect"], "levels": dict.fromkeys(LEVELS, 9.0)}}
        ),
        "medical",
    )
    assert (
        strengths(replace(suite, vectors={"medical": "medical"}), "t")["medical", "expert"] != 9.0
    )  # noted on what it was trained on
    pairs = starter_pairs("warm")[:2]
    noted = note_effect(fader.vector("warm"), tmp_path / "style", pairs, str(tiny_folder))
    assert [row["strength"] for row in noted.card["effect"]["strengths"]] == list(STRENGTHS)


def test_a_grid_search_takes_the_point_whose_worst_domain_is_best(suite):
    axis = (-1.0, 0.5)
    wanted = [
        {"medical": "expert", "legal": "avoidance"},
        {"medical": "generic", "legal": "generic"},
    ]
    of_two = replace(suite, vectors={domain: domain for domain in ("medical", "legal")})
    for choice, found in zip(wanted, grid_search(of_two, "t", wanted, axis), strict=True):
        worth = {}
        for one in axis:
            for two in axis:
                mixture = {"medical": one, "legal": two}
                means = suite.ranked(
                    "t", [Trial("x", d, suite.items(d, "dev"), mixed(mixture)) for d in choice]
                )
                worth[one, two] = (
                    min(
                        sum(top1(m, choice[d])) / len(m) for d, m in zip(choice, means, strict=True)
                    ),
                    min(soft_accuracy(m, choice[d]) for d, m in zip(choice, means, strict=True)),
                )
        assert worth[found["medical"], found["legal"]] == max(worth.values())


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_cards_of_the_domains_say_that_figures_are_invented(domain):
    assert find(domain).card["caution"] == starter.CAUTION


@pytest.mark.long
def test_tune_reports_what_else_moves(suite):
    wanted = {"medical": "expert", "legal": "avoidance"}
    found = tune(suite, wanted)
    assert found.strengths.keys() == wanted.keys()
    figures = [(figure.case, figure.metric) for figure in consequences(suite, found, wanted)]
    assert figures[:2] == [("medical", "reached_expert"), ("legal", "reached_avoidance")]
    assert {("financial", "moved"), ("other", "drift"), ("neutral", "perplexity_ratio")} <= set(
        figures
    )


@pytest.mark.long
def test_levels_gives_what_it_promises(suite):
    figures = list(TASKS["levels"](suite))
    best = {(f.method, f.case, f.metric): f for f in figures}
    for domain in DOMAINS:
        for level in LEVELS:
            strength = best["vectors", domain, f"lambda_{level}"].value
            means = suite.ranked(
                "t", [Trial("x", domain, suite.items(domain, "test"), mixed({domain: strength}))]
            )[0]
            assert best["vectors", domain, f"best_{level}"].value == pytest.approx(
                sum(top1(means, level)) / len(means), abs=1e-3
            )
    combinations = [figure for figure in figures if figure.metric == "worst_case_accuracy"]
    assert len(combinations) == len({figure.case for figure in combinations}) == 27
    reached = [figure for figure in figures if figure.metric == "combinations_reached"]
    assert len(reached) == 1
    assert reached[0].value == sum(figure.value >= 0.8 for figure in combinations)
    assert reached[0].n == 27


@pytest.mark.parametrize(
    "task",
    [name for name in TASKS if name not in ("levels", "generation", "judges", *PERSONAL, *TIERS)],
)
@pytest.mark.long
def test_every_task_yields_figures(suite, task):
    figures = list(TASKS[task](suite))
    assert figures
    for figure in figures:
        assert figure.task == task
        assert figure.low <= figure.value + 1e-6
        assert figure.value <= figure.high + 1e-6
        json.dumps(asdict(figure), allow_nan=False)


@pytest.mark.long
def test_generation_is_judged_and_counted(suite):
    figures = list(TASKS["generation"](suite))
    judged = {figure.metric for figure in figures if figure.method == "judge"}
    assert judged == {
        "accuracy",
        *(f"accuracy_{level}" for level in LEVELS),
        "length_only",
        "has_figure",
    }
    methods = {figure.method for figure in figures if figure.metric == "generated_expert"}
    assert methods == {"vectors", "base", "zero-shot", "few-shot"}
    cost = {
        (figure.method, figure.metric): figure.value
        for figure in figures
        if figure.case == "medical expert"
    }
    assert (
        cost["vectors", "prompt_tokens"]
        < cost["zero-shot", "prompt_tokens"]
        < cost["few-shot", "prompt_tokens"]
    )


def test_styles_are_monotone_when_the_margin_grows(suite):
    figures = list(TASKS["styles"](suite))
    margins = [figure.value for figure in figures if figure.metric == "margin"]
    assert len(margins) == 5
    assert figures[-1].value == float(margins == sorted(margins))
    pairs = [pair for pair in starter_pairs("warm") if pair.split == "test"][:3]
    both = suite.preferred("t", "warm=1", "warm", pairs, {"vectors": {"warm": 1.0}})
    assert margins[-1] == pytest.approx(float((both[:, 0] - both[:, 1]).mean()), abs=1e-3)


@pytest.mark.long
def test_the_report_shows_every_figure(suite, tmp_path):
    figures = [
        figure
        for task in ("levels", "curve", "spillover", "generation")
        for figure in TASKS[task](suite)
    ]
    write_report(figures, tmp_path / "deep" / "report.html")
    page = (tmp_path / "deep" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert page.count("<tr>") == len(figures) + 4
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["report.html"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_judge_knows_answers_on_subjects_it_was_not_trained_on(domain):
    judge = classifier()
    items = starter_levels(domain)
    right = [
        judge([item.query for item in items], [item.answers[level] for item in items]).count(level)
        for level in LEVELS
    ]
    assert sum(right) / (3 * len(items)) > 0.85


def test_how_right_a_judge_is_by_class_beside_length_and_figures():
    texts = [
        Labelled(f"q{place // 2}", text, label)
        for place, (text, label) in enumerate(
            [("Ask a doctor.", "avoidance"), ("Take 400 mg " + "of it " * 60, "expert")] * 10
        )
    ]
    namings = level_namings(lambda _, answers: ["expert"] * len(answers))
    found = {m.metric: m for m in judge_accuracy("t", "c", texts, namings)}
    assert {m.method for m in found.values()} == {"judge"}
    assert (found["accuracy"].value, found["accuracy"].n) == (0.5, 20)
    assert found["accuracy_expert"].value == 1
    assert found["accuracy_expert"].low == pytest.approx(wilson(10, 10)[0], abs=1e-4)
    assert found["accuracy_avoidance"].value == 0
    assert found["length_only"].value == 1  # long is expert, short avoids
    assert found["has_figure"].value >= 0.5
    assert found["length_only"].low < 0.75  # ten prompts, not twenty texts


def test_a_judge_of_aims_is_asked_about_prompts_that_it_has_not_seen():
    pairs = [pair for pair in starter_pairs("harmless") if pair.split == "test"]
    found = {
        (m.case.partition(": ")[2], m.metric): m
        for m in aim_accuracy("t", "harmless", {"others": pairs})
    }
    own = found["own texts, folds by prompt", "accuracy"]
    rows = starter_rows("judges/harmless")
    seen = verdict("harmless")([row["answer"] for row in rows])
    learned = [(p > 0.5) == (row["label"] == "harmless") for p, row in zip(seen, rows, strict=True)]
    assert own.value < 0.9 < sum(learned) / len(learned)  # what it learned it would know
    assert own.n == len(rows)
    assert found["others", "accuracy"].n == 2 * len(pairs)
    assert {"accuracy_harmless", "accuracy_harmful", "length_only", "pairs", "longer"} <= {
        metric for case, metric in found if case == "others"
    }
    assert found["others", "pairs"].n == len(pairs)


class Judging(Speaking):
    """Says which level the last word of an answer names; or, for `odd`, the server's body."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0][
            "content"
        ]
        self.server.asked.append(asked)
        message = {"role": "assistant", "content": asked.split()[-1].title() + "."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        content = json.dumps({**reply, "choices": [choice]}).encode()
        self.say(200, self.server.body if asked.endswith("odd") else content)


@pytest.fixture
def judging():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judging)
    server.url, server.asked = f"http://127.0.0.1:{server.server_port}/v1", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_behind_an_endpoint_judges(judging, tmp_path):
    judge = language_model(Endpoint(judging.url, "m", folder=tmp_path))
    for _ in range(2):
        assert judge(["q", "q"], ["says expert", "says generic"]) == ["expert", "generic"]
        assert judge(["q"], ["says maybe"]) == [None]
    assert len(judging.asked) == 3  # the replies are kept


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no credit", "code": 402}}', "refuses the request .*no credit"),
        (b'{"error": {"message": "slow down", "code": 429}}', "keeps failing .*slow down"),
        (b'{"choices": []}', "keeps failing .*without a text"),
        (b"<html>login</html>", "does not speak chat completions, it said '<html>login"),
        (b'{"choices": [{"mess', "keeps failing .*half a reply"),
        (
            b'{"choices": [{"finish_reason": "length", "message": {"content": "expert or"}}]}',
            "was cut off at 4096 tokens after 'expert or'",
        ),
    ],
)
@pytest.mark.long
def test_a_judge_of_levels_that_answers_in_an_odd_shape_is_one_message(judging, body, said):
    judging.body = body
    with pytest.raises((ValueError, ConnectionError), match=f"--judge: .*{said}") as caught:
        language_model(Endpoint(judging.url, "m", retries=0))(["q"], ["odd"])
    assert judging.url in str(caught.value)
    assert "'m'" in str(caught.value)


def test_a_judge_that_cannot_be_reached_is_one_message():
    with pytest.raises(
        ConnectionError,
        match=(
            r"--judge: http://127.0.0.1:9/v1 cannot be reached .* start the server, correct the"
            r" address"
        ),
    ):
        language_model(Endpoint("http://127.0.0.1:9/v1", "m", retries=0))(["q"], ["says expert"])


def test_a_file_that_is_no_ledger_is_left_alone(fader, tmp_path):
    for place, content in enumerate((b'{"name": "card"}', b'{\n "name": "card"\n}', b"notes")):
        file = tmp_path / str(place)
        file.write_bytes(content)
        with pytest.raises(ValueError, match="an evaluation's cache"):
            ResultCache(fader, file, quiet=True)
        assert file.read_bytes() == content


def test_the_interval_of_the_least_share_holds_all_of_them():
    groups = [[1.0] * 27 + [0.0] * 3, [1.0] * 30, [1.0] * 28 + [0.0] * 2]
    found, single = (
        worst_case("t", "m", "c", "least", groups),
        average("t", "m", "c", "least", groups[0]),
    )
    assert found.value == single.value == 0.9
    assert found.low < single.low
    assert single.high < found.high
    assert worst_case("t", "m", "c", "least", groups[:1]) == single
    assert worst_case("t", "m", "c", "least", [[1.0] * 30] * 3).low < 0.87


@pytest.fixture
def arguments(fader, tmp_path, tiny_folder, monkeypatch):
    """What a call on the tiny model needs: its vectors by name, its data, a place for the
    ledger."""
    monkeypatch.setenv("FADER_VECTORS", str(tmp_path / "vectors"))
    file = tmp_path / "levels.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"query": item.query, **item.answers, "split": item.split})
            for item in level_items()
        )
    )
    data = [part for domain in DOMAINS for part in ("--data", f"{domain}={file}")]
    return [
        "--model",
        str(tiny_folder),
        *data,
        "--out",
        str(tmp_path / "ledger.jsonl"),
        "--limit",
        "2",
        "--json",
    ]


@pytest.mark.long
def test_the_command_prints_figures(arguments, tmp_path):
    done = run(
        "eval", "levels", *arguments, "--report", str(tmp_path / "report.html"), cwd=tmp_path
    )
    found = rows(done)
    assert all(
        row.keys() == {"task", "method", "case", "metric", "value", "low", "high", "n", "seed"}
        for row in found
    )
    metrics = [(row["case"], row["metric"]) for row in found if row["method"] == "vectors"]
    for domain in DOMAINS:
        assert {(domain, f"best_{level}") for level in LEVELS} <= set(metrics)
    assert metrics.count(("all", "combinations_reached")) == 1
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert rows(run("eval", "levels", *arguments, cwd=tmp_path)) == found


@pytest.mark.long
def test_tune_writes_a_profile_that_requests_find(arguments, tmp_path):
    found = rows(
        run(
            "vectors",
            "tune",
            "medical=expert,legal=generic",
            "--profile",
            "clinic",
            *arguments,
            cwd=tmp_path,
        )
    )[0]
    assert found["strengths"].keys() == {"medical", "legal"}
    written = rows(run("profiles", "--json", cwd=tmp_path))
    (mine,) = (row for row in written if row["name"] == "clinic")
    assert mine["alignment"].get("vectors", {}) == found["strengths"]
    again = run("vectors", "tune", "legal=generic", "--profile", "clinic", *arguments, cwd=tmp_path)
    assert (again.returncode, "clinic.yaml is there already" in again.stderr) == (2, True)


def test_the_personalised_model_is_a_vector_s_name_or_folder(tiny_folder, tmp_path, monkeypatch):
    with Fader(load(str(tiny_folder))) as fader:
        folder = random_vectors(fader, tmp_path, ["mine"])["mine"]

    def task(suite):
        assert suite.cache.fader.vector(suite.personal).factors
        yield exactly("personalized", suite.personal, "c", "m", 1.0)

    monkeypatch.setattr("fader.evaluation.tasks.TASKS", {"personalized": task})
    asked = ["eval", "personalized", "--model", str(tiny_folder), "--vector", str(folder), "--json"]
    found = rows(run(*asked, cwd=tmp_path))
    assert found[0]["method"] == folder.name


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["eval", "nope"], "TASK: no task 'nope'; known: levels, curve"),
        (["eval", "judges", "levels"], "TASK: judges is measured by itself (got judges levels)"),
        (["eval", "judges", "--vector", "warm"], "judges: takes no vector and one folder"),
        (["eval", "judges", "--data", "nowhere"], "--data: nowhere is not a folder"),
        (
            ["eval", "personalized", "levels"],
            "TASK: personalized is measured by itself (got personalized levels)",
        ),
        (
            ["eval", "personalized", "--vector", "a", "--vector", "b"],
            "personalized: takes one vector and one folder",
        ),
        (["eval", "personalized-sweep", "--vector", "nope"], "vectors.nope: no such vector"),
        (["eval", "levels", "--data", "x"], "--data DOMAIN=FILE: must be of this form (got 'x')"),
        (
            ["eval", "levels", "--vector", "medcal=mine"],
            (
                "--vector: 'medcal' is none of the domains that are measured (medical, legal,"
                " financial)"
            ),
        ),
        (["eval", "generation", "--judge", "host#m"], "--judge: must be URL#MODEL (got 'host#m')"),
        (
            ["eval", "generation", "--judge", "http://host/v1#m", "--judge-timeout", "0"],
            "endpoint.timeout: must be at least 0.001 (got 0.0)",
        ),
        (
            ["eval", "levels", "curve", "--judge", "http://host/v1#m"],
            "--judge: levels, curve does not read it; leave it out",
        ),
        (["eval", "generation", "--judge-retries", "1"], "--judge-retries: there is no --judge"),
        (["eval", "levels", "--rating", "score"], "--rating: levels does not read it"),
        (["eval", "pairs", "--domain", "legal"], "--domain: pairs does not read it"),
        (["eval", "judges", "--split", "dev"], "--split: judges does not read it"),
        (
            ["eval", "levels", "--vector", "legal=a", "--vector", "legal=b"],
            "--vector DOMAIN=NAME: names 'legal' twice; keep one of the two",
        ),
        (["eval", "levels", "--domain", "a,b"], "domain: 'a,b' must be letters, digits"),
        (["eval", "levels", "--limit", "0"], "Invalid value for '--limit'"),
        (["vectors", "tune", "legal=expert,legal=generic"], "WANT: names a domain twice"),
        (["vectors", "tune", "medical"], "DOMAIN=LEVEL: must be of this form (got 'medical')"),
        (
            ["vectors", "tune", "medical=loud"],
            "WANT: medical must be one of avoidance, generic, expert (got 'loud')",
        ),
        (
            ["vectors", "tune", "medical=expert", "--profile", "../x"],
            "profile: '../x' is not a name",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_at_the_door(call, said, tmp_path, tiny_folder):
    done = run(*call, "--model", str(tiny_folder), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
