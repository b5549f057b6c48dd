"""Searches by reward: the core and its kinds, and what they share: budget, streaming, forced beginnings, implicit rewards."""

import math

import pytest
from conftest import random_vectors

from fader import Fader, Vector, load
from fader.methods.rewards import Declared, weighted_sum
from fader.reward_specs import KeywordsSpec

WORDS = KeywordsSpec(kind="keywords", words=("a", "the", "sea", "x", "of"), match="form")
LETTERS = {"kind": "keywords", "words": ["a", "the", "sea", "x", "of"], "match": "form"}
CONSTANT = {"kind": "length", "at_most": 10_000}
KINDS = [
    {"kind": "best-of-n", "n": 5},
    {"kind": "blockwise", "n": 6, "block": 4, "beams": 2},
    {"kind": "blockwise", "n": 3, "block": "sentence"},
    {"kind": "segments", "entropy": 3, "longest": 6, "tries": 4},
    {"kind": "lookahead", "top_k": 4, "lookahead": 4},
    {"kind": "lookahead", "top_k": 4, "lookahead": 3, "beams": 3},
    {"kind": "lookahead", "top_k": 4, "lookahead": 4, "drafts": "sampled"},
]


def settings(spec):
    """Sampling under which that search makes sense."""
    greedy = spec["kind"] == "lookahead" and spec.get("drafts") != "sampled"
    return {"max_tokens": 20, **({} if greedy else {"temperature": 1.5})}


def test_best_of_n_keeps_the_best_of_its_samples(tiny):
    search = {"kind": "best-of-n", "n": 6, "rewards": [LETTERS]}
    sampling = {"max_tokens": 30, "temperature": 2.0}
    samples = [answer.text for answer in tiny.generate("the sea", **sampling, n=6).answers]
    scores = weighted_sum([WORDS], Declared()).score([""] * 6, samples)
    best = tiny.generate("the sea", **sampling, alignment={"search": search})
    assert best.text == samples[scores.index(max(scores))]
    assert best.answers[0].search.reward == max(scores)


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_what_streams_is_what_is_returned_alone_and_in_a_batch(tiny, spec):
    search = {**spec, "rewards": [LETTERS]}
    alone = tiny.generate("the sea", **settings(spec), alignment={"search": search})
    chunks = list(tiny.stream("the sea", **settings(spec), alignment={"search": search}))
    assert "".join(chunk.text for chunk in chunks) == alone.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == alone.answers[0].token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [alone.answers[0].finish_reason]
    batch = tiny.batch(["a cat", "the sea", "one two"], **settings(spec), alignment={"search": search})
    assert batch[1].answers == alone.answers
    assert alone.answers[0].search.reward == weighted_sum([WORDS], Declared()).score([""], [alone.text])[0]
    assert alone.answers[0].search.drafted >= len(alone.answers[0].token_ids)
    assert alone.usage.reward_calls > 0


@pytest.mark.parametrize("spec", [{"kind": "blockwise", "n": 1, "block": 3}, {"kind": "segments", "tries": 1, "longest": 2}], ids=str)
def test_a_single_proposal_is_plain_sampling(tiny, spec):
    plain = tiny.generate("the sea", max_tokens=20, temperature=1.5).answers[0]
    found = tiny.generate("the sea", max_tokens=20, temperature=1.5, alignment={"search": {**spec, "rewards": [LETTERS]}}).answers[0]
    assert (found.token_ids, found.text) == (plain.token_ids, plain.text)


@pytest.mark.parametrize("spec", [{"rewards": [CONSTANT]}, {"rewards": [LETTERS], "weight": 0}, {"rewards": [CONSTANT], "shortcuts": []}], ids=str)
def test_nothing_to_gain_is_plain_greedy(tiny, spec):
    plain = tiny.generate("the sea", max_tokens=20).answers[0]
    found = tiny.generate("the sea", max_tokens=20, alignment={"search": {"kind": "lookahead", "top_k": 4, "lookahead": 5, **spec}}).answers[0]
    assert (found.token_ids, found.text, found.finish_reason) == (plain.token_ids, plain.text, plain.finish_reason)


