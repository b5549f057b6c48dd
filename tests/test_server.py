"""The wire, as OpenAI's own client reads it: chat, errors, models, and how an alignment arrives."""

import asyncio
import itertools
import json

import openai
import pytest
from conftest import random_vector
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import serve

from fader import Alignment
from fader.profiles import save_profile


@pytest.fixture(scope="module")
def served(tiny):
    with serve(tiny.backend) as found:
        yield found


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """Profiles that bias towards different words, by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fader.profiles.user_config_path", lambda name: tmp_path / "config")
    monkeypatch.setattr("fader.profiles.SHIPPED", tmp_path / "shipped")
    for name in ("one", "two"):
        save_profile(name, told(name))


def told(name):
    return Alignment.model_validate({"preferences": {"user": f"say {name}", "rendering": "system"}})


SEA = [{"role": "user", "content": "the sea"}]


def test_a_chat_is_answered_as_by_the_engine(served, tiny):
    answer = served.client().chat.completions.create(
        model=served.model, messages=SEA, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    ChatCompletion.model_validate(answer.model_dump())
    result = tiny.generate("the sea", max_tokens=8, logprobs=2)
    [choice] = answer.choices
    assert choice.message.content == result.text
    assert choice.finish_reason == result.answers[0].finish_reason
    assert answer.usage.prompt_tokens == result.prompt_tokens
    assert answer.usage.completion_tokens == len(result.answers[0].token_ids)
    for one, other in zip(choice.logprobs.content, result.answers[0].logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top_logprobs[0].logprob == one.logprob  # it is greedy
        assert one.fader["base"] == pytest.approx(one.logprob)
    assert answer.usage.alignment["rows"] >= 8
    assert answer.alignment == result.alignment.model_dump(mode="json")


def frames(answer):
    """The events of a stream, each of them as OpenAI's own type."""
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    found = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return found


