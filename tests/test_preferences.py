"""Preference data: what ships, what is read of files, and the lessons that are made of it."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import trains, warnings_of_the_trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from fader.data.nearness import FAR, NEAR, nearness, of_nearness
from fader.data.preferences import (
    Family,
    Judged,
    flips_of,
    read_families,
    read_judged,
    row_of,
    unflipped,
    without_leaks,
)
from fader.data.records import Pair
from fader.methods.prompt import ending_ids, prompt_ids
from fader.request import Message, Preferences
from fader.starter.shipped import starter_families, starter_rows
from fader.training.run import load, progress_bar
from fader.training.told import neutral, taught_flips, told_lessons
from fader.training.vector import (
    Recipe,
    _row,
    _short_enough,
    _trainer,
    answer_logprobs,
    collate,
    only,
    train_vector,
)

IDLE = [row["text"] for row in starter_rows("preferences/irrelevant", "train")]


def pair(question, chosen, rejected, split="train"):
    return Pair((Message(role="user", content=question),), chosen, rejected, split)


def family(name, pairs, held_out=False):
    wordings = ((f"{name} up", f"more {name}"), (f"{name} down", f"less {name}"))
    return Family(name, ("up", "down"), wordings, wordings, tuple(pairs), held_out)


def test_the_shipped_families_are_many_and_flip():
    families = starter_families()
    assert len(families) >= 32
    assert sum(one.held_out for one in families) >= 12
    for one in families:
        texts = [text for pole in (*one.wordings, *one.unseen) for text in pole]
        assert len(set(texts)) == len(texts) or one.unseen == one.wordings
        assert all(len(pole) >= 3 for pole in one.wordings)
    flips = [
        judged
        for one in families
        for split in ("train", "dev", "test")
        for flip in one.flips(split)
        for judged in flip
    ]
    assert unflipped(flips) == []
    assert unflipped(flips[1:]) == [flips[0].pair.rejected, flips[0].pair.chosen]


def test_no_wording_of_a_preference_is_taught_and_measured():
    families = starter_families()
    taught = {
        text for one in families if not one.held_out for pole in one.wordings for text in pole
    }
    measured = {text for one in families for pole in one.unseen for text in pole}
    assert len(taught) > 300
    assert len(measured) > 200
    assert not taught & measured


def test_records_of_one_pair_are_a_flip():
    flip = family("x", [pair("q", "a", "b")]).flips("train")[0]
    other = Judged(pair("q", "a", "c"), ("z",))
    assert flips_of([flip[0], other, flip[1]]) == [flip, (other,)]
    apart = [replace(flip[1], family="y"), replace(flip[1], pair=pair("q", "b", "a", "test"))]
    assert flips_of([flip[0], *apart]) == [(one,) for one in (flip[0], *apart)]


def test_questions_near_measured_ones_are_not_taught():
    same = family("x", [pair("How do I fold a fitted sheet neatly?", "a", "b")]).flips("train")
    other = family("x", [pair("Why is the sea salty at all?", "a", "b")]).flips("train")
    asked = family("x", [pair("How do I fold a fitted sheet properly?", "a", "b", "test")])
    assert without_leaks([*same, *other], asked.flips("test")) == other


def test_records_are_read_as_they_are_written(tmp_path):
    judged = Judged(pair("q", "a", "b", "dev"), ("be brief", "few words"), "length", "short", "me")
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row_of(judged)))
    assert read_judged(file) == [judged]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "mine.jsonl:1: preference must be a text or a list of wordings (got None)"),
        ({"preference": ["x", ""]}, "mine.jsonl:1: preference must be a text or a list"),
        ({"preference": "x", "pole": 5}, "mine.jsonl:1: pole must be a text (got 5)"),
        ({"preference": "x", "Family": "y"}, "mine.jsonl:1: Family: call the column 'family'"),
        (
            {"preference": "x", "rejected": "a"},
            "mine.jsonl:1: chosen and rejected are the same; take",
        ),
    ],
)
def test_faulty_records_are_named(tmp_path, row, said):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", **row}))
    with pytest.raises(ValueError, match=r".") as caught:
        read_judged(file)
    assert said in str(caught.value)


def test_columns_that_nothing_is_taken_from_are_named_once(tmp_path, caplog):
    row = {**row_of(Judged(pair("q", "a", "b"), ("be brief",))), "annotator": 7, "chosen_score": 2}
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": text}) + "\n" for text in "pq"))
    assert len(read_judged(file)) == 2
    assert [one.getMessage() for one in caplog.records] == [
        f"{file}: columns that are ignored: annotator, chosen_score"
    ]


def test_lessons_under_preferences_come_in_flips():
    families = starter_families()
    lessons = told_lessons(taught_flips(families, share=0.2), IDLE, "principle")
    taught = [one for one in lessons if not one.retained]
    held_out = {text for one in families if one.held_out for pole in one.wordings for text in pole}
    for first, second in zip(taught[::2], taught[1::2], strict=True):
        assert (first.messages, first.chosen, first.rejected) == (
            second.messages,
            second.rejected,
            second.chosen,
        )
        differ = [a != b for a, b in zip(first.told.user, second.told.user, strict=True)]
        assert sum(differ) == 1  # what is told beside the preference is the same
        assert not held_out & {*first.told.user, *second.told.user}
    assert all(not first.retained for first in lessons[:1])
    places = [place for place, one in enumerate(lessons) if one.retained]
    assert places[::2] == [place - 1 for place in places[1::2]]  # flips stay in one batch
    assert 0.08 < len(places) / len(taught) < 0.25
    joint = Counter(len(one.told.user) for one in taught)
    assert 0.15 < (joint[2] + joint[3]) / len(taught) < 0.45
    assert lessons == told_lessons(taught_flips(families, share=0.2), IDLE, "principle")
    assert lessons != told_lessons(taught_flips(families, share=0.2), IDLE, "principle", seed=1)


def test_training_reads_what_serving_reads(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    lesson = told_lessons(taught_flips(starter_families(), share=0.02), IDLE, "principle")[0]
    row = _row(lesson, tokenizer, ending_ids(tokenizer), Recipe(reference="untold"))
    assert row["prompt_ids"] == prompt_ids(lesson.messages, [lesson.told], tokenizer)
    assert row["reference_ids"] == prompt_ids(lesson.messages, [], tokenizer)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}],
        tokenize=False,
    )
    assert whole.endswith(tokenizer.decode(row["chosen_ids"][-len(ending_ids(tokenizer)) :]))


@trains
def test_an_untold_reference_reads_the_question_alone(tmp_path, tiny_folder):
    """And each pair once, whichever of its answers a lesson prefers."""
    model, tokenizer = load(str(tiny_folder))
    families = starter_families()[:3]
    lessons = told_lessons(taught_flips(families, share=0.2), IDLE, "principle")[:12]
    recipe = Recipe(loss="dpo", reference="untold", max_length=4000)
    _, rows = _short_enough(lessons, tokenizer, model, recipe)
    with progress_bar(False) as bar:
        trainer = _trainer(recipe, model, tokenizer, rows, 1, tmp_path, bar)
    read = [*trainer.train_dataset]
    assert [row["prompt_ids"] for row in read] == [row["prompt_ids"] for row in rows]
    for row in read:
        for side in ("chosen", "rejected"):
            asked, said = row["reference_ids"], row[f"{side}_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
            expected = logits.float().log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum()
            assert row[f"ref_{side}_logps"] == pytest.approx(float(expected), abs=0.02 * len(said))
    said = {row[f"ref_{side}_logps"] for row in read for side in ("chosen", "rejected")}
    assert len(said) <= len(read)


@trains
def test_distillation_compares_with_what_a_teacher_finds_behind_examples(tmp_path, tiny_folder):
    model, tokenizer = load(str(tiny_folder))
    flips = taught_flips(starter_families()[:3], share=0.2)
    lessons = told_lessons(flips, IDLE, "principle", examples=1)
    recipe = Recipe(loss="distil", max_length=4000, retain_weight=2.0)
    lessons, rows = _short_enough(lessons, tokenizer, model, recipe)
    place = next(place for place, one in enumerate(lessons) if one.retained)
    lessons, rows = (some[place - 4 : place + 4] for some in (lessons, rows))
    assert {one.retained for one in lessons} == {True, False}
    with progress_bar(False) as bar:
        trainer = _trainer(recipe, model, tokenizer, rows, 1, tmp_path, bar)
    losses = []
    for lesson, row in zip(lessons, rows, strict=True):
        before = () if lesson.retained else lesson.shown
        assert len(before) == (0 if lesson.retained else 2)
        told = [] if lesson.retained else [lesson.told]
        messages = [*before, *lesson.messages]
        assert row["teacher_ids"] == prompt_ids(messages, told, tokenizer)
        for said in (row["chosen_ids"], row["rejected_ids"]):
            found, taught = (
                model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
                for asked in (row["prompt_ids"], row["teacher_ids"])
            )
            apart = (taught.exp() * (taught - found)).sum(-1).mean()
            losses.append(float(apart.detach()) * (2 if lesson.retained else 1))
    batch = trainer.data_collator(rows)
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(
        sum(losses) / len(losses), rel=0.02
    )


@trains
def test_a_retained_lesson_holds_whole_distributions(tmp_path, tiny_folder):
    """What is not moved costs nothing; moved, the loss is KL(base || model) per token of both
    answers, times its weight."""
    model, tokenizer = load(str(tiny_folder))
    (pairs,) = family("x", [pair("the sea is", "wide and deep", "small")]).flips("train")
    lesson = told_lessons([pairs], [], "principle")[0]
    lessons = neutral(lesson, IDLE, "principle", random.Random(0))
    recipe = Recipe(retain="divergence", retain_weight=3.0, max_length=4000)
    _, rows = _short_enough(lessons, tokenizer, model, recipe)
    with progress_bar(False) as bar:
        trainer = _trainer(recipe, model, tokenizer, rows, 1, tmp_path, bar)
    batch = trainer.data_collator(rows)
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(0, abs=1e-5)
    torch.manual_seed(0)
    for name, values in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values.data, std=0.3)
    losses = []
    for row in rows:
        for said in (row["chosen_ids"], row["rejected_ids"]):
            read = torch.tensor([row["prompt_ids"] + said])
            found = trainer.model(read).logits
            with trainer.model.disable_adapter():
                base = trainer.model(read).logits
            found, base = (
                one[0, len(row["prompt_ids"]) - 1 : -1].float().log_softmax(-1)
                for one in (found, base)
            )
            losses.append(3 * float((base.exp() * (base - found)).sum(-1).mean()))
    assert sum(losses) > 0.1
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(
        sum(losses) / len(rows), rel=0.02
    )


@trains
def test_a_student_comes_nearer_to_its_teacher(tmp_path, tiny_folder):
    flips = taught_flips(starter_families()[:1], share=0.1)
    lessons = [
        lesson
        for seed in range(60)
        for lesson in told_lessons(flips[:2], [], "principle", seed, examples=1)
    ]
    recipe = Recipe(loss="distil", max_length=4000, learning_rate=1e-2, batch=4)
    vector = train_vector(
        "m", lessons, tmp_path / "m", recipe, model=str(tiny_folder), progress=False
    )
    losses = [row["loss"] for row in vector.card["curve"]]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_nearness_finds_twins_and_opposites_and_leaves_strangers_far():
    loud = [pair(f"q{i}", f"bang crash {i}", f"hush calm {i}") for i in range(20)]
    red = [pair(f"r{i}", f"ruby scarlet {i}", f"azure navy {i}") for i in range(20)]
    families = [
        family("loud", loud),
        family("quiet", [one.swapped for one in loud], held_out=True),
        family("red", red, held_out=True),
    ]
    found = nearness(families)
    assert found["quiet"] == (1.0, "loud")
    assert found["red"][0] < FAR < NEAR
    groups = of_nearness(families)
    assert [[one.name for one in group] for group in groups.values()] == [
        ["loud"],
        ["quiet"],
        [],
        ["red"],
    ]


def test_some_lessons_of_a_batch_are_read_as_in_it(tiny_folder):
    model, tokenizer = load(str(tiny_folder))
    lessons = told_lessons(taught_flips(starter_families(), share=0.02), IDLE, "principle")[:4]
    rows = [_row(one, tokenizer, ending_ids(tokenizer), Recipe()) for one in lessons]
    batch = collate(rows, pad=0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    whole = answer_logprobs(model, batch, batch["strengths"]).chunk(2)
    some = only(batch, torch.tensor([1, 3]))
    part = answer_logprobs(model, some, some["strengths"]).chunk(2)
    for all_of_side, found in zip(whole, part, strict=True):
        torch.testing.assert_close(found, all_of_side[[1, 3]])


def test_a_pair_told_once_is_told_twice_so_that_lessons_stay_in_step():
    first, second = family("x", [pair("q", "aaaa", "bbbb")]).flips("train")[0]
    lessons = told_lessons([(first, second), (first,)], [], "principle")
    assert len(lessons) % 2 == 0
    assert {
        len({one.chosen, two.chosen}) for one, two in zip(lessons[::2], lessons[1::2], strict=True)
    } == {1, 2}


@warnings_of_the_trainer
def test_lessons_that_are_no_flips_are_refused(tmp_path, tiny_folder):
    lessons = told_lessons(taught_flips(starter_families(), share=0.02), [], "principle")
    recipe = Recipe(loss="flip", in_order=True, max_length=4000)
    with pytest.raises(ValueError, match=r"^loss: flip takes .* lessons 1 and 2 are not; use dpo$"):
        train_vector("x", lessons[1:], tmp_path / "x", recipe, model=str(tiny_folder))
    with pytest.raises(ValueError, match=r"^loss: flip takes lessons two by two; give an even"):
        Recipe(loss="flip")


@pytest.mark.parametrize("loss", ["dpo", "flip"])
@trains
def test_a_preference_is_learned_by_flips(tmp_path, tiny_folder, loss):
    """Two answers whose order depends on the preference alone: taught in order, both orders are
    right in the end."""
    flips = family("x", [pair("q", "aaaa", "bbbb")]).flips("train") * 2
    lessons = [one for seed in range(40) for one in told_lessons(flips, [], "system", seed)]
    assert {lesson.told for lesson in lessons if not lesson.retained} >= {
        Preferences(user=("x up",), rendering="system"),
        Preferences(user=("x down",), rendering="system"),
    }
    recipe = Recipe(
        loss=loss,
        reference="untold",
        beta=0.5,
        upper=0.5,
        length_normalized=False,
        learning_rate=1e-2,
        batch=4,
        in_order=True,
        max_length=4000,
    )
    vector = train_vector(
        "x", lessons, tmp_path / "x", recipe, model=str(tiny_folder), progress=False
    )
    last = [row["accuracy"] for row in vector.card["curve"][-8:] if "accuracy" in row]
    assert sum(last) / len(last) > 0.9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"held_out": "false"}, "held_out must be true or false (got 'false')"),
        ({"heldout": True}, "heldout: no field of a family is called so; take it out"),
        ({"Held_out": True}, "Held_out: call the column 'held_out'"),
    ],
)
def test_faulty_families_are_named(tmp_path, fields, said):
    file = tmp_path / "families.jsonl"
    both = {"a": ["Sing."], "b": ["Hum."]}
    row = {"family": "song", "poles": both, "wordings": both, **fields}
    (tmp_path / "song.jsonl").write_text(json.dumps({"prompt": "q", "a": "la", "b": "mm"}))
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"families\.jsonl:1: ") as caught:
        read_families(file, tmp_path)
    assert said in str(caught.value)
