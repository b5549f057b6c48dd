"""Searches by reward: the core and its kinds, and what they share: budget, streaming, forced
beginnings, implicit rewards."""

import math
import time

import pytest
import torch
from conftest import random_vectors

from fader import Fader, Vector, load
from fader.backends.local import _result as answering
from fader.engine.prefix import Prefix
from fader.engine.program import NextLogits
from fader.methods.guidance import sequence_scores
from fader.methods.hypothesis import Hypothesis
from fader.methods.lookahead import Node, _branches, _nodes
from fader.methods.search import rows
from fader.rewards.reward import Resources
from fader.rewards.specs import KeywordsSpec
from fader.rewards.table import weighted_sum

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
    {"kind": "lookahead", "top_k": 4, "lookahead": 4, "rollout": "sampled"},
]


def settings(spec):
    """Sampling under which that search makes sense."""
    greedy = spec["kind"] == "lookahead" and spec.get("rollout") != "sampled"
    return {"max_tokens": 20, **({} if greedy else {"temperature": 1.5})}


def test_best_of_n_keeps_the_best_of_its_samples(tiny):
    search = {"kind": "best-of-n", "n": 6, "rewards": [LETTERS]}
    sampling = {"max_tokens": 30, "temperature": 2.0}
    samples = [answer.text for answer in tiny.generate("the sea", **sampling, n=6).answers]
    scores = weighted_sum([WORDS], Resources()).score([""] * 6, samples)
    best = tiny.generate("the sea", **sampling, alignment={"search": search})
    assert best.text == samples[scores.index(max(scores))]
    assert best.answers[0].search.reward == max(scores)


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_what_streams_is_what_is_returned_alone_and_in_a_batch(tiny, spec):
    search = {**spec, "rewards": [LETTERS]}
    alone = tiny.generate("the sea", **settings(spec), alignment={"search": search})
    chunks = list(tiny.stream("the sea", **settings(spec), alignment={"search": search}))
    assert "".join(chunk.text for chunk in chunks) == alone.text
    assert (
        tuple(token for chunk in chunks for token in chunk.token_ids) == alone.answers[0].token_ids
    )
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [
        alone.answers[0].finish_reason
    ]
    batch = tiny.batch(
        ["a cat", "the sea", "one two"], **settings(spec), alignment={"search": search}
    )
    assert batch[1].answers == alone.answers
    assert (
        alone.answers[0].search.reward
        == weighted_sum([WORDS], Resources()).score([""], [alone.text])[0]
    )
    assert alone.answers[0].search.explored >= len(alone.answers[0].token_ids)
    assert alone.usage.reward_calls > 0


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "blockwise", "n": 1, "block": 3},
        {"kind": "segments", "tries": 1, "shortest": 1, "longest": 2},
    ],
    ids=str,
)
def test_a_single_proposal_is_plain_sampling(tiny, spec):
    plain = tiny.generate("the sea", max_tokens=20, temperature=1.5).answers[0]
    found = tiny.generate(
        "the sea",
        max_tokens=20,
        temperature=1.5,
        alignment={"search": {**spec, "rewards": [LETTERS]}},
    ).answers[0]
    assert (found.token_ids, found.text) == (plain.token_ids, plain.text)


@pytest.mark.parametrize(
    "spec",
    [
        {"rewards": [CONSTANT]},
        {"rewards": [LETTERS], "weight": 0},
        {"rewards": [CONSTANT], "optimizations": []},
    ],
    ids=str,
)
def test_nothing_to_gain_is_plain_greedy(tiny, spec):
    plain = tiny.generate("the sea", max_tokens=20).answers[0]
    found = tiny.generate(
        "the sea",
        max_tokens=20,
        alignment={"search": {"kind": "lookahead", "top_k": 4, "lookahead": 5, **spec}},
    ).answers[0]
    assert (found.token_ids, found.text, found.finish_reason) == (
        plain.token_ids,
        plain.text,
        plain.finish_reason,
    )


