"""The command line as a person meets it: output, errors and exit statuses."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import random_vectors
from transformers import AutoModelForCausalLM

from fader import Alignment, Fader, Vector, load
from fader.cli import main
from fader.cli.answers import _turn
from fader.engine.backbone import TorchBackbone
from fader.engine.running import Lost


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> Done:
    """The command as if from a shell, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["fader", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode())))
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
        (["generate", ""], "messages[0].content: must not be empty"),
        (
            ["generate", "x", "--align", '{"vectors": {"nope": 1}}'],
            "alignment.vectors.nope: no such vector",
        ),
        (
            ["generate", "x", "--align", '{"vectors": {"medical": NaN}}'],
            "Input should be a finite number",
        ),
        (["generate", "x", "--align", '{"guides": [{"kind": "magic"}]}'], "alignment.guides[0]"),
        (["generate", "x", "--align", "{a: ["], "not valid JSON at line 1"),
        (["generate", "x", "--align", "nowhere.yaml"], "neither JSON, nor a file, nor a profile"),
        (["generate", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["generate", "x", "--model", "no/such"], "model: 'no/such' could not be loaded"),
        (["generate", "x", "--engine", "vllm"], "engine: vllm is not installed"),
        (
            ["generate", "x", "--same-as", "y"],
            "--same-as: is for GGUF files with --engine llama.cpp (got --engine torch)",
        ),
        (["chat", "--same-as", "y", "--engine", "vllm"], "(got --engine vllm)"),
        (["serve", "--kv-bytes", "2 sheep"], "--kv-bytes: must be a size such as 512MiB or 2GB"),
        (["serve", "--same-as", "y"], "--same-as: is for GGUF files"),
        (["generate", "x", "--workers", "3"], "--workers: are those of --ray"),
        (["eval", "levels", "--workers", "3"], "--workers: are those of --ray"),
        (["vectors", "tune", "medical=expert", "--workers", "3"], "--workers: are those of --ray"),
        (["serve", "--merge", "formal=1"], "--merge: is for --engine vllm (got torch)"),
        (["serve", "--merge", "formal", "--engine", "vllm"], "'formal' does not end with = and a"),
        (["generate", "x", "--max-tokens", "0"], "sampling.max_tokens"),
        (["generate", "x", "--temperature", "nan"], "sampling.temperature"),
        (["vectors", "inspect", "nope"], "no such vector"),
        (["vectors", "inspect", "medical", "--picture", "norms.pdf"], "must end with .png"),
        (
            ["vectors", "extract", "nowhere", "--name", "x", "--out", "x"],
            "nowhere is no folder with a config.json",
        ),
        (["vectors", "extract", "nowhere", "--name", "../x"], "--name: '../x' must be letters"),
        (
            ["vectors", "compress", "medical", "--name", "x", "--out", "x"],
            "nothing to do; give --rank",
        ),
        (
            ["vectors", "compress", "medical", "--name", "x", "--out", "x", "--rank", "0"],
            "rank: 0 must be at least 1",
        ),
        (
            ["vectors", "compress", "medical", "--name", "x", "--out", ".", "--rank", "1"],
            "--out: . is there already",
        ),
        (["vectors", "negate", "nope", "--name", "x", "--out", "x"], "no such vector"),
        (
            ["vectors", "merge", "medical", "--out", "x"],
            "'medical' does not end with = and a number",
        ),
        (
            ["vectors", "merge", "medical=much", "--out", "x"],
            "'medical=much' does not end with = and a number",
        ),
        (["vectors", "merge", "nope=1", "--out", "x"], "nope: no such vector"),
        (
            ["bench", "nope"],
            "no benchmark 'nope'; known: deal, decode, guide, knob, llama, pad, prompts, serve,"
            " shape, vectors, vllm",
        ),
        (["score", "--input", "-"], "has no lines"),
        (["chat", "--seed", "-3"], "sampling.seed"),
        (["chat", "--stop", ""], "sampling.stop[0]"),
    ],
)
def test_bad_input_is_one_message_and_status_2(arguments, said, tmp_path):
    done = run(*arguments, stdin="", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_loss_of_what_answers_is_one_message_and_status_2(monkeypatch):
    def lost(*_):
        raise Lost("the workers are lost")

    monkeypatch.setattr("fader.cli.app", lost)
    done = run("eval", "levels")
    assert (done.returncode, done.stderr) == (2, "error: the workers are lost\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["generate", "x", "--align", '{"vectors": {"nope": 1}}'],
            "error: alignment.vectors.nope: no such vector; known: ",
        ),
        (
            ["generate", "x", "--max-tokens", "100000"],
            "error: sampling.max_tokens: prompt and answer may take",
        ),
        (
            [
                "vectors",
                "transfer",
                "medical",
                "--onto",
                "smollm2-135m",
                "--name",
                "x",
                "--out",
                "x",
            ],
            "error: onto: smollm2-135m is the model that medical belongs to",
        ),
    ],
)
def test_what_the_model_cannot_do_is_one_message_and_status_2(arguments, said, shared, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_bad_lines_are_named(tmp_path):
    assert (
        "-:2: not valid JSON" in run("generate", "--input", "-", stdin='{"prompt": "x"}\n{').stderr
    )
    assert "-:1: must be a JSON object" in run("score", "--input", "-", stdin="[1]").stderr
    assert (
        "-:1: answer must be a text" in run("score", "--input", "-", stdin='{"prompt": "x"}').stderr
    )
    assert (
        "-:2: colour: no such field"
        in run(
            "generate", "--input", "-", stdin='{"prompt": "x"}\n{"prompt": "x", "colour": 1}'
        ).stderr
    )


def test_generate_mixed_preferences_in_one_batch(shared):
    lines = [
        {"prompt": "Name a fruit.", "alignment": {}},
        {
            "prompt": "Tell me about the sea.",
            "alignment": {"guides": [{"kind": "contrast", "principle": "Answer like a pirate"}]},
        },
        {
            "messages": [{"role": "user", "content": "Name a fruit."}],
            "sampling": {"max_tokens": 3, "logprobs": 1},
        },
    ]
    found = rows(
        run(
            "generate",
            "--input",
            "-",
            "--max-tokens",
            "12",
            "--json",
            stdin="\n".join(map(json.dumps, lines)),
        )
    )
    assert len(found) == 3
    for row in found:
        assert {"text", "token_ids", "finish_reason", "usage", "alignment"} <= row.keys()
        assert {"prompt_tokens", "completion_tokens", "rows", "forward_passes", "seconds"} <= row[
            "usage"
        ].keys()
    assert found[0]["token_ids"][:3] == found[2]["token_ids"]
    assert "logprobs" not in found[0]
    assert len(found[2]["logprobs"]) == 3
    assert found[1]["alignment"]["guides"][0]["weight"] == 2.0
    assert found[1]["usage"]["rows"] == 2 * 12


def test_generate_a_guide_changes_the_answer_and_streams(shared):
    plain = run("generate", "Tell me about the sea.", "--max-tokens", "24")
    pirate = run(
        "generate",
        "Tell me about the sea.",
        "--max-tokens",
        "24",
        "--align",
        '{"guides":[{"kind":"contrast","principle":"Answer like a pirate"}]}',
    )
    assert plain.returncode == pirate.returncode == 0
    assert (
        plain.stdout.strip()
        == shared.generate("Tell me about the sea.", max_tokens=24).text.strip()
    )
    assert "Arr" in pirate.stdout
    assert "Arr" not in plain.stdout


def test_score_vectors_models_profiles_schema(tmp_path, shared):
    pairs = [
        {"prompt": "2+2?", "answer": "4"},
        {
            "messages": [{"role": "user", "content": "2+2?"}],
            "answer": "4",
            "alignment": {"preferences": {"user": "Be brief."}},
        },
    ]
    one, two = rows(run("score", "--input", "-", "--json", stdin="\n".join(map(json.dumps, pairs))))
    assert one["logprob"] == pytest.approx(sum(one["logprobs"]))
    assert one["tokens"] == ["4"]
    assert one["logprob"] != two["logprob"]
    model = rows(run("models", "--json"))[0]
    assert model["name"] == "smollm2-135m"
    assert model["fetched"] is True
    (tmp_path / ".fader" / "profiles").mkdir(parents=True)
    (tmp_path / ".fader" / "profiles" / "brief.yaml").write_text("preferences: {user: Be brief.}")
    assert rows(run("profiles", "--json", cwd=tmp_path))[0]["alignment"] == {
        "preferences": {"user": ["Be brief."]}
    }
    (tmp_path / ".fader" / "profiles" / "tags.yaml").write_text(
        "preferences: {user: 'Never write [/INST] or [red] :smile:'}"
    )
    shown = "".join(run("profiles", cwd=tmp_path).stdout.split())
    assert all(piece in shown for piece in ("[/INST]", "[red]", ":smile:"))
    assert json.loads(run("schema").stdout)["title"] == "Request"
    assert all("name" in row for row in rows(run("vectors", "list", "--json")))


def test_chat_talks_and_changes_its_alignment(shared):
    done = run(
        "chat",
        "--max-tokens",
        "8",
        stdin='Hello\n/align {"preferences": {"user": "Be brief."}}\n/align nonsense\nAnd you?\n\n',
    )
    assert done.returncode == 0
    assert "neither JSON" in done.stdout
    assert done.stdout.count("> ") == 5


def test_chat_goes_on_after_what_it_cannot_read(tiny_folder):
    """A mistake with an alignment is a message that names every fault; no mistake ends the chat."""
    wrong = '{"vectors": {"nope": 1, "neither": 1}}'
    said = f"Hello\n/align /proc/self/mem\n/align {wrong}\nAnd you?\n\n"
    done = run("chat", "--model", str(tiny_folder), "--max-tokens", "4", stdin=said)
    assert done.returncode == 0
    assert done.stdout.count("> ") == 5
    assert "alignment.vectors.nope: no such vector" in done.stdout
    assert "alignment.vectors.neither: no such vector" in done.stdout


def test_chat_leaves_out_what_its_memory_cannot_hold(tiny_folder, capsys):
    with Fader(load(str(tiny_folder), kv_bytes=64 * 3 * 2 * 32 * 4)) as fader:
        (memory,) = (backbone.memory for backbone in fader.backend.backbones.values())
        assert memory.budget == 64
        asked = {"role": "user", "content": "the sea is wide " * 9}
        turns = [asked, {"role": "assistant", "content": "yes"}, asked]
        sampling = {"max_tokens": 4, "temperature": None}
        answered = _turn(fader, turns, Alignment(), sampling)
    assert answered[0] == asked
    assert len(answered) <= 2
    assert "the first 2 turns no longer fit" in capsys.readouterr().out


def test_the_next_turn_of_a_long_chat_reads_only_the_new_turn(tiny_folder, monkeypatch):
    """The second question costs its own tokens, and what the answer's text was not written as."""
    read, opened = [], []
    forward = TorchBackbone.forward

    def counted(self, segments):
        read.append(sum(len(segment.tokens) for segment in segments))
        return forward(self, segments)

    class Opened(Fader):
        def __init__(self, *arguments, **settings):
            read.clear()  # a model is checked when it is loaded
            super().__init__(*arguments, **settings)
            opened.append(self)
            read.clear()

    monkeypatch.setattr(TorchBackbone, "forward", counted)
    monkeypatch.setattr("fader.cli.answers.Fader", Opened)
    long, short = "the sea is wide . " * 20, "and the ship ?"
    flags = ("--model", str(tiny_folder), "--max-tokens", "6", "--temperature", "0")
    assert run("chat", *flags, stdin=f"{long}\n{short}\n\n").returncode == 0
    encode = opened[0].backend.backbones[str(tiny_folder)].encode
    first = len(encode(f"<|user|>{long.strip()}<|end|><|assistant|>"))
    new = len(encode(f"<|end|><|user|>{short}<|end|><|assistant|>"))
    assert read[0] == first > 60
    second = next(count for count in read[1:] if count > 1)
    assert new <= second <= new + 6 + 12  # the answer's text may be read as other tokens
    assert sum(read) < first + second + 2 * 6


@pytest.fixture(scope="module")
def files(tiny_folder, tmp_path_factory):
    """A folder with a tiny base and an aligned copy of it."""
    folder = tmp_path_factory.mktemp("files")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "v_proj" in name or name == "model.norm.weight":
                weight += 0.1 * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder / "aligned")
    shutil.copytree(tiny_folder, folder / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / file, folder / "aligned" / file)
    return folder