def test_where_nothing_can_be_gained_nothing_more_is_read(tiny):
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 5, "rewards": [{"kind": "keywords", "words": ["sea"], "match": "form"}]}
    plain, found, slow = (
        tiny.generate("the ship", prefill="the sea is", max_tokens=20, alignment={"search": wanted} if wanted else {})
        for wanted in (None, search, {**search, "shortcuts": ["reuse", "prune", "speculate"]})
    )
    assert found.answers[0].token_ids == plain.answers[0].token_ids == slow.answers[0].token_ids
    assert found.usage.rows == plain.usage.rows < slow.usage.rows


def test_more_blocks_find_more(tiny):
    def reward(**spec):
        fields = {"max_tokens": 24, "temperature": 1.5, "alignment": {"search": {"rewards": [LETTERS], **spec}}}
        return sum(tiny.generate(prompt, **fields).answers[0].search.reward for prompt in ("the sea", "a cat", "one two"))

    assert reward(kind="blockwise", n=16, block=4, beams=4) > reward(kind="blockwise", n=1)
    assert reward(kind="segments", tries=16, longest=6, target=1) > reward(kind="segments", tries=1)


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("budget", [{"tokens": 7}, {"rows": 9}, {"seconds": 1e-9}], ids=str)
def test_a_budget_ends_the_search_and_says_so(tiny, spec, budget):
    search = {**spec, "rewards": [LETTERS], "budget": budget}
    found = tiny.generate("the sea", **settings(spec), alignment={"search": search}).answers[0]
    whole = tiny.generate("the sea", **settings(spec), alignment={"search": {**search, "budget": {}}}).answers[0]
    assert whole.search.exhausted is None
    assert found.search.exhausted == next(iter(budget))
    assert found.finish_reason == "budget"
    assert found.search.drafted < whole.search.drafted


def test_a_budget_returns_a_finished_answer_where_there_is_one(tiny):
    search = {"kind": "lookahead", "top_k": 8, "lookahead": "end", "weight": 50, "rewards": [LETTERS], "shortcuts": ["reuse"]}
    counts = range(20, 400, 40)
    found = [tiny.generate("a cat sat", max_tokens=60, alignment={"search": {**search, "budget": {"tokens": n}}}).answers[0] for n in counts]
    assert {answer.finish_reason for answer in found} <= {"stop", "budget", "length"}
    assert any(answer.search.exhausted and answer.finish_reason == "stop" for answer in found)


def test_rewards_judge_the_forced_beginning_too(tiny):
    search = {"kind": "best-of-n", "n": 2, "rewards": [{"kind": "keywords", "words": ["lantern"], "match": "form"}]}
    plain = tiny.generate("the sea", max_tokens=5, temperature=1.0, alignment={"search": search}).answers[0]
    begun = tiny.generate("the sea", max_tokens=5, temperature=1.0, alignment={"search": search}, prefill="my lantern is").answers[0]
    assert (plain.search.reward, begun.search.reward) == (0, 1)


def test_logprobs_are_those_of_the_committed_tokens(tiny):
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 4, "rewards": [LETTERS], "weight": 30}
    found = tiny.generate("the sea", max_tokens=12, logprobs=2, alignment={"search": search}).answers[0]
    assert [report.id for report in found.logprobs] == list(found.token_ids)
    text = tiny.score("the sea", found.text)
    if found.finish_reason == "length" and len(text.logprobs) == len(found.logprobs):
        assert [report.logprob for report in found.logprobs] == pytest.approx(list(text.logprobs), abs=1e-3)


@pytest.fixture(scope="module")
def moved(tiny_folder, tmp_path_factory):
    """The tiny model with two random vectors."""
    with Fader(load(str(tiny_folder))) as fader:
        for name, folder in random_vectors(fader, tmp_path_factory.mktemp("vectors"), ["one", "two"]).items():
            fader.add_vector(Vector.load(folder, name))
        yield fader


def implied(fader, prompt, text):
    """log pi with the vector minus log pi without, of the answer's tokens."""
    return fader.score(prompt, text, alignment={"vectors": {"one": 1.5}}).logprob - fader.score(prompt, text).logprob


