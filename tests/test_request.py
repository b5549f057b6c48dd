import copy
import json
import math
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fader.profiles import find_profile, load_alignment, profiles, save_profile
from fader.request import Alignment, Request, Sampling, json_schema
from fader.schema import Invalid, parse


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"messages": ""}, "messages[0].content: must not be empty"),
        ({"messages": []}, "request: give `messages`, or `raw`"),
        ({"messages": "x", "colour": 1}, "colour: no such field (got 1)"),
        (
            {"messages": "x", "alignment": {"vectors": {"a": math.nan}}},
            "alignment.vectors.a: Input should be a finite number (got nan)",
        ),
        ({"messages": "x", "alignment": {"vectors": {"a": math.inf}}}, "alignment.vectors.a: "),
        ({"messages": "x", "alignment": {"guides": [{"kind": "magic"}]}}, "alignment.guides[0]: "),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "contrast", "principle": "p", "weight": "much"}]},
            },
            "alignment.guides[0].contrast.weight: ",
        ),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "personalized", "principle": "p"}]},
            },
            "alignment.guides[0].personalized: give `vectors` or `model`",
        ),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "personalized", "principle": "p", "model": "m"}]},
            },
            "alignment.guides[0].personalized: without vectors the model would be its own",
        ),
        *(
            (
                {
                    "messages": "x",
                    "alignment": {
                        "guides": [{"kind": "personalized", "vectors": {"v": 1}, **told}]
                    },
                },
                f"alignment.guides[0].personalized: {said}",
            )
            for told, said in (
                ({}, "give `principle`, `principles` or `preferences`"),
                ({"principle": "p", "principles": {"q": 1}}, "give `principle`, `principles` or"),
                ({"preferences": {}}, "`preferences` say nothing"),
            )
        ),
        (
            {
                "messages": "x",
                "alignment": {
                    "guides": [{"kind": "mix", "components": [{"policy": {}, "weight": 0.5}]}]
                },
            },
            "alignment.guides[0].mix: the weights of the components must add up to 1, got 0.5",
        ),
        (
            {"messages": "x", "sampling": {"n": 0}},
            "sampling.n: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"messages": "x", "sampling": {"stop": [""]}}, "sampling.stop[0]: must not be empty"),
        ({"messages": "x", "sampling": {"temperature": -1}}, "sampling.temperature: "),
        ({"messages": "x", "sampling": {"top_p": 0}}, "sampling.top_p: "),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: "),
    ],
)
def test_faults_are_named(value, said):
    with pytest.raises(Invalid) as caught:
        parse(Request, value)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def test_frozen_and_plain_strings_are_lists_of_one():
    request = parse(
        Request,
        {
            "messages": "hello",
            "sampling": {"stop": "\n"},
            "alignment": {"preferences": {"user": "be kind"}},
        },
    )
    assert request.messages[0].content == "hello"
    assert request.sampling.stop == ("\n",)
    assert request.alignment.preferences.user == ("be kind",)
    with pytest.raises(ValidationError):
        request.sampling = Sampling()


def test_round_trip_and_schema():
    request = parse(
        Request,
        {
            "messages": "hello",
            "alignment": {"guides": [{"kind": "contrast", "principle": "p"}], "vectors": {"a": 1}},
        },
    )
    assert Request.model_validate_json(request.model_dump_json()) == request
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert {"Contrast", "Sampling", "Preferences"} <= schema["$defs"].keys()
    json.dumps(schema)


def test_profiles_of_the_project_hide_the_users_and_these_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fader.profiles.user_config_path", lambda name: tmp_path / "user")
    monkeypatch.setattr("fader.profiles.SHIPPED", tmp_path / "shipped" / "profiles")
    for folder, text in (
        (tmp_path / ".fader", "preferences: {user: from the project}"),
        (tmp_path / "user", "preferences: {user: from the user}"),
        (tmp_path / "shipped", "preferences: {user: shipped}"),
    ):
        (folder / "profiles").mkdir(parents=True)
        (folder / "profiles" / "kind.yaml").write_text(text)
    (tmp_path / "user" / "profiles" / "other.json").write_text('{"vectors": {"a": 0.5}}')
    (tmp_path / "shipped" / "profiles" / "other.yaml").write_text("vectors: {b: 1}")
    (tmp_path / "shipped" / "profiles" / "third.yaml").write_text("vectors: {b: 1}")
    assert list(profiles()) == ["kind", "other", "third"]
    assert load_alignment("kind").preferences.user == ("from the project",)
    assert load_alignment("other").vectors == {"a": 0.5}
    assert load_alignment(str(tmp_path / "user" / "profiles" / "other.json")) == load_alignment(
        '{"vectors": {"a": 0.5}}'
    )