def test_vectors_on_files(files):
    """Extract, compress, negate, inspect, merge and transfer, one after the other."""
    whole = rows(
        run(
            "vectors",
            "extract",
            "aligned",
            "--base",
            "base",
            "--name",
            "mine",
            "--out",
            "mine",
            "--json",
            cwd=files,
        )
    )[0]
    assert whole["name"] == Vector.load(files / "mine").name == "mine"
    assert whole["rank"] == 32
    assert whole["error"] < 1e-5
    assert [warning for warning in whole["warnings"] if "model.norm.weight" in warning]
    small = rows(
        run(
            "vectors",
            "compress",
            "mine",
            "--rank",
            "4",
            "--name",
            "small",
            "--out",
            "small",
            "--json",
            cwd=files,
        )
    )[0]
    assert small["rank"] == 4
    assert small["error"] == pytest.approx(
        (1 - (small["norm"] / whole["norm"]) ** 2) ** 0.5, rel=1e-4
    )
    assert {row["rank"] for row in small["cut"].values()} == {4}
    few = rows(
        run(
            "vectors",
            "compress",
            "mine",
            "--layers",
            "0.5",
            "--name",
            "few",
            "--out",
            "few",
            "--json",
            cwd=files,
        )
    )[0]
    assert few["layers"] == 2
    assert "1 layers dropped" in few["warnings"][0]
    rows(run("vectors", "negate", "small", "--name", "less", "--out", "less", "--json", cwd=files))
    found = rows(
        run(
            "vectors",
            "inspect",
            "less",
            "--against",
            "mine",
            "--against",
            "small",
            "--picture",
            "a.png",
            "--json",
            cwd=files,
        )
    )[0]
    assert found["cosines"]["small"] == pytest.approx(-1)
    assert found["cosines"]["mine"] == pytest.approx(-small["norm"] / whole["norm"], rel=1e-4)
    assert found["layers"].keys() == {"0", "1", "2"}
    assert found["kinds"] == {"self_attn.v_proj": pytest.approx(found["norm"])}
    assert found["norm"] == pytest.approx(
        sum(norm * norm for norm in found["norms"].values()) ** 0.5
    )
    assert (files / "a.png").read_bytes().startswith(b"\x89PNG")
    merged = rows(
        run(
            "vectors",
            "merge",
            "mine=1",
            "small=1",
            "less=1",
            "--base",
            "base",
            "--out",
            "merged",
            "--json",
            cwd=files,
        )
    )[0]
    assert merged["vectors"] == [["mine", 1.0], ["small", 1.0], ["less", 1.0]]
    one, two = (
        AutoModelForCausalLM.from_pretrained(files / name).state_dict()
        for name in ("merged", "aligned")
    )
    torch.testing.assert_close(
        one["model.layers.0.self_attn.v_proj.weight"], two["model.layers.0.self_attn.v_proj.weight"]
    )
    moved = rows(
        run(
            "vectors",
            "transfer",
            "small",
            "--onto",
            "aligned",
            "--name",
            "moved",
            "--out",
            "moved",
            "--json",
            cwd=files,
        )
    )[0]
    assert len(moved["warnings"]) == 1  # the base is found by the card
    assert moved["moved"]["model.layers.0.self_attn.v_proj"]["cosine"] > 0.3
    assert moved["moved"] == Vector.load(files / "moved").card["transferred_from"]["moved"]
    assert {path.name for path in files.iterdir()} == {
        *("base", "aligned", "mine", "small", "few", "less", "merged", "moved"),
        "a.png",
    }


