"""The data that ships, reading of data that people bring, and a short training run from pairs to a
served vector."""

import gzip
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import make_model, trains, warnings_of_the_trainer
from test_cli import rows, run
from transformers import AutoModelForCausalLM

from fader import Fader, load
from fader.cli.train import _measured
from fader.data.records import LEVELS, Pair, pair_of, read_levels, read_pairs, split
from fader.engine.builtin import fetch
from fader.methods.prompt import conversation
from fader.request import Message
from fader.starter.shipped import (
    AIMS,
    DOMAINS,
    STARTER,
    STYLES,
    TOLD,
    starter_levels,
    starter_pairs,
)
from fader.training.lessons import PLACES, at_one, cotrain, lessons_of
from fader.vectors.vector import Vector


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_levels(domain):
    items = starter_levels(domain)
    assert Counter(item.split for item in items) == {"train": 72, "dev": 18, "test": 30}
    ranges = {"avoidance": (12, 35), "generic": (22, 48), "expert": (45, 85)}
    for item in items:
        assert item.persona
        for level, (low, high) in ranges.items():
            assert low <= len(item.answers[level].split()) <= high
    assert len({item.query for item in items}) == len(items)
    openings = Counter(" ".join(item.answers["avoidance"].split()[:4]) for item in items)
    assert max(openings.values()) <= 3


@pytest.mark.parametrize("style", STYLES)
def test_shipped_styles(style):
    pairs = starter_pairs(style)
    assert len(pairs) == 80
    assert Counter(pair.split for pair in pairs) == {"train": 52, "dev": 10, "test": 18}
    assert len({pair.messages for pair in pairs}) == 80
    assert all(pair.chosen != pair.rejected for pair in pairs)


def test_pairs_in_every_common_form(tmp_path):
    turns = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        {"messages": turns, "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        {
            "chosen": [*turns, {"role": "assistant", "content": "a"}],
            "rejected": [*turns, {"role": "assistant", "content": "b"}],
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ]
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(file)
    assert len(set(pairs)) == 1
    assert pairs[0].swapped.swapped == pairs[0]
    levels = tmp_path / "levels.jsonl"
    levels.write_text(json.dumps({"query": "q", **{level: level for level in LEVELS}}))
    assert (read_pairs(levels)[0].chosen, read_pairs(levels)[0].rejected) == ("expert", "avoidance")
    assert read_pairs(levels, "generic", "expert")[0].chosen == "generic"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "data.jsonl:1: not valid JSON"),
        ("[1]", "data.jsonl:1: must be a JSON object"),
        ("", "no records"),
        ('{"prompt": "q", "chosen": "a"}', "data.jsonl:1: rejected: must be a text"),
        ('{"chosen": "a", "rejected": "b"}', "data.jsonl:1: prompt must be"),
        (
            json.dumps({"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "b"}),
            "data.jsonl:1: chosen.1.content: must not be empty",
        ),
        (
            '{"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"}',
            "data.jsonl:1: prompt.0.role",
        ),
        ('{"query": "q", "generic": "g", "expert": "e"}', "data.jsonl:1: avoidance must be a text"),
    ],
)
def test_faulty_data_is_named(tmp_path, line, said):
    file = tmp_path / "data.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=r".") as caught:
        read_pairs(file)
    assert said in str(caught.value)


def test_a_transcript_keeps_its_turns():
    said = "\n\nHuman: one\n\ntwo\n\nAssistant: three\n\nHuman: four\n\nAssistant: "
    pair = pair_of({"chosen": f"{said}five", "rejected": f"{said}six"}, "here")
    assert [(turn.role, turn.content) for turn in pair.messages] == [
        ("user", "one\n\ntwo"),
        ("assistant", "three"),
        ("user", "four"),
    ]
    assert (pair.chosen, pair.rejected) == ("five", "six")


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no item is marked 'later'"):
        split(starter_levels("legal"), "later")
    assert (
        len(
            split(
                read_levels(
                    __file__.replace("test_training.py", "../fader/starter/data/levels/legal.jsonl")
                ),
                "dev",
            )
        )
        == 18
    )


