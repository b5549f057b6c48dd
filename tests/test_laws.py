"""The laws of docs/engine.md, with real forwards on tiny models."""

import gc
import random

import pytest
import torch
from conftest import ARCHITECTURES, NO_SYSTEM, TEXT, make_model, random_vector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from fader import Cancelled, Fader, load
from fader.engine.backbone import quick_dtype
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, SequenceLogits
from fader.methods.prompt import conversation
from fader.request import Preferences

WORDS = TEXT.split()
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join)


def ids(fader: Fader, question: str) -> list[int]:
    backbone = fader.backend.backbones[fader.model]
    return backbone.encode(
        conversation(fader.request(question).messages, (), backbone.tokenizer), special=False
    )


@pytest.fixture(scope="module")
def unshared(tiny_folder):
    """The model of `tiny`, where every request reads its prompt anew."""
    with Fader(load(str(tiny_folder)), share_prompts=False) as fader:
        yield fader


def ask(fader: Fader, program):
    """Run one program on the engine; its result."""
    return fader.backend.engine.run(program, {fader.model: (8, 400)}).result(timeout=60)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_generate(architecture, tmp_path):
    folder = make_model(tmp_path / architecture, architecture)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [
        "the sea",
        "one two three four five six seven eight nine ten ? people say what they want",
        " ".join(WORDS[:40]),
    ]
    with Fader(load(str(folder))) as fader:
        for penalty in (1.0, 1.3):
            for question, result in zip(
                asked, fader.batch(asked, max_tokens=24, repetition_penalty=penalty), strict=True
            ):
                prompt = torch.tensor([ids(fader, question)])
                found = theirs.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=24,
                    do_sample=False,
                    repetition_penalty=penalty,
                )
                assert list(result.answers[0].token_ids) == found[0, prompt.shape[1] :].tolist()


def test_zero_is_off(tiny):
    vector = random_vector(tiny, "off", 1)
    tiny.add_vector(vector)
    guide = {"kind": "contrast", "principle": "be brief", "weight": 0}
    loop = {"kind": "ratio", "policy": {}, "weight": 5}  # its own reference: cancels
    for sampling in ({}, {"temperature": 1.0, "top_k": 20}):
        bare = tiny.generate("a cat sat", max_tokens=20, **sampling).answers[0]
        for alignment in (
            {},
            {"vectors": {"off": 0.0}},
            {"guides": [guide]},
            {"guides": [loop]},
            {"preferences": {}},
        ):
            assert (
                tiny.generate("a cat sat", max_tokens=20, alignment=alignment, **sampling).answers[
                    0
                ]
                == bare
            )
    # a constant reward keeps the first sample, which is the bare one
    constant = {"kind": "best-of-n", "n": 3, "rewards": [{"kind": "length", "at_most": 10**6}]}
    bare = tiny.generate("a cat sat", max_tokens=20, temperature=1.0).answers[0]
    assert (
        tiny.generate("a cat sat", max_tokens=20, temperature=1.0, alignment={"search": constant})
        .answers[0]
        .token_ids
        == bare.token_ids
    )
    strong = tiny.generate("a cat sat", max_tokens=20, alignment={"vectors": {"off": 1.0}}).answers[
        0
    ]
    assert strong != tiny.generate("a cat sat", max_tokens=20).answers[0]


@QUICK
@given(company=st.lists(questions, min_size=1, max_size=9), budget=st.sampled_from([7, 64, 512]))
def test_a_row_alone_equals_the_row_in_any_batch(tiny, company, budget):
    tiny.backend.engine.token_budget = budget
    together = tiny.batch(company, max_tokens=12)
    tiny.backend.engine.token_budget = 512
    for question, result in zip(company, together, strict=True):
        assert (
            tiny.generate(question, max_tokens=12).answers[0].token_ids
            == result.answers[0].token_ids
        )


