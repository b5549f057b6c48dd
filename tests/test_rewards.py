"""Every reward: one float per text, judged alone, within its bounds, and `ahead` true for whatever
is appended."""

import json
import math
import resource
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Annotated, get_args

import numpy as np
import pytest
import torch
from conftest import Quiet, Speaking, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from fader import endpoint as endpoints
from fader.endpoint import Endpoint
from fader.rewards import models as reward_models
from fader.rewards.json_schema import json_schema
from fader.rewards.judge import LLMJudge, read_mark
from fader.rewards.reward import ANY, END, Resources
from fader.rewards.specs import JsonSchemaSpec, TextRewardSpec
from fader.rewards.table import REWARDS, make, weighted_sum
from fader.rewards.text import count
from fader.rewards.words import rest, settled

SPEC = TypeAdapter(Annotated[TextRewardSpec, Field(discriminator="kind")])
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def spec(kind, **settings):
    return SPEC.validate_python({"kind": kind, **settings})


def value(reward, text, prompt="p"):
    [found] = reward.score([prompt], [text])
    return found


class Script(Speaking):
    """A judge whose mark is the number of times that the answer says "good"; other words in the
    answer make it fail."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = body["messages"][1]["content"].split("# Answer\n")[1]
        with server.guard:
            server.asked[answer] += 1
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            time.sleep(server.delay + 3 * ("slow" in answer))
            self.reply(body, answer)
        finally:
            with server.guard:
                server.running -= 1

    def reply(self, body, answer):
        if self.headers["Authorization"] != "Bearer right":
            return self.say(401, json.dumps({"error": {"message": "no such key"}}).encode())
        if body["model"] != "scripted":
            return self.say(404, json.dumps({"error": {"message": "no such model"}}).encode())
        if "drop" in answer:
            return self.connection.shutdown(socket.SHUT_RDWR)
        if "broken" in answer:
            return self.say(500, json.dumps({"error": {"message": "out of luck"}}).encode())
        if answer == "odd":
            return self.say(200, self.server.body)
        again = len(body["messages"]) > 2
        said = f"<think>7? 8?</think> {min(10, answer.count('good'))}/10."
        if "mute" in answer or ("shy" in answer and not again):
            said = "I would say 3 or 4."
        if "thinking" in answer:
            said = "<think>It might be 3"
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop",
        }
        return self.say(
            200,
            json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "scripted",
                    "choices": [choice],
                }
            ).encode(),
        )


@pytest.fixture(scope="module")
def server():
    with Quiet(("127.0.0.1", 0), Script) as server:
        server.asked, server.running, server.most, server.delay, server.guard = (
            Counter(),
            0,
            0,
            0.0,
            threading.Lock(),
        )
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random models: one and three outputs, with a chat template and without, with padding and
    without, and an embedder."""
    made = {}
    for name, kind, outputs, template in (
        ("chat", "llama", 1, True),
        ("unpadded", "llama", 1, True),
        ("pair", "bert", 3, False),
        ("roberta", "roberta", 1, False),
        ("embedder", "bert", 0, False),
    ):
        words = tokenizer() if template else tokenizer(None)
        pad = {
            "pad_token_id": None if name == "unpadded" else 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        labels = (
            {"id2label": {i: f"L{i}" for i in range(outputs)}, "num_labels": outputs}
            if outputs
            else {}
        )
        config = AutoConfig.for_model(kind, **SIZES, **pad, **labels, vocab_size=len(words))
        torch.manual_seed(3)
        model = (AutoModelForSequenceClassification if outputs else AutoModel).from_config(
            config, dtype=torch.float32
        )
        made[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(made[name])
        words.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def resources(server, folders):
    return Resources(
        callables={
            "vowels": lambda prompts, texts: [
                np.float32(sum(map(text.count, "aeiou"))) for text in texts
            ]
        },
        judges={"kind": LLMJudge(Endpoint(server.url, "scripted", "right"))},
        classifiers={name: folders[name] for name in ("chat", "unpadded", "pair", "roberta")},
        embedders={"small": folders["embedder"]},
    )


# A reward, a text and one that is worse.
CASES = [
    (spec("keywords", words=["dog", "run"]), "The dogs ran.", "A dog."),
    (spec("keywords", words=["dog", "run"], match="form", hard=True), "dog run", "dog runs"),
    (
        spec("keywords", words=["dog", "ice cream"], ordered=True),
        "dogs like ice creams",
        "ice cream for a dog",
    ),
    (spec("forbidden", words=["dog", "ice cream"]), "ice for a cat", "two dogs"),
    (spec("forbidden", words=["dog", "cat"], hard=False), "dogs", "dogs and cats"),
    (spec("length", at_most=3), "one two three", "one two three four"),
    (spec("length", at_least=2, at_most=3, unit="sentences"), "One. Two.", "One."),
    (spec("length", about=5, unit="characters"), "12345", "123456"),
    (spec("length", at_least=4, hard=True), "one two three four", "one two three"),
    (spec("regex", pattern=r"\d+"), "in 1999", "in June"),
    (spec("regex", pattern="(?:a|b)+ *c?", match="fullmatch"), "abab c", "ababd"),
    (spec("json-schema", of={"type": "object", "required": ["a"]}), '{"a": 1}', '{"b": 1}'),
    (
        spec("readability"),
        "The cat sat on the mat.",
        "Institutional considerations necessitate comprehensive reorganisation.",
    ),
    (
        spec("readability", grade=4),
        "The cat sat on the mat.",
        "Institutional considerations necessitate comprehensive reorganisation.",
    ),
    (spec("sentiment"), "I love it!", "I hate it!"),
    (spec("sentiment", toward="negative"), "I hate it!", "I love it!"),
    (spec("sentiment", toward="neutral"), "It is a chair.", "I love it!"),
    (spec("similarity", to="the dogs ran home"), "a dog ran home", "stock markets"),
    (
        spec("similarity", to="the sea is wide", model="small"),
        "the sea is wide",
        "a cat sat on a mat !",
    ),
    (spec("classifier", model="chat"), None, None),
    (spec("classifier", model="unpadded", normalize="sigmoid"), None, None),
    (spec("classifier", model="pair", label="L1", normalize="softmax"), None, None),
    (spec("classifier", model="roberta", label=0), None, None),
    (spec("judge", judge="kind", criterion="Is it good?"), "good good", "good"),
    (spec("python", name="vowels"), "aaa", "a"),
]
SPECS = [case[0] for case in CASES]
AHEAD = [one for one in SPECS if one.kind in ("keywords", "forbidden", "length")] + [
    spec("keywords", words=["dog's day", "狗", "cafe\u0301"], match="form"),
    spec("keywords", words=["dog", "run", "dog"], ordered=True, hard=True),
    spec("forbidden", words=["dogma", "a.", "runs"], match="form", hard=False),
    spec("length", at_most=2, unit="sentences", hard=True),
    spec("length", about=2, unit="sentences"),
    spec("length", at_least=3, unit="characters"),
    spec("length", at_least=2, at_most=4),
    spec("length", about=4, hard=True),
    spec("regex", pattern="(?:dog|run)+ ?.*d", match="fullmatch"),
    spec("regex", pattern=r"\bdog\b.*", match="fullmatch"),
    spec("regex", pattern=r"(?:dog|.(?<=a))+", match="fullmatch"),
    spec("regex", pattern=r"[a-z ]{3,9}(\.|$)", match="fullmatch"),
]
OTHERS = [
    "",
    " ",
    "\n",
    "狗在跑。你好。",
    "الكلب يجري",
    "Собака бежит.",
    "🙂🐕 👩\u200d👩\u200d👧 e\u0301",
    "\ufffd",
    "\x00",
    "...",
    "3.5 1e999 NaN",
    '{"a": [1]}',
]


def label(one):
    """A test's id: a reward's settings."""
    return (
        str(one.model_dump(exclude_defaults=True))[:70]
        if isinstance(one, get_args(TextRewardSpec))
        else ""
    )


@pytest.fixture(params=SPECS, ids=label)
def reward(request, resources):
    return make(request.param, resources)


def test_every_kind_is_here_and_in_the_table():
    kinds = set(get_args(TextRewardSpec))
    assert kinds == set(REWARDS) == {type(one) for one in SPECS}


@pytest.mark.long
def test_one_float_per_text_and_batch_equals_singles(reward):
    texts = [
        *OTHERS,
        "The dogs ran home. It was good!",
        "good",
        "the sea is wide and the ship is small . " * 9,
    ]
    prompts = [f"the sea {i}" * (i % 3) for i in range(len(texts))]
    batch = reward.score(prompts, texts)
    assert all(type(found) is float and math.isfinite(found) for found in batch)
    assert batch == pytest.approx(
        [value(reward, text, prompt) for prompt, text in zip(prompts, texts, strict=True)], abs=1e-5
    )
    assert reward.score([], []) == []
    for text, found in zip(texts, batch, strict=True):
        low, high = reward.prefix_bounds(text)
        assert reward.bounds[0] <= low <= high <= reward.bounds[1]
        assert low <= found <= high


@pytest.mark.parametrize(("one", "better", "worse"), [case for case in CASES if case[1]], ids=label)
def test_a_better_text_gets_more(one, better, worse, resources):
    reward = make(one, resources)
    high, low = reward.score(["p", "p"], [better, worse])
    assert high > low


@pytest.mark.parametrize(
    "text",
    ["The dog's good day. " * 5000, "a" * 50_000, "狗。" * 30_000, '"[{.' * 20_000],
    ids=lambda text: text[:4],
)
@pytest.mark.long
def test_long_texts_are_judged_quickly(reward, text):
    start = time.perf_counter()
    found = value(reward, text)
    low, high = reward.prefix_bounds(text)
    assert low <= found <= high
    assert time.perf_counter() - start < 10


PIECES = [
    "dog",
    "do",
    "g",
    "s",
    "ma",
    "run",
    "r",
    "an",
    "n",
    "ice",
    " cream",
    "cafe",
    "狗",
    "a",
    "d",
    "b",
    " ",
    "  ",
    "\n",
    "\t",
    ".",
    "!",
    "?",
]
PIECES += [
    "\u3002",
    "'",
    "\u2019",
    '"',
    ")",
    ",",
    "-",
    "3",
    "\ufffd",
    "\u0301",
    "\u200d",
    "_",
    "c",
    "\u00a0",
    "\u3000",
    "\u0e31",
    "A.",
    ". ",
]
LINES = st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=6)
MADE = {one: make(one) for one in AHEAD}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(AHEAD), LINES, LINES)
def test_ahead_holds_for_whatever_is_appended(one, text, more):
    reward = MADE[one]
    low, high = reward.prefix_bounds(text)
    assert reward.bounds[0] <= low <= high <= reward.bounds[1]
    for whole in (
        text,
        text + more,
        text.rstrip("\ufffd") + more,
    ):  # the last character was unfinished and became another
        assert low <= value(reward, whole) <= high


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(AHEAD), st.sampled_from([-2.0, -0.3, 0.0, 0.1, 3.0])),
        min_size=1,
        max_size=4,
    ),
    LINES,
    LINES,
)
def test_ahead_of_a_sum_holds_too(weighted, text, more):
    reward = weighted_sum([one.model_copy(update={"weight": weight}) for one, weight in weighted])
    low, high = reward.prefix_bounds(text)
    assert reward.bounds[0] <= low <= value(reward, text + more) <= high <= reward.bounds[1]