def test_data_sets_are_read_from_folders(tmp_path):
    (tmp_path / "set").mkdir()
    turns = [{"role": "user", "content": "q"}]
    row = {
        "messages": turns,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(row))
    assert read_pairs(f"{tmp_path / 'set'}:train") == [
        Pair((Message(role="user", content="q"),), "a", "b")
    ]
    with pytest.raises(ValueError, match="could not be read"):
        read_pairs(f"{tmp_path / 'set'}:later")
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        read_pairs("nowhere.jsonl")


def test_lessons_of_levels_stand_at_their_places():
    items = split(starter_levels("legal"), "dev")
    lessons = lessons_of(items, split(starter_levels("medical"), "dev"))
    taught = [lesson for lesson in lessons if not lesson.retained]
    assert len(taught) == 6 * len(items)
    assert len(lessons) == 7 * len(items)
    for lesson in taught:
        answers = next(item.answers for item in items if item.query == lesson.messages[0].content)
        level = next(level for level in LEVELS if answers[level] == lesson.chosen)
        low, high = PLACES[level]
        assert low <= lesson.strengths[0] <= high
        assert lesson.rejected in {answers[other] for other in LEVELS if other != level}
    assert lessons == lessons_of(items, split(starter_levels("medical"), "dev"))
    assert lessons != lessons_of(items, split(starter_levels("medical"), "dev"), seed=1)


def test_lessons_of_a_panel_stand_beside_each_other():
    """At any strengths of the other vectors, or, meeting, at those that these are taught at."""
    parts = [lessons_of(split(starter_levels(domain), "dev")) for domain in DOMAINS]
    anywhere, meeting = cotrain(parts), cotrain(parts, meeting=True)
    for found in (anywhere, meeting):
        assert [lesson.strengths[place // len(parts[0])] for place, lesson in enumerate(found)] == [
            one.strengths[0] for part in parts for one in part
        ]
    taught = {lesson.strengths[0] for lesson in parts[1]}
    assert len({lesson.strengths[1] for lesson in anywhere[: len(parts[0])]} & taught) == 0
    beside = [lesson.strengths[1] for lesson in meeting[: len(parts[0])]]
    assert set(beside) <= {*taught, 0.0}
    assert 0 < beside.count(0.0) < len(beside) / 4


def test_lessons_of_pairs_are_taught_on_both_sides():
    pairs = split(starter_pairs("warm"), "dev")
    lessons = lessons_of(pairs)
    assert [(lesson.chosen, lesson.strengths[0] > 0) for lesson in lessons] == [
        (p.chosen, True) for p in pairs
    ] + [(p.rejected, False) for p in pairs]
    assert [(lesson.chosen, lesson.strengths) for lesson in at_one(pairs)] == [
        (pair.chosen, (1.0,)) for pair in pairs
    ]
    assert [lesson.chosen for lesson in at_one(starter_levels("legal"))] == [
        item.answers["expert"] for item in starter_levels("legal")
    ]


SAYINGS = [
    ("the sea", " is wide and calm", " zz qq"),
    ("a cat", " sat on a mat", " qq zz"),
    ("one two", " three four", " zz zz"),
] * 2


@trains
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"loss": "dpo", "length_normalized": False, "beta": 0.5, "sft_weight": 0.0},
        {"sft_epochs": 1.0, "epochs": 4},
    ],
)
def test_from_pairs_to_a_served_vector(tmp_path, tiny_folder, recipe, capsys):
    from fader.training.vector import Recipe, train_vector

    pairs = read_pairs_of(SAYINGS, tmp_path)
    recipe = Recipe(**{"rank": 2, "epochs": 5, "batch": 2, "learning_rate": 5e-3, **recipe})
    folder = tmp_path / "vectors" / "liked"
    vector = train_vector(
        "liked",
        lessons_of(pairs),
        folder,
        recipe,
        model=str(tiny_folder),
        dtype="float32",
        progress=False,
    )
    assert [folder.name for folder in (tmp_path / "vectors").iterdir()] == [
        "liked"
    ]  # checkpoints are gone
    assert not capsys.readouterr().out  # where --json's lines go
    curve = vector.card["curve"]
    assert sum(row["loss"] for row in curve[-6:]) < sum(row["loss"] for row in curve[:6])
    assert vector.card["lessons"] == 12
    with Fader(load(str(tiny_folder)), vectors={"liked": folder}) as fader:
        margins = []
        for strength in (-1.0, 0.0, 1.0):
            alignment = {"vectors": {"liked": strength}}
            good, bad = (
                fader.score("a cat", text, alignment=alignment).mean
                for text in (" sat on a mat", " qq zz")
            )
            margins.append(good - bad)
    assert margins == sorted(margins)
    assert margins[2] > margins[0] + 0.1
    assert all(torch.isfinite(up).all() for _, up in Vector.load(folder).factors.values())