@QUICK
@given(
    question=questions,
    tokens=st.lists(st.integers(6, 380), min_size=1, max_size=20),
    cut=st.integers(0, 19),
)
def test_cache_on_equals_cache_off(tiny, unshared, question, tokens, cut):
    policy = Policy(tiny.model, tuple(ids(tiny, question)))

    def grown():
        prefix, rows = Prefix(), []
        for place, token in enumerate(tokens):
            rows.append((yield NextLogits(policy, [prefix])))
            if place == min(cut, len(tokens) - 1):  # a fork that parts ways, and stays alive
                side = prefix.then(tokens[0], 7)
                yield NextLogits(policy, [side])
            prefix = prefix.then(token)
        return torch.cat(rows)

    def at_once():
        return (yield SequenceLogits(policy, Prefix().then(*tokens), len(tokens)))

    def one_by_one():
        rows = []
        for place in range(len(tokens)):
            rows.append((yield NextLogits(policy, [Prefix().then(*tokens[:place])])))
        return torch.cat(rows)

    stepwise, whole, cold = ask(tiny, grown()), ask(tiny, at_once()), ask(unshared, one_by_one())
    torch.testing.assert_close(stepwise, cold, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole, cold, atol=1e-3, rtol=1e-3)


def test_prompts_shared_equal_prompts_read_anew(tiny_folder, unshared):
    """Requests that begin alike, at the same time, later and as next turns, under different
    mixtures: the same tokens and log-probabilities with sharing as without."""
    told = {"role": "system", "content": " ".join(WORDS)}
    mixtures = [{}, {"one": 0.6}, {"one": -0.4, "two": 0.5}]
    guided = {"guides": [{"kind": "contrast", "principle": "be kind", "weight": 1.5}]}
    alignments = [*({"vectors": mixture} for mixture in mixtures), guided]
    with Fader(load(str(tiny_folder))) as shared:
        for seed, name in enumerate(("one", "two")):
            vector = random_vector(shared, name, 40 + seed)
            shared.add_vector(vector)
            unshared.add_vector(vector)
        turns: list[list] = [[told] for _ in range(2 * len(alignments))]
        for turn in range(2):
            requests = [
                {
                    "messages": [*said, {"role": "user", "content": WORDS[place + 9 * turn]}],
                    "alignment": alignments[place % len(alignments)],
                }
                for place, said in enumerate(turns)
            ]
            fields = {"max_tokens": 5, "logprobs": 3}
            for together in (False, True):
                mine, theirs = (
                    fader.batch(requests, **fields)
                    if together
                    else [fader.generate(request, **fields) for request in requests]
                    for fader in (shared, unshared)
                )
                for one, other in zip(mine, theirs, strict=True):
                    assert one.answers[0].token_ids == other.answers[0].token_ids
                    for found, expected in zip(
                        one.answers[0].logprobs, other.answers[0].logprobs, strict=True
                    ):
                        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
                        assert dict(found.top) == pytest.approx(dict(expected.top), abs=1e-4)
                assert sum(one.usage.cached_tokens for one in mine) > 0
                assert sum(other.usage.cached_tokens for other in theirs) == 0
            first = mine[: len(alignments)]  # what another mixture has read is not this one's
            assert turn or len({result.answers[0].token_ids for result in first}) == len(first)
            for said, request, result in zip(turns, requests, mine, strict=True):
                said[:] = [*request["messages"], {"role": "assistant", "content": result.text}]
        pairs = [(request, "rivers bend slowly") for request in requests]
        for one, other in zip(shared.score_batch(pairs), unshared.score_batch(pairs), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert shared.backend.backbones[shared.model].memory.taken == 0


def test_forks_keep_apart(tiny):
    """Two continuations of one prefix, in turns, each equal to itself alone."""
    policy = Policy(tiny.model, tuple(ids(tiny, "the ship")))

    def both():
        root = Prefix()
        yield NextLogits(policy, [root])
        left, right = root.then(10), root.then(20)
        for token in (11, 12, 13):
            found = yield NextLogits(policy, [left, right, left])
            left, right = left.then(token), right.then(token + 10)
        return found

    def alone(first, rest):
        prefix = Prefix().then(first, *rest)
        return (yield NextLogits(policy, [prefix]))

    left, right, again = ask(tiny, both())
    torch.testing.assert_close(left, ask(tiny, alone(10, (11, 12)))[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(right, ask(tiny, alone(20, (21, 22)))[0], atol=1e-3, rtol=1e-3)
    assert torch.equal(left, again)


def test_memory_returns(tiny_folder):
    with Fader(load(str(tiny_folder))) as fader:  # of its own: no other test's end is waited for
        memory = fader.backend.backbones[fader.model].memory
        fader.batch(["the sea", "a cat"], max_tokens=8, n=3, temperature=1.0)
        stream = fader.stream("one two", max_tokens=200, temperature=1.0)
        next(stream)
        stream.close()
        fader.generate("three", max_tokens=1)
        assert memory.taken == 0


@pytest.mark.long
def test_nothing_grows_with_the_requests(tiny_folder):
    """Once the remembered prompts have reached their bound: what each request left would be here
    a thousand times."""

    with Fader(load(str(tiny_folder), kv_bytes=2_000_000)) as fader:
        counts = []
        for number in range(1200):
            prompt = " ".join(random.Random(number).choices(WORDS, k=20))
            guide = {"kind": "contrast", "principle": "be kind"}
            fader.batch([prompt, f"say {prompt}"], max_tokens=2, alignment={"guides": [guide]})
            if number % 400 == 399:
                gc.collect()
                counts.append((len(gc.get_objects()), fader.backend.stats().kv_remembered))
    assert abs(counts[2][0] - counts[1][0]) < 400, counts  # of 800 requests
    assert all(0 < remembered < 2_000_000 for _, remembered in counts)


def test_same_seed_same_text_whatever_else_runs(tiny):
    draw = {"max_tokens": 16, "temperature": 0.9, "top_p": 0.95, "seed": 7, "n": 3}
    alone = tiny.generate("the dog ran", **draw)
    crowd = tiny.batch(
        ["a cat", {"prompt": "the dog ran", "sampling": draw}, "old stone"],
        max_tokens=20,
        temperature=1.0,
    )[1]
    assert [a.token_ids for a in alone.answers] == [a.token_ids for a in crowd.answers]
    assert len({a.token_ids for a in alone.answers}) > 1
    assert tiny.generate("the dog ran", **{**draw, "seed": 8}).answers != alone.answers


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt", "phi"])
def test_a_per_row_mixture_equals_the_merged_weights(architecture, tmp_path):
    folder = make_model(tmp_path / architecture, architecture)
    targets = ("q_proj", "v_proj", "down_proj", "query_key_value", "dense", "fc1", "fc2", "lm_head")
    mixtures = [
        {},
        {"one": 0.7},
        {"one": -1.5, "two": 0.4},
        {"two": 2.0},
        {"one": 0.3, "two": 0.3, "three": -0.3},
    ]
    answer = "rivers bend slowly"
    with Fader(load(str(folder))) as fader:
        for seed, name in enumerate(("one", "two", "three")):
            fader.add_vector(
                random_vector(
                    fader,
                    name,
                    seed,
                    rank=2 + seed,
                    targets=targets[seed:] if seed < 2 else targets,
                )
            )
        prompt = ids(fader, "the sea")
        said = fader.backend.backbones[fader.model].encode(answer)
        found = fader.score_batch(
            [({"prompt": "the sea", "alignment": {"vectors": mix}}, answer) for mix in mixtures]
        )
        vectors = dict(fader.backend._vectors)
    for mix, mine in zip(mixtures, found, strict=True):
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
        with torch.no_grad():
            for name, strength in mix.items():
                for module in vectors[name].factors:
                    layer = merged.get_submodule(module)
                    if (
                        tied and layer is merged.get_output_embeddings()
                    ):  # only the head changes, not the embedding
                        layer.weight = torch.nn.Parameter(layer.weight.clone())
                        tied = False
                    layer.weight += strength * vectors[name].delta(module)
            log = merged(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
        expected = [float(log[len(prompt) + place - 1, token]) for place, token in enumerate(said)]
        assert mine.logprobs == pytest.approx(expected, abs=2e-3)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
BFLOAT16 = pytest.mark.skipif(
    quick_dtype() != "bfloat16", reason="this machine has no instructions for bfloat16"
)


@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    [
        ("cpu", "float32", 1e-4),
        pytest.param("cpu", "bfloat16", 0.05, marks=BFLOAT16),
        pytest.param("cuda", "float32", 1e-3, marks=CUDA),
        pytest.param("cuda", "bfloat16", 0.05, marks=[CUDA, BFLOAT16]),
    ],
)
def test_laws_2_3_and_5_hold_on_every_device_in_every_type(tiny_folder, device, dtype, tolerance):
    """A row alone, in company, read at once, token by token and after a fork has the logits of the
    merged weights on transformers, on the same device in the same type."""
    numbers = getattr(torch, dtype)
    with Fader(load(str(tiny_folder), device=device, dtype=dtype)) as fader:
        one, two = random_vector(fader, "one", 31), random_vector(fader, "two", 32)
        mixtures = [(), ((one, 0.7),), ((one, -0.5), (two, 0.4)), ((two, 0.6),)]
        said = fader.backend.backbones[fader.model].encode("rivers bend slowly through")
        policies = [
            Policy(fader.model, tuple(ids(fader, " ".join(WORDS[: 1 + 9 * place]))), mixture)
            for place, mixture in enumerate(mixtures)
        ]

        def at_once(policies):
            prefix = Prefix().then(*said)
            return (yield [SequenceLogits(policy, prefix, len(said)) for policy in policies])

        def stepwise(policies):
            prefix, rows, beside = Prefix(), [], []
            for token in said:
                rows.append((yield [NextLogits(policy, [prefix]) for policy in policies]))
                beside.append(prefix.then(7))  # stays alive, so that the next one is a fork
                yield [NextLogits(policy, beside[-1:]) for policy in policies]
                prefix = prefix.then(token)
            return [torch.cat(row) for row in zip(*rows, strict=True)]

        alone = [ask(fader, at_once([policy]))[0] for policy in policies]
        together, steps = (
            fader.backend.engine.run(program(policies), {fader.model: (60, 400)}).result(
                timeout=120
            )
            for program in (at_once, stepwise)
        )
    for policy, *found in zip(policies, alone, together, steps, strict=True):
        merged = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
        with torch.no_grad():
            for vector, strength in policy.vectors:
                for module in vector.factors:
                    merged.get_submodule(module).weight += strength * vector.delta(module)
            text = torch.tensor([[*policy.prompt, *said]], device=device)
            logits = merged.to(device=device, dtype=numbers)(text).logits[0].float()
        expected = logits[len(policy.prompt) - 1 : -1]
        for mine in found:
            assert mine.shape == expected.shape
            assert (mine - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_guide_is_its_formula(tiny):
    """Contrast, realign, mix, personalized and ratio against the log-linear form computed from
    separate reads."""
    vector = random_vector(tiny, "aligned", 5)
    tiny.add_vector(vector)

    def log(prompt=None, vectors=()):
        backbone = tiny.backend.backbones[tiny.model]
        text = conversation(
            tiny.request("the sea").messages,
            (Preferences.model_validate(prompt or {}),),
            backbone.tokenizer,
        )
        policy = Policy(tiny.model, tuple(backbone.encode(text)), tuple(vectors))

        def program():
            return (yield NextLogits(policy, [Prefix()]))

        return ask(tiny, program())[0].log_softmax(-1)

    base, told = log(), log({"user": ["be warm"], "rendering": "system"})
    principled = {"user": ["be warm"], "rendering": "principle"}
    guided = log(vectors=[(vector, 1.0)])
    cases = [
        (
            {"kind": "contrast", "principle": "be warm", "weight": 1.5, "plausible": None},
            base + 1.5 * (told - base),
        ),
        (
            {"kind": "realign", "aligned": {"vectors": {"aligned": 1}}, "weight": 0.4},
            0.6 * base + 0.4 * guided,
        ),
        (
            {
                "kind": "mix",
                "components": [
                    {"policy": {"vectors": {"aligned": 1}}, "weight": 0.7},
                    {
                        "policy": {"preferences": {"user": "be warm", "rendering": "system"}},
                        "weight": 0.3,
                    },
                ],
            },
            0.7 * guided + 0.3 * told,
        ),
        (
            {
                "kind": "personalized",
                "principle": "be warm",
                "vectors": {"aligned": 1},
                "plausible": None,
            },
            base + log(principled, [(vector, 1.0)]) - log(principled),
        ),
        (
            {
                "kind": "personalized",
                "principle": "be warm",
                "vectors": {"aligned": 1},
                "reference": "base",
                "weight": 0.3,
                "plausible": None,
            },
            0.7 * base + 0.3 * log(principled, [(vector, 1.0)]),
        ),
        (
            {"kind": "ratio", "policy": {"vectors": {"aligned": -1}}, "weight": 2},
            base + 2 * (log(vectors=[(vector, -1.0)]) - base),
        ),
    ]
    for guide, expected in cases:
        answer = tiny.generate(
            "the sea", max_tokens=1, logprobs=100, alignment={"guides": [guide]}
        ).answers[0]
        assert answer.logprobs is not None
        expected = expected.log_softmax(-1)
        for token, value in answer.logprobs[0].top:
            assert value == pytest.approx(float(expected[token]), abs=2e-3)
        assert answer.token_ids[0] == int(expected.argmax())
        assert sum(answer.logprobs[0].guides.values()) != 0


def test_plausible_tokens_are_those_of_the_judge(tiny):
    guide = {"kind": "contrast", "principle": "be warm", "weight": 3}
    for plausible in ({"top_k": 3}, {"top_k": 3, "of": "policy"}, {"min_p": 0.2}, {"top_p": 0.5}):
        answer = tiny.generate(
            "the sea",
            max_tokens=1,
            logprobs=100,
            alignment={"guides": [{**guide, "plausible": plausible}]},
        ).answers[0]
        kept = {token for token, _ in answer.logprobs[0].top}
        judge = (
            {"preferences": {"user": "be warm", "rendering": "system"}}
            if plausible.get("of") == "policy"
            else {}
        )
        top = (
            tiny.generate("the sea", max_tokens=1, logprobs=100, alignment=judge)
            .answers[0]
            .logprobs[0]
            .top
        )
        if "top_k" in plausible:
            expected = {token for token, _ in top[:3]}
        elif "min_p" in plausible:
            expected = {
                token for token, value in top if value >= top[0][1] + torch.tensor(0.2).log()
            }
        else:
            expected, mass = set(), 0.0
            for token, value in top:
                if mass < 0.5:
                    expected.add(token)
                mass += torch.tensor(value).exp().item()
        assert kept == expected


def test_several_guides_add_up_and_compose_with_vectors_and_prompt(tiny):
    tiny.add_vector(random_vector(tiny, "warm", 9))
    alignment = {
        "preferences": {"provider": "be brief", "user": "be kind"},
        "vectors": {"warm": 0.5},
        "guides": [
            {"kind": "contrast", "principle": "say more", "weight": 1.5, "plausible": None},
            {"kind": "ratio", "policy": {"vectors": {}}, "weight": -0.5},
        ],
    }
    compared = 0
    for question in dict.fromkeys(WORDS[:40]):
        answer = tiny.generate(question, max_tokens=2, logprobs=0, alignment=alignment).answers[0]
        assert all(set(entry.guides) == {"0:contrast", "1:ratio"} for entry in answer.logprobs)
        scored = tiny.score(question, answer.text or "x", alignment=alignment)
        if scored.tokens != tuple(entry.token for entry in answer.logprobs):
            continue  # the text is read as other tokens than were written
        compared += 1
        assert scored.logprobs == pytest.approx(
            [entry.logprob for entry in answer.logprobs], abs=2e-3
        )
    assert compared >= 3


class TestStops:
    def test_every_end_token_ends(self, tiny):
        """Whatever the model writes, nothing follows an end token, and length is said when there
        was none."""
        results = tiny.batch(
            [
                {"prompt": "the sea", "sampling": {"seed": i, "max_tokens": 40, "temperature": 50}}
                for i in range(30)
            ]
        )
        ended = 0
        for result in results:
            answer = result.answers[0]
            ends = [token in (1, 2) for token in answer.token_ids]
            assert not any(ends[:-1])
            assert answer.finish_reason == ("stop" if ends[-1] else "length")
            assert ends[-1] or len(answer.token_ids) == 40
            ended += ends[-1]
        assert ended

    def test_stop_strings_across_tokens(self, tiny):
        whole = tiny.generate("the sea", max_tokens=30)
        for length in (1, 3, 6):
            stop = whole.text[5 : 5 + length]
            result = tiny.generate("the sea", max_tokens=30, stop=[stop, "never written"])
            assert result.text == whole.text[: whole.text.index(stop)]
            assert result.answers[0].finish_reason == "stop"
            assert (
                "".join(chunk.text for chunk in tiny.stream("the sea", max_tokens=30, stop=[stop]))
                == result.text
            )

    def test_max_tokens(self, tiny):
        assert [
            len(tiny.generate("the sea", max_tokens=n).answers[0].token_ids) for n in (1, 2, 5)
        ] == [1, 2, 5]

    def test_chunks_are_the_answer(self, tiny):
        for temperature in (0, 1.5):
            result = tiny.generate("old stone", max_tokens=40, temperature=temperature)
            chunks = list(tiny.stream("old stone", max_tokens=40, temperature=temperature))
            assert "".join(chunk.text for chunk in chunks) == result.text
            assert (
                tuple(token for chunk in chunks for token in chunk.token_ids)
                == result.answers[0].token_ids
            )
            assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)

    def test_a_forced_beginning_is_continued(self, tiny):
        backbone = tiny.backend.backbones[tiny.model]
        prompt = conversation(tiny.request("the sea").messages, (), backbone.tokenizer, "is wide")
        assert prompt.endswith("<|assistant|>is wide")
        with_prefill = tiny.generate("the sea", max_tokens=5, prefill="is wide")
        assert with_prefill.prompt_tokens == len(backbone.encode(prompt))


def test_usage_is_true(tiny):
    result = tiny.generate("the sea", max_tokens=9, temperature=1.5, n=2)
    longest = max(len(answer.token_ids) for answer in result.answers)
    usage = result.as_dict()["usage"]
    written = sum(len(answer.token_ids) for answer in result.answers)
    assert usage["completion_tokens"] == written
    assert usage["prompt_tokens"] == len(ids(tiny, "the sea"))
    assert usage["forward_passes"] == longest
    assert usage["rows"] == written - 1  # the two samples read the prompt as one row
    assert usage["seconds"] > 0
    guided = tiny.generate(
        "the sea",
        max_tokens=4,
        alignment={"guides": [{"kind": "contrast", "principle": "be kind", "against": "be rude"}]},
    )
    assert guided.usage.rows == 3 * len(guided.answers[0].token_ids)
    assert guided.usage.forward_passes == len(guided.answers[0].token_ids)
    best = {"kind": "best-of-n", "n": 5, "rewards": [{"kind": "keywords", "words": ["sea"]}]}
    assert (
        tiny.generate(
            "a", max_tokens=4, temperature=1.0, alignment={"search": best}
        ).usage.reward_calls
        == 5
    )


def test_more_than_fits_waits_and_too_much_is_refused(tiny_folder):
    backbone = load(str(tiny_folder), kv_bytes=4 * 64 * 3 * 2 * 32 * 4)  # 4 slots of 64 positions
    assert backbone.memory.budget == 256
    with Fader(backbone) as fader:
        results = fader.batch([" ".join(WORDS[i : i + 4]) for i in range(20)], max_tokens=20)
        assert 0 < backbone.memory.reserved <= 4 * 64 * 3 * 2 * 32 * 4
        with pytest.raises(ValueError, match=r"5 rows of up to .* the budget of"):
            fader.generate("the sea", max_tokens=20, temperature=1.0, n=5)
    with Fader(load(str(tiny_folder))) as roomy:
        for place, result in enumerate(results):
            question = " ".join(WORDS[place : place + 4])
            assert (
                roomy.generate(question, max_tokens=20).answers[0].token_ids
                == result.answers[0].token_ids
            )


def test_stress_many_join_leave_and_are_cancelled(tiny):
    """64 requests of random lengths and alignments come and go; every survivor equals its lonely
    run."""
    dice = random.Random(3)
    tiny.add_vector(random_vector(tiny, "x", 11))
    tiny.add_vector(random_vector(tiny, "y", 12))
    alignments = [
        {},
        {"vectors": {"x": 0.8}},
        {"vectors": {"x": -0.4, "y": 0.6}},
        {"preferences": {"user": "be kind"}},
        {"guides": [{"kind": "contrast", "principle": "be kind", "weight": 1.2}]},
        {
            "guides": [{"kind": "realign", "aligned": {"vectors": {"y": 1}}, "weight": 0.5}],
            "vectors": {"x": 0.2},
        },
    ]
    requests = [
        {
            "prompt": " ".join(dice.choices(WORDS, k=dice.randint(1, 50))),
            "alignment": dice.choice(alignments),
            "sampling": {
                "max_tokens": dice.randint(1, 30),
                "temperature": dice.choice([0, 0.8]),
                "seed": place,
            },
        }
        for place in range(64)
    ]
    plans = [tiny.backend.plan(tiny.request(request)) for request in requests]
    submitted = []
    for place, plan in enumerate(plans):
        submitted.append(tiny.backend.submit(plan.request))
        if dice.random() < 0.3:
            (
                submitted[place // 2].exception() if dice.random() < 0.2 else None
            )  # sometimes wait for one
        if dice.random() < 0.25:
            submitted[dice.randrange(len(submitted))].cancel()
    survivors = cancelled = 0
    for request, future in zip(requests, submitted, strict=True):
        try:
            found = future.result(timeout=120)
        except Cancelled:
            cancelled += 1
            continue
        survivors += 1
        assert tiny.generate(request).answers == found.answers
    assert survivors > 20
    assert cancelled > 0
    assert tiny.backend.backbones[tiny.model].memory.taken == 0


def test_vectors_come_and_go_while_requests_run(tiny):
    vector = random_vector(tiny, "passing", 21)
    tiny.add_vector(vector)
    alignment = {"vectors": {"passing": 0.7}}
    expected = tiny.generate("the sea", max_tokens=40, alignment=alignment).answers[0].token_ids
    stream = tiny.stream("the sea", max_tokens=40, alignment=alignment)
    found = list(next(stream).token_ids)
    tiny.add_vector(random_vector(tiny, "another", 22))
    tiny.remove_vector("passing")
    tiny.generate("a cat", max_tokens=5, alignment={"vectors": {"another": 1}})
    found += [token for chunk in stream for token in chunk.token_ids]
    assert tuple(found) == expected
    with pytest.raises(ValueError, match=r"^alignment\.vectors\.passing: no such vector; known: "):
        tiny.generate("the sea", alignment=alignment)


def test_a_template_without_system_role_folds_the_tiers_into_the_user_turn(tmp_path):
    folder = make_model(tmp_path / "gemma", "gemma2", NO_SYSTEM)
    with Fader(load(str(folder))) as fader:
        backbone = fader.backend.backbones[fader.model]
        text = conversation(
            fader.request("the sea").messages,
            (Preferences(provider=("be brief",)),),
            backbone.tokenizer,
        )
        assert text.startswith("<|user|><System Info>")
        assert text.endswith("the sea<|end|><|assistant|>")
        assert (
            fader.generate(
                "the sea", max_tokens=3, alignment={"preferences": {"provider": "be brief"}}
            ).text
            is not None
        )
