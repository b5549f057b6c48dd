"""Every refusal names the whole path of the field, and all faults of a request come at once."""

import builtins
import io
import os

import pytest
from conftest import random_vector

from fader import Fader, load
from fader.request import Request
from fader.schema import Faults, Invalid, at, parse, path_of

NOPE = {"nope": 1}
SEARCH = {"kind": "lookahead", "lookahead": 2}
GOOD = {**SEARCH, "rewards": [{"kind": "length", "about": 9}]}
AT = "alignment.search"
BEST = {"kind": "best-of-n", "rewards": [{"kind": "length", "about": 3}]}


def guide(kind, **fields):
    return {"guides": [{"kind": "contrast", "principle": "x"}, {"kind": kind, **fields}]}


def reward(**policy):
    return {"search": {**SEARCH, "rewards": [{"kind": "implicit", **policy}]}}


@pytest.mark.parametrize(
    ("alignment", "paths"),
    [
        ({"vectors": {"nope": 1}}, ["alignment.vectors.nope"]),
        (
            guide("realign", aligned={"vectors": NOPE}),
            ["alignment.guides[1].realign.aligned.vectors.nope"],
        ),
        (
            guide("realign", aligned={"model": "nope"}),
            ["alignment.guides[1].realign.aligned.model"],
        ),
        (
            guide("personalized", principle="x", vectors=NOPE),
            ["alignment.guides[1].personalized.vectors.nope"],
        ),
        (
            guide("personalized", principle="x", model="nope", reference="base"),
            ["alignment.guides[1].personalized.model"],
        ),
        (guide("proxy", tuned="nope", untuned="nope"), ["alignment.guides[1].proxy.tuned"]),
        (
            guide("mix", components=[{"policy": {"vectors": NOPE}, "weight": 1}]),
            ["alignment.guides[1].mix.components[0].policy.vectors.nope"],
        ),
        (
            guide("ratio", policy={}, reference={"model": "nope"}),
            ["alignment.guides[1].ratio.reference.model"],
        ),
        (
            reward(policy={"model": "nope"}),
            ["alignment.search.rewards[0].implicit.policy.model"],
        ),
        (
            reward(policy={"vectors": NOPE}),
            ["alignment.search.rewards[0].implicit.policy.vectors.nope"],
        ),
        (reward(policy={"vectors": {}}), ["alignment.search.rewards[0].implicit.policy"]),
        (
            {
                "search": {
                    **SEARCH,
                    "rewards": [
                        {"kind": "judge", "judge": "nope", "criterion": "x"},
                        {"kind": "python", "name": "nope"},
                        {"kind": "classifier", "model": "nope"},
                        {"kind": "regex", "pattern": "("},
                        {"kind": "keywords", "words": "a", "lang": "zz"},
                        {"kind": "json-schema", "of": {"type": "thing"}},
                    ],
                }
            },
            [
                "alignment.search.rewards[0].judge.judge",
                "alignment.search.rewards[1].python.name",
                "alignment.search.rewards[2].classifier.model",
                "alignment.search.rewards[3].regex.pattern",
                "alignment.search.rewards[4].keywords.lang",
                "alignment.search.rewards[5].json-schema.of",
            ],
        ),
        (
            {
                "vectors": {"nope": 1, "neither": 1},
                **guide("proxy", tuned="nope", untuned="nope"),
                **reward(policy={"model": "nope"}),
            },
            [
                "alignment.vectors.nope",
                "alignment.vectors.neither",
                "alignment.guides[1].proxy.tuned",
                "alignment.search.rewards[0].implicit.policy.model",
            ],
        ),
    ],
)
def test_paths_of_what_there_is_not(tiny, alignment, paths):
    request = tiny.request("the sea", max_tokens=4, alignment=alignment)
    assert [fault.path for fault in tiny.check(request)] == paths
    with pytest.raises(Invalid) as caught:
        tiny.generate(request)
    assert caught.value.path == paths[0]
    assert [fault.path for fault in caught.value.faults] == paths


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": "nope"}, "model"),
        ({"max_tokens": 10**6}, "sampling.max_tokens"),
        ({"messages": "the sea " * 600}, "messages"),
        ({"n": 128, "max_tokens": 400}, "sampling.n"),
        (
            {"max_tokens": 400, "temperature": 1, "alignment": {"search": {**BEST, "n": 128}}},
            "alignment.search",
        ),
        (
            {
                "max_tokens": 400,
                "alignment": {"guides": [{"kind": "contrast", "principle": p} for p in "abc"]},
            },
            "alignment",
        ),
        ({"temperature": 1, "alignment": reward(policy={"vectors": {"a": 1}})}, None),
        (
            {
                "alignment": {
                    "search": {"kind": "best-of-n", "rewards": [{"kind": "length", "about": 3}]}
                }
            },
            "sampling.temperature",
        ),
    ],
)
def test_paths_of_what_cannot_run(tiny_folder, fields, path):
    with Fader(str(tiny_folder), kv_bytes=2**20) as fader:
        fader.add_vector(random_vector(fader, "a", 3))
        (fault,) = fader.check(fields.pop("messages", "the sea"), **fields)
        assert fault.path == (path or "sampling.temperature")