@trains
def test_what_is_held_stays(tmp_path, tiny_folder):
    """The same lessons move an answer to another question less when it is held."""
    from fader.training.vector import Recipe, train_vector

    pairs = read_pairs_of(SAYINGS, tmp_path)
    (tmp_path / "other").mkdir()
    others = read_pairs_of([("people say", " what they want", " qq qq zz")], tmp_path / "other")
    recipe = Recipe(rank=2, epochs=5, learning_rate=5e-3, retain_weight=30.0)
    drifts = []
    for retained in ([], others):
        folder = tmp_path / f"held{len(retained)}"
        train_vector(
            "v",
            lessons_of(pairs, retained),
            folder,
            recipe,
            model=str(tiny_folder),
            dtype="float32",
            progress=False,
        )
        with Fader(load(str(tiny_folder)), vectors={"v": folder}) as fader:
            said = [
                fader.score(
                    "people say", " what they want", alignment={"vectors": {"v": strength}}
                ).mean
                for strength in (0.0, 1.0, -1.0)
            ]
        drifts.append(abs(said[1] - said[0]) + abs(said[2] - said[0]))
    assert drifts[1] < drifts[0] / 2


@trains
def test_vectors_trained_side_by_side_are_vectors_of_their_own(tmp_path, tiny_folder):
    """Each moves its own question whatever the other's strength is; together they are what was
    trained."""
    from fader.training.vector import Recipe, train_vectors

    (tmp_path / "two").mkdir()
    one, two = (
        read_pairs_of(SAYINGS[:1] * 3, tmp_path),
        read_pairs_of(SAYINGS[1:2] * 3, tmp_path / "two"),
    )
    lessons = cotrain([lessons_of(one), lessons_of(two)], one[:1])
    assert all(len(lesson.strengths) == 2 for lesson in lessons)
    assert sum(lesson.retained for lesson in lessons) == 1
    folders = {name: tmp_path / "vectors" / name for name in ("one", "two")}
    recipe = Recipe(rank=2, epochs=10, learning_rate=5e-3)
    found = train_vectors(folders, lessons, recipe, str(tiny_folder), "float32", progress=False)
    assert [(vector.name, vector.rank, vector.card["trained_with"]) for vector in found] == [
        ("one", 2, ["one", "two"]),
        ("two", 2, ["one", "two"]),
    ]
    with Fader(load(str(tiny_folder)), vectors=folders) as fader:
        for mine, pair in (("one", one[0]), ("two", two[0])):
            for other in (-1.0, 1.0):
                margins = []
                for strength in (-1.0, 1.0):
                    alignment = {"vectors": {"one": other, "two": other, mine: strength}}
                    good, bad = (
                        fader.score(pair.messages[0].content, text, alignment=alignment).mean
                        for text in (pair.chosen, pair.rejected)
                    )
                    margins.append(good - bad)
                assert margins[0] < margins[1]