def test_two_files_of_one_profile_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = save_profile("kind", Alignment(vectors={"a": 1})).with_suffix(".json")
    place.write_text("{}")
    said = "the profile 'kind' is there twice, as kind.json and kind.yaml; remove one"
    for read in (load_alignment, find_profile):
        with pytest.raises(Invalid, match=said):
            read("kind")
    with pytest.raises(Invalid, match=said):
        load_alignment({"guides": [{"kind": "personalized", "preferences": "kind"}]})
    place.with_suffix(".yaml").unlink()
    assert load_alignment("kind") == find_profile("kind") == Alignment()
    with pytest.raises(Invalid, match=r"profile: .*kind\.json is a profile of that name already"):
        save_profile("kind", Alignment(vectors={"a": 1}))


def test_broken_yaml_says_where(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("prompt:\n  user: [unclosed\n")
    with pytest.raises(ValueError, match=r"broken\.yaml: not valid YAML or JSON at line 3"):
        load_alignment(str(file))
    file.write_text("- a list")
    with pytest.raises(ValueError, match=r"broken\.yaml: Input should be a valid dictionary"):
        load_alignment(str(file))
    file.write_text("")
    assert load_alignment(str(file)) == Alignment()


@pytest.mark.parametrize("written", [{}, {"indent": "\t"}, {"ensure_ascii": False}], ids=str)
def test_json_is_read_as_json(written, tmp_path):
    schema = {"type": "number", "minimum": 1e-05, "maximum": 1e16}
    alignment = {
        "preferences": {"user": ["Use \U0001f600 a lot", "a\u0085b", "a\u007fb", "a: b"]},
        "vectors": {"x" * 1100: 1},
        "search": {"kind": "best-of-n", "rewards": [{"kind": "json-schema", "of": schema}]},
    }
    text, expected = json.dumps(alignment, **written), load_alignment(alignment)
    assert load_alignment(text) == load_alignment(f"  {text}\n") == expected
    for name, bom in (("a.json", ""), ("b.json", "\ufeff"), ("c.yaml", "")):
        (tmp_path / name).write_text(bom + text, encoding="utf-8")
        assert load_alignment(str(tmp_path / name)) == expected
    (tmp_path / "d.json").write_text(text, encoding="utf-16")
    assert load_alignment(str(tmp_path / "d.json")) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"vectors: {a: 1}", r"a.json: not valid JSON at line 1, column 1"),
        ("b.json", b'{"vectors": {},\n}', r"b.json: not valid JSON at line 2"),
        ("c.yaml", b"a: 1\nb: caf\xe9", r"c.yaml:2: byte 0xe9 is no UTF-8; save"),
        ("d.json", b"[" * 100_000, r"d.json: nested too deeply"),
        ("e.json", b'{"guides": [], "guides": []}', r"e.json: 'guides' is given twice"),
        (
            "f.json",
            b'{"preferences": {"user": ["x", "y \\ud83d z"]}}',
            r"preferences.user\[1\]: character 3 is half of one \(U\+D83D\)",
        ),
    ],
)
def test_files_that_cannot_be_read_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_alignment(str(tmp_path / name))


def test_a_sentence_is_no_alignment():
    with pytest.raises(ValueError, match="is neither JSON, nor a file, nor a profile"):
        load_alignment("Answer like a pirate. " * 14)


def test_halves_of_characters_are_refused_everywhere():
    for value in (
        {"messages": "x \ud83d"},
        {"messages": "x", "alignment": {"vectors": {"\ud83d": 1}}},
        {"messages": "x", "sampling": {"stop": ["\udc00"]}},
    ):
        with pytest.raises(ValueError, match="half of one"):
            parse(Request, value)