def test_a_lack_of_memory_names_what_asks_for_it(tiny_folder):
    """Of a prompt and an answer that are too much together, the longer one."""
    with Fader(load(str(tiny_folder), kv_bytes=64 * 768)) as fader:  # one row of 64 positions
        for text, most, path in (
            ("the sea", 60, "sampling.max_tokens"),
            ("a " * 60, 4, "messages"),
        ):
            with pytest.raises(Invalid, match="positions of KV memory") as caught:
                fader.generate(text, max_tokens=most)
            assert caught.value.path == path
        with pytest.raises(Invalid, match="positions of KV memory") as caught:
            fader.score("the sea", " wide" * 60)
        assert caught.value.path == "answer"


def test_all_that_keeps_answers_from_being_scored_is_said_at_once(tiny):
    wrong = {"search": {**BEST, "n": 2}, "vectors": {"nope": 1, "neither": 1}}
    paths = ["alignment.search", "alignment.vectors.nope", "alignment.vectors.neither", "answer"]
    with pytest.raises(Invalid) as caught:
        tiny.score("the sea", "", alignment=wrong)
    assert [fault.path for fault in caught.value.faults] == paths
    request = tiny.request("the sea", alignment=wrong)
    assert [fault.path for fault in tiny.backend.check(request, [" wide", "", 3])] == [
        *paths,
        "answer",
    ]
    with pytest.raises(Invalid) as caught:
        tiny.score_batch([("the sea", " wide"), ("the sea", "")])
    assert caught.value.path == "request 2: answer"


@pytest.mark.parametrize("model", [None, 3, ["a"]])
def test_what_is_no_model_is_refused(tiny, model):
    with pytest.raises(Invalid, match=r"^model: must be a model's name, folder, GGUF file or hub"):
        Fader(model)
    with pytest.raises(Invalid, match=r"^models\.other: must be a model's name"):
        Fader(tiny.backend.backbones[tiny.model], models={"other": model})


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"messages": "x", "alignment": {"vectors": {"a": "b"}}}, "alignment.vectors.a"),
        ({"messages": "x", "alignment": {"guides": [{"kind": "no"}]}}, "alignment.guides[0]"),
        (
            {"messages": "x", "alignment": {"guides": [{"kind": "contrast"}]}},
            "alignment.guides[0].contrast.principle",
        ),
        (
            {"messages": "x", "alignment": {"search": {**SEARCH, "lookahead": "x", "rewards": []}}},
            "alignment.search.rewards",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": "x", "sampling": {"stop": [""]}}, "sampling.stop[0]"),
        ({"messages": "x", "sampling": {"max_tokens": True}}, "sampling.max_tokens"),
        ({"messages": "x", "sampling": {"top_p": True}}, "sampling.top_p"),
        ({"messages": "x", "sampling": {"logit_bias": {"5": True}}}, "sampling.logit_bias.5"),
        ({"raw": [5, True]}, "raw[1]"),
        ({"messages": "x", "alignment": {"vectors": {"a": True}}}, "alignment.vectors.a"),
        ({"messages": "x", "alignment": {"search": {**GOOD, "beams": True}}}, f"{AT}.beams"),
        (
            {"messages": "x", "alignment": {"search": {**GOOD, "lookahead": True}}},
            f"{AT}.lookahead",
        ),
    ],
)
def test_paths_of_what_is_no_request(value, path):
    with pytest.raises(Invalid) as caught:
        parse(Request, value)
    assert caught.value.path == path


