"""Judges of aims: what teaches and what tests them, how right they are, and when that is enough; on
a tiny model, and by an endpoint over HTTP."""

import json
import random
import threading
from dataclasses import replace
from http.server import ThreadingHTTPServer

import pytest
import torch
from conftest import Speaking
from transformers import AutoModelForCausalLM, AutoTokenizer

from fader.data.records import Pair
from fader.endpoint import Endpoint
from fader.evaluation import aims, states
from fader.evaluation.aims import (
    AIMS,
    aim_judge,
    beginning,
    claimable,
    halves,
    judges,
    own_texts,
    preferred,
    public_pairs,
)
from fader.evaluation.states import Text, hidden_states
from fader.request import Message
from fader.starter.shipped import starter_pairs


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """No public data, and a cache folder of the test's own."""
    monkeypatch.delenv("FADER_DATA", raising=False)
    monkeypatch.setenv("FADER_CACHE", str(tmp_path / "cache"))


def pair(prompt, chosen, rejected):
    return Pair((Message(role="user", content=prompt),), chosen, rejected)


@pytest.fixture
def folder(tmp_path):
    """Public data in which the preferred answer is the one that says please."""
    rows = [
        {
            "prompt": f"question {place // 4}",
            "response1": f"please take {place}",
            "response2": f"no, leave {place} alone",
            "votes": [1, 1, 2],
        }
        for place in range(120)
    ]
    (tmp_path / "public" / "pandalm").mkdir(parents=True)
    file = tmp_path / "public" / "pandalm" / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "public"


def test_no_prompt_teaches_and_tests(folder):
    found = public_pairs("helpful", folder)
    taught, tested = halves(found)
    assert len(taught) + len(tested) == len(found) == 120
    assert min(len(taught), len(tested)) > 20
    assert not {beginning(one) for one in taught} & {beginning(one) for one in tested}
    assert halves(found[::-1])[0] == taught[::-1]  # by its prompt alone
    follow_up = Message(role="user", content="and then?")
    longer = [Pair((*one.messages, follow_up), one.chosen, one.rejected) for one in taught]
    assert not halves(longer)[1]  # what begins alike is in one half


def test_each_of_our_texts_is_judged_by_what_learned_from_other_prompts(monkeypatch):
    own = own_texts("humorous")
    learned = []

    def fitted(judge, places):
        learned.append({judge.prompts[place] for place in places})
        return lambda features: [len(learned) - 1.0] * len(features)

    monkeypatch.setattr(aims._Classifier, "_fitted", fitted)
    judge = aims._Classifier("humorous", own, [], aims._column(aims.length), 1.0)
    folds = judge.in_folds()
    assert {*folds} == {0, 1, 2, 3, 4}
    for one, fold in zip(own, folds, strict=True):
        assert one.prompt not in learned[int(fold)]


def test_texts_of_judges_are_balanced_and_unlike_what_vectors_learn():
    taught = {one.chosen for name in ("humorous", "helpful") for one in starter_pairs(name)}
    for aim in AIMS:
        own = own_texts(aim)
        assert sum(one.label == aim for one in own) * 2 == len(own)
        assert len({one.text for one in own}) == len(own)
        assert not taught & {one.text for one in own}
    assert len(own_texts("humorous")) >= 240
    assert len({one.prompt for one in own_texts("humorous")}) >= 60


def test_neither_length_nor_exclamation_marks_tell_humour():
    own = own_texts("humorous")
    judge = aims._Classifier("humorous", own, [], aims._column(aims.length), 1.0)
    by_length = [
        (p > 0.5) == (one.label == "humorous") for p, one in zip(judge.in_folds(), own, strict=True)
    ]
    assert sum(by_length) / len(own) < 0.6
    marked = [("!" in one.text) == (one.label == "serious") for one in own]
    assert 0.4 < sum(marked) / len(own) < 0.6


def test_a_judge_learns_which_answer_people_prefer(folder, tiny_folder):
    judge = aim_judge("helpful", folder, model=str(tiny_folder))
    assert judge.quality.outside.metric == "pairs"
    assert judge.quality.outside.value > 0.9
    assert judge.quality.outside.n == len(halves(public_pairs("helpful", folder))[1])
    assert judge.quality.outside.low < 0.9 or judge.quality.outside.value == 1
    assert not judge.quality.judge_ok  # a random model tells little about our own texts
    assert "pairs" in judge.quality.why
    rows = {(one.case, one.metric) for one in judge.quality.rows}
    for hint in ("length_only", "has_figure"):
        assert {("helpful: own texts", hint), ("helpful: pandalm", hint)} <= rows
    assert {("helpful: pandalm", "longer"), ("helpful", "judge_ok")} <= rows
    found = judge(["question 1"] * 2, ["please take 3", "no, leave 3 alone"])
    assert 0 <= found[1] < found[0] <= 1


def test_without_public_data_ours_alone_teach(tiny_folder, capsys):
    judge = aim_judge("helpful", model=str(tiny_folder))
    assert judge.quality.outside is None
    assert not judge.quality.judge_ok
    assert "not tested on other people's pairs" in judge.quality.why
    assert "alone, for want of public pairs" in judge.quality.why
    assert "pandalm/pairs.jsonl: not in" in capsys.readouterr().err