def test_ahead_says_something():
    def ahead(text, *settings, **more):
        return make(spec(*settings, **more)).prefix_bounds(text)

    dogs = {"words": ["dog", "run"]}
    assert ahead("the dogs ", "keywords", **dogs) == (0.5, 1)
    assert ahead("the dogs", "keywords", **dogs) == (0, 1)
    assert ahead("run dog. ", "keywords", **dogs, ordered=True) == (0.5, 1)
    assert ahead("run dog. ", "keywords", **dogs, hard=True) == (1, 1)
    assert ahead("a dog,", "forbidden", **dogs) == (0, 0)
    assert ahead("a dog", "forbidden", **dogs) == (0, 1)
    assert ahead("a dog.", "forbidden", **dogs) == (0, 1)  # dog.com
    assert ahead("a dog. ", "forbidden", **dogs, hard=False) == (0, 0.5)
    assert ahead("a b c d", "length", at_most=2) == (0, 0.5)
    assert ahead("a b c", "length", at_least=4) == (0.75, 1)
    assert ahead("a b c", "length", about=4) == (0, 1)
    assert ahead("a b c d e", "length", about=4) == (0, 0.8)
    assert ahead("a b c", "length", at_least=2, at_most=2, hard=True) == (0, 0)
    assert ahead("One. Two. 3.", "length", at_most=2, unit="sentences", hard=True) == (0, 0)
    assert ahead("One. 3.", "length", at_most=2, unit="sentences", hard=True) == (0, 1)
    assert ahead("abx", "regex", pattern="ab+c", match="fullmatch") == (0, 0)
    assert ahead("abb\ufffd", "regex", pattern="ab+c", match="fullmatch") == (0, 1)
    assert ahead("abx", "regex", pattern="ab+c") == (0, 1)
    # a "\ufffd" at the end may become less than it is; of these patterns the package says wrongly
    # that nothing can follow
    assert ahead("ab\ufffd\ufffd", "length", at_most=3, unit="characters", hard=True) == (0, 1)
    assert ahead("a \ufffd", "length", at_least=2) == (0.5, 1)
    assert ahead("", "regex", pattern=r"\b.+", match="fullmatch") == (0, 1)
    assert ahead("ab", "regex", pattern="(?:b|.+?(?<=a))", match="fullmatch") == (0, 1)


