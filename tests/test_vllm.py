"""The laws on vLLM itself, with the built-in model: what our own engine answers, vLLM answers too.
`make test-vllm` runs them, in an environment of their own."""

import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import httpx
import pytest
import torch
from conftest import until

from fader import Cancelled, Fader, Vector
from fader.backends.vllm import VLLM
from fader.schema import Invalid

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vllm is not installed; `make test-vllm` makes an environment that has it",
    ),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
    pytest.mark.builtin,
]

TIE = 2e-3
"""Nats by which two tokens may differ in score and be taken for one another."""
TOKENS = 12
KV_BYTES = 30 * 2**20
"""Room for some 670 positions of the built-in model in float32: gangs push one another out."""


@pytest.fixture(scope="module")
def ours():
    with Fader(dtype="float32") as fader:
        yield fader


@pytest.fixture(scope="module")
def theirs(ours):
    backend = VLLM(
        ours.model,
        dtype="float32",
        kv_bytes=KV_BYTES,
        token_budget=256,
        max_rows=32,
        max_rank=16,
        settings={"max_model_len": 512},
    )
    with Fader(backend) as fader:
        for seed, name in enumerate(("x", "y")):
            vector = noise(ours, name, seed)
            ours.add_vector(vector)
            fader.add_vector(vector)
        head = noise(ours, "head", 5, ("lm_head",))
        ours.add_vector(head)
        fader.add_vector(head)
        yield fader


def noise(fader, name, seed, targets=("q_proj", "v_proj", "o_proj", "down_proj", "up_proj")):
    """A vector of small random factors."""
    dice = torch.Generator().manual_seed(seed)
    return Vector(
        name,
        {
            module: (
                torch.randn(4, inner, generator=dice) * 0.05,
                torch.randn(out, 4, generator=dice) * 0.05,
            )
            for module, (out, inner) in fader.backend.backbones[fader.model].layers.items()
            if module.endswith(targets)
        },
    )


def agree(mine, reference, sampled=False):
    """The same tokens up to the first tie, and the same scores until then. (After a tie two answers
    are two answers.) Drawn tokens differ where a draw falls on the edge between two."""
    for one, other in zip(mine.answers, reference.answers, strict=True):
        for found, expected in zip(one.logprobs, other.logprobs, strict=False):
            if found.id != expected.id:
                top = dict(expected.top)
                assert found.id in top, (one.text, other.text)
                assert sampled or top[expected.id] - top[found.id] < TIE, (one.text, other.text)
                break
            assert found.logprob == pytest.approx(expected.logprob, abs=TIE)
            assert found.base == pytest.approx(expected.base, abs=TIE)
        else:
            assert one.token_ids == other.token_ids
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)


VECTORS = {"vectors": {"x": 0.8, "y": -0.5}}
ALIGNMENTS = {
    "base": {},
    "tiers": {"preferences": {"provider": "Be polite.", "user": "Be brief."}},
    "vectors": VECTORS,
    "shipped": {"vectors": {"formal": 1.0, "concise": 0.5}},
    "head": {"vectors": {"head": 1.0}},
    "contrast": {"guides": [{"kind": "contrast", "principle": "Be brief."}]},
    "realign": {
        "guides": [{"kind": "realign", "aligned": {"vectors": {"formal": 1}}, "weight": 1.5}]
    },
    "mix": {
        "guides": [
            {
                "kind": "mix",
                "components": [
                    {"policy": {"vectors": {"formal": 1}}, "weight": 0.4},
                    {"policy": {"vectors": {"warm": 1}}, "weight": 0.6},
                ],
            }
        ]
    },
    "personalized": {
        "guides": [{"kind": "personalized", "principle": "Be brief.", "vectors": {"warm": 1}}],
        **VECTORS,
    },
    "ratio": {"guides": [{"kind": "ratio", "policy": {"vectors": {"y": 1}}, "weight": 0.7}]},
    "when": {
        "guides": [{"kind": "contrast", "principle": "Be brief.", "when": {"base_at_most": 0.6}}]
    },
}
LETTERS = {"kind": "length", "at_most": 30}
SEARCHES = [
    {"kind": "best-of-n", "n": 3, "rewards": [LETTERS]},
    {"kind": "blockwise", "n": 3, "block": 4, "rewards": [LETTERS]},
    {"kind": "segments", "entropy": 3, "longest": 6, "tries": 3, "rewards": [LETTERS]},
    {"kind": "lookahead", "top_k": 3, "lookahead": 3, "rewards": [LETTERS]},
]


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_the_answer_is_that_of_our_own_engine(ours, theirs, name):
    fields = {"alignment": ALIGNMENTS[name], "max_tokens": TOKENS, "logprobs": 20}
    asked = ["What is a bond?", "Tell me about the sea."]
    for mine, reference in zip(
        theirs.batch(asked, **fields), ours.batch(asked, **fields), strict=True
    ):
        agree(mine, reference)
        assert mine.prompt_tokens == reference.prompt_tokens


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["kind"])
def test_searches_are_those_of_our_own_engine(ours, theirs, search):
    fields = {
        "alignment": {**VECTORS, "search": search},
        "max_tokens": TOKENS,
        "temperature": 0.0 if search["kind"] == "lookahead" else 1.0,
        "logprobs": 20,
    }
    mine, reference = (front.generate("What is a bond?", **fields) for front in (theirs, ours))
    agree(mine, reference, sampled=True)


