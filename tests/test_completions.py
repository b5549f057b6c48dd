"""/v1/completions: continuing texts and token ids, and scoring an aligned policy."""

import copy

import pytest
from conftest import random_vector
from openai.types import Completion
from serving import serve
from test_server import frames

from fader import Request

CAT = {"guides": [{"kind": "contrast", "principle": "be a cat", "plausible": {}}]}
TEXTS = ["the sea is wide", "a cat sat on a mat , and"]


@pytest.fixture(scope="module")
def served(tiny):
    tiny.add_vector(random_vector(tiny, "loud", 5))
    with serve(tiny.backend) as found:
        yield found


def complete(served, prompt="the sea", **fields):
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields}
    answer = served.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return typed(answer.json()) and answer.json()


def typed(answer):
    """The answer as OpenAI's own type, which leaves out what OpenAI's server does send: null for
    the first token of a prompt, and for the finish reason of a chunk."""
    answer = copy.deepcopy(answer)
    for choice in answer["choices"]:
        for name in ("token_logprobs", "top_logprobs") if choice["logprobs"] else ():
            if choice["logprobs"][name][0] is None:
                choice["logprobs"][name].pop(0)
        choice["finish_reason"] = choice["finish_reason"] or "length"
    return Completion.model_validate(answer, strict=True)


def test_a_prompt_is_continued_as_by_the_engine(served, tiny):
    wanted = tiny.generate({"raw": "the sea"}, max_tokens=8)
    answer = served.client().completions.create(
        model=served.model, prompt="the sea", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text == wanted.text
    assert answer.usage.prompt_tokens == wanted.prompt_tokens
    ids = tiny.backend.encode(tiny.model, "the sea")
    assert complete(served, ids)["choices"] == complete(served)["choices"]


def test_several_prompts_are_answered_in_their_order(served, tiny):
    alone = [complete(served, text)["choices"][0]["text"] for text in TEXTS]
    assert [one["text"] for one in complete(served, TEXTS)["choices"]] == alone
    ids = [tiny.backend.encode(tiny.model, text) for text in TEXTS]
    assert [one["text"] for one in complete(served, ids)["choices"]] == alone
    many = complete(served, TEXTS, n=2, temperature=1, seed=1)["choices"]
    assert [one["index"] for one in many] == [0, 1, 2, 3]


def test_a_stream_is_the_same_answer(served):
    whole = complete(served, TEXTS, logprobs=2)
    body = {"prompt": TEXTS, "max_tokens": 8, "temperature": 0, "logprobs": 2, "stream": True}
    answer = served.http.post(
        "/v1/completions", json={**body, "stream_options": {"include_usage": True}}
    )
    *parts, last = map(typed, frames(answer))
    assert all("finish_reason" in one["choices"][0] for one in frames(answer)[:-1])
    assert (last.choices, last.usage.total_tokens) == ([], whole["usage"]["total_tokens"])
    for choice in whole["choices"]:
        mine = [one.choices[0] for one in parts if one.choices[0].index == choice["index"]]
        assert "".join(one.text for one in mine) == choice["text"]
        assert mine[-1].finish_reason == choice["finish_reason"]
        for name in ("tokens", "text_offset"):
            streamed = [entry for one in mine for entry in getattr(one.logprobs, name)]
            assert streamed == choice["logprobs"][name]


@pytest.mark.parametrize(
    "alignment", [{}, CAT, {"vectors": {"loud": 0.5}}, {"preferences": {"user": "be brief"}}]
)
@pytest.mark.parametrize("new", [0, 1])
def test_a_prompt_is_scored_exactly(served, tiny, alignment, new):
    answer = complete(
        served, TEXTS, echo=True, logprobs=3, max_tokens=new, extra=1, alignment=alignment
    )
    for text, choice in zip(TEXTS, answer["choices"], strict=True):
        ids = tiny.backend.encode(tiny.model, text)
        request = Request.of({"raw": ids[:1], "alignment": alignment})
        [wanted] = tiny.backend.score(request, [ids[1:]]).result()
        found = choice["logprobs"]
        count = len(ids) + new
        assert [len(found[name]) for name in found] == [count] * 4
        assert choice["text"].startswith(text)
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        assert found["token_logprobs"][1 : len(ids)] == pytest.approx(wanted.logprobs, abs=1e-4)
        for token, value, top in list(zip(*list(found.values())[:3], strict=True))[1:]:
            assert top[token] == value
        if new:  # greedy: the new token is the likeliest
            assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
        assert "".join(found["tokens"][: len(ids)]) == text


def test_scores_are_those_of_the_command_line(served, tiny):
    """`fader score` of a line with `raw` and `answer`."""
    wanted = tiny.score({"raw": "the sea", "alignment": CAT}, " is wide")
    ids = [tiny.backend.encode(tiny.model, text) for text in ("the sea", " is wide")]
    answer = complete(
        served, [*ids[0], *ids[1]], echo=True, logprobs=1, max_tokens=0, alignment=CAT
    )
    found = answer["choices"][0]["logprobs"]["token_logprobs"][len(ids[0]) :]
    assert sum(found) == pytest.approx(wanted.logprob, abs=1e-3)


def test_a_prompt_of_one_token_has_nothing_to_score(served):
    answer = complete(served, [[40], [41, 42]], echo=True, logprobs=0, max_tokens=0)
    assert [len(one["logprobs"]["tokens"]) for one in answer["choices"]] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [10**7]}, "prompt"),
        ({"prompt": [[1], [10**7]]}, "prompt[1]"),
        ({"prompt": ["a", "b" * 3000]}, "prompt[1]"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "a", "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"prompt": [2**32]}, "prompt[0]"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "stream"),
        (
            {
                "prompt": "a",
                "echo": True,
                "logprobs": 1,
                "alignment": {
                    "search": {
                        "kind": "best-of-n",
                        "rewards": [{"kind": "keywords", "words": ["sea"]}],
                    }
                },
            },
            "alignment.search",
        ),
        ({"prompt": ["a"] * 200}, "prompt"),
    ],
)
def test_what_cannot_be_is_refused(served, fields, param):
    assert served.error("/v1/completions", json=fields)["param"] == param
