"""The command line as a person meets it: output, errors and exit statuses."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fader.cli import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> Done:
    """The command as if from a shell, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["fader", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def rows(done: Done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate"], "PROMPT: nothing to answer"),
        (["generate", ""], "messages.0.content: must not be empty"),
        (["generate", "x", "--align", '{"vectors": {"nope": 1}}'], "alignment.vectors.nope: no such vector"),
        (["generate", "x", "--align", '{"vectors": {"medical": .nan}}'], "Input should be a finite number"),
        (["generate", "x", "--align", '{"guides": [{"kind": "magic"}]}'], "alignment.guides.0"),
        (["generate", "x", "--align", "{a: ["], "not valid YAML or JSON"),
        (["generate", "x", "--align", "nowhere.yaml"], "neither JSON, nor a file, nor a profile"),
        (["generate", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["generate", "x", "--model", "no/such"], "model: 'no/such' could not be loaded"),
        (["generate", "x", "--max-tokens", "0"], "sampling.max_tokens"),
        (["generate", "x", "--max-tokens", "100000"], "reads at most 8192"),
        (["generate", "x", "--temperature", "nan"], "sampling.temperature"),
        (["vectors", "inspect", "nope"], "no such vector"),
        (["bench", "nope"], "no benchmark 'nope'; known: decode, guide, knob, vectors"),
        (["score", "--input", "-"], "has no lines"),
    ],
)
def test_bad_input_is_one_message_and_status_2(arguments, said, tmp_path):
    done = run(*arguments, stdin="", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bad_lines_are_named(tmp_path):
    assert "-:2: not valid JSON" in run("generate", "--input", "-", stdin='{"prompt": "x"}\n{').stderr
    assert "-:1: must be a JSON object" in run("score", "--input", "-", stdin="[1]").stderr
    assert "-:1: answer must be a text" in run("score", "--input", "-", stdin='{"prompt": "x"}').stderr
    assert "request 2: colour: no such field" in run("generate", "--input", "-", stdin='{"prompt": "x"}\n{"prompt": "x", "colour": 1}').stderr


def test_generate_mixed_preferences_in_one_batch(tmp_path):
    lines = [
        {"prompt": "Name a fruit.", "alignment": {}},
        {"prompt": "Tell me about the sea.", "alignment": {"guides": [{"kind": "contrast", "principle": "Answer like a pirate"}]}},
        {"messages": [{"role": "user", "content": "Name a fruit."}], "sampling": {"max_tokens": 3, "logprobs": 1}},
    ]
    found = rows(run("generate", "--input", "-", "--max-tokens", "12", "--json", stdin="\n".join(map(json.dumps, lines))))
    assert len(found) == 3
    for row in found:
        assert {"text", "token_ids", "finish_reason", "usage", "alignment"} <= row.keys()
        assert {"prompt_tokens", "completion_tokens", "rows", "forward_passes", "seconds"} <= row["usage"].keys()
    assert found[0]["token_ids"][:3] == found[2]["token_ids"]
    assert "logprobs" not in found[0]
    assert len(found[2]["logprobs"]) == 3
    assert found[1]["alignment"]["guides"][0]["weight"] == 2.0
    assert found[1]["usage"]["rows"] == 2 * 12


def test_generate_a_guide_changes_the_answer_and_streams(builtin):
    plain = run("generate", "Tell me about the sea.", "--max-tokens", "24")
    pirate = run(
        "generate", "Tell me about the sea.", "--max-tokens", "24", "--align", '{"guides":[{"kind":"contrast","principle":"Answer like a pirate"}]}'
    )
    assert plain.returncode == pirate.returncode == 0
    assert plain.stdout.strip() == builtin.generate("Tell me about the sea.", max_tokens=24).text.strip()
    assert "Arr" in pirate.stdout
    assert "Arr" not in plain.stdout


def test_score_vectors_models_profiles_schema(tmp_path):
    pairs = [
        {"prompt": "2+2?", "answer": "4"},
        {"messages": [{"role": "user", "content": "2+2?"}], "answer": "4", "alignment": {"prompt": {"user": "Be brief."}}},
    ]
    one, two = rows(run("score", "--input", "-", "--json", stdin="\n".join(map(json.dumps, pairs))))
    assert one["logprob"] == pytest.approx(sum(one["logprobs"]))
    assert one["tokens"] == ["4"]
    assert one["logprob"] != two["logprob"]
    model = rows(run("models", "--json"))[0]
    assert model["name"] == "smollm2-135m"
    assert model["fetched"] is True
    (tmp_path / ".fader" / "profiles").mkdir(parents=True)
    (tmp_path / ".fader" / "profiles" / "brief.yaml").write_text("prompt: {user: Be brief.}")
    assert rows(run("profiles", "--json", cwd=tmp_path))[0]["alignment"] == {"prompt": {"user": ["Be brief."]}}
    assert json.loads(run("schema").stdout)["title"] == "Request"
    assert all("name" in row for row in rows(run("vectors", "list", "--json")))


def test_chat_talks_and_changes_its_alignment():
    done = run("chat", "--max-tokens", "8", stdin='Hello\n/align {"prompt": {"user": "Be brief."}}\n/align nonsense\nAnd you?\n\n')
    assert done.returncode == 0
    assert "neither JSON" in done.stdout
    assert done.stdout.count("> ") == 5


@pytest.mark.parametrize(
    "command", [["generate"], ["score"], ["chat"], ["models"], ["profiles"], ["schema"], ["bench"], ["vectors", "list"], ["vectors", "inspect"]]
)
def test_help_has_an_example(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_as_a_process():
    done = subprocess.run(
        [sys.executable, "-c", "from fader.cli import main; main()", "generate", "x", "--align", "{"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: alignment: not valid YAML or JSON")
