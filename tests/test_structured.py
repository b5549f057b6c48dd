"""Answers that are JSON by a schema, in Python and over the wire."""

import json

import pytest
from conftest import random_vector
from serving import serve

from fader.schema import Invalid

pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "fine": {"type": "boolean"}},
    "required": ["name", "fine"],
    "additionalProperties": False,
}
CAT = {"kind": "contrast", "principle": "be a cat"}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "alignment", [{}, {"guides": [CAT]}, {"vectors": {"loud": 0.5}, "guides": [CAT]}]
)
def test_answers_are_what_the_schema_says(tiny, alignment, temperature):
    tiny.add_vector(random_vector(tiny, "loud", 5))
    result = tiny.generate(
        {"prompt": "the sea", "json_schema": SCHEMA, "alignment": alignment},
        temperature=temperature,
        n=3,
        max_tokens=80,
    )
    for answer in result.answers:
        found = json.loads(answer.text)
        assert (list(found), type(found["fine"])) == (["name", "fine"], bool)
        assert answer.finish_reason == "stop"


def test_requests_with_and_without_a_schema_share_a_batch(tiny):
    plain = tiny.generate("a cat", max_tokens=8)
    asked = [{"prompt": "the sea", "json_schema": SCHEMA}, "a cat"]
    found = tiny.batch(asked, max_tokens=60)
    assert json.loads(found[0].text)
    assert found[1].answers[0].token_ids[:8] == plain.answers[0].token_ids


def test_a_schema_is_refused_where_nothing_is_written(tiny):
    with pytest.raises(Invalid, match=r"^json_schema: holds for what is written"):
        tiny.score({"prompt": "a", "json_schema": {}}, "b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"json_schema": {"type": "nope"}}, "json_schema: cannot be enforced"),
        ({"json_schema": {"$ref": "http://x.org/a.json"}}, "does not fetch"),
        ({"json_schema": {"uniqueItems": True, "type": "array"}}, "json_schema: cannot"),
        (
            {"json_schema": {"type": "object", "x-guidance": {"lenient": True}}},
            "json_schema: x-guidance is no keyword",
        ),
        ({"json_schema": {}, "prefill": "a"}, "does not go with prefill"),
        ({"json_schema": {}, "sampling": {"min_tokens": 3}}, "does not go with min_tokens"),
    ],
)
def test_what_cannot_be_enforced_is_refused(tiny, fields, said):
    with pytest.raises(Invalid) as caught:
        tiny.generate({"prompt": "a", **fields})
    assert said in str(caught.value)


def test_clients_get_what_their_format_says(tiny):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    with serve(tiny.backend) as served:
        answer = served.chat(max_tokens=80, response_format=form).json()
        assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"name", "fine"}
        text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        body = {"input": "the sea", "temperature": 0, "max_output_tokens": 80, "text": text}
        answer = served.http.post("/v1/responses", json=body).json()
        assert set(json.loads(answer["output"][0]["content"][0]["text"])) == {"name", "fine"}
        streamed = served.chat(max_tokens=80, response_format={"type": "json_object"}, stream=True)
        assert '"content": "{' in streamed.text
        found = served.error(
            "/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": "x"}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "x"}},
                },
            },
        )
        assert found["param"] == "response_format"