def test_best_of_n_by_an_implicit_reward(moved):
    reward = {"kind": "implicit", "policy": {"vectors": {"one": 1.5}}, "beta": 0.5}
    sampling = {"max_tokens": 12, "temperature": 1.2}
    samples = moved.generate("the sea", **sampling, n=6).answers
    search = {"kind": "best-of-n", "n": 6, "rewards": [reward]}
    found = moved.generate("the sea", **sampling, alignment={"search": search}).answers[0]
    lengths = {answer.token_ids: answer for answer in samples}
    assert found.token_ids in lengths
    again = [moved.generate("the sea", **sampling, n=6, alignment={"search": {**search, "n": 1}}).answers[i].search.reward for i in range(6)]
    assert found.search.reward == pytest.approx(max(again), abs=1e-3)
    same = [answer for answer in samples if moved.backbones[moved.model].encode(answer.text) == list(answer.token_ids)]
    for answer in same:
        value = 0.5 * implied(moved, "the sea", answer.text)
        assert again[samples.index(answer)] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("more", [{}, {"squash": True}, {"per_token": True, "beta": 5}, {"reference": {"vectors": {"two": 1}}}], ids=str)
def test_look_ahead_by_an_implicit_reward_is_the_same_by_every_way(moved, more):
    reward = {"kind": "implicit", "policy": {"vectors": {"one": 1.5}}, **more}
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 3, "weight": 2, "rewards": [reward, {**LETTERS, "weight": 2}]}
    plain, fast = (
        moved.batch(["the sea", "a cat"], max_tokens=8, alignment={"vectors": {"two": 0.5}, "search": {**search, **how}})
        for how in ({"shortcuts": []}, {"width": 30})
    )
    assert [result.answers[0].token_ids for result in fast] == [result.answers[0].token_ids for result in plain]
    bare = moved.batch(["the sea", "a cat"], max_tokens=8, alignment={"vectors": {"two": 0.5}})
    assert [result.answers[0].token_ids for result in fast] != [result.answers[0].token_ids for result in bare]
    assert fast[0].answers[0].search.reward == pytest.approx(plain[0].answers[0].search.reward, abs=1e-3)


def test_a_search_works_on_a_guided_policy(moved):
    guide = {"kind": "ratio", "policy": {"vectors": {"one": 1}}, "reference": {"vectors": {}}, "weight": 1.5, "plausible": {"top_k": 6}}
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 4, "weight": 20, "rewards": [LETTERS]}
    plain, fast, off = (
        moved.generate("the sea", max_tokens=10, alignment={"guides": [guide], "search": {**search, **how}}).answers[0]
        for how in ({"shortcuts": []}, {}, {"weight": 0})
    )
    assert fast.token_ids == plain.token_ids != off.token_ids
    assert off.token_ids == moved.generate("the sea", max_tokens=10, alignment={"guides": [guide]}).answers[0].token_ids


@pytest.mark.parametrize(
    ("search", "sampling", "message"),
    [
        ({"kind": "best-of-n"}, {}, r"sampling.temperature: 0 draws the same answer every time; best-of-n needs"),
        ({"kind": "blockwise"}, {}, r"sampling.temperature: 0 draws the same answer every time; blockwise needs"),
        ({"kind": "lookahead"}, {"temperature": 1}, r"sampling.temperature: 1 has no effect on a greedy look-ahead search"),
        ({"kind": "lookahead", "drafts": "sampled"}, {}, r"sampling.temperature: 0 draws the same"),
        ({"kind": "blockwise", "n": 2, "beams": 3}, {"temperature": 1}, r"beams \(3\) must not be more than n \(2\)"),
        ({"kind": "lookahead", "lookahead": "word"}, {}, r"search.lookahead.*got 'word'"),
        ({"kind": "lookahead", "weight": math.inf}, {}, r"search.*weight"),
        ({"kind": "lookahead", "rewards": [{"kind": "implicit", "policy": {}}]}, {}, r"search.rewards.implicit: policy and reference are the same"),
        ({"kind": "lookahead", "rewards": [{"kind": "implicit", "policy": {"vectors": {"no": 1}}}]}, {}, r"no"),
        ({"kind": "lookahead", "rewards": []}, {}, r"search.*rewards"),
        ({"kind": "lookahead", "width": 900, "top_k": 900}, {"max_tokens": 400}, r"rows of up to"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_at_the_door(tiny_folder, search, sampling, message):
    with Fader(load(str(tiny_folder), kv_bytes=2**24)) as fader, pytest.raises(ValueError, match=message):
        fader.generate("the sea", **sampling, alignment={"search": {"rewards": [LETTERS], **search}})