def test_where_nothing_can_be_gained_nothing_more_is_read(tiny):
    search = {
        "kind": "lookahead",
        "top_k": 4,
        "lookahead": 5,
        "rewards": [{"kind": "keywords", "words": ["sea"], "match": "form"}],
    }
    plain, found, slow = (
        tiny.generate(
            "the ship",
            prefill="the sea is",
            max_tokens=20,
            alignment={"search": wanted} if wanted else {},
        )
        for wanted in (None, search, {**search, "optimizations": ["reuse", "prune", "speculate"]})
    )
    assert found.answers[0].token_ids == plain.answers[0].token_ids == slow.answers[0].token_ids
    assert found.usage.rows == plain.usage.rows < slow.usage.rows


def test_the_threshold_of_segments_rises_from_nothing_written_to_the_target(tiny_folder):
    def even(prompts, texts):
        return [0.0 if not text else 0.3 if text.count("e") % 2 else 0.6 for text in texts]

    search = {
        "kind": "segments",
        "entropy": 1e-6,  # every token is unsure enough, so segments have their shortest length
        "softness": 1e-6,
        "rewards": [{"kind": "python", "name": "even"}],
    }
    sampling = {"max_tokens": 16, "temperature": 1.5}
    firsts = {0.0: 0, 1.0: 0}
    with Fader(load(str(tiny_folder)), resources=Resources(callables={"even": even})) as fader:
        for seed in range(12):
            plain = fader.generate("the sea", **sampling, seed=seed).answers[0]
            for alpha, same in firsts.items():
                found = fader.generate(
                    "the sea",
                    **sampling,
                    seed=seed,
                    alignment={"search": {**search, "alpha": alpha}},
                ).answers[0]
                decode = fader.backend.backbones[fader.model].decode
                firsts[alpha] = same + (found.token_ids[:4] == plain.token_ids[:4])
                # from token 8 on the threshold is above 0.3, at alpha 1 from the beginning
                for end in range(8 if alpha == 0 else 4, len(found.token_ids) + 1, 4):
                    assert even([""], [decode(found.token_ids[:end])]) == [0.6]
    assert firsts[0.0] == 12  # at token 4 it is a quarter of the target: the first draft is kept
    assert firsts[1.0] < 12


def test_more_blocks_find_more(tiny):
    def reward(**spec):
        fields = {
            "max_tokens": 24,
            "temperature": 1.5,
            "alignment": {"search": {"rewards": [LETTERS], **spec}},
        }
        return sum(
            tiny.generate(prompt, **fields).answers[0].search.reward
            for prompt in ("the sea", "a cat", "one two")
        )

    assert reward(kind="blockwise", n=16, block=4, beams=4) > reward(kind="blockwise", n=1)
    assert reward(kind="segments", tries=16, longest=6, target=1) > reward(kind="segments", tries=1)


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("budget", [{"tokens": 7}, {"rows": 9}, {"seconds": 1e-9}], ids=str)
def test_a_budget_ends_the_search_and_says_so(tiny, spec, budget):
    search = {**spec, "rewards": [LETTERS], "budget": budget}
    found = tiny.generate("the sea", **settings(spec), alignment={"search": search}).answers[0]
    whole = tiny.generate(
        "the sea", **settings(spec), alignment={"search": {**search, "budget": {}}}
    ).answers[0]
    assert whole.search.exhausted is None
    assert found.search.exhausted == next(iter(budget))
    assert found.finish_reason == "budget"
    assert found.search.explored < whole.search.explored


def test_a_budget_returns_a_finished_answer_where_there_is_one(tiny):
    search = {
        "kind": "lookahead",
        "top_k": 8,
        "lookahead": "end",
        "weight": 50,
        "rewards": [LETTERS],
        "optimizations": ["reuse"],
    }
    counts = range(20, 400, 40)
    found = [
        tiny.generate(
            "a cat sat", max_tokens=60, alignment={"search": {**search, "budget": {"tokens": n}}}
        ).answers[0]
        for n in counts
    ]
    assert {answer.finish_reason for answer in found} <= {"stop", "budget", "length"}
    assert any(answer.search.exhausted and answer.finish_reason == "stop" for answer in found)