@warnings_of_the_trainer
def test_training_reads_each_row_at_its_own_amount(tiny_folder):
    """What the loss is computed from is what the engine serves: the same log-probabilities, row by
    row (law 5)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from fader.training.vector import answer_logprobs, collate

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        ),
    ).eval()
    with Fader(load(str(tiny_folder))) as fader, tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        fader.add_vector(Vector.load(folder, "v"))
        tokens = fader.backend.backbones[fader.model]
        lessons = [
            ("the sea is", " wide", " small . a cat", -1.5),
            ("one two", " three four five", " deep", 0.0),
            ("a", " mat", " dog", 0.7),
        ]
        rows = [
            {
                "prompt_ids": tokens.encode(
                    conversation([Message(role="user", content=prompt)], [], tokens.tokenizer)
                ),
                "chosen_ids": tokens.encode(chosen),
                "rejected_ids": tokens.encode(rejected),
                "strengths": [strength],
            }
            for prompt, chosen, rejected, strength in lessons
        ]
        batch = collate(rows, pad=0)
        trained = answer_logprobs(model, batch, batch["strengths"]).tolist()
        served = [
            fader.score(prompt, answers[side], alignment={"vectors": {"v": strength}}).logprob
            for side in (0, 1)
            for prompt, *answers, strength in lessons
        ]
        assert batch["lengths"].tolist() == [
            len(row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows
        ]
    assert trained == pytest.approx(served, abs=1e-3)


def read_pairs_of(rows, folder):
    file = folder / "pairs.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in rows)
    )
    return read_pairs(file)


SHIPPED = sorted(
    file.parent.name for file in (STARTER.parent / "vectors").glob("*/adapter_config.json")
)


def test_the_domains_are_shipped():
    assert {*SHIPPED} - {*TOLD} == {*DOMAINS, *STYLES, *AIMS}


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in TOLD])
def test_starter_vectors_fit_and_move(name, builtin):
    """Each shipped vector is small, carries its card, and at lambda 1 ranks its own side higher
    than at -1 on unseen pairs."""
    folder = STARTER.parent / "vectors" / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 3 * 2**20
    vector = Vector.load(folder)
    vector.check(builtin.backend.backbones[builtin.model])
    assert {"data", "recipe", "curve", "lessons", "effect"} <= vector.card.keys()
    assert (vector.card["effect"]["vector"], vector.card["effect"]["base"]) == (
        vector.digest,
        vector.base,
    )  # measured of these very numbers
    items = (
        split(starter_levels(name), "dev") if name in DOMAINS else split(starter_pairs(name), "dev")
    )
    pairs = [item if isinstance(item, Pair) else item.pair() for item in items[:4]]
    margins = {}
    for strength in (-1.0, 1.0):
        asked = [
            (
                {"prompt": pair.messages[-1].content, "alignment": {"vectors": {name: strength}}},
                pair,
            )
            for pair in pairs
        ]
        found = builtin.score_batch(
            [(request, text) for request, pair in asked for text in (pair.chosen, pair.rejected)]
        )
        margins[strength] = sum(
            good.mean - bad.mean for good, bad in zip(found[::2], found[1::2], strict=True)
        )
    assert margins[1.0] > margins[-1.0]


@pytest.fixture(scope="module")
def whole():
    """The built-in model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(fetch(), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SHIPPED)
