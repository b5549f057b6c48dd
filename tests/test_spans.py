"""A guide of another tokenizer against the slow formula: both models read every text whole."""

import pytest
import torch
from conftest import TEXT, make_model, random_vector, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from fader import Fader, load
from fader.engine import builtin
from fader.engine.prefix import Prefix
from fader.methods.guidance import sequence_scores
from fader.schema import Invalid

OTHER = "thermal shipping in the seaside stone house is an answer to every mattress ; " * 3
GUIDE = {
    "kind": "personalized",
    "principle": "be warm",
    "model": "own",
    "vectors": {"personal": 1.0},
    "weight": 0.7,
}


def built_in_words():
    words = AutoTokenizer.from_pretrained(builtin.fetch())
    words.add_special_tokens({"pad_token": words.pad_token or "<pad>"})
    return words


@pytest.fixture(
    params=["trained", pytest.param("built-in", marks=pytest.mark.builtin)], scope="module"
)
def folders(request, tmp_path_factory):
    """A base, and a guide whose tokenizer was trained on another text."""
    place = tmp_path_factory.mktemp("spans")
    words = tokenizer() if request.param == "trained" else built_in_words()
    return {
        "base": make_model(place / "base", seed=1, words=words),
        "own": make_model(place / "own", seed=2, words=tokenizer(size=330, text=OTHER)),
    }


@pytest.fixture(scope="module")
def fader(folders):
    with Fader(load(str(folders["base"])), models={"own": str(folders["own"])}) as found:
        with Fader(str(folders["own"])) as own:
            found.add_vector(random_vector(own, "personal", 5))
        with pytest.MonkeyPatch.context() as patch:  # random words are longer than those of texts
            patch.setattr("fader.backends.local.ROOM", 16)
            yield found


class Slow:
    """The formula, with a whole read of every text for each of its three policies."""

    def __init__(self, fader, folders, guide, question):
        self.fader = fader
        self.guided = fader.backend.plan(
            fader.request(question, alignment={"guides": [guide]})
        ).guided
        (self.term,) = self.guided.terms
        models = [AutoModelForCausalLM.from_pretrained(folders[n]).eval() for n in ("base", "own")]
        self.base, self.reference = models
        self.policy = AutoModelForCausalLM.from_pretrained(folders["own"]).eval()
        for vector, strength in self.term.policy.vectors:
            for module in vector.factors:
                weight = self.policy.get_submodule(module).weight
                weight.requires_grad_(False).add_(strength * vector.delta(module))
        self.words = AutoTokenizer.from_pretrained(folders["own"])

    def log(self, model, prompt, ids):
        """[tokens + 1, vocabulary]: from which each token would be chosen, and the next one."""
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0]
        return logits[len(prompt) - 1 :].log_softmax(-1)

    def text(self, tokens):
        return self.fader.backend.backbones[self.fader.model].decode(tokens).rstrip("\ufffd")

    def ratio(self, text, end=False):
        """L(text), and then the end where `end`."""
        ids = self.words(text, add_special_tokens=False)["input_ids"] if text else []
        total = 0.0
        for model, policy, sign in (
            (self.policy, self.term.policy, 1),
            (self.reference, self.term.reference, -1),
        ):
            log = self.log(model, policy.prompt, ids)
            total += sign * float(log[:-1].gather(1, torch.tensor(ids).long()[:, None]).sum())
            total += sign * float(log[-1, [1, 2]].logsumexp(0)) if end else 0.0
        return total

    def scores(self, tokens):
        """Candidate -> score."""
        log = self.log(self.base, self.guided.base.prompt, tokens)[-1]
        before = self.ratio(self.text(tokens))
        ends = self.fader.backend.backbones[self.fader.model].end_tokens
        return {
            token: float(log[token])
            + self.term.weight
            * (
                (
                    self.ratio(self.text(tokens), end=True)
                    if token in ends
                    else self.ratio(self.text([*tokens, token]))
                )
                - before
            )
            for token in log.topk(10).indices.tolist()
        }

    def answer(self, count):
        tokens = []
        while len(tokens) < count:
            scores = self.scores(tokens)
            tokens.append(max(scores, key=scores.__getitem__))
            if tokens[-1] in self.fader.backend.backbones[self.fader.model].end_tokens:
                break
        return tuple(tokens)


