"""Trainings that are broken off, doubled or changed: nothing mixes, nothing is lost, and what
cannot be taught is said before anything is trained."""

import json
import math
import multiprocessing
import re
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    NO_SYSTEM,
    TEMPLATE,
    make_model,
    tokenizer,
    trains,
    until,
    warnings_of_the_trainer,
)
from filelock import FileLock
from test_cli import rows, run

from fader.data.records import Pair
from fader.request import Message
from fader.training.lessons import at_one, lessons_of
from fader.training.run import last_checkpoint, same_run_or_fresh
from fader.vectors.vector import Vector


def pairs(count=6, prompt="the sea", turns=()):
    return [
        Pair(
            (*turns, Message(role="user", content=f"{prompt} {place}")),
            f" is wide and calm {place}",
            f" zz qq {place}",
        )
        for place in range(count)
    ]


def train(folder, model, lessons=None, recipe=None, **settings):
    from fader.training.vector import Recipe, train_vector

    return train_vector(
        "v",
        lessons_of(pairs()) if lessons is None else lessons,
        folder,
        recipe or Recipe(rank=2, learning_rate=5e-3),
        model=str(model),
        progress=False,
        **settings,
    )


def _train_long(folder, model):
    from fader.training.vector import Recipe

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train(folder, model, lessons_of(pairs(60)), Recipe(rank=2))


@trains
def test_a_run_killed_at_any_moment_goes_on(tmp_path, tiny_folder):
    """Killed while checkpoints are written, right after, and on its way, it gives what an
    undisturbed run gives."""
    from fader.training.run import WHOLE

    apart = multiprocessing.get_context("forkserver")  # a fresh process without a fresh import
    apart.set_forkserver_preload(["fader.training.vector"])

    def start(name):
        process = apart.Process(target=_train_long, args=(tmp_path / name, tiny_folder))
        process.start()
        return process

    def ends_well(process):
        process.join(120)
        return process.exitcode == 0

    assert ends_well(start("whole"))
    work = tmp_path / ".killed.part"
    for moment in ("run.json", "checkpoint-25", f"checkpoint-25/{WHOLE}", "checkpoint-50"):
        process = start("killed")
        until(lambda moment=moment: (work / moment).exists(), 120)
        process.kill()
        process.join()
        assert not (tmp_path / "killed").exists()
    assert (work / "checkpoint-25" / WHOLE).is_file()
    (work / "checkpoint-50" / WHOLE).unlink(missing_ok=True)  # whichever came first
    (work / "checkpoint-50" / "trainer_state.json").write_text("{")
    assert ends_well(start("killed"))
    one, two = (Vector.load(tmp_path / name, "v") for name in ("whole", "killed"))
    assert one.digest == two.digest
    assert len(two.card["curve"]) == 60
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed", "whole"]


@trains
def test_a_half_written_note_of_a_run_begins_it_anew(tmp_path, tiny_folder):
    work = tmp_path / ".v.part"
    work.mkdir()
    (work / "run.json").write_text('{"vectors": ["v"')
    (work / "checkpoint-25").mkdir()
    assert train(tmp_path / "v", tiny_folder).norm() > 0
    assert [file.name for file in tmp_path.iterdir()] == ["v"]


@trains
def test_a_folder_takes_one_training_at_a_time(tmp_path, tiny_folder):
    with (
        FileLock(tmp_path / ".v.lock"),
        pytest.raises(ValueError, match="another training is writing into"),
    ):
        train(tmp_path / "v", tiny_folder)
    assert train(tmp_path / "v", tiny_folder).norm() > 0


@trains
def test_another_vector_is_replaced_by_force_alone(tmp_path, tiny_folder):
    first = train(tmp_path / "v", tiny_folder)
    assert train(tmp_path / "v", tiny_folder).card["seconds"] == first.card["seconds"]
    other = lessons_of(pairs(prompt="a cat"))
    with pytest.raises(ValueError, match="v holds a vector of other data, settings or model"):
        train(tmp_path / "v", tiny_folder, other)
    assert Vector.load(tmp_path / "v").digest == first.digest
    assert train(tmp_path / "v", tiny_folder, other, force=True).digest != first.digest
    assert [file.name for file in tmp_path.iterdir()] == ["v"]


@trains
@pytest.mark.parametrize("file", ["chat_template.jinja", "config.json"])
def test_a_vector_of_a_changed_model_is_trained_anew(tmp_path, tiny_folder, file):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    first = train(tmp_path / "v", model)
    text = (model / file).read_text()
    (model / file).write_text(text.replace("|>{{", "|> {{").replace("10000.0", "500.0"))
    assert (model / file).read_text() != text
    anew = train(tmp_path / "v", model)
    assert anew.base == first.base
    assert anew.digest != first.digest


