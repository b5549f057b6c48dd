"""Every example runs, and what it shows is true."""

import re
import runpy
from pathlib import Path

import pytest
from conftest import ARCHITECTURES, make_model, random_vector

from fader import Fader
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits
from fader.rewards.specs import KeywordsSpec
from fader.rewards.table import make

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(shared, capsys, monkeypatch):
    """Runs an example; its global names, and what it has printed."""

    def run(name):
        monkeypatch.setattr("sys.argv", [f"{name}.py"])
        names = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return names, capsys.readouterr().out

    return run


def after_colon(printed):
    """What stands before and after the first colon of every line."""
    return dict(line.strip().split(": ", 1) for line in printed.splitlines())


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in FOLDER.glob("*.py")} <= tested


def test_demo(example, shared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # so that no title is cut
    names, printed = example("demo")
    asked = [
        (question, title, alignment)
        for question, alignments in names["QUESTIONS"].items()
        for title, alignment in alignments.items()
    ]
    assert all(question in printed and title in printed for question, title, _ in asked)
    shown = set(re.sub("[│╭╮╰╯─]", " ", printed).split())
    requests = [{"prompt": question, "alignment": one} for question, _, one in asked]
    answers = [one.text for one in shared.batch(requests, sampling=names["SAMPLING"])]
    assert all(set(answer.split()) <= shown for answer in answers)
    assert len(set(answers)) == len(answers)
    for answer in answers:  # the effect is seen, not one sentence again and again
        sentences = [one.strip() for one in re.split(r"[.!?\n]+", answer) if one.strip()]
        assert len(set(sentences)) == len(sentences)


@pytest.mark.long
def test_all_four(example, monkeypatch):
    """Whatever else is said, each place moves its own figure."""
    monkeypatch.setenv("COLUMNS", "100")
    names, printed = example("all_four")
    assert "alone and beside eight others: the same" in printed
    found = re.findall(r"^│ (\w+) +│ .+ │ +(-?[\d.]+) +│ +(-?[\d.]+) +│$", printed, re.M)
    assert [place for place, _, _ in found] == [*names["OFF"]]
    for place, on, off in found:
        assert float(on) > float(off), place


def test_all_four_on_a_tiny_model(tmp_path, monkeypatch):
    """Alone and beside eight others the tokens are the same, and each place moves its figure."""
    longer = {**ARCHITECTURES["llama"], "max_position_embeddings": 2048}
    monkeypatch.setitem(ARCHITECTURES, "llama", longer)
    names = runpy.run_path(str(FOLDER / "all_four.py"))
    with Fader(str(make_model(tmp_path / "llama"))) as fader:
        for seed, name in enumerate(("formal", "meta", "personal", "plain", "warm")):
            fader.add_vector(random_vector(fader, name, seed))
        request = {"prompt": names["QUESTION"], "alignment": names["ALL"]}
        few = {**names["SAMPLING"], "max_tokens": 12}
        assert len(names["OTHERS"]) == 8
        beside, *_ = fader.batch([request, *names["OTHERS"]], sampling=few)
        assert fader.generate(request, sampling=few).answers == beside.answers
        moved = names["margins"](fader)
    assert [*moved] == ["context", "weights", "scores"]
    for on, off in moved.values():
        assert on != pytest.approx(off, abs=1e-3)


def test_prompt_tiers(example, shared):
    names, printed = example("prompt_tiers")
    found = re.findall(r"^(\w+) +(\d+) prompt tokens: (.+)", printed, re.MULTILINE)
    assert [rendering for rendering, _, _ in found] == ["meta", "tiers", "system", "principle"]
    for rendering, tokens, text in found:
        request = shared.request(
            "What is salt good for?",
            max_tokens=40,
            alignment={"preferences": {**names["tiers"], "rendering": rendering}},
        )
        assert int(tokens) == len(shared.backend.plan(request).guided.base.prompt)
        assert shared.generate(request).text.strip().startswith(text)


def test_contrast(example, shared):
    found = after_colon(example("contrast")[1])
    assert found["weight 0.0"] == shared.generate("Tell me about the sea.", max_tokens=30).text
    assert "Arr" in found["weight 2.0"]
    assert "Arr" not in found["weight 0.0"] + found["weight 1.0"]


def test_logprobs(example, shared):
    names, printed = example("logprobs")
    tokens = re.findall(
        r"^'?\"?(.+?)['\"] +(-\d+\.\d+) +the guide added ([+-]\d+\.\d+)$", printed, re.M
    )
    written = shared.generate(
        "Tell me about the sea.", max_tokens=6, alignment=names["ALIGNMENT"]
    ).text
    assert "".join(token for token, _, _ in tokens) == written
    assert sum(float(added) for _, _, added in tokens) > 0
    pirate, plain = (
        tuple(map(float, pair))
        for pair in re.findall(r": (-\d+\.\d+) per token bare, (-\d+\.\d+) guided", printed)
    )
    assert pirate[0] < pirate[1]
    assert plain[0] > plain[1]


def test_vectors(example, shared):
    found = [line.partition("}") for line in example("vectors")[1].strip().splitlines()]
    texts = [text.strip() for _, _, text in found]
    base = shared.generate("My knee hurts after running. What should I do?", max_tokens=32).text
    assert texts[0] == repr(" ".join(base.split()))
    assert len(set(texts)) == len(texts) - 1
    assert texts[-1] == texts[-2]  # the saved sum is the mixture of its parts


def check_search(names, printed):
    """The shares of the words that the answers without and with the search hold; a search reads
    more rows."""
    rows, texts = zip(
        *(line.strip().split(" rows: ") for line in printed.splitlines()), strict=True
    )
    (words,) = (
        reward["words"] for reward in names["SEARCH"]["rewards"] if reward["kind"] == "keywords"
    )
    plain, searched = make(KeywordsSpec(kind="keywords", words=words)).score([""] * 2, list(texts))
    assert int(rows[1]) > 5 * int(rows[0])
    return plain, searched


def test_best_of_n(example):
    plain, searched = check_search(*example("best_of_n"))
    assert searched > plain


def test_lookahead(example):
    _, searched = check_search(*example("lookahead"))
    assert searched == 1


def test_streaming(example, shared):
    printed = example("streaming")[1]
    streamed = shared.generate("Count from one to five.", max_tokens=16).text
    others = shared.batch(["Name a fruit.", "Name a bird."], max_tokens=12)
    assert printed == f"{streamed}\n {[result.text.strip() for result in others]}\n"


def test_program(example, shared):
    names, printed = example("program")
    backbone = shared.backend.backbones[shared.model]
    policy = Policy(shared.model, tuple(backbone.encode("The old lighthouse keeper")))

    def continued(first):
        """One of the continuations by itself, read anew at every step."""
        tokens = [first]
        for _ in range(8):
            logits = yield NextLogits(policy, [Prefix().then(*tokens)])
            tokens.append(int(logits[0].argmax()))
        return tokens

    def likeliest():
        return (yield NextLogits(policy, [Prefix()]))[0].topk(3).indices.tolist()

    def run(program):
        return shared.backend.engine.run(program, {shared.model: (4, 64)}).result(timeout=120)

    alone = [backbone.decode(run(continued(first))) for first in run(likeliest())]
    assert printed == "".join(f"{text}\n" for text in alone)
    assert names["policy"] == policy
