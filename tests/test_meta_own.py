"""MetaAlign's items of the model's own answers: who may judge, which two answers are chosen, going
on after a stop, and the command on a tiny model."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_vectors, trains
from test_cli import rows, run

from fader.cli import own as own_command
from fader.data import meta_own
from fader.data.meta import Item
from fader.data.meta_builder import build_own
from fader.data.meta_files import read_samples
from fader.data.meta_own import (
    LEAST,
    SAMPLES,
    Written,
    choice,
    fault,
    judges,
    own_items,
    own_plan,
    until_cut,
)
from fader.data.nearness import pole_classifier
from fader.data.rounds import Place
from fader.evaluation import cache
from fader.request import Message

NOUNS = ("sea", "ship", "cat", "mat", "dog", "river", "valley", "bridge", "water", "stone")
ANSWERS = {
    "greeting": ("hello friend , the {} is near", "the {} is near"),
    "noise": ("the {} is near", "the {} is far"),
}
TEXTS = (("Greet me.", "Say hello."), ("Do not greet me.",))


def family(name, questions=2 * LEAST, seed=0):
    """A family whose answers words tell apart, `greeting`, or one where it is chance, `noise`."""
    dice = random.Random(seed)
    found = []
    for place in range(questions):
        answers = tuple(text.format(dice.choice(NOUNS)) for text in ANSWERS[name])
        if name == "noise" and place % 2:
            answers = answers[::-1]
        question = (Message(role="user", content=f"where is it {place}"),)
        found.append(Item("diverse-opinion", question, answers, TEXTS, family=name))
    return found


GREETING, NOISE = family("greeting"), family("noise")
JUDGE = judges(GREETING)["diverse-opinion", "greeting"]
HELLO, PLAIN = "hello friend , the mat is near", "the mat is near"


def test_a_judge_earns_its_say_on_pairs_that_it_has_not_seen():
    found = judges([*GREETING, *NOISE])
    clear, chance = found["diverse-opinion", "greeting"], found["diverse-opinion", "noise"]
    assert (clear.held_out, clear.accuracy, clear.earned) == (LEAST, 1, True)
    assert (chance.held_out, chance.earned) == (LEAST, False)
    assert chance.accuracy < meta_own.EARNED
    first, second = clear.follows_first([HELLO, PLAIN])
    assert first > 0.75
    assert second < 0.25


def test_few_pairs_earn_nothing():
    (judge,) = judges(GREETING[:-1]).values()
    assert (judge.held_out, judge.earned) == (0, False)


def test_a_question_is_in_one_half(monkeypatch):
    halves = []

    def fitted(pairs):
        halves.append(set(pairs))
        return pole_classifier(pairs)

    monkeypatch.setattr(meta_own, "pole_classifier", fitted)
    first, second = (
        [replace(item, answers=(f"{word} {at}", "no")) for at, item in enumerate(GREETING)]
        for word in ("hello", "good")
    )
    judges([*first, *second])
    [half] = halves
    assert len(half) == 2 * LEAST
    for one, other in zip(first, second, strict=True):
        assert (one.answers in half) == (other.answers in half)


def ended(*texts):
    return [Written(text, True) for text in texts]


def test_the_surest_two_are_chosen():
    both = ended(PLAIN, HELLO, "the cat", "hello the cat is near")
    first = JUDGE.follows_first([one.text for one in both])
    assert choice(both, JUDGE) == (
        both[first.index(max(first))].text,
        both[first.index(min(first))].text,
    )
    assert choice(both, JUDGE)[0] == HELLO


def test_answers_that_ended_come_first():
    cut = Written("hello friend , hello friend , hello", False)
    assert JUDGE.follows_first([cut.text]) > JUDGE.follows_first([HELLO])
    assert choice([cut, *ended(HELLO, PLAIN)], JUDGE) == (HELLO, PLAIN)
    assert choice([cut, *ended(PLAIN)], JUDGE) == (cut.text, PLAIN)  # where there is no other


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((), "no usable answer"),
        ((HELLO,), "the same answer"),
        ((HELLO, "Hello friend , the mat is near."), "the same answer"),
        (
            (HELLO, "hello friend , the cat is near"),
            "no answer that surely follows the second text",
        ),
        ((PLAIN, "the cat is near"), "no answer that surely follows the first text"),
    ],
)
def test_items_are_dropped_for_a_reason(texts, said):
    assert choice(ended(*texts), JUDGE) == said


def test_neither_side_may_be_unsure():
    class Undecided:
        def predict_proba(self, texts):
            return np.array([[0.5, 0.5], [0.4, 0.6]])[: len(texts)]

    unsure = replace(JUDGE, classifier=Undecided())
    said = "no answer that surely follows the first or the second text"
    assert choice(ended(HELLO, PLAIN), unsure) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is near. Very near!", ""),
        ("Great! \N{PARTY POPPER}", ""),
        ("1. Bread\n2. Milk", ""),
        ("", "an empty sentence"),
        ("It is near. ... So go.", "an empty sentence"),
        ("- bread\n-\n- milk", "an empty sentence"),
        ("go home now " * 5, "repeats itself"),
    ],
)
def test_faulty_answers(text, said):
    assert fault(text) == said


def test_a_cut_answer_loses_its_last_sentence():
    assert until_cut("It is near. Take the") == "It is near."
    assert until_cut('He said "go!" and') == 'He said "go!"'
    assert until_cut("- bread\n- milk\n3. eg") == "- bread\n- milk\n"
    assert until_cut("It costs 2.50 and") == ""


def by_script(texts):
    """A model that gives these answers, the same to every item."""
    return lambda requests: [texts[at % len(texts)] for at in range(len(requests))]


def test_items_are_made_of_the_answers():
    plan = own_plan([*GREETING, *NOISE], "own", 5)
    assert {item.family for item in plan.drawn} == {"greeting"}
    fillers = [Written("", True), Written("hello friend , the", False)]
    script = [*ended(HELLO, PLAIN), *fillers, *ended(*["the dog"] * (2 * SAMPLES - 4))]
    found = own_items(plan, by_script(script))
    assert found.items == tuple(replace(item, answers=(HELLO, PLAIN)) for item in plan.drawn)
    assert found.dropped == {}
    assert found.unused == {"an empty sentence": 5, "cut in its first sentence": 5}
    assert own_items(plan, by_script(ended(HELLO))).dropped == {"the same answer": 5}


def test_the_model_is_told_either_text():
    plan = own_plan(GREETING, "own", 3, seed=2)
    asked = plan.requests
    assert len(asked) == 3 * 2 * SAMPLES
    assert len({one.sampling.seed for one in asked}) == len(asked)
    for place, item in enumerate(plan.drawn):
        mine = asked[place * 2 * SAMPLES : (place + 1) * 2 * SAMPLES]
        for side in (0, 1):
            (told,) = {one.alignment.preferences.user for one in mine[side * SAMPLES :][:SAMPLES]}
            assert told[0] in item.texts[side]
        assert {one.messages for one in mine} == {item.messages}
        assert all(one.alignment.vectors == {"own": 1} for one in mine)
    more = own_plan(GREETING, "own", 5, seed=2)
    assert more.requests[: len(asked)] == asked  # a longer run goes on from a shorter one
    assert len(own_plan(GREETING, "own", 100).drawn) == len(GREETING)


@pytest.mark.parametrize(
    ("items", "count", "said"),
    [
        (GREETING, 0, "count: must be at least 1"),
        ([], 5, "data: none of the 0 items is of diverse-opinion or helpful-based"),
        ([replace(one, split="dev") for one in GREETING], 5, "data: none of the 16 items"),
        ([replace(one, family="") for one in GREETING], 5, "and names its family"),
        (NOISE, 5, "data: in no family do the words of answers tell"),
        (GREETING[:3], 5, "each of at least 16 questions"),
    ],
)
def test_items_that_cannot_be_judged_are_refused(items, count, said):
    with pytest.raises(ValueError, match=said):
        own_plan(items, "own", count)


def test_the_datasheet_says_who_wrote_and_who_judged(tmp_path):
    place = Place(tmp_path / "own.jsonl")
    plan = own_plan([*GREETING, *NOISE, *family("greeting", 3)], "mine", 4)
    script = by_script(ended(HELLO, *[PLAIN] * (2 * SAMPLES - 1)))
    built = build_own(plan, "a-model", script, place, alone=2)
    assert tuple(read_samples(place.out)) == built.samples
    assert Counter(one.part for one in built.samples) == {"diverse-opinion": 8, "priority": 8}
    sheet = place.sheet.read_text()
    assert "| answers written by | a-model, with the vector mine at strength 1 |" in sheet
    assert "| items tried | 4 |\n| items kept | 4 |" in sheet
    assert "| greeting | diverse-opinion | 8 | 1.00 | yes | 4 | 4 |" in sheet
    assert "| noise | diverse-opinion | 8 | 0." in sheet
    assert "left out: 1 of 2" in sheet
    assert "Nobody has read the answers." in sheet
    assert "2 preference records" in sheet


def test_nothing_is_written_where_nothing_is_kept(tmp_path):
    place = Place(tmp_path / "own.jsonl")
    with pytest.raises(ValueError, match=r"own: no item of 4 could be kept .*'the same answer': 4"):
        build_own(own_plan(GREETING, "own", 4), "a-model", by_script(ended(HELLO)), place)
    assert not place.out.exists()


@pytest.fixture
def arguments(fader, tiny_folder, tmp_path, monkeypatch):
    """Of a command that has the tiny model write, where any two answers will do."""
    random_vectors(fader, tmp_path, ["mine"])
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(row_of(item)) + "\n" for item in GREETING))
    monkeypatch.setattr(meta_own, "SURE", 0.0)
    monkeypatch.setattr(meta_own, "fault", lambda text: "")
    monkeypatch.setattr(meta_own, "until_cut", lambda text: text)
    monkeypatch.setattr(meta_own, "LENGTH", 12)
    monkeypatch.setattr(own_command, "quick_dtype", lambda: "float32")
    return (
        *("data", "meta", "--own", str(tmp_path / "mine"), "--out", str(tmp_path / "own.jsonl")),
        *("--data", str(items), "--count", "6", "--model", str(tiny_folder), "--json"),
    )


def row_of(item):
    asked = item.messages[0].content
    return {
        "part": item.part,
        "prompt": asked,
        "answers": item.answers,
        "family": item.family,
        "texts": [[*side] for side in item.texts],
        "split": item.split,
    }


def test_a_stopped_run_goes_on(arguments, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    asked, measure = [], cache.measure

    def measured(fader, queries):
        if len(asked) == 2 and stops:
            raise Killed
        asked.append(len(queries))
        return measure(fader, queries)

    monkeypatch.setattr(cache, "TOGETHER", 10)
    monkeypatch.setattr(cache, "measure", measured)
    out, stops = tmp_path / "own.jsonl", True
    with pytest.raises(Killed):
        run(*arguments)
    assert asked == [10, 10]
    assert not out.exists()
    stops = False
    [row] = rows(run(*arguments))
    assert asked == [10, 10, 10, 10, 8]
    assert (row["tried"], row["answers"]) == (6, 48)
    whole = out.read_bytes()
    [again] = rows(run(*arguments))
    assert (again, out.read_bytes(), len(asked)) == (row, whole, 5)


def test_what_the_model_did_not_end_is_cut(arguments, monkeypatch):
    def measured(fader, queries):
        return [
            cache.Measurement(
                HELLO if at % 4 else PLAIN, 0.0, 1, 1, 0.0, "length" if at % 2 else "stop"
            )
            for at in range(len(queries))
        ]

    monkeypatch.setattr(cache, "measure", measured)
    monkeypatch.setattr(meta_own, "until_cut", lambda text: "")
    [row] = rows(run(*arguments))
    assert row["unused"] == {"cut in its first sentence": row["answers"] // 2}


@trains
def test_what_is_made_is_taught(arguments, tiny_folder, tmp_path):
    [row] = rows(run(*arguments))
    assert row["items"] + sum(row["dropped"].values()) + row["twice"] == 6
    assert row["items"] >= 3
    assert row["judges"] == {"diverse-opinion": {"greeting": 1.0}}
    trained = run(
        *("train", "meta", "m", "--data", row["file"], "--out", str(tmp_path / "m")),
        *("--model", str(tiny_folder), "--stages", "preferences", "--passes", "1"),
        *("--max-length", "2000", "--rank", "2", "--json"),
    )
    [taught] = rows(trained)
    assert taught["lessons"] > 0


def test_a_dry_run_asks_no_model(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(own_command, "Fader", None)
    [row] = rows(run(*arguments, "--dry-run"))
    assert (row["tried"], row["answers"], row["left_out"]) == (6, 48, 0)
    assert not (tmp_path / "own.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--own", "nope"], "vectors.nope: no such vector; known:"),
        (["--own", ""], "--own: is empty; give a vector by name or folder"),
        (
            ["--own", "meta", "--endpoint", "http://x/v1"],
            "--endpoint: with --own the model answers, no teacher; leave it out",
        ),
        (["--own", "meta", "--price-in", "1"], "--price-in: with --own the model answers"),
        (["--own", "meta", "--count", "0"], "count: must be at least 1 (got 0)"),
        (["--own", "meta", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "x"], "--model: writes answers only with --own; give it too"),
    ],
)
def test_faulty_options_are_named(tmp_path, given, said):
    done = run("data", "meta", "--out", "x.jsonl", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x.jsonl").exists()