def test_words_are_found_in_their_forms():
    for word, text in [
        ("run", "ran"),
        ("run", "running"),
        ("run", "runs"),
        ("ran", "run"),
        ("dog", "Dogs"),
        ("DOG", "dog's"),
        ("mouse", "mice"),
        ("child", "children"),
        ("travel", "travelling"),
        ("travel", "travelled"),
        ("organise", "organising"),
        ("colour", "colours"),
        ("paint", "paintings painting"),
        ("hop", "hopping"),
        ("hope", "hoping"),
        ("try", "tried"),
        ("box", "boxes"),
        ("zorb", "zorbing"),
        ("painting", "paint"),
        ("take care of", "She took care of it"),
        ("狗", "一只狗在跑"),
        ("🙂", "well🙂"),
        ("C++", "in C++."),
        ("café", "two cafe\u0301s"),
        ("don't", "I don\u2019t"),
    ]:
        assert value(make(spec("keywords", words=word)), text) == 1, (word, text)
    for word, text in [
        ("car", "caring"),
        ("hop", "hoping"),
        ("be", "bed"),
        ("dog", "dogma"),
        ("ice cream", "ice, cream"),
        ("a", "as"),
    ]:
        assert value(make(spec("keywords", words=word)), text) == 0, (word, text)
    assert value(make(spec("keywords", words="Hund", lang="de")), "zwei Hunde") == 1
    assert value(make(spec("keywords", words="Собака", lang="ru")), "много собаки") == 1
    forms = make(spec("keywords", words=["Dog", "New York"], match="form"))
    assert forms.score([""] * 4, ["a dog.", "dogs", "in new york", "New, York"]) == [0.5, 0, 0.5, 0]