def test_rewards_judge_the_forced_beginning_too(tiny):
    search = {
        "kind": "best-of-n",
        "n": 2,
        "rewards": [{"kind": "keywords", "words": ["lantern"], "match": "form"}],
    }
    plain = tiny.generate(
        "the sea", max_tokens=5, temperature=1.0, alignment={"search": search}
    ).answers[0]
    begun = tiny.generate(
        "the sea",
        max_tokens=5,
        temperature=1.0,
        alignment={"search": search},
        prefill="my lantern is",
    ).answers[0]
    assert (plain.search.reward, begun.search.reward) == (0, 1)


def test_logprobs_are_those_of_the_committed_tokens(tiny):
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 4, "rewards": [LETTERS], "weight": 30}
    found = tiny.generate(
        "the sea", max_tokens=12, logprobs=2, alignment={"search": search}
    ).answers[0]
    assert [report.id for report in found.logprobs] == list(found.token_ids)
    unlikely = [report for report in found.logprobs if report.id != report.top[0][0]]
    assert unlikely  # the search chose otherwise than greedy decoding
    assert all(report.logprob < report.top[0][1] for report in unlikely)
    assert all(
        report.logprob == pytest.approx(report.top[0][1])
        for report in found.logprobs
        if report not in unlikely
    )


def test_waiting_for_a_place_in_the_engine_costs_no_budget(tiny):
    search = {
        "kind": "lookahead",
        "top_k": 3,
        "lookahead": 2,
        "rewards": [LETTERS],
        "budget": {"seconds": 0.2},
    }
    program = answering(
        tiny.backend.plan(tiny.request("the sea", max_tokens=4, alignment={"search": search}))
    )
    time.sleep(0.4)
    asked = program.send(None)
    assert all(
        isinstance(ask, NextLogits) for ask in asked
    )  # it reads; a search that is out of time hands out its end
    program.close()