def test_laws_5_and_6_hold_for_starter_vectors(name, builtin, whole, tmp_path):
    """A mixture in the batch equals the merged weights; a + b - b = a; what is saved and loaded is
    equal."""
    vector, other = (
        Vector.load(STARTER.parent / "vectors" / found)
        for found in (name, "warm" if name == "formal" else "formal")
    )
    vector.save(tmp_path / name)
    assert Vector.load(tmp_path / name).digest == vector.digest
    back = vector + other - other
    for module, norm in vector.norms().items():
        assert (back - vector).norm(module) <= 1e-4 * norm
    mixture = {name: 0.7, "concise": -0.4}
    if name == "concise":
        mixture = {name: 0.7}
    prompt, answer = (
        "My neighbour plays the drums at night.",
        " Talk to them first, calmly and at a good moment.",
    )
    found = builtin.score(prompt, answer, alignment={"vectors": mixture})
    backbone = builtin.backend.backbones[builtin.model]
    ids = [
        *builtin.backend.plan(builtin.request(prompt)).guided.base.prompt,
        *backbone.encode(answer),
    ]
    layers = dict(whole.named_modules())
    kept = {}
    with torch.inference_mode():
        for part, strength in mixture.items():
            for module, (down, up) in Vector.load(
                STARTER.parent / "vectors" / part
            ).factors.items():
                kept.setdefault(module, layers[module].weight.clone())
                layers[module].weight += strength * up.float() @ down.float()
        log = whole(torch.tensor([ids])).logits[0].log_softmax(-1)
        for module, weight in kept.items():
            layers[module].weight.copy_(weight)
    places = range(len(ids) - len(found.logprobs), len(ids))
    assert [float(log[place - 1, ids[place]]) for place in places] == pytest.approx(
        list(found.logprobs), abs=2e-3
    )


@trains
def test_a_vector_goes_on_from_another(tmp_path, tiny_folder):
    from fader.training.vector import Recipe, train_vector, train_vectors

    lessons = lessons_of(read_pairs_of(SAYINGS, tmp_path))
    recipe = Recipe(rank=2, epochs=2, learning_rate=5e-3)
    common = {"model": str(tiny_folder), "dtype": "float32", "progress": False}
    first = train_vector("v", lessons, tmp_path / "first", recipe, **common)
    still = train_vector(
        "v",
        lessons,
        tmp_path / "still",
        replace(recipe, epochs=0.2, learning_rate=1e-12),
        start=[first],
        **common,
    )
    assert (still - first).norm() < 1e-3 * first.norm()
    assert still.card["started_from"][0]["recipe"] == first.card["recipe"]
    moved = train_vector("v", lessons, tmp_path / "moved", recipe, start=[first], **common)
    assert (moved - first).norm() > 0.05 * first.norm()
    third = train_vector(
        "v", lessons, tmp_path / "third", replace(recipe, epochs=0.2), start=[still], **common
    )
    assert third.card["started_from"][0]["started_from"][0]["seconds"] == first.card["seconds"]
    places = {name: tmp_path / name for name in ("one", "two")}
    both = train_vectors(
        places,
        cotrain([lessons, lessons]),
        replace(recipe, epochs=0.2),
        start=[first, first],
        **common,
    )
    assert [history["data"] for history in both[0].card["started_from"]] == [first.card["data"]]
    for other, said in (
        ({"rank": 3}, "the same `rank`"),
        ({"targets": ("q_proj",)}, "the same `targets`"),
        ({"upper": 0.5}, "the same `targets`"),
    ):
        with pytest.raises(ValueError, match=said):
            train_vector(
                "v", lessons, tmp_path / "other", replace(recipe, **other), start=[first], **common
            )
    common["model"] = str(make_model(tmp_path / "another", seed=1))
    with pytest.raises(ValueError, match=r"^start.vectors.v: made for a model with fingerprint"):
        train_vector("v", lessons, tmp_path / "other", recipe, start=[first], **common)
    assert not (tmp_path / ".other.part").exists()  # nothing has begun


