"""/v1/responses, as OpenAI's own client reads it."""

import json

import pytest
from openai.types import responses as types
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving import serve

URL = "/v1/responses"


@pytest.fixture(scope="module")
def served(tiny):
    with serve(tiny.backend) as found:
        yield found


def ask(served, input="the sea", **fields):
    body = {"input": input, "max_output_tokens": 8, "temperature": 0, **fields}
    return served.http.post(URL, json=body)


def test_a_response_is_the_answer_of_a_chat(served):
    answer = served.client().responses.create(
        model=served.model, input="the sea", max_output_tokens=8, temperature=0
    )
    Response.model_validate(json.loads(answer.model_dump_json()), strict=True)
    chat = served.chat().json()
    assert answer.output_text == chat["choices"][0]["message"]["content"]
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.total_tokens == chat["usage"]["total_tokens"]
    assert answer.usage.alignment["rows"] == chat["usage"]["alignment"]["rows"]
    ended = ask(served, logit_bias={"1": 100}).json()
    assert (ended["status"], ended["incomplete_details"]) == ("completed", None)


def test_what_was_not_read_again_is_told(served):
    prompt = "what is told about the sea " * 8
    first, second = (ask(served, prompt).json() for _ in range(2))
    assert second["output"][0]["content"] == first["output"][0]["content"]
    before, after = first["usage"]["alignment"], second["usage"]["alignment"]
    assert after["cached_tokens"] > before["cached_tokens"]
    assert sum(after[one] - before[one] for one in ("cached_tokens", "tokens_read")) == 0
    told = second["usage"]["input_tokens_details"]["cached_tokens"]
    assert told == after["cached_tokens"]


def test_instructions_and_turns_are_a_conversation(served):
    turns = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the sea"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "is wide"}]},
        {"role": "user", "content": "a cat"},
    ]
    answer = ask(served, turns, instructions="be brief").json()
    chat = served.chat(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "the sea"},
            {"role": "assistant", "content": "is wide"},
            {"role": "user", "content": "a cat"},
        ]
    ).json()
    text = answer["output"][0]["content"][0]["text"]
    assert text == chat["choices"][0]["message"]["content"]
    told = {"preferences": {"user": "be brief"}}
    assert ask(served, alignment=told).json()["alignment"]["preferences"]["user"] == ["be brief"]


@pytest.mark.parametrize("reported", [{}, {"top_logprobs": 2}])
def test_a_stream_has_every_event_in_its_order(served, reported):
    whole = ask(served, **reported).json()
    answer = ask(served, stream=True, **reported)
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [one["type"] for one in events]
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event, strict=True)
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    kinds = [one["type"].removeprefix("response.") for one in events]
    deltas = [one["delta"] for one in events if one["type"].endswith("output_text.delta")]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    final = events[-1]["response"]
    assert "".join(deltas) == whole["output"][0]["content"][0]["text"]
    assert final["output"][0]["content"] == whole["output"][0]["content"]
    assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_the_client_streams_a_response(served):
    with served.client().responses.stream(
        model=served.model, input="the sea", max_output_tokens=8, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


def test_what_is_not_read_is_named_and_an_answer_may_be_sent_back(served):
    first = ask(served).json()
    turns = [{"role": "user", "content": "the sea"}, *first["output"]]
    turns.append({"role": "user", "content": "a cat", "name": "Ada"})
    answer = ask(served, turns, text={"verbosity": "low"}, truncation="auto")
    assert answer.status_code == 200
    assert answer.headers["x-fader-ignored"] == "truncation, input[2].name, text.verbosity"


def test_an_error_in_a_stream_is_an_event(served, monkeypatch):
    from fader.methods import decode

    monkeypatch.setattr(decode, "draw", lambda *_: 1 / 0)
    answer = ask(served, stream=True)
    data = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    error, failed = (json.loads(line.removeprefix("data: ")) for line in data[-2:])
    types.ResponseErrorEvent.model_validate(error, strict=True)
    types.ResponseFailedEvent.model_validate(failed, strict=True)
    assert failed["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"n": 2}, "n"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"alignment": {"guidez": 1}}, "alignment.guidez"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        ({"input": "x" * 3000}, "input"),
        ({"max_output_tokens": 10**5}, "max_output_tokens"),
        ({"instructions": " "}, "instructions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": "wat"}}}},
            "text.format",
        ),
    ],
)
def test_what_cannot_be_is_refused(served, fields, param):
    assert served.error(URL, json={"input": "x", **fields})["param"] == param