@pytest.mark.parametrize(
    "spec",
    [
        *KINDS,
        {"kind": "blockwise", "n": 16, "block": 4},
        {"kind": "segments", "tries": 8, "longest": 4},
        {"kind": "lookahead", "rollout": "sampled", "width": 1, "top_k": 2, "lookahead": 20},
        {
            "kind": "lookahead",
            "width": 2,
            "top_k": 3,
            "lookahead": "end",
            "optimizations": ["reuse", "speculate"],
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.long
def test_a_search_takes_no_more_rows_than_it_announced(tiny_folder, moved, spec, implicit):
    """On a model of its own, whose memory was never more than what this request needs."""
    reward = {"kind": "implicit", "policy": {"vectors": {"one": 1.0}}}
    with Fader(load(str(tiny_folder))) as fader:
        fader.add_vector(moved.vector("one"))
        fields = {
            **settings(spec),
            "max_tokens": 40,
            "alignment": {
                "search": {**spec, "rewards": [LETTERS, *([reward] if implicit else [])]}
            },
        }
        memory, peak = fader.backend.backbones[fader.model].memory, [0]
        allocate = memory.allocate

        def counted() -> int:
            slot = allocate()
            peak.append(memory.taken)
            return slot

        memory.allocate = counted
        assert fader.generate("the sea", **fields).answers[0].token_ids
        plan = fader.backend.plan(fader.request("the sea", **fields))
        announced = plan.needs(40, plan.request.sampling.n * rows(plan.request.alignment.search))
        assert 0 < max(peak) <= announced[fader.model][0]


@pytest.mark.parametrize(
    "more",
    [
        {"rollout": "sampled"},
        {"rollout": "sampled", "top_p": 0.7, "width": 2},
        {"top_p": 0.6},
        {"beams": 2, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop", [(), (" sea", "the s", "at")], ids=str)
@pytest.mark.long
def test_shortcuts_change_no_token_whatever_the_settings(tiny, more, stop):
    words = {
        "kind": "keywords",
        "words": ["sea", "dog", "at", "cat"],
        "match": "form",
        "propose": True,
    }
    search = {
        "kind": "lookahead",
        "top_k": 4,
        "lookahead": 4,
        "weight": 8,
        "rewards": [words, {"kind": "length", "at_least": 3}],
        **more,
    }
    fields = {
        "max_tokens": 14,
        "stop": stop,
        **({"temperature": 1.3, "seed": 3} if more.get("rollout") else {}),
    }
    prompts = ["the sea", "a cat sat", "one two three", "rivers bend"]
    plain, *fast = (
        [
            result.answers[0]
            for result in tiny.batch(
                prompts, **fields, alignment={"search": {**search, "optimizations": optimizations}}
            )
        ]
        for optimizations in (
            (),
            ("prune",),
            ("prune", "skip"),
            ("reuse", "prune", "skip", "speculate"),
        )
    )
    assert stop or any(answer.search.proposed for answer in plain)
    for found in fast:
        assert [(answer.token_ids, answer.text, answer.finish_reason) for answer in found] == [
            (answer.token_ids, answer.text, answer.finish_reason) for answer in plain
        ]


def test_long_look_aheads_are_no_deep_recursion():
    tree = node = Node(Hypothesis(Prefix()), 0.0, (0.0, 0.0))
    for _ in range(3000):
        node.follows = (1, ()), 0.0
        node = node.children.setdefault(
            (1, ()), Node(Hypothesis(node.hypothesis.prefix.then(1)), 0.0, (0.0, 0.0))
        )
    assert sum(1 for _ in _nodes(tree)) == 3001
    assert _branches(tree) == 0


@pytest.fixture(scope="module")
def moved(tiny_folder, tmp_path_factory):
    """The tiny model with two random vectors."""
    with Fader(load(str(tiny_folder))) as fader:
        for name, folder in random_vectors(
            fader, tmp_path_factory.mktemp("vectors"), ["one", "two"]
        ).items():
            fader.add_vector(Vector.load(folder, name))
        yield fader


def implied(fader, prompt, ids):
    """log pi with the vector minus log pi without, of these answer tokens, from one forward
    each."""

    def total(vectors):
        plan = fader.backend.plan(fader.request(prompt, alignment={"vectors": vectors}))

        def program():
            reading = yield from sequence_scores(plan.guided, Prefix().then(*ids), len(ids))
            return float(reading.scores.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())

        return fader.backend.engine.run(program(), plan.needs(len(ids), 1)).result()

    return total({"one": 1.5}) - total({})


def test_best_of_n_by_an_implicit_reward(moved):
    reward = {"kind": "implicit", "policy": {"vectors": {"one": 1.5}}, "beta": 0.5}
    sampling = {"max_tokens": 12, "temperature": 1.2}
    samples = moved.generate("the sea", **sampling, n=6).answers
    search = {"kind": "best-of-n", "n": 6, "rewards": [reward]}
    found = moved.generate("the sea", **sampling, alignment={"search": search}).answers[0]
    values = [0.5 * implied(moved, "the sea", answer.token_ids) for answer in samples]
    assert found.token_ids == samples[values.index(max(values))].token_ids
    assert found.search.reward == pytest.approx(max(values), abs=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"squash": True},
        {"length_normalized": True, "beta": 5},
        {"reference": {"vectors": {"two": 1}}},
    ],
    ids=str,
)
def test_look_ahead_by_an_implicit_reward_is_the_same_by_every_way(moved, more):
    reward = {"kind": "implicit", "policy": {"vectors": {"one": 1.5}}, **more}
    search = {
        "kind": "lookahead",
        "top_k": 4,
        "lookahead": 3,
        "weight": 2,
        "rewards": [reward, {**LETTERS, "weight": 2}],
    }
    plain, fast = (
        moved.batch(
            ["the sea", "a cat"],
            max_tokens=8,
            alignment={"vectors": {"two": 0.5}, "search": {**search, **how}},
        )
        for how in ({"optimizations": []}, {"width": 30})
    )
    assert [result.answers[0].token_ids for result in fast] == [
        result.answers[0].token_ids for result in plain
    ]
    bare = moved.batch(["the sea", "a cat"], max_tokens=8, alignment={"vectors": {"two": 0.5}})
    assert [result.answers[0].token_ids for result in fast] != [
        result.answers[0].token_ids for result in bare
    ]
    assert fast[0].answers[0].search.reward == pytest.approx(
        plain[0].answers[0].search.reward, abs=1e-3
    )


def test_a_search_works_on_a_guided_policy(moved):
    guide = {
        "kind": "ratio",
        "policy": {"vectors": {"one": 1}},
        "reference": {"vectors": {}},
        "weight": 1.5,
        "plausible": {"top_k": 6},
    }
    search = {"kind": "lookahead", "top_k": 4, "lookahead": 4, "weight": 20, "rewards": [LETTERS]}
    plain, fast, off = (
        moved.generate(
            "the sea", max_tokens=10, alignment={"guides": [guide], "search": {**search, **how}}
        ).answers[0]
        for how in ({"optimizations": []}, {}, {"weight": 0})
    )
    assert fast.token_ids == plain.token_ids != off.token_ids
    assert (
        off.token_ids
        == moved.generate("the sea", max_tokens=10, alignment={"guides": [guide]})
        .answers[0]
        .token_ids
    )


@pytest.mark.parametrize(
    ("search", "sampling", "message"),
    [
        (
            {"kind": "best-of-n"},
            {},
            r"sampling.temperature: 0 draws the same answer every time; best-of-n needs",
        ),
        (
            {"kind": "blockwise"},
            {},
            r"sampling.temperature: 0 draws the same answer every time; blockwise needs",
        ),
        (
            {"kind": "lookahead"},
            {"temperature": 1},
            r"sampling.temperature: 1 has no effect on a greedy look-ahead search",
        ),
        (
            {"kind": "lookahead", "rollout": "sampled"},
            {},
            r"sampling.temperature: 0 draws the same",
        ),
        (
            {"kind": "segments", "shortest": 5, "longest": 4},
            {},
            r"shortest \(5\) must not be more than longest \(4\)",
        ),
        (
            {"kind": "blockwise", "n": 2, "beams": 3},
            {"temperature": 1},
            r"beams \(3\) must not be more than n \(2\)",
        ),
        ({"kind": "lookahead", "lookahead": "word"}, {}, r"search.lookahead.*got 'word'"),
        ({"kind": "lookahead", "weight": math.inf}, {}, r"search.*weight"),
        (
            {"kind": "lookahead", "rewards": [{"kind": "implicit", "policy": {}}]},
            {},
            r"alignment.search.rewards\[0\].implicit.policy: is the same as the reference",
        ),
        (
            {
                "kind": "lookahead",
                "rewards": [{"kind": "implicit", "policy": {"vectors": {"no": 1}}}],
            },
            {},
            r"search.*vectors.no: no such vector",
        ),
        (
            {"kind": "lookahead", "rewards": [{"kind": "implicit", "policy": {"model": "no"}}]},
            {},
            r"alignment.search.rewards\[0\].implicit.policy.model: 'no' is not loaded; loaded: ",
        ),
        ({"kind": "lookahead", "rewards": []}, {}, r"search.*rewards"),
        ({"kind": "lookahead", "width": 900, "top_k": 900}, {"max_tokens": 400}, r"rows of up to"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_at_the_door(tiny_folder, search, sampling, message):
    with (
        Fader(load(str(tiny_folder), kv_bytes=2**24)) as fader,
        pytest.raises(ValueError, match=message),
    ):
        fader.generate(
            "the sea", **sampling, alignment={"search": {"rewards": [LETTERS], **search}}
        )
