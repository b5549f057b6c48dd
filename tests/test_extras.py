"""What the extras bring is asked for only by what needs it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    *("trl", "peft", "datasets", "openai", "datasketch", "py3langid", "simplemma", "textstat"),
    *(
        "vaderSentiment",
        "jsonschema",
        "sklearn",
        "matplotlib",
        "pytest",
        "hypothesis",
        "fastapi",
        "llguidance",
        "llama_cpp",
        "uvicorn",
        "prometheus_client",
        "ray",
        "vllm",
    ),
}
SCRIPT = f"""
import sys
from importlib.machinery import PathFinder


class Without:
    def find_distributions(self, *context):
        return PathFinder.find_distributions(*context)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {EXTRAS}:
            return PathFinder.find_spec(name, path, target)


sys.meta_path = [Without() if finder is PathFinder else finder for finder in sys.meta_path]
import fader
from fader.request import Request
from fader.cli import main
guide = {{"kind": "contrast", "principle": "p"}}
assert fader.Request.of("hello", alignment={{"guides": [guide]}}).alignment.guides[0].weight == 2
sys.argv = ["fader", *sys.argv[1:]]
main()
"""


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_extras_are_what_is_left_out():
    extras = PROJECT["optional-dependencies"]
    names = {
        re.match(r"[\w-]+", one)[0]
        for name, needs in extras.items()
        if name != "dev"
        for one in needs
    }
    assert {
        name.replace("scikit-learn", "sklearn")
        .replace("llama-cpp-python", "llama_cpp")
        .replace("prometheus-client", "prometheus_client")
        for name in names
    } <= EXTRAS


@pytest.mark.long
def test_import_requests_and_help_need_no_extra():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "generate" in done.stdout


PAIR = '{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}\n'


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["data", "check", "pairs.jsonl"], "data"),
        (["train", "vector", "mine", "--data", "pairs.jsonl"], "train,eval"),
        (["train", "cotrain", "one=pairs.jsonl", "two=pairs.jsonl"], "train,eval"),
        (["eval", "generation"], "eval"),
        (["generate", "--input", "pairs.jsonl", "--ray"], "ray"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
@pytest.mark.long
def test_what_needs_an_extra_says_which(arguments, extra, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(PAIR)
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install 'fader[{extra}]'")