@trains
def test_the_domains_are_trained_in_stages(tmp_path, tiny_folder, monkeypatch):
    from fader.training.vector import Recipe
    from recipes import starter

    asked = []
    lessons = cotrain([lessons_of(read_pairs_of(SAYINGS[:1], tmp_path))] * len(DOMAINS))
    monkeypatch.setattr(starter, "domain_lessons", lambda stage: lessons)
    monkeypatch.setattr(
        starter,
        "note_effect",
        lambda vector, folder, items, model: asked.append((vector.name, len(items))) or vector,
    )
    stages = (
        starter.Stage((0,), Recipe(rank=2)),
        starter.Stage((1,), Recipe(rank=2, learning_rate=1e-3)),
    )
    vectors = starter.train_domains(tmp_path / "set", stages, str(tiny_folder))
    assert asked == [(domain, 18) for domain in DOMAINS]
    assert [history["recipe"]["learning_rate"] for history in vectors[0].card["started_from"]] == [
        stages[0].recipe.learning_rate
    ]
    assert sorted(place.name for place in (tmp_path / "set").iterdir()) == sorted(DOMAINS)
    before = [vector.digest for vector in vectors]
    assert [
        vector.digest
        for vector in starter.train_domains(tmp_path / "set", stages, str(tiny_folder))
    ] == before  # the stages are repeatable
    lessons = cotrain([lessons_of(read_pairs_of(SAYINGS[1:2], tmp_path))] * len(DOMAINS))
    assert [
        vector.digest
        for vector in starter.train_domains(tmp_path / "set", stages, str(tiny_folder))
    ] != before  # other data, trained anew


@trains
def test_the_commands_train_and_say_what_was_measured(tmp_path, tiny_folder):
    read_pairs_of(SAYINGS, tmp_path)
    common = ["--model", str(tiny_folder), "--json"]
    done = run(
        "train",
        "vector",
        "liked",
        "--data",
        str(tmp_path / "pairs.jsonl"),
        "--rank",
        "2",
        "--out",
        str(tmp_path / "liked"),
        *common,
    )
    found = rows(done)[-1]
    assert (found["name"], found["lessons"], found["retained"]) == ("liked", 12, 0)
    assert [row["strength"] for row in found["effect"]["strengths"]] == [-1.0, -0.35, 0.0, 0.5, 1.0]
    done = run(
        "train",
        "cotrain",
        f"one={tmp_path / 'pairs.jsonl'}",
        f"two={tmp_path / 'pairs.jsonl'}",
        "--out",
        str(tmp_path / "both"),
        *common,
    )
    assert [row["name"] for row in rows(done)] == ["one", "two"]
    assert Vector.load(tmp_path / "both" / "two").card["trained_with"] == ["one", "two"]
    assert found["effect"]["seen_in_training"]  # no record of the file is marked dev


def test_what_is_measured_was_not_taught_and_is_found_without_comparing(tmp_path, monkeypatch):
    pairs = read_pairs_of(SAYINGS, tmp_path)
    by_split = {
        name: [replace(pair, split=name) for pair in pairs] for name in ("train", "dev", "test")
    }
    items = [pair for some in by_split.values() for pair in some]

    def compared(one, other):
        raise AssertionError("each with each is too much for a large file")

    monkeypatch.setattr(Pair, "__eq__", compared)
    for taught, measured in (("train", "dev"), ("test", "dev"), ("dev", "test")):
        found = _measured(items, by_split[taught])
        assert [id(one) for one in found["items"]] == [id(one) for one in by_split[measured]]
        assert not found["seen"]
    found = _measured(by_split["train"], by_split["train"])
    assert found["seen"]
    assert found["items"] is by_split["train"]


@trains
def test_an_item_that_the_model_cannot_read_does_not_end_a_training(tmp_path, tiny_folder, caplog):
    file = tmp_path / "long.jsonl"
    long = {"prompt": "sea " * 900, "chosen": " wide", "rejected": " mat"}
    short = {"prompt": "the sea", "chosen": " wide", "rejected": " mat"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (short, long)))
    done = run(
        *("train", "vector", "v", "--data", str(file), "--out", str(tmp_path / "v"), "--json"),
        *("--model", str(tiny_folder), "--rank", "2"),
    )
    effect = rows(done)[-1]["effect"]
    assert (effect["items"], effect["not_measured"]) == (1, 1)
    assert "1 items are not measured: messages: prompt and answer may take" in caplog.text


