import pytest

from fader.methods.rewards import REWARDS, weighted_sum
from fader.request import KeywordsSpec, LengthSpec

SPECS = [KeywordsSpec(kind="keywords", words=("dog", "run"), weight=2), LengthSpec(kind="length", at_most=3)]
TEXTS = ["", "The dog will run.", "dogs running", "one two three four five six", "дог run " * 500]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_rewards_give_one_float_per_text_and_batch_equals_single(spec):
    reward = REWARDS[type(spec)](spec)
    batch = reward(["p"] * len(TEXTS), TEXTS)
    assert batch == [reward(["p"], [text])[0] for text in TEXTS]
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in batch)


def test_rewards_order():
    words, short = (REWARDS[type(spec)](spec) for spec in SPECS)
    assert words([""] * 3, ["the dog can run", "a dog", "a cat"]) == [1.0, 0.5, 0.0]
    assert short([""] * 2, ["one two three", "one two three four five six"]) == [1.0, 0.5]
    assert weighted_sum(SPECS)([""], ["a dog"]) == [2.0]


def test_best_of_n_keeps_the_best_of_its_samples(tiny):
    search = {"kind": "best-of-n", "n": 6, "rewards": [{"kind": "keywords", "words": ["a", "the", "sea", "x", "of"]}]}
    sampling = {"max_tokens": 30, "temperature": 2.0}
    samples = [answer.text for answer in tiny.generate("the sea", **sampling, n=6).answers]
    scores = weighted_sum([KeywordsSpec(kind="keywords", words=("a", "the", "sea", "x", "of"))])([""] * 6, samples)
    best = tiny.generate("the sea", **sampling, alignment={"search": search})
    assert best.text == samples[scores.index(max(scores))]
    assert "".join(chunk.text for chunk in tiny.stream("the sea", **sampling, alignment={"search": search})) == best.text
    with pytest.raises(ValueError, match=r"sampling.temperature: 0 draws the same answer every time"):
        tiny.generate("the sea", alignment={"search": search})