@pytest.mark.parametrize("reference", ["told", "untold"])
@pytest.mark.long
def test_a_guide_of_another_tokenizer_is_its_formula(fader, folders, reference):
    guide = {**GUIDE, "reference": reference}
    questions = ("the sea", "a cat sat on a mat", "watch the water")
    requests = [{"prompt": q, "alignment": {"guides": [guide]}} for q in questions]
    for question, result in zip(questions, fader.batch(requests, max_tokens=14), strict=True):
        slow = Slow(fader, folders, guide, question)
        assert result.answers[0].token_ids == slow.answer(14)
    bare = fader.generate(questions[-1], max_tokens=14).answers[0]
    assert bare.token_ids != result.answers[0].token_ids


def test_its_scores_are_those_of_the_formula_for_words_and_ends(fader, folders):
    """At each token of a text that both divide differently: of all candidates, the end among
    them."""
    slow = Slow(fader, folders, {**GUIDE, "plausible": {"top_k": 10}}, "the sea")
    ids = fader.backend.backbones[fader.model].encode("the old stone bridges shipped é thermally")

    def program():
        return (yield from sequence_scores(slow.guided, Prefix().then(*ids), len(ids)))

    needs = {fader.model: (4, 400), "own": (60, 400)}
    found = fader.backend.engine.run(program(), needs).result(timeout=60).scores
    for place in range(len(ids)):
        for token, score in slow.scores(ids[:place]).items():
            assert float(found[place, token]) == pytest.approx(score, abs=3e-3)


def test_an_end_has_the_ratio_of_the_guides_own_ends(fader, folders):
    slow = Slow(fader, folders, GUIDE, "the sea")
    end = min(fader.backend.backbones[fader.model].end_tokens)
    ids = fader.backend.backbones[fader.model].encode("the old")

    def program():
        term, prefix = slow.term, Prefix().then(*ids)
        found = term.spans.ratios(term.policy, term.reference, prefix, [end, ids[0]])
        return (yield from found)

    needs = {"own": (60, 400)}
    found = fader.backend.engine.run(program(), needs).result(timeout=60)
    expected = slow.ratio("the old", end=True) - slow.ratio("the old")
    assert float(found[0]) == pytest.approx(expected, abs=2e-3)


def test_what_was_read_is_not_read_again(fader):
    result = fader.generate(TEXT[:60], max_tokens=20, alignment={"guides": [GUIDE]})
    written = len(result.answers[0].token_ids)
    (term,) = fader.backend.plan(
        fader.request(TEXT[:60], alignment={"guides": [GUIDE]})
    ).guided.terms
    prompts = result.prompt_tokens + len(term.policy.prompt) + len(term.reference.prompt)
    assert result.usage.tokens_read < prompts + 300 * written  # 2 policies, 10 candidates


def test_an_answer_that_outgrows_its_room_is_an_error(fader, monkeypatch):
    monkeypatch.setattr("fader.backends.local.ROOM", 0)
    with pytest.raises(
        ValueError, match=r"alignment\.guides: the answer takes more than the 1 tokens"
    ):
        fader.generate("the sea", max_tokens=20, alignment={"guides": [GUIDE]})


@pytest.mark.parametrize(
    ("guides", "fault"),
    [
        ([{**GUIDE, "reference": "base"}], r"\[0\]\.personalized\.reference: `base` reads other"),
        ([{**GUIDE, "plausible": None}], r"\[0\]\.personalized\.plausible: needs a `top_k`"),
        (
            [GUIDE, {"kind": "contrast", "principle": "be brief"}],
            r"\[1\]\.contrast\.plausible: needs a `top_k` of the base",
        ),
        ([{"kind": "proxy", "tuned": "own", "untuned": "own"}], "another vocabulary"),
        (  # two guides whose models disagree
            [GUIDE, {"kind": "realign", "aligned": {"model": "own"}}],
            r"\[1\]\.realign\.aligned\.model: own has another vocabulary than .*"
            r"; take a model of the same tokenizer",
        ),
    ],
)
def test_what_another_tokenizer_cannot_do_is_refused(fader, guides, fault):
    with pytest.raises(Invalid, match=fault):
        fader.generate("the sea", alignment={"guides": guides})