@trains
def test_train_personal_teaches_a_pair_that_is_told_once(tmp_path, tiny_folder):
    wishes = [("Bark.", "wuff", "miau"), ("Purr.", "miau", "wuff"), ("Sing.", "la", "wuff")]
    file = tmp_path / "liked.jsonl"
    file.write_text(
        "".join(
            json.dumps({"preference": wish, "prompt": "a dog", "chosen": one, "rejected": other})
            + "\n"
            for wish, one, other in wishes
        )
    )
    done = run(
        *("train", "personal", "p", "--data", str(file), "--out", str(tmp_path / "p"), "--json"),
        *("--model", str(tiny_folder), "--rank", "2", "--passes", "1"),
    )
    assert rows(done)[-1]["lessons"] >= 4
    assert "2 answers are liked more often than disliked" in done.stderr


@trains
def test_train_personal_says_which_records_it_does_not_teach(tmp_path, tiny_folder):
    file = tmp_path / "liked.jsonl"

    def write(*splits):
        records = [
            {"preference": wish, "prompt": "a dog", "chosen": chosen, "rejected": rejected}
            for wish, chosen, rejected in (("Bark.", "wuff", "miau"), ("Purr.", "miau", "wuff"))
        ]
        marked = [{**record, "split": split} for split in splits for record in records]
        file.write_text("".join(json.dumps(row) + "\n" for row in marked))

    command = ["train", "personal", "p", "--data", str(file), "--model", str(tiny_folder)]
    command += ["--out", str(tmp_path / "p"), "--rank", "2", "--passes", "1", "--json"]
    write("train", "dev", "test", "test")
    done = run(*command)
    assert rows(done)[-1]["not_taught"] == {"dev": 2, "test": 4}
    assert f"{file}: 2 of 8 records are taught, not 2 of dev, 4 of test\n" in done.stderr
    write("dev")
    done = run(*command)
    assert done.returncode == 2
    assert "has no records of the split train (there are 2 of dev)" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "both"], "both is there already and is no vector"),
        (
            ["--negate", "--data", "levels.jsonl"],
            "--negate: swaps the sides of pairs, and there are none",
        ),
        (
            ["--loss", "dpo", "--retain", "pairs.jsonl"],
            "--retain: plain DPO (--loss dpo) has no lessons that retain",
        ),
        (["--out", ""], "--out: is empty; give a folder, or leave it out"),
        (["--split", ""], "--split: is empty; name a split, or leave it out"),
        (["--targets", ""], "targets: must be names of linear layers (got ('',))"),
    ],
)
def test_what_train_cannot_do_is_said_before_training(
    tmp_path, tiny_folder, monkeypatch, more, said
):
    monkeypatch.chdir(tmp_path)
    read_pairs_of(SAYINGS, tmp_path)
    (tmp_path / "levels.jsonl").write_text(
        json.dumps({"query": "q", **{level: level for level in LEVELS}})
    )
    (tmp_path / "both" / "tax").mkdir(parents=True)
    done = run("train", "vector", "v", "--data", "pairs.jsonl", "--model", str(tiny_folder), *more)
    assert done.returncode == 2
    assert said in done.stderr
    assert (tmp_path / "both" / "tax").is_dir()


@trains
def test_a_model_without_a_padding_token_is_trained(tmp_path, tiny_folder):
    from fader.training.vector import Recipe, train_vector

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key != "pad_token"})
    )
    lessons = lessons_of(read_pairs_of(SAYINGS, tmp_path))
    vector = train_vector(
        "v", lessons, tmp_path / "v", Recipe(rank=2), model=str(folder), progress=False
    )
    assert vector.norm() > 0