def test_likelihoods_are_those_of_our_own_engine(ours, theirs):
    pairs = [
        ({"prompt": "What is a bond?", "alignment": alignment}, "A promise to pay.")
        for name, alignment in ALIGNMENTS.items()
        if name in ("base", "vectors", "head", "contrast")
    ]
    for mine, reference in zip(theirs.score_batch(pairs), ours.score_batch(pairs), strict=True):
        assert mine.logprobs == pytest.approx(reference.logprobs, abs=TIE)


def test_zero_is_off(theirs):
    bare = theirs.generate("What is a bond?", max_tokens=TOKENS).answers
    for alignment in (
        {"vectors": {"x": 0.0}},
        {"guides": [{"kind": "contrast", "principle": "Be brief.", "weight": 0}]},
        {"guides": [{"kind": "ratio", "policy": {}, "weight": 5}]},
        {"preferences": {}},
    ):
        found = theirs.generate("What is a bond?", max_tokens=TOKENS, alignment=alignment)
        assert found.answers == bare


def test_the_same_seed_gives_the_same_text_in_any_company(ours, theirs):
    draw = {"max_tokens": TOKENS, "temperature": 0.9, "top_p": 0.95, "seed": 7, "n": 2}
    draw["logprobs"] = 20
    alone = theirs.generate("What is a bond?", **draw)
    guided = {"guides": [{"kind": "contrast", "principle": "Be brief."}]}
    crowd = theirs.batch(
        [
            "Tell me about the sea.",
            {"prompt": "What is a bond?", "sampling": draw},
            {"prompt": "Why?", "alignment": guided},
            {"prompt": "How?", "alignment": VECTORS},
        ],
        max_tokens=TOKENS,
        temperature=1.0,
    )[1]
    agree(crowd, alone, sampled=True)
    assert [one.token_ids for one in crowd.answers] == [one.token_ids for one in alone.answers]
    assert alone.answers[0].token_ids != alone.answers[1].token_ids
    agree(alone, ours.generate("What is a bond?", **draw), sampled=True)


def test_the_faults_are_those_of_our_own_engine(ours, theirs):
    for fields in (
        {"alignment": {"vectors": {"nowhere": 1}}},
        {"alignment": {"guides": [{"kind": "realign", "aligned": {"vectors": {"nowhere": 1}}}]}},
        {"alignment": {"guides": [{"kind": "proxy", "tuned": "a", "untuned": "b"}]}},
        {"alignment": {"search": SEARCHES[0]}},
        {"model": "another"},
        {"sampling": {"logit_bias": {60000: 1}}},
    ):
        mine, reference = (
            front.backend.check(front.request("What is a bond?", **fields))
            for front in (theirs, ours)
        )
        assert list(map(str, mine)) == list(map(str, reference)) != []
    with pytest.raises(Invalid, match="reads at most 512"):
        theirs.generate("What is a bond?", max_tokens=600)