def test_form_needs_no_lemmas(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplemma", None)
    assert value(make(spec("keywords", words="dog", match="form")), "a dog") == 1


def test_keywords_in_order():
    reward = make(spec("keywords", words=["a", "b", "a"], ordered=True, match="form"))
    assert reward.score(
        [""] * 6, ["a", "b a", "a b", "a b a", "b b", "b a x b b a"]
    ) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 0, 1])
    hard = make(
        spec("keywords", words=["new york", "york city"], ordered=True, hard=True, match="form")
    )
    assert hard.score([""] * 2, ["new york city", "new york or york city"]) == [0, 1]


def test_proposals_of_keywords():
    reward = make(spec("keywords", words=["skate", "dog", "ice cream", "狗"], propose=True))
    assert reward.propose("") == ["skate", "dog", "ice cream", "狗"]
    assert reward.propose("I like ska") == ["te", " dog", " ice cream", "狗"]
    assert reward.propose("Dogs like Ice ") == [" skate".strip(), "cream", "狗"]
    assert reward.propose("The dog xd") == [" skate", " ice cream", "狗"]
    assert reward.propose("a \ufffd") == []
    ordered = make(spec("keywords", words=["skate", "dog"], ordered=True, propose=True))
    assert [ordered.propose(text) for text in ("dog", "he skates", "he skates with dogs")] == [
        [" skate"],
        [" dog"],
        [],
    ]
    assert make(spec("keywords", words=["skate"])).propose is None
    assert rest("a d", "dog") == "og"
    assert rest("ad", "dog") == " dog"


def test_what_is_settled():
    assert [
        settled(text)
        for text in (
            "the dog",
            "the dog ",
            "the dog,",
            "a well-\u2019",
            "do\ufffd",
            "a e\u0301",
            "一只狗",
            "狗 \ufffd",
        )
    ] == [
        "the ",
        "the dog ",
        "the dog,",
        "a ",
        "",
        "a ",
        "一只狗",
        "狗 ",
    ]


def test_lengths():
    told = {
        "": 0,
        " ": 0,
        "Hi": 1,
        "Hi. ": 1,
        "It costs 3.5 now": 1,
        'He said "Go." Then left!': 2,
        "你好。我是": 2,
        "Wait... what?! Yes": 3,
    }
    assert {text: count(text, "sentences") for text in told} == told
    assert count("a\u3000b  c\n", "words") == 3
    soft = make(spec("length", at_least=2, at_most=4))
    assert soft.score([""] * 4, ["", "a", "a b", "a b c d e"]) == [0, 0.5, 1, 0.8]
    about = make(spec("length", about=4))
    assert about.score([""] * 4, ["", "a b", "a b c d", "a b c d e"]) == [0, 0.5, 1, 0.8]


def test_proposals_of_length():
    reward = make(spec("length", at_most=5, propose=True))
    assert [
        list(reward.propose(text))
        for text in ("a", "a b", "a b.", 'a "b." ', "a b c d e", "a b c d e.", "a b \ufffd")
    ] == [
        [],
        [".", "!", "?"],
        [END],
        [END],
        [".", "!", "?", END],
        [END],
        [],
    ]
    least = make(spec("length", at_least=4, at_most=5, propose=True))
    assert least.propose("a b c.") == []
    assert make(spec("length", at_most=1, unit="sentences", propose=True)).propose("") == []


def test_a_pattern_is_stopped_in_time():
    slow, text = "(.*)(.*)(.*)(.*)(.*)[^x]", "x" * 3000
    schema = make(spec("json-schema", of={"pattern": slow}))
    start = time.perf_counter()
    assert value(make(spec("regex", pattern=slow)), text) == 0
    assert value(schema, json.dumps(text)) == 0.5
    assert time.perf_counter() - start < 5
    assert value(schema, '"y"') == 1