def test_vectors_on_files_for_people(files, tmp_path, monkeypatch):
    monkeypatch.setattr("fader.vectors.store.user_folder", lambda: tmp_path / "user")
    done = run(
        "vectors",
        "extract",
        "aligned",
        "--base",
        "base",
        "--name",
        "mine",
        "--energy",
        "0.5",
        cwd=files,
    )
    assert done.returncode == 0
    assert "v_proj" in done.stdout
    assert (
        "warning: not carried, since it is no linear layer of its own: model.norm.weight"
        in done.stderr
    )
    assert Vector.load(tmp_path / "user" / "mine").rank < 32
    moved = run(
        "vectors",
        "transfer",
        str(tmp_path / "user" / "mine"),
        "--onto",
        "aligned",
        "--base",
        "base",
        "--name",
        "there",
        cwd=files,
    )
    assert "cosine" in moved.stdout
    assert "warning: aligned has fingerprint" in moved.stderr
    again = run("vectors", "extract", "aligned", "--base", "base", "--name", "mine", cwd=files)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    shown = run(
        "vectors",
        "inspect",
        str(tmp_path / "user" / "mine"),
        "--against",
        str(tmp_path / "user" / "mine"),
    )
    assert "v_proj" in shown.stdout
    assert "1.0000" in shown.stdout