def test_a_stream_is_the_answer_and_its_end_frees_the_rows(theirs):
    fields = {"max_tokens": 200, "ignore_eos": True, "alignment": ALIGNMENTS["contrast"]}
    stream = theirs.stream("Tell me about the sea.", **fields)
    begun = [next(stream).token_ids[0] for _ in range(4)]
    stream.close()
    whole = theirs.generate("Tell me about the sea.", **{**fields, "max_tokens": 6})
    assert begun == list(whole.answers[0].token_ids[:4])
    assert whole.usage.rows >= 12
    engine = theirs.backend.engine
    until(lambda: not engine._rides)
    assert engine.reader.used == 0


def test_a_gang_takes_one_pass_a_token(theirs):
    alignment = ALIGNMENTS["personalized"]
    found = theirs.generate("Why?", max_tokens=8, alignment=alignment, ignore_eos=True)
    assert found.usage.forward_passes <= 10
    assert found.usage.cached_tokens >= 0


def test_vectors_come_and_go(theirs, ours):
    for round in range(3):  # more mixtures than places for them
        for place in range(10):
            strength = 0.05 * (1 + place)
            alignment = {"vectors": {"x": strength}}
            fields = {"max_tokens": 2, "alignment": alignment, "logprobs": 20}
            agree(theirs.generate("Why?", **fields), ours.generate("Why?", **fields))
        theirs.remove_vector("x")
        vector = noise(ours, "x", 70 + round)
        ours.add_vector(vector)
        theirs.add_vector(vector)


@pytest.mark.long
def test_mixed_gangs_under_pressure_equal_their_lonely_runs(theirs, record_property):
    """Requests of all kinds at once, in memory for a few of them; some are cancelled. The figures
    are in the report of `--junitxml`."""
    dice, count = random.Random(3), 64
    prompts = ["What is a bond?", "Why?", "Tell me about the sea.", "Name three rivers."]
    requests = [
        {
            "prompt": " ".join(dice.choices(prompts, k=dice.randint(1, 6))),
            "alignment": ALIGNMENTS[dice.choice(list(ALIGNMENTS))],
            "sampling": {
                "max_tokens": dice.randint(4, 40),
                "temperature": dice.choice([0, 0.8]),
                "seed": place,
                "logprobs": 20,
                "ignore_eos": True,
            },
        }
        for place in range(count)
    ]
    before = theirs.backend.engine.reader.pushed_out
    submitted = [theirs.backend.submit(theirs.request(request)) for request in requests]
    timers = [threading.Timer(dice.uniform(0, 20), one.cancel) for one in submitted[::9]]
    for timer in timers:
        timer.start()
    together = {}
    for place, one in enumerate(submitted):
        with suppress(Cancelled):
            together[place] = one.result(timeout=1500)
    pushed_out = theirs.backend.engine.reader.pushed_out - before
    record_property("survivors", len(together))
    record_property("pushed_out", pushed_out)
    assert len(together) >= count - len(timers)
    assert pushed_out > 0
    for place, found in together.items():
        request = requests[place]
        agree(found, theirs.generate(request), sampled=request["sampling"]["temperature"] > 0)
    until(lambda: not theirs.backend.engine._rides)
    assert theirs.backend.engine.reader.used == 0


@pytest.mark.long
def test_the_server_merges_what_all_requests_share(ours, tmp_path):
    """`fader serve --engine vllm --merge`, in a process of its own."""
    noise(ours, "shared", 90).save(tmp_path / "shared")
    ours.add_vector(Vector.load(tmp_path / "shared", "shared"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from fader.cli import main; main()", "serve"]
    command += ["--engine", "vllm", "--merge", f"{tmp_path / 'shared'}=0.8", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen(command, env=environment) as process,
        httpx.Client(base_url=url, timeout=600) as client,
    ):
        try:
            until(lambda: process.poll() is not None or ready(client), 600)
            for own in ({}, {"formal": 0.5}):
                body = {
                    "messages": [{"role": "user", "content": "What is a bond?"}],
                    "max_tokens": TOKENS,
                    "temperature": 0,
                    "alignment": {"vectors": own},
                }
                answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
                alignment = {"vectors": {"shared": 0.8, **own}}
                expected = ours.generate("What is a bond?", max_tokens=TOKENS, alignment=alignment)
                assert answer["choices"][0]["message"]["content"] == expected.text
        finally:
            process.terminate()


def ready(client):
    """Whether a server answers."""
    with suppress(httpx.TransportError):
        return client.get("/health").is_success
    return False