def test_faults_are_collected_and_none_is_told_twice():
    faults = Faults()
    for _ in range(2):
        with faults.inside("alignment").at("guides", 1):
            raise ValueError("no")
    with faults.at("model"), at("name"):
        raise Invalid("neither", "first")
    assert [str(fault) for fault in faults.found] == [
        "alignment.guides[1]: no",
        "model.name.first: neither",
    ]
    with pytest.raises(Invalid) as caught:
        faults.raise_any()
    assert str(caught.value) == "alignment.guides[1]: no\nmodel.name.first: neither"
    assert path_of("a", 0, "", "b") == "a[0].b"


def texts(schema, value="x"):
    """Requests, each with one field of text (found in the schema) set to `value`."""
    rewards = [
        {"kind": "keywords", "words": [value]},
        {"kind": "keywords", "words": ["a"], "lang": value},
        {"kind": "forbidden", "words": [value]},
        {"kind": "regex", "pattern": value},
        {"kind": "json-schema", "of": {"$ref": value}},
        {"kind": "similarity", "to": value},
        {"kind": "similarity", "to": "a", "model": value},
        {"kind": "classifier", "model": value},
        {"kind": "judge", "judge": value, "criterion": "a"},
        {"kind": "judge", "judge": "a", "criterion": value},
        {"kind": "python", "name": value},
        {"kind": "implicit", "policy": {"model": value}},
        {"kind": "implicit", "policy": {"vectors": {value: 1}}},
        {"kind": "implicit", "policy": {"preferences": {"user": value}}},
    ]
    guides = [
        {"kind": "contrast", "principle": value},
        {"kind": "contrast", "principle": "a", "against": value},
        {"kind": "realign", "aligned": {"model": value}},
        {"kind": "realign", "aligned": {"vectors": {value: 1}}},
        {"kind": "mix", "components": [{"policy": {"model": value}, "weight": 1}]},
        {"kind": "personalized", "principle": value, "vectors": {value: 1}},
        {"kind": "personalized", "principle": "a", "model": value, "reference": "base"},
        {"kind": "personalized", "principles": {value: 1}, "vectors": {"a": 1}},
        {"kind": "personalized", "preferences": {"user": value}, "vectors": {"a": 1}},
        {"kind": "personalized", "preferences": value, "vectors": {"a": 1}},
        {"kind": "proxy", "tuned": value, "untuned": value},
        {"kind": "ratio", "policy": {"vectors": {value: 1}}, "reference": {"model": value}},
    ]
    choice = {"prompt": value, "chosen": value, "rejected": value}
    yield {"messages": value}
    yield {"messages": "a", "model": value}
    yield {"messages": "a", "prefill": value}
    yield {"messages": "a", "sampling": {"stop": [value]}}
    for tier in ("provider", "user", "facts"):
        yield {"messages": "a", "alignment": {"preferences": {tier: value}}}
    yield {"messages": "a", "alignment": {"preferences": {"history": [choice]}}}
    yield {"messages": "a", "alignment": {"vectors": {value: 1}}}
    for one in guides:
        yield {"messages": "a", "alignment": {"guides": [one]}}
    for one in rewards:
        yield {"messages": "a", "alignment": {"search": {**SEARCH, "rewards": [one]}}}


def test_a_request_opens_no_file(tiny, tiny_folder, tmp_path, monkeypatch):
    """Whatever its texts are, nothing that they name is opened, looked at or fetched."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "adapter_config.json").write_text("{}")
    names = [
        str(tmp_path / "secret"),
        str(tiny_folder),
        "../secret",
        "..",
        "https://example.org/model",
        "file:///etc/passwd",
    ]
    monkeypatch.chdir(tmp_path / "secret")
    seen = []

    def watched(function):
        def call(path, *args, **more):
            seen.append(str(path))
            return function(path, *args, **more)

        return call

    for module, name in (
        (builtins, "open"),
        (io, "open"),
        (os, "stat"),
        (os, "listdir"),
        (os, "scandir"),
    ):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    for value in names:
        for fields in texts(Request, value):
            try:
                tiny.backend.check(parse(Request, fields))
            except ValueError:
                continue
    touched = [
        path
        for path in seen
        if any(path.rstrip("/") in (n, f"{n}/adapter_config.json") for n in names)
    ]
    assert not touched