def test_a_random_judge_is_right_half_of_the_time():
    dice = random.Random(0)

    def at_random(texts):
        return [dice.random() for _ in texts]

    pairs = [pair(f"q{place}", f"a{place}", f"b{place}") for place in range(800)]
    assert abs(sum(preferred(at_random, pairs)) / 800 - 0.5) < 0.05
    assert preferred(lambda texts: [0.7] * len(texts), pairs[:3]) == [0.5] * 3
    assert preferred(lambda texts: [None] * len(texts), pairs[:3]) == [0.5] * 3
    assert preferred(lambda texts: [float(t.answer[0] == "b") for t in texts], pairs[:3]) == [0] * 3


@pytest.mark.parametrize(
    ("aim", "here", "outside", "ok", "said"),
    [
        ("helpful", 0.85, 0.65, True, "reaches both bars"),
        ("helpful", 0.84, 0.9, False, "0.84 of our own texts, below 0.85"),
        ("harmless", 0.95, 0.64, False, "0.64 of other people's pairs, below 0.65"),
        ("harmless", 0.95, None, False, "not tested on other people's pairs"),
        ("humorous", 0.85, None, True, "own texts only"),
        ("humorous", 0.8, None, False, "0.80 of our own texts"),
    ],
)
def test_what_a_judge_must_reach(aim, here, outside, ok, said):
    found, why = claimable(aim, here, outside)
    assert found == ok
    assert said in why


def test_features_are_those_of_transformers_and_kept(tiny_folder, tmp_path, monkeypatch):
    """The tokens of the answer and its end, after the prompt, whatever stands beside it."""
    monkeypatch.setattr(states, "quick_dtype", lambda: "float32")
    monkeypatch.setattr(states, "_reader", states._reader.__wrapped__)
    texts = [Text.of("one two", "the sea is wide"), Text.of("a cat", "ran home " * 9)]
    features = hidden_states(str(tiny_folder))
    found = features(texts)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tiny_folder)
    before = words.apply_chat_template(
        [{"role": "user", "content": "one two"}], add_generation_prompt=True, tokenize=False
    )
    prompt, answer = (
        words(part, add_special_tokens=False).input_ids for part in (before, "the sea is wide")
    )
    tokens = torch.tensor([[*prompt, *answer, words.eos_token_id]])
    own = model(tokens, output_hidden_states=True).hidden_states[2][0, len(prompt) :]
    expected = torch.cat((own.mean(0), own[-1])).tolist()
    assert found[0] == pytest.approx(expected, abs=1e-3)
    assert features(texts[:1])[0] == pytest.approx(found[0], abs=1e-3)
    files = list((tmp_path / "cache" / "judges").iterdir())
    assert len(files) == 2  # of two sets of texts
    monkeypatch.setattr(states._Reader, "read", lambda *_: pytest.fail("it is read again"))
    assert (features(texts) == found).all()


@pytest.mark.long
def test_the_task_prints_every_judge(suite, folder, capsys):
    found = list(judges(replace(suite, public=folder)))
    ok = [one for one in found if one.metric == "judge_ok"]
    assert [one.case for one in ok] == list(AIMS)
    assert {one.method for one in found} == {"judge"}
    assert all(one.low <= one.value <= one.high for one in found)
    assert sum("taught by" in line for line in capsys.readouterr().err.splitlines()) == 3
    assert next(one for one in found if one.metric == "pairs").n == suite.limit


class YesNo(Speaking):
    """Says yes to what holds the word good, no to what holds bad, else something else."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]
        self.server.asked.append(asked["content"])
        answer = asked["content"].rpartition("Answer:")[2]
        said = "Yes." if "good" in answer else "**No**" if "bad" in answer else "I do not know."
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        self.say(200, json.dumps({**reply, "choices": [{"index": 0, **choice}]}).encode())


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), YesNo)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m"), server.asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.long
def test_a_model_behind_an_endpoint_judges_aims(endpoint, monkeypatch, aim):
    own = [one for one in own_texts(aim) if one.label == aim][:10]
    monkeypatch.setattr(
        aims,
        "own_texts",
        lambda _: [
            aims.Labelled(one.prompt, text, label)
            for one in own
            for text, label in (("good", aim), ("bad", "other"))
        ],
    )
    where, asked = endpoint
    judge = aim_judge(aim, endpoint=where)
    assert judge.quality.here.value == 1
    assert f"m at {where.url}" in judge.quality.why
    assert judge(["q", "q", "q"], ["a good one", "a bad one", "neither"]) == [1.0, 0.0, None]
    assert AIMS[aim] in asked[0]


def test_what_is_no_judge_and_no_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"aim: no judge of 'brave'; known: helpful, harmless"):
        aim_judge("brave")
    with pytest.raises(ValueError, match=r"--data: .*nowhere is not a folder; .*pandalm/pairs"):
        public_pairs("helpful", tmp_path / "nowhere")
