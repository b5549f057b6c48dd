"""Other people's clients against a real server: lm-eval, llm, LiteLLM, LangChain, curl.

They live in an environment of their own, which `make test-clients` makes; without it the tests are
skipped. Nothing is downloaded here.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from serving import serve

from fader import Alignment
from fader.profiles import save_profile

CLIENTS = Path(__file__).parent.parent / ".venv-clients" / "bin"
TOLD = {"preferences": {"user": "say cat", "rendering": "system"}}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    """A server that has the profile `cat`."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("fader.profiles.user_config_path", lambda name: folder / "config")
        save_profile("cat", Alignment.model_validate(TOLD))
        with serve(tiny.backend) as found:
            yield found


def client(name, *words, folder, **environment):
    """What a client's program says."""
    if not (CLIENTS / name).exists():
        pytest.skip(f"{name} is not installed: `make test-clients` installs it")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    # what LiteLLM would fetch, and where each keeps its things
    offline |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LLM_USER_PATH": str(folder / "llm")}
    done = subprocess.run(
        [str(CLIENTS / name), *map(str, words)],
        cwd=folder,
        env={**os.environ, **offline, "OPENAI_API_KEY": "none", **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def expected(tiny, alignment=None, **fields):
    asked = {"max_tokens": 8, "alignment": alignment or {}, **fields}
    return tiny.generate("the sea", **asked).text


# lm-eval

WORDS = [
    "the",
    "sea",
    "is",
    "wide",
    "a",
    "cat",
    "sat",
    "on",
    "mat",
    "and",
    "one",
    "two",
    "say",
    "be",
]


@pytest.fixture
def tasks(tmp_path):
    """Two tasks of 20 items each on a file, one of likelihoods and one of generation."""
    items = [
        {
            "question": f"{WORDS[place % 13]} {WORDS[(3 * place + 1) % 13]} {place}",
            "choices": [WORDS[(place + 5) % 13], WORDS[(place + 8) % 13]],
            "label": place % 2,
        }
        for place in range(20)
    ]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    likely = {
        "task": "likely",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    written = {
        "task": "written",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (likely, written):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return items


@pytest.mark.parametrize("profile", [None, "cat"])
def test_lm_eval_measures_a_policy(served, tiny, tasks, tmp_path, profile):
    model = f"{served.model}:{profile}" if profile else served.model
    alignment = TOLD if profile else {}
    url = f"{served.url}/v1/completions"
    client(
        "lm_eval",
        *("--model", "local-completions", "--tasks", "likely,written"),
        *("--model_args", f"model={model},base_url={url},num_concurrent=4"),
        *("--include_path", tmp_path, "--output_path", "out", "--log_samples"),
        folder=tmp_path,
    )
    [likely] = tmp_path.glob("out/**/samples_likely_*.jsonl")
    samples = {one["doc_id"]: one for one in map(json.loads, likely.read_text().splitlines())}
    assert len(samples) == 20
    lines = [
        {"raw": item["question"], "answer": f" {choice}", "alignment": alignment}
        for item in tasks
        for choice in item["choices"]
    ]
    wanted = iter(score(tiny, lines))
    for place in range(20):
        for [[logprob, greedy]] in samples[place]["resps"]:
            assert float(logprob) == pytest.approx(next(wanted), abs=1e-3)
            assert str(greedy) in ("True", "False")
    [written] = tmp_path.glob("out/**/samples_written_*.jsonl")
    samples = {one["doc_id"]: one for one in map(json.loads, written.read_text().splitlines())}
    assert len(samples) == 20
    end = tiny.backend.about(tiny.model).tokenizer["eos_token"]
    for place, item in enumerate(tasks):
        asked = {"raw": item["question"], "alignment": alignment}
        answer = tiny.generate(asked, max_tokens=8, stop=["\n", end])
        assert samples[place]["resps"] == [[answer.text]]


def score(tiny, lines):
    """The log-probabilities that `fader score` gives for these lines."""
    return [
        tiny.score({"raw": one["raw"], "alignment": one["alignment"]}, one["answer"]).logprob
        for one in lines
    ]


# The command line `llm`


def test_llm_asks_and_streams(served, tiny, tmp_path):
    (tmp_path / "llm").mkdir()
    models = [
        {
            "model_id": name,
            "model_name": f"{served.model}{profile}",
            "api_base": f"{served.url}/v1",
        }
        for name, profile in (("base", ""), ("cat", ":cat"))
    ]
    (tmp_path / "llm" / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    how = ["-o", "temperature", 0, "-o", "max_tokens", 8, "--key", "none"]
    for name, alignment in (("base", {}), ("cat", TOLD)):
        wanted = expected(tiny, alignment).strip()
        for stream in ([], ["--no-stream"]):
            said = client("llm", "-m", name, "the sea", *how, *stream, folder=tmp_path)
            assert said.strip() == wanted


# Python libraries

LITELLM = """
import json, sys, litellm
url, model, told = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
how = dict(
    model=f"openai/{model}", api_base=url, api_key="none", temperature=0, max_tokens=8,
    messages=[{"role": "user", "content": "the sea"}],
)
print(json.dumps([
    litellm.completion(**how).choices[0].message.content,
    "".join(part.choices[0].delta.content or "" for part in litellm.completion(**how, stream=True)),
    litellm.completion(**how, extra_body={"alignment": told}).choices[0].message.content,
]))
"""
LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI
url, model, told = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
how = dict(base_url=url, api_key="none", model=model, temperature=0, max_tokens=8)
print(json.dumps([
    ChatOpenAI(**how).invoke("the sea").content,
    "".join(part.content for part in ChatOpenAI(**how).stream("the sea")),
    ChatOpenAI(**how, extra_body={"alignment": told}).invoke("the sea").content,
]))
"""


@pytest.mark.parametrize("script", [LITELLM, LANGCHAIN], ids=["litellm", "langchain"])
def test_libraries_ask_stream_and_align(served, tiny, tmp_path, script):
    for model, alignment in ((served.model, {}), (f"{served.model}:cat", TOLD)):
        words = f"{served.url}/v1", model, json.dumps(TOLD)
        said = client("python", "-c", script, *words, folder=tmp_path)
        asked, streamed, aligned = json.loads(said.splitlines()[-1])
        assert asked == streamed == expected(tiny, alignment)
        assert aligned == expected(tiny, TOLD)


def test_curl_asks(served, tiny):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = {"messages": [{"role": "user", "content": "the sea"}], "temperature": 0, "max_tokens": 8}
    url = f"{served.url}/v1/chat/completions"
    head = ["-H", "Content-Type: application/json", "-d", json.dumps({**body, "alignment": TOLD})]
    done = subprocess.run(["curl", "-s", url, *head], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == expected(tiny, TOLD)