SCHEMA = json_schema()
PARTS = {name for one in (SCHEMA, *SCHEMA["$defs"].values()) for name in one.get("properties", {})}
WORDS = st.text(max_size=8) | st.sampled_from(["a.b", "kind", "[0]", "int", "a\nb", "\ud800", " "])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 1e400, 10**400])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def values(schema):
    """A strategy for what a JSON Schema describes."""
    if "$ref" in schema:
        return st.deferred(lambda: values(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]))
    if branches := schema.get("oneOf") or schema.get("anyOf"):
        return st.one_of(*map(values, branches))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case "object" if "properties" in schema:
            fields = {name: values(one) for name, one in schema["properties"].items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
        case "object":
            inner = schema.get("additionalProperties", True)
            of = JUNK if inner is True else values(inner)
            return st.dictionaries(WORDS, of, max_size=2)
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(values(schema["items"]), min_size=least, max_size=least + 1)
        case "string":
            return st.text("ab .", min_size=1, max_size=schema.get("maxLength", 6) and 6)
        case "integer":
            return st.integers(low, high) | st.integers(low or 1, low or 3)
        case "number":
            return st.floats(low, high, allow_nan=False) | st.sampled_from([0.5, 1.0, 1])
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JUNK


def places(value, at=()):
    """The way to everything inside a value."""
    yield at
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from places(inner, (*at, key))


def spoiled(value, place, junk, how):
    """The value with one place replaced, dropped, or given a field or item more."""
    value = copy.deepcopy(value)
    if not place:
        return junk if how == "replace" else value
    *way, last = place
    holder = value
    for key in way:
        holder = holder[key]
    if how == "replace":
        holder[last] = junk
    elif how == "drop":
        del holder[last]
    elif isinstance(holder, dict):
        holder[f"{last}s"] = junk
    else:
        holder.append(junk)
    return value


@st.composite
def spoiled_requests(draw):
    """Values like requests, with up to three faults."""
    value = draw(values(SCHEMA))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(sorted(places(value), key=str)))
        value = spoiled(
            value, place, draw(JUNK), draw(st.sampled_from(["replace", "drop", "more"]))
        )
    return value


def leads(path, value):
    """Whether a path (its parts with a dot or in brackets) leads to something in the value, or to
    a field of the schema that is not there."""
    if not path:
        return True
    if isinstance(value, dict):
        inside = [(f".{key}" if key else "", inner) for key, inner in value.items()]
        inside += [(f".{value.get('kind')}", {k: v for k, v in value.items() if k != "kind"})]
        return path.removeprefix(".") in PARTS or any(
            path.startswith(key) and leads(path.removeprefix(key), inner)
            for key, inner in inside
            if key
        )
    if isinstance(value, list) and (index := re.match(r"\[(\d+)\]", path)):
        place = int(index[1])
        return place < len(value) and leads(path[index.end() :], value[place])
    # of what a single value stands for: `messages[0].content` of a text
    return all(part in PARTS for part in re.findall(r"\w+", re.sub(r"\[\d+\]", "", path)))


@settings(
    max_examples=int(os.environ.get("FADER_FUZZ_REQUESTS", 150)), deadline=None, derandomize=True
)
@given(value=spoiled_requests())
def test_whatever_is_given_is_a_request_or_refused_with_a_path(value):
    """By hand, for many more: FADER_FUZZ_REQUESTS=100000."""
    try:
        request = parse(Request, value)
    except Invalid as error:
        for fault in error.faults:
            if isinstance(value, dict):
                whole = fault.path in ("", "request")
                assert leads("" if whole else f".{fault.path}", value)
            else:
                assert fault.path.startswith("request")
            assert fault.said
        return
    assert Request.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("vectors:\n  warm: 1\n  warm: 2\n", "line 3, column 3: 'warm' is given twice"),
        ("preferences: {user: 2024-13-45}\n", "not valid YAML: month must be in 1..12"),
        ("vectors: {warm: " + "9" * 5000 + "}\n", "not valid YAML: Exceeds the limit"),
        ("&a\nguides: [*a]\n", "nested too deeply, or within itself"),
    ],
)
def test_faults_of_yaml_name_the_file(content, said, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(Invalid) as refused:
        load_alignment(str(file))
    assert refused.value.path == str(file)
    assert said in str(refused.value)