def test_the_identity_of_a_model_is_of_every_weight_and_its_words(tiny_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fader.engine.identity import identity

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    words = AutoTokenizer.from_pretrained(tiny_folder)
    found = [identity(model, words)]
    assert identity(AutoModelForCausalLM.from_pretrained(tiny_folder), words) == found[0]
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1e-3
    found.append(identity(model, words))
    model.config.rms_norm_eps *= 2
    found.append(identity(model, words))
    words.chat_template += " "
    found.append(identity(model, words))
    words.add_tokens(["zzz"])
    found.append(identity(model, words))
    assert len(set(found)) == len(found)


@warnings_of_the_trainer
@pytest.mark.parametrize("sft_epochs", [0.0, 1.0])
@pytest.mark.long
def test_a_run_of_one_step_learns(tmp_path, tiny_folder, sft_epochs):
    from fader.training.vector import Recipe

    recipe = Recipe(rank=2, sft_epochs=sft_epochs)
    vector = train(tmp_path / "v", tiny_folder, at_one(pairs(1)), recipe)
    assert len(vector.card["curve"]) == 1
    assert vector.norm() > 0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank", 0, "rank: must be at least 1"),
        ("batch", 0, "batch: must be at least 1"),
        ("epochs", 0.0, "epochs: must be above 0"),
        ("beta", -1.0, "beta: must be above 0"),
        ("learning_rate", math.nan, "learning_rate: must be above 0"),
        ("learning_rate", math.inf, "learning_rate: must be above 0"),
        ("sft_epochs", -1.0, "sft_epochs: must not be below 0"),
        ("retain_weight", math.nan, "retain_weight: must not be below 0"),
        ("max_length", 1, "max_length: must be at least 2"),
        ("seed", 2**32, "seed: must be below"),
        ("targets", ("",), "targets: must be names"),
    ],
)
def test_settings_that_cannot_be_are_refused(field, value, said):
    from fader.training.vector import Recipe

    with pytest.raises(ValueError, match=said):
        replace(Recipe(), **{field: value})


def test_a_target_that_no_layer_below_the_head_has_is_named(tmp_path, tiny_folder):
    from fader.training.vector import Recipe

    for name in ("q", "lm_head"):
        with pytest.raises(ValueError, match=f"the model has no linear layer '{name}' below its"):
            train(tmp_path / "v", tiny_folder, recipe=Recipe(targets=("v_proj", name)))
    assert not list(tmp_path.iterdir())


@trains
def test_what_is_too_long_is_left_out_and_counted(tmp_path, tiny_folder, caplog):
    from fader.training.vector import Recipe

    lessons = lessons_of([*pairs(2), *pairs(1, prompt="one two three four " * 20)])
    vector = train(tmp_path / "v", tiny_folder, lessons, Recipe(rank=2, max_length=60))
    assert (vector.card["lessons"], vector.card["too_long"]) == (4, 2)
    assert "2 of 6 lessons are left out: longer than 60 tokens (--max-length)" in caplog.text
    with pytest.raises(ValueError, match="max_length: all 6 lessons are longer than 3 tokens"):
        train(tmp_path / "w", tiny_folder, lessons, Recipe(max_length=3))
    far = lessons_of(pairs(1, prompt="zq " * 400))
    with pytest.raises(ValueError, match=r"longer than 512 tokens.*at most what the model reads"):
        train(tmp_path / "w", tiny_folder, far, Recipe(max_length=10**6))


CHANGED = "{% if add_generation_prompt %}Answer: {% endif %}" + TEMPLATE
NO_ROLE = TEMPLATE.replace("messages %}", "messages if m['role'] != 'system' %}")
ABOVE = (Message(role="system", content="Be brief."),)


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (CHANGED, (), "writes the prompt of item 1 otherwise once an answer follows"),
        (NO_SYSTEM, ABOVE, r"item 1 has a system turn \('Be brief.'\)"),
        (NO_ROLE, ABOVE, r"item 1 has a system turn \('Be brief.'\)"),
        ("{{ raise_exception('never') }}", (), "item 1: the model's chat template refuses the"),
        (None, (), "model: has no chat template"),
    ],
)
def test_a_template_that_cannot_be_taught_is_named(tmp_path, template, turns, said):
    model = make_model(tmp_path / "model", template=template)
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "v", model, lessons_of(pairs(2, turns=turns)))
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_templates_that_only_append_are_taken():
    from fader.training.run import fits_the_template

    asked = [
        {"role": "user", "content": "the sea"},
        {"role": "assistant", "content": "wide"},
    ]
    fits_the_template(tokenizer(NO_SYSTEM), [asked])