VECTOR_COMMANDS = ("list", "inspect", "extract", "merge", "compress", "negate", "transfer")


@pytest.mark.parametrize(
    "command",
    [
        ["generate"],
        ["score"],
        ["chat"],
        ["models"],
        ["models", "convert"],
        ["profiles"],
        ["schema"],
        ["bench"],
        *(["vectors", name] for name in VECTOR_COMMANDS),
    ],
)
def test_help_has_an_example(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


@pytest.mark.long
def test_as_a_process():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fader.cli import main; main()",
            "generate",
            "x",
            "--align",
            "{",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: alignment: not valid JSON at line 1")


def test_input_that_cannot_be_read_is_named_with_its_line(tmp_path):
    for name, content, message in (
        ("latin.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', "latin.jsonl:2: byte 0xe9"),
        ("deep.jsonl", b'{"prompt":' + b"[" * 100_000, "deep.jsonl:1: not valid JSON"),
        ("half.jsonl", b'{"prompt": "x \\ud83d y"}\n', "messages: character 3 is half of one"),
        ("bom.jsonl", b'\xef\xbb\xbf{"prompt": "a", "x": 1}\n', "x: no such field"),
    ):
        (tmp_path / name).write_bytes(content)
        done = run("generate", "--input", str(tmp_path / name))
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.builtin
def test_an_answer_as_a_process():
    """A process of its own, that loads the model itself and streams to a pipe."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fader.cli import main; main()",
            *("generate", "Name a river.", "--max-tokens", "3"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < len(done.stdout.split()) <= 3


BAD_LINES = (
    ({"prompt": "a", "max_tokens": 3}, "max_tokens: stands under `sampling`"),
    ({"prompt": "a", "alignment": {"vectors": {"nope": 1}}}, "alignment.vectors.nope: no such"),
    ({"prompt": "a" * 900}, "messages: prompt and answer may take"),
)


@pytest.mark.parametrize(("row", "said"), BAD_LINES)
@pytest.mark.parametrize("command", ["generate", "score"])
@pytest.mark.parametrize("before", ["", '{"prompt": "b", "answer": "c"}\n\n'])
def test_a_bad_line_is_named_by_file_and_line(command, before, row, said, tiny_folder, tmp_path):
    if command == "generate":
        before = before.replace(', "answer": "c"', "")
    else:
        row = {**row, "answer": "d"}
    file = tmp_path / "asked.jsonl"
    file.write_text(before + json.dumps(row) + "\n")
    done = run(command, "--input", str(file), "--model", str(tiny_folder))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {file}:{3 if before else 1}: {said}" in done.stderr


def test_chat_says_at_once_what_no_question_could_be_asked_with(tiny_folder):
    for given, said in (
        (("--max-tokens", "100000"), "sampling.max_tokens"),
        (("--align", '{"vectors": {"nope": 1}}'), "alignment.vectors.nope"),
    ):
        done = run("chat", "--model", str(tiny_folder), *given, stdin="hello\n")
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_chat_goes_on_after_bytes_that_are_no_text(tiny_folder, monkeypatch):
    out = io.StringIO()
    tiny = ("--model", str(tiny_folder), "--max-tokens", "4")
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n/align\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["fader", "chat", *tiny])
    monkeypatch.setattr(sys, "stdin", typed)
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main()
    said, shown = out.getvalue().split("> ")[1:3]
    assert "character 4 is half of one" in said
    assert shown == "{}\n"


def test_a_full_disk_is_one_message(tiny_folder, tmp_path):
    resource = pytest.importorskip("resource")
    with Fader(load(str(tiny_folder))) as fader:
        random_vectors(fader, tmp_path, ["warm"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        folders = ("--name", "cold", "--out", str(tmp_path / "cold"))
        done = run("vectors", "negate", str(tmp_path / "warm"), *folders)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.returncode, done.stdout) == (2, "")
    assert "File too large" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["warm"]


def test_a_profile_is_no_folder(tmp_path):
    (tmp_path / ".fader" / "profiles" / "odd.yaml").mkdir(parents=True)
    done = run("profiles", "--json", cwd=tmp_path)
    assert "odd" not in [row["name"] for row in rows(done)]


def test_a_folder_is_no_file_of_keys(tmp_path):
    for command in (["keys", "list"], ["serve", "--port", "0"]):
        done = run(*command, "--keys", str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{tmp_path}: is no file of keys" in done.stderr


def test_an_endpoint_without_an_address_is_not_the_model_of_this_machine(tmp_path):
    (tmp_path / "ada.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    for option, said in (
        (("--endpoint", "", "--teacher", ""), "endpoint.url"),
        (("--endpoint", "http://x/v1", "--teacher", "y", "--timeout", "0"), "endpoint.timeout"),
        (("--endpoint", "http://x/v1", "--teacher", "y", "--retries", "-1"), "endpoint.retries"),
    ):
        done = run("profiles", "learn", "--history", "ada.jsonl", *option, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
