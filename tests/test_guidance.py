"""The proxy guide as its formula, and scores that are no distribution."""

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from fader import Fader
from fader.engine.prefix import Policy
from fader.methods.guidance import GuidedPolicy, Term, combine
from fader.request import Plausible

BASE, TOLD = (Policy("model", (place,)) for place in (1, 2))


def test_the_proxy_guide_is_its_formula(tmp_path):
    """log p = log large + w * (log tuned - log untuned), less its normaliser."""
    names, weight = ("large", "tuned", "untuned"), 0.7
    folders = {name: make_model(tmp_path / name, seed=seed) for seed, name in enumerate(names)}
    guide = {"kind": "proxy", "tuned": "tuned", "untuned": "untuned", "weight": weight}
    small = {name: str(folders[name]) for name in names[1:]}
    with Fader(str(folders["large"]), models=small) as fader:
        found = fader.score(
            "the sea", " is wide and the ship", alignment={"guides": [guide]}
        ).details
        prompt = list(fader.backend.plan(fader.request("the sea")).guided.base.prompt)
    ids = [detail.id for detail in found]
    log = {}
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log[name] = logits.log_softmax(-1)  # [tokens, vocabulary]
    mixed = (log["large"] + weight * (log["tuned"] - log["untuned"])).log_softmax(-1)
    expected = mixed.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert [detail.logprob for detail in found] == pytest.approx(expected, abs=2e-3)


def test_only_plausible_tokens_have_a_probability():
    logits = {BASE: torch.tensor([[3.0, 2.0, 1.0]]), TOLD: torch.tensor([[0.0, 0.0, 9.0]])}
    term = Term("0:contrast", 2.0, TOLD, BASE, Plausible(top_k=2))
    scores = combine(GuidedPolicy(BASE, (term,)), logits).scores
    assert scores.isinf().tolist() == [[False, False, True]]


@pytest.mark.parametrize("weight", [1e39, 1e300])
def test_a_guide_whose_scores_are_no_numbers_is_named(tiny, weight):
    told = {"preferences": {"user": "be kind"}}
    guide = {"kind": "realign", "aligned": told, "weight": weight}
    alone = tiny.generate("the sea", max_tokens=6).answers
    with pytest.raises(ValueError, match=r"guides: .*no finite numbers.*0:realign \(1e"):
        tiny.generate("the sea", max_tokens=3, alignment={"guides": [guide]})
    with pytest.raises(ValueError, match=r"0:realign"):
        tiny.score("the sea", " wide", alignment={"guides": [guide]})
    assert tiny.generate("the sea", max_tokens=6).answers == alone


def test_scores_beyond_all_numbers_are_a_fault_of_the_guides(tiny):
    guide = {"kind": "contrast", "principle": "a cat", "weight": 1e38}
    with pytest.raises(ValueError, match=r"^alignment\.guides: .* 0:contrast \(1e\+38\)"):
        tiny.generate("the sea", alignment={"guides": [guide]})