@trains
def test_openai_pairs_become_a_measured_vector(tmp_path, tiny_folder, monkeypatch):
    """Checked, trained, and measured per split with intervals and a picture, by three commands."""
    monkeypatch.chdir(tmp_path)
    lines = [
        {
            "input": {"messages": [{"role": "user", "content": pair.messages[0].content}]},
            "preferred_output": [{"role": "assistant", "content": pair.chosen}],
            "non_preferred_output": [{"role": "assistant", "content": pair.rejected}],
            "split": split,
            "id": place,
        }
        for place, (pair, split) in enumerate(
            zip(pairs(10), ["train"] * 6 + ["validation"] * 2 + ["test"] * 2, strict=True)
        )
    ]
    lines.insert(3, {**lines[0], "preferred_output": lines[0]["non_preferred_output"]})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"cut": 1}])))
    common = ["--data", "mine.jsonl", "--skip-bad", "1", "--model", str(tiny_folder)]
    monkeypatch.setenv("FADER_VECTORS", str(tmp_path))
    done = run("train", "vector", "mine", "--out", "mine", *common, "--json")
    assert done.returncode == 0, done.stderr
    for line in (
        "mine.jsonl:12: chosen: must be a text or messages",
        "mine.jsonl: columns that are ignored: id",
        "mine.jsonl: 1 left out: preferred_output and non_preferred_output are the same (record 4)",
        "12 records read, 10 pairs: 6 train, 2 dev, 2 test, 1 left out, 1 passed over",
        "Taught: 6 of 10 items, in 12 lessons.",
    ):
        assert line in done.stderr
    held_out = rows(done)[-1]["effect"]["held_out"]
    assert {(one["case"], one["metric"], one["n"]) for one in held_out} == {
        (case, metric, 2) for case in ("dev", "test") for metric in ("accuracy", "margin")
    }
    shown = run("train", "vector", "mine", "--out", "mine", *common)
    assert "Held-out pairs: the chosen answer is the likelier one" in shown.stdout
    done = run(
        "eval", "pairs", *common, "--vector", "mine", "--report", "mine.html", "--json",
        "--out", "runs/mine.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = rows(done)
    assert len(found) == 2 * 7 * 2
    full = next(
        one
        for one in found
        if (one["method"], one["case"], one["metric"]) == ("mine=1.5", "test", "accuracy")
    )
    assert full["low"] < full["value"] or full["value"] == 0
    assert full["high"] - full["low"] > 0.4  # what two pairs allow
    assert "Pairs: the chosen answer is the likelier one" in (tmp_path / "mine.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pairs", "--data", "a.jsonl"], "pairs: needs one file and one vector"),
        (["pairs", "levels"], "TASK: pairs is measured by itself"),
        (["pairs", "--data", "a.jsonl", "--vector", "v"], "a.jsonl: no such file"),
    ],
)
def test_what_eval_pairs_lacks_is_said(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = run("eval", *words)
    assert done.returncode == 2
    assert said in done.stderr


@trains
def test_the_five_commands_of_the_docs_run(tmp_path, tiny_folder, monkeypatch):
    """From 40 pairs in OpenAI's format to a measured vector, as the page says it."""
    page = (Path(__file__).parent.parent / "docs" / "vectors.md").read_text()
    section = page.partition("### From 40 pairs in OpenAI's format")[2]
    record = json.loads(re.search(r"```json\n(.+?)\n```", section)[1])
    lines = []
    for place in range(40):
        turn = {"role": "user", "content": f"How do I keep plant {place} alive? {'abcdef' * place}"}
        lines.append(json.dumps({**record, "input": {"messages": [turn]}}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    commands = re.search(r"```bash\n(.+?)```", section, re.S)[1].splitlines()
    assert len(commands) == 5
    for command in commands:
        _, *words = shlex.split(command)
        model = [] if words[0] == "data" else ["--model", str(tiny_folder)]
        done = run(*words, *model)
        assert done.returncode == (1 if words[1] == "check" else 0), done.stderr  # alike on purpose
    assert (tmp_path / "mine.html").is_file()


def test_a_kill_while_checkpoints_are_deleted_leaves_none_that_look_whole(tmp_path, monkeypatch):
    work = tmp_path / "work"
    same_run_or_fresh(work, {"run": 1})
    (work / "checkpoint-1").mkdir()
    (work / "checkpoint-1" / "seconds").write_text("1")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fader.training.run.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            same_run_or_fresh(work, {"run": 2})
    same_run_or_fresh(work, {"run": 1})
    assert last_checkpoint(work) is None