def test_a_stream_is_the_same_answer(served):
    whole = served.chat(n=2, temperature=1, seed=3, logprobs=True).json()
    usage = {"include_usage": True}
    answer = served.chat(
        n=2, temperature=1, seed=3, logprobs=True, stream=True, stream_options=usage
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = [ChatCompletionChunk.model_validate(one, strict=True) for one in frames(answer)]
    assert (last.choices, last.usage.completion_tokens) == ([], whole["usage"]["completion_tokens"])
    for index, choice in enumerate(whole["choices"]):
        mine = [one.choices[0] for one in parts if one.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == choice["message"]["content"]
        assert [one.finish_reason for one in mine] == [
            *[None] * (len(mine) - 1),
            choice["finish_reason"],
        ]
        logged = [entry for one in mine if one.logprobs for entry in one.logprobs.content]
        assert [one.logprob for one in logged] == pytest.approx(
            [one["logprob"] for one in choice["logprobs"]["content"]], abs=1e-4
        )


def test_no_usage_is_streamed_unless_asked_for(served):
    assert all(one["choices"] and "usage" not in one for one in frames(served.chat(stream=True)))


def test_the_async_client_streams_too(served):
    async def run():
        async with served.client(kind=openai.AsyncOpenAI) as client:
            stream = await client.chat.completions.create(
                model=served.model, messages=SEA, max_tokens=8, temperature=0, stream=True
            )
            return "".join([part.choices[0].delta.content or "" async for part in stream])

    said = served.chat().json()["choices"][0]["message"]["content"]
    assert asyncio.run(run()) == said


def test_the_seed_of_an_answer_gives_it_again(served):
    one = served.chat(temperature=None).json()
    two = served.chat(temperature=None, seed=one["seed"]).json()
    assert one["choices"] == two["choices"]
    assert served.chat(temperature=None).json()["seed"] != one["seed"]


def test_an_answer_without_a_limit_fits_the_model(served):
    answer = served.chat("the sea " * 100, max_tokens=None, temperature=1, ignore_eos=True).json()
    assert answer["usage"]["total_tokens"] == 512


def test_a_long_history_leaves_room_for_an_answer_without_a_limit(served):
    choices = [{"chosen": f"the sea {n}", "rejected": "a mat"} for n in range(100)]
    told = {"preferences": {"history": choices, "rendering": "tiers"}}
    answer = served.chat("the sea", max_tokens=None, ignore_eos=True, alignment=told).json()
    assert answer["usage"]["total_tokens"] == 512
    assert answer["usage"]["completion_tokens"] >= 256
    assert 90 < answer["usage"]["alignment"]["dropped_choices"] < 100


def test_every_field_may_be_null(served):
    names = (
        *("model", "alignment", "vllm_xargs", "lora", "top_p", "top_k", "min_p", "seed", "stop"),
        *("repetition_penalty", "n", "min_tokens", "ignore_eos", "logit_bias", "stream"),
        *("stream_options", "return_token_ids", "max_completion_tokens", "logprobs", "tools"),
        *("top_logprobs", "response_format", "user", "metadata", "functions", "audio"),
    )
    answer = served.chat(**dict.fromkeys(names))
    assert answer.status_code == 200
    assert answer.json()["choices"] == served.chat().json()["choices"]
    assert "x-fader-ignored" not in answer.headers


def test_unknown_fields_are_named_and_what_changes_nothing_is_taken(served):
    answer = served.chat(user="me", metadata={}, presence_penalty=0, tools=[], top_p=1, top_k=-1)
    assert answer.headers["x-fader-ignored"] == "user"
    assert answer.json()["choices"] == served.chat().json()["choices"]


def test_unknown_fields_within_others_are_named_too(served):
    part = {"type": "text", "text": "the sea", "cache_control": {"type": "ephemeral"}}
    turns = [{"role": "user", "name": "Ada", "content": [part], "refusal": None}]
    answer = served.chat(turns, stream_options={"include_obfuscation": False})
    within = "messages[0].name, messages[0].content[0].cache_control"
    assert answer.headers["x-fader-ignored"] == f"stream_options.include_obfuscation, {within}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 8, "max_completion_tokens": 9}, "max_completion_tokens"),
        ({"min_tokens": 20, "max_tokens": 8}, "min_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "continue": True}]}, "messages[0]"),
        (
            {"messages": [{"role": "assistant", "content": "x", "continue": True}, *SEA]},
            "messages[0].continue",
        ),
        (
            {"messages": [*SEA, {"role": "assistant", "content": "x", "token_ids": [7]}]},
            "messages[1].token_ids",
        ),
        (
            {
                "messages": [*SEA, {"role": "assistant", "content": "x", "token_ids": [7]}],
                "continue_final_message": True,
            },
            "messages[1].token_ids",
        ),
        ({"stop": [1]}, "stop[0]"),
        ({"alignment": {"vectors": {"../x": 1}}}, "alignment.vectors.../x"),
        ({"alignment": {"guidez": []}}, "alignment.guidez"),
        ({"alignment": {"guides": [{"kind": "proxy"}]}}, "alignment.guides[0].proxy.tuned"),
        ({"vllm_xargs": {"alignment": '{"vector": {}}'}}, "vllm_xargs.alignment.vector"),
        ({"vllm_xargs": {"alignment": "{"}}, "vllm_xargs.alignment"),
        ({"lora": [{"id": 99999, "scale": 1}]}, "lora[0]"),
        ({"lora": [], "alignment": {}}, "lora"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"max_tokens": 100000}, "max_tokens"),
    ],
)
def test_faults_are_named_by_the_path_of_the_field(served, fields, param):
    body = {"messages": SEA, **fields}
    found = served.error("/v1/chat/completions", json=body)
    assert (found["param"], found["type"]) == (param, "invalid_request_error")


def test_all_faults_are_told_at_once(served):
    body = {"messages": SEA, "temperature": -1, "top_p": 7}
    message = served.error("/v1/chat/completions", json=body)["message"]
    assert "temperature" in message
    assert "top_p" in message


def test_every_status_has_the_error_object(served, monkeypatch):
    url = "/v1/chat/completions"
    assert served.error("/nope", 404)["code"] == "not_found"
    assert "embeddings" in served.error("/v1/embeddings", 404)["message"]
    assert "POST" in served.error(url, 405, "GET")["message"]
    assert served.error(url, 413, content=b"x" * (3 << 20))["code"] == "too_large"
    for content in (
        b"{",
        b"\xff",
        b"[" * 100000,
        b"NaN",
        b'{"n": 1, "n": 2}',
        b"1" * 5000,
        b"[]",
        b'"x"',
    ):
        served.error(url, 400, content=content)
    missing = served.error(url, 404, json={"messages": SEA, "model": "nope"})
    assert (missing["param"], missing["code"]) == ("model", "model_not_found")
    monkeypatch.setattr(served.serving.backend, "submit", lambda *_: 1 / 0)
    found = served.error(url, 500, json={"messages": SEA})
    assert found["type"] == "server_error"
    assert "division" not in found["message"]


