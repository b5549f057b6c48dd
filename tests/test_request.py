import json
import math

import pytest
from pydantic import ValidationError

from fader.profiles import load_alignment, profiles
from fader.request import Alignment, Request, Sampling, json_schema
from fader.schema import Invalid, parse


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"messages": ""}, "messages[0].content: must not be empty"),
        ({"messages": []}, "messages: "),
        ({"messages": "x", "colour": 1}, "colour: no such field (got 1)"),
        (
            {"messages": "x", "alignment": {"vectors": {"a": math.nan}}},
            "alignment.vectors.a: Input should be a finite number (got nan)",
        ),
        ({"messages": "x", "alignment": {"vectors": {"a": math.inf}}}, "alignment.vectors.a"),
        ({"messages": "x", "alignment": {"guides": [{"kind": "magic"}]}}, "alignment.guides[0]: "),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "contrast", "principle": "p", "weight": "much"}]},
            },
            "weight: ",
        ),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "personalized", "principle": "p"}]},
            },
            "give `vectors` or `model`",
        ),
        (
            {
                "messages": "x",
                "alignment": {"guides": [{"kind": "personalized", "principle": "p", "model": "m"}]},
            },
            "would be its own reference",
        ),
        (
            {
                "messages": "x",
                "alignment": {
                    "guides": [{"kind": "mix", "components": [{"policy": {}, "weight": 0.5}]}]
                },
            },
            "add up to 1, got 0.5",
        ),
        (
            {"messages": "x", "sampling": {"n": 0}},
            "sampling.n: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"messages": "x", "sampling": {"stop": [""]}}, "sampling.stop[0]: must not be empty"),
        ({"messages": "x", "sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"messages": "x", "sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_faults_are_named(value, said):
    with pytest.raises(ValueError, match=r".") as caught:
        parse(Request, value)
    assert said in str(caught.value)
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


def test_profiles_of_the_project_hide_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fader.profiles.user_config_path", lambda name: tmp_path / "user")
    for folder, text in (
        (tmp_path / ".fader", "preferences: {user: from the project}"),
        (tmp_path / "user", "preferences: {user: from the user}"),
    ):
        (folder / "profiles").mkdir(parents=True)
        (folder / "profiles" / "kind.yaml").write_text(text)
    (tmp_path / "user" / "profiles" / "other.json").write_text('{"vectors": {"a": 0.5}}')
    assert list(profiles()) == ["kind", "other"]
    assert load_alignment("kind").preferences.user == ("from the project",)
    assert load_alignment("other").vectors == {"a": 0.5}
    assert load_alignment(str(tmp_path / "user" / "profiles" / "other.json")) == load_alignment(
        '{"vectors": {"a": 0.5}}'
    )


def test_broken_yaml_says_where(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("prompt:\n  user: [unclosed\n")
    with pytest.raises(ValueError, match=r"broken.yaml: not valid YAML or JSON at line 3"):
        load_alignment(str(file))
    file.write_text("- a list")
    with pytest.raises(ValueError, match=r"broken.yaml: Input should be a valid dictionary"):
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