def test_json_by_its_schema():
    of = {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/name"}},
        "required": ["name"],
        "$defs": {"name": {"pattern": "^[A-Z]"}},
    }
    reward = make(spec("json-schema", of=of))
    good = '{"name": "Ann"}'
    texts = [
        good,
        f" {good}\n",
        f"```json\n{good}\n```",
        f"```\n{good}\n```\n",
        '{"name": "ann"}',
        "[]",
        "{",
        f"Here: {good}",
        "[NaN]",
        "",
        "[" * 9999,
    ]
    assert reward.score([""] * len(texts), texts) == [1, 1, 1, 1, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert value(make(spec("json-schema", of={"multipleOf": 0.5})), "1" + "0" * 400) in (0.5, 1)
    assert value(make(spec("json-schema", of={"$ref": "#"})), "1") == 0.5


BOMB = r"(?:(?:(?:a|b){1000}){1000}){1000}"


def test_a_pattern_that_eats_the_machine_is_refused_while_it_is_compiled():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for one in (
        spec("regex", pattern=BOMB),
        spec("json-schema", of={"properties": {"a": {"pattern": BOMB}}}),
        spec("json-schema", of={"x": {"y": {"pattern": BOMB}}, "$ref": "#/x/y"}),
    ):
        with pytest.raises(ValueError, match=r"(pattern|of): .*seconds or 256 MB to compile"):
            make(one)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # kilobytes


def test_a_pattern_that_the_package_cannot_take_is_not_said_to_take_long():
    with pytest.raises(ValueError, match=r"pattern: no regular expression: .*incompatible"):
        make(spec("regex", pattern="(?ui)(?a)x"))


def test_patterns_of_schemas_are_those_of_the_regex_reward():
    letters = make(spec("json-schema", of={"pattern": r"^\p{Lu}(?i:x)*+$"}))
    assert letters.score([""] * 2, ['"Axx"', '"ax"']) == [1, 0.5]
    for kind in ({"pattern": "("}, {"of": {"items": {"pattern": "("}}}):
        with pytest.raises(ValueError, match="no regular expression: missing"):
            make(spec("regex" if "pattern" in kind else "json-schema", **kind))


def test_a_schema_is_bounded_while_it_validates():
    twice = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    reward = make(spec("json-schema", of={"$ref": "#/$defs/a0", "$defs": {**twice, "a40": {}}}))
    unique = make(spec("json-schema", of={"uniqueItems": True}))
    start = time.perf_counter()
    assert value(reward, "1") == 0.5
    assert value(unique, json.dumps([{"a": i} for i in range(2_000)])) == 1
    assert time.perf_counter() - start < 5
    start = time.perf_counter()
    assert value(unique, json.dumps([*range(1_000_000)])) == 0.5
    assert time.perf_counter() - start < 5
    for number in ("draft-04/schema#", "draft-07/schema", "draft-07/schema#"):
        make(spec("json-schema", of={"$schema": f"http://json-schema.org/{number}"}))
    make(spec("json-schema", of={"$schema": "https://json-schema.org/draft/2020-12/schema"}))
    for dialect in (5, "http://json-schema.org/draft-03/schema#", "http://example.com/mine"):
        with pytest.raises(ValueError, match=r"of\.\$schema .* draft 4 or later"):
            make(spec("json-schema", of={"$schema": dialect, "extends": {}}))
    deep = {}
    for _ in range(2000):
        deep = {"not": deep}
    with pytest.raises(ValueError, match="nested too deeply"):
        json_schema(JsonSchemaSpec.model_construct(kind="json-schema", of=deep), Resources())


def test_numbers_of_json_are_decimals():
    tenths = make(spec("json-schema", of={"multipleOf": 0.1}))
    texts = ["0.3", "1.1", "4.35", "7", "1e2", "-0.7", "1e999999999", "1e-999999999", "true", "0"]
    assert tenths.score([""] * 10, texts) == [1, 1, 0.5, 1, 1, 1, 0.5, 0.5, 1, 1]
    cents = make(spec("json-schema", of={"multipleOf": 0.01, "minimum": 0.1, "maximum": 8.2}))
    assert cents.score([""] * 5, ["4.35", "0.1", "8.2", "8.21", "0.105"]) == [1, 1, 1, 0.5, 0.5]
    for of, right, wrong in [
        ({"const": 0.1}, ["0.1", "0.10", "1e-1"], ["0.1000000000000000055", "true"]),
        ({"enum": [1, {"a": [1.5, None]}]}, ["1", "1.0", '{"a": [1.50, null]}'], ["true", "1.5"]),
        ({"type": "integer"}, ["1", "1.0", "1e3", "-2"], ["1.5", "true", '"1"']),
        ({"uniqueItems": True}, ["[1, true, 0, false]", "3"], ["[1, 1.0]", '[{"a": 1}, {"a": 1}]']),
        ({"exclusiveMaximum": 0.3}, ["0.29999999999999999999"], ["0.3"]),
    ]:
        reward = make(spec("json-schema", of=of))
        assert [value(reward, text) for text in right] == [1.0] * len(right), of
        assert [value(reward, text) for text in wrong] == [0.5] * len(wrong), of
    assert value(make(spec("json-schema", of={"multipleOf": 0.5})), "1" + "0" * 400) == 1
    assert value(tenths, "1e99999999999999999999999") == 0.5


def test_data_in_a_schema_is_no_schema():
    data = {"$ref": "https://nowhere.example/x", "patternProperties": {"(": 1}, "pattern": "("}
    for of in (
        {"const": data},
        {"enum": [data]},
        {"default": data, "examples": [data]},
        {"properties": {name: {"const": data} for name in ("$ref", "pattern", "enum")}},
        {"properties": {"patternProperties": {"type": "integer"}}, "required": ["pattern"]},
        {"x-note": {"items": data}},
    ):
        make(spec("json-schema", of=of))
    assert value(make(spec("json-schema", of={"const": data})), json.dumps(data)) == 1
    named = make(spec("json-schema", of={"properties": {"patternProperties": {"minimum": 3}}}))
    assert value(named, '{"patternProperties": 2}') == 0.5
    for of, fault in (
        ({"$defs": {"a": {"items": {"$ref": "other.json"}}}}, "leads out of the schema"),
        ({"$ref": "#/x", "x": {"not": {"$ref": "other.json"}}}, "leads out of the schema"),
        ({"additionalProperties": {"patternProperties": {}}}, "patternProperties"),
    ):
        with pytest.raises(ValueError, match=fault):
            make(spec("json-schema", of=of))


def test_sentiment_of_long_texts_is_the_mean():
    reward = make(spec("sentiment"))
    love, hate = "I love it . " * 125, "I hate it . " * 125
    assert value(reward, love + hate) == pytest.approx(
        (value(reward, love) + value(reward, hate)) / 2
    )


@pytest.mark.parametrize("name", ["chat", "unpadded", "pair", "roberta"])
def test_a_classifier_is_its_model(name, folders, resources):
    words, model = (
        tokenizer(),
        AutoModelForSequenceClassification.from_pretrained(folders[name]).eval(),
    )
    reward = make(spec("classifier", model=name, label=0), resources)
    prompts, texts = (
        ["the sea", "a cat", "x"],
        [" is wide and the ship is small", "", "people say what they want"],
    )
    for prompt, text, found in zip(prompts, texts, reward.score(prompts, texts), strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        said = (
            words.apply_chat_template(turns, tokenize=False)
            if name in ("chat", "unpadded")
            else prompt + text
        )
        ids = (
            words(said)["input_ids"]
            if name in ("chat", "unpadded")
            else words(prompt)["input_ids"] + words(text)["input_ids"]
        )
        with torch.inference_mode():
            assert found == pytest.approx(model(torch.tensor([ids])).logits[0, 0].item(), abs=1e-5)


@pytest.mark.parametrize("name", ["chat", "pair"])
def test_what_is_too_long_loses_the_beginning_of_the_prompt_first(name, folders):
    reader, words = (
        reward_models.load("AutoModelForSequenceClassification", folders[name]),
        tokenizer(),
    )
    prompt, text = "a dog " * 300 + "the sea", "a cat"
    for asked, said in ((prompt, text), ("the sea", prompt + text)):
        ids = reader._fitted(asked, said)["input_ids"]
        assert 120 < len(ids) <= 128
        read = words.decode(ids)
        if name == "chat":
            assert read.startswith("<|user|>")
            assert read.endswith("a cat<|end|>")
            assert "<|end|><|assistant|>" in read
        else:
            assert read.endswith("the seaa cat")


def test_a_classifier_squashes(resources):
    raw, soft, sigmoid = (
        make(spec("classifier", model="pair", label=2, normalize=how), resources)
        for how in ("none", "softmax", "sigmoid")
    )
    every = [
        value(
            make(spec("classifier", model="pair", label=f"L{i}", normalize="softmax"), resources),
            "the sea",
        )
        for i in range(3)
    ]
    assert sum(every) == pytest.approx(1)
    assert value(soft, "the sea") == pytest.approx(every[2])
    assert value(sigmoid, "the sea") == pytest.approx(1 / (1 + math.exp(-value(raw, "the sea"))))
    assert (raw.bounds, soft.bounds, sigmoid.bounds) == (ANY, (0, 1), (0, 1))


def test_a_model_is_loaded_once(resources, monkeypatch):
    make(spec("classifier", model="chat"), resources)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
    make(spec("classifier", model="chat"), resources)


def judging(server, name="kind", criterion="Is it good?", read=read_mark, **changes):
    reached = Endpoint(server.url, "scripted", "right", **{"retries": 0} | changes)
    return make(
        spec("judge", judge=name, criterion=criterion),
        Resources(judges={name: LLMJudge(reached, read=read)}),
    )


def test_a_judge_is_asked_once_for_each_text(server, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoints, "_kept", {})
    server.asked.clear()
    texts = ["good one", "no", "good good", "good one"]
    for folder in (tmp_path, tmp_path, None, None):
        assert judging(server, folder=folder).score(["q"] * 4, texts) == [0.1, 0, 0.2, 0.1]
    assert set(server.asked.values()) == {2}  # once for the folder, once for memory
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json"] * 3
    judging(server, folder=tmp_path).score(["another"], texts[:1])
    judging(server, folder=tmp_path, criterion="Is it short?").score(["q"], texts[:1])
    assert server.asked["good one"] == 4
    monkeypatch.setattr(endpoints, "MOST_KEPT", 2)
    judging(server).score(["new"] * 4, texts)
    assert len(endpoints._kept) <= 2


def test_a_judge_is_asked_at_the_same_time_but_not_too_much(server, monkeypatch):
    monkeypatch.setattr(server, "delay", 0.05)
    server.most = 0
    judging(server, concurrency=3).score([""] * 12, [f"{i} good" for i in range(12)])
    assert 2 <= server.most <= 3


def test_a_judge_without_a_mark_is_asked_again(server, tmp_path):
    server.asked.clear()
    for _ in range(2):
        assert value(judging(server, folder=tmp_path), "shy good") == 0.1
    assert server.asked["shy good"] == 2
    for _ in range(2):  # what holds no mark is not kept
        with pytest.raises(
            ValueError,
            match=(
                r"rewards.judge: 'kind' gives no whole number from 0 to 10, but 'I would say 3 or"
                rf" 4.' \(finish reason 'stop', {server.url} with model 'scripted'\)"
            ),
        ):
            value(judging(server, folder=tmp_path), "mute")
    assert server.asked["mute"] == 4
    with pytest.raises(
        ValueError,
        match=r"was cut off at 4096 tokens before it said anything; raise .*`most_tokens`",
    ):
        value(judging(server), "thinking")


def test_a_judge_may_be_told_otherwise_and_read_otherwise(server):
    reward = judging(server, read=lambda text: float(text.split("/")[0]) / 2)
    assert value(reward, "good good good") == 0.15


SHAPES = {
    "error": ({"error": {"message": "quota exceeded", "code": 429}}, "keeps failing .*quota"),
    "error refused": ({"error": {"message": "too long", "code": 400}}, "refuses .*too long"),
    "no message": ({"choices": [{}]}, "keeps failing .*without a text.*choices"),
    "null message": ({"choices": [{"message": None}]}, "keeps failing .*without a text"),
    "filtered": (
        {"choices": [{"finish_reason": "content_filter", "message": None}]},
        "gives no whole number .*content_filter",
    ),
    "no choices": ({"choices": []}, "keeps failing .*without a text"),
    "list": ([1], "does not speak chat completions"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_judge_that_answers_in_an_odd_shape_is_one_message(server, monkeypatch, tmp_path, shape):
    body, said = SHAPES[shape]
    monkeypatch.setattr(server, "body", json.dumps(body).encode(), raising=False)
    with pytest.raises((ValueError, ConnectionError), match=said) as caught:
        value(judging(server, folder=tmp_path), "odd")
    for part in ("rewards.judge: 'kind'", server.url, "'scripted'"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "mark"),
    [
        ("7", 7),
        ("10", 10),
        ("Mark: 8/10.", 8),
        ("**0**", 0),
        ("9 out of 10", 9),
    ],
)
def test_marks_are_read(said, mark):
    assert read_mark(said) == mark


@pytest.mark.parametrize("said", ["", "eleven", "11", "-3", "7.5", "100", "3 or 4", "0 to 10: 7"])
def test_what_is_no_mark_is_not_read(said):
    assert read_mark(said) is None


@pytest.mark.parametrize(
    ("changes", "text", "error", "said"),
    [
        ({"key": "wrong"}, "good", ValueError, "refuses the key"),
        ({"model": "other"}, "good", ValueError, "finds no model 'other'"),
        ({"timeout": 0.3}, "slow", ConnectionError, r"raise its `timeout` of 0.3 s"),
        ({}, "drop", ConnectionError, "cannot be reached"),
        ({"url": "http://127.0.0.1:9/v1"}, "good", ConnectionError, "cannot be reached"),
        ({}, "broken", ConnectionError, "keeps failing"),
    ],
)
def test_a_judge_that_fails_says_why(server, changes, text, error, said):
    reached = replace(Endpoint(server.url, "scripted", "right", retries=0), **changes)
    reward = make(
        spec("judge", judge="kind", criterion=f"{changes}"),
        Resources(judges={"kind": LLMJudge(reached)}),
    )
    with pytest.raises(error, match=f"rewards.judge: 'kind': .*{said}"):
        value(reward, text)
    assert "right" not in repr(reached)


@pytest.mark.parametrize(
    "returned", [[1.0], [1.0, math.nan], [1.0, math.inf], [1.0, "x"], [1.0, None], None, 3.0]
)
def test_a_function_is_checked(returned):
    reward = make(
        spec("python", name="mine"), Resources(callables={"mine": lambda prompts, texts: returned})
    )
    with pytest.raises(ValueError, match=r"'mine'|could not convert"):
        reward.score(["", ""], ["a", "b"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"kind": "judge", "judge": "x", "criterion": "c"},
            r"^judge: 'x' is not declared; declared: kind; name it in Fader\(.*judges=",
        ),
        (
            {"kind": "python", "name": "x"},
            r"^name: 'x' is not declared; declared: vowels; .*callables=",
        ),
        (
            {"kind": "classifier", "model": "x"},
            (
                r"^model: 'x' is not declared; declared: chat, unpadded, pair, roberta;"
                r" .*classifiers="
            ),
        ),
        (
            {"kind": "similarity", "to": "a", "model": "x"},
            r"^model: 'x' is not declared; declared: small; .*embedders=",
        ),
        (
            {"kind": "classifier", "model": "pair"},
            r"label: 'pair' has several outputs; name one: it has 0 \(L0\), 1 \(L1\), 2 \(L2\)",
        ),
        (
            {"kind": "classifier", "model": "pair", "label": "L9"},
            r"label: 'pair' has no output 'L9'; it has 0 \(L0\)",
        ),
        ({"kind": "classifier", "model": "pair", "label": 3}, r"label: 'pair' has no output 3"),
        ({"kind": "classifier", "model": "chat", "normalize": "softmax"}, "always 1; use sigmoid"),
        (
            {"kind": "keywords", "words": "a", "lang": "zz"},
            r"^lang: .*'zz'.*`form`",
        ),
        (
            {"kind": "regex", "pattern": "("},
            r"^pattern: no regular expression: .*got '\('",
        ),
        (
            {"kind": "json-schema", "of": {"type": "thing"}},
            r"^of: no JSON Schema: \$.type",
        ),
        ({"kind": "json-schema", "of": {"$ref": "http://a/b"}}, "leads out of the schema"),
        (
            {"kind": "json-schema", "of": {"items": [{"$ref": "#/$defs/x"}], "$defs": {}}},
            "leads out of the schema|no JSON Schema",
        ),
        (
            {"kind": "json-schema", "of": {"properties": {"a": {"pattern": "("}}}},
            r"^of: no regular expression: missing \)",
        ),
        ({"kind": "json-schema", "of": {"patternProperties": {}}}, "not supported"),
        ({"kind": "length"}, "give `at_most`, `at_least` or `about`"),
        ({"kind": "length", "about": 3, "at_most": 4}, "`about` goes without"),
        ({"kind": "length", "at_least": 3, "at_most": 2}, "`at_least` must not be above"),
        ({"kind": "length", "at_least": 3, "propose": True}, "`propose` needs"),
        ({"kind": "length", "at_most": 0}, "greater than or equal to 1"),
        ({"kind": "forbidden", "words": "a", "propose": True}, "Extra inputs"),
        ({"kind": "readability", "grade": 0}, "greater than 0"),
    ],
)
def test_faults_are_named_at_the_door(settings, said, resources):
    with pytest.raises(ValueError, match=said):
        make(SPEC.validate_python(settings), resources)


def test_models_that_cannot_judge_are_refused(tiny_folder, tmp_path):
    resources = Resources(
        classifiers={"lm": str(tiny_folder), "none": str(tmp_path)},
        embedders={"none": str(tmp_path)},
    )
    with pytest.raises(
        ValueError, match=r"lacks score.weight; declare one that was trained for this"
    ):
        make(spec("classifier", model="lm"), resources)
    with pytest.raises(ValueError, match="cannot be loaded as AutoModelForSequenceClassification"):
        make(spec("classifier", model="none"), resources)
    with pytest.raises(ValueError, match="cannot be loaded as AutoModel:"):
        make(spec("similarity", to="a", model="none"), resources)


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("simplemma", {"kind": "keywords", "words": "a"}),
        ("textstat", {"kind": "readability"}),
        ("jsonschema", {"kind": "json-schema", "of": {}}),
        ("sklearn.feature_extraction.text", {"kind": "similarity", "to": "a"}),
        ("openai", {"kind": "judge", "judge": "kind", "criterion": "c"}),
        ("vaderSentiment.vaderSentiment", {"kind": "sentiment"}),
    ],
)
def test_a_missing_package_says_what_to_install(package, settings, resources, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'fader\[rewards\]'"):
        make(SPEC.validate_python(settings), resources)


def test_the_weighted_sum():
    parts = [
        spec("keywords", words=["dog"], weight=2, propose=True),
        spec("length", at_most=3, weight=-1, propose=True),
        spec("regex", pattern="x", weight=0),
    ]
    reward = weighted_sum(parts)
    assert reward.score(["", ""], ["a dog", "a b c d e f"]) == [1, -0.5]
    assert reward.bounds == (-1, 2)
    assert reward.prefix_bounds("dog a b c d e ") == (2 - 0.5, 2)
    assert reward.propose("a b c") == [" dog", ".", "!", "?", END]
    assert weighted_sum(parts[2:]).propose("a") == []
    nothing = weighted_sum([])
    assert (
        nothing.score(["", ""], ["a", "b"]),
        nothing.bounds,
        nothing.prefix_bounds("a"),
    ) == ([0, 0], (0, 0), (0, 0))
    unbounded = weighted_sum(
        [spec("python", name="f", weight=0), parts[0]],
        Resources(callables={"f": lambda prompts, texts: [9.0] * len(texts)}),
    )
    assert unbounded.bounds == (0, 2)
    assert [weight for weight, _ in unbounded.terms] == [2]  # what is off is not asked
    off = weighted_sum([spec("keywords", words=["dog"], weight=0, propose=True)])
    assert off.propose("a") == []
    with pytest.raises(ValueError, match="is not declared"):
        weighted_sum([spec("python", name="g", weight=0)])


def test_what_is_declared_anew_shares_no_reward_with_the_old():
    old = Resources(callables={"f": lambda prompts, texts: [1.0] * len(texts)})
    reward = make(spec("python", name="f"), old)
    assert make(spec("python", name="f", weight=3), old) is reward
    new = replace(old, callables={"f": lambda prompts, texts: [2.0] * len(texts)})
    assert make(spec("python", name="f"), new).score(["p"], ["t"]) == [2.0]
    assert Resources() == Resources()


def test_a_word_may_be_a_list_of_forms():
    wanted = spec(
        "keywords",
        words=("dog", ("run", "runs", "running fast")),
        match="form",
        ordered=True,
        propose=True,
    )
    reward = make(wanted)
    texts = [
        "The dog runs.",
        "The dog ran.",
        "A run with the dog.",
        "The dog is running fast today",
    ]
    assert reward.score([""] * 4, texts) == [1.0, 0.5, 0.5, 1.0]
    assert reward.propose("The dog") == [" run"]
    assert make(wanted.model_copy(update={"ordered": False})).score([""], ["run, dog"]) == [1.0]