def test_the_client_raises_the_errors_that_it_knows(served):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=served.model, messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        served.client().chat.completions.create(model="nope", messages=SEA)


def test_models_are_listed_with_the_profiles(served, profiles):
    found = {row.id: row for row in served.client().models.list()}
    assert list(found) == [served.model, f"{served.model}:one", f"{served.model}:two"]
    row = found[f"{served.model}:one"]
    assert (row.parent, row.root, row.context_length) == (served.model, served.model, 512)
    assert served.client().models.retrieve(row.id) == row
    served.error(f"/v1/models/{served.model}:nope", 404, "GET")
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.get("/ready").status_code == 200


CHANNELS = ("body", "model", "header", "default")


@pytest.mark.parametrize(("high", "low"), [*itertools.combinations(CHANNELS, 2)])
def test_the_higher_channel_wins(served, profiles, monkeypatch, high, low):
    def given(**said):
        fields, headers = {}, {}
        for channel, name in said.items():
            if channel == "body":
                fields["alignment"] = told(name).model_dump(mode="json")
            elif channel == "model":
                fields["model"] = f"{served.model}:{name}"
            elif channel == "header":
                headers["X-Fader-Profile"] = name
            else:
                monkeypatch.setattr(served.serving, "default", told(name))
        return served.chat(**fields, headers=headers).json()["alignment"]

    assert given(**{high: "one", low: "two"}) == told("one").model_dump(mode="json")
    assert given(**{low: "two"}) == told("two").model_dump(mode="json")


def test_an_empty_alignment_of_the_body_is_the_base_model(served, profiles):
    model = f"{served.model}:one"
    assert (
        served.chat(model=model, alignment={}).json()["choices"]
        == (served.chat().json()["choices"])
    )
    assert served.chat(model=model).json()["choices"] != served.chat().json()["choices"]


def test_other_servers_words_for_an_alignment_are_read(served, tiny, tmp_path, monkeypatch):
    random_vector(tiny, "loud", 5).save(tmp_path / "loud")
    monkeypatch.setenv("FADER_VECTORS", str(tmp_path))
    monkeypatch.setattr("fader.server.aligned.available", lambda: {"loud": tmp_path / "loud"})
    wanted = served.chat(alignment={"vectors": {"loud": 0.5}}).json()
    text = json.dumps({"vectors": {"loud": 0.5}})
    assert served.chat(vllm_xargs={"alignment": text}).json()["choices"] == wanted["choices"]
    assert served.chat(lora=[{"id": 0, "scale": 0.5}]).json()["choices"] == wanted["choices"]
    assert wanted["choices"] != served.chat().json()["choices"]


def test_an_answer_goes_on_from_text_and_from_token_ids(served):
    whole = served.chat(return_token_ids=True).json()["choices"][0]
    ids = whole["token_ids"]
    begun = {"role": "assistant", "continue": True, "token_ids": ids[:4]}
    rest = served.chat([*SEA, begun], max_tokens=4, return_token_ids=True).json()["choices"][0]
    assert rest["token_ids"] == ids[4:]
    begun = {"role": "assistant", "continue": True, "content": " one two"}
    assert served.chat([*SEA, begun]).json()["choices"] != served.chat().json()["choices"]


def test_content_may_come_in_parts(served):
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": " sea"}]
    turns = [{"role": "user", "content": parts}]
    assert served.chat(turns).json()["choices"] == served.chat().json()["choices"]


def test_what_guides_and_searches_did_is_told(served):
    guide = {"kind": "contrast", "principle": "be a cat", "plausible": {}}
    answer = served.chat(alignment={"guides": [guide]}, logprobs=True).json()
    [first, *_] = answer["choices"][0]["logprobs"]["content"]
    assert first["fader"]["guides"]["0:contrast"] != 0
    rewards = [{"kind": "keywords", "words": ["sea"]}]
    search = {"kind": "best-of-n", "n": 3, "rewards": rewards}
    answer = served.chat(alignment={"search": search}, temperature=1, n=2).json()
    assert [one["search"]["explored"] > 0 for one in answer["choices"]] == [True, True]
    cost = answer["usage"]["alignment"]
    assert cost["reward_calls"] == 6
    assert len(cost["rewards"]) == 2
    assert cost["lookahead_tokens"] >= 6
