"""PAD's stage 2: the personal part before the head, by either arm."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import opposites, random_vector, tokenizer, trains, warnings_of_the_trainer
from peft import get_peft_model
from test_cli import rows as printed
from test_cli import run
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fader import Fader, Vector, load
from fader.data.preferences import row_of
from fader.evaluation.weighted import rewards
from fader.request import Message, Preferences
from fader.training import run as training
from fader.training.lessons import Lesson
from fader.training.personal_head import (
    RECIPES,
    HeadRecipe,
    HeadTrainer,
    PersonalMap,
    PersonalWeights,
    PreferenceWeights,
    _lora,
    head_trainer,
    number,
    part_of,
    read_with_part,
    train_personal_head,
    with_part,
)
from fader.training.run import progress_bar
from fader.training.vector import answer_logprobs, collate, prepared

ARMS = ["map", "weights"]
FLIPS = [flip for name in ("loud", "quiet") for flip in opposites(name).flips("train")]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers to compare: in float32, also where this machine would train in bfloat16."""
    monkeypatch.setattr("fader.training.run.quick_dtype", lambda: "float32")


@pytest.fixture(scope="module")
def start(tiny_folder: Path) -> Vector:
    """A model of stage 1, as if trained."""
    with Fader(load(str(tiny_folder))) as fader:
        base = fader.backend.backbones[fader.model].fingerprint
        return replace(random_vector(fader, "stage-1", 7), base=base)


def lessons(count: int = 4) -> list[Lesson]:
    """One told one preference, one told two, one told nothing, and so on."""
    told = [("be loud",), ("be loud", "be red"), None, ("be brief",)]
    return [
        Lesson(
            (Message(role="user", content=f"say {place}"),),
            " the sea is wide",
            " a cat sat",
            (1.0,),
            told=one and Preferences(user=one, rendering="principle"),
        )
        for place, one in enumerate((told * count)[:count])
    ]


def reading(folder: Path, start: Vector, arm: str, count: int = 4):
    """A model with a part, and the rows of some lessons."""
    base, words = training.load(str(folder))
    recipe = replace(RECIPES[arm], max_length=4000)
    kept, rows, _ = prepared(base, words, lessons(count), recipe, ["x"], [start])
    texts = number(kept, rows)
    part = PersonalMap(64, recipe) if arm == "map" else PersonalWeights(64, recipe, len(texts))
    model = with_part(base, start, part, words, texts if arm == "weights" else [])
    return model, rows


def disturb(model, seed: int = 1, size: float = 0.1) -> None:
    """As if the part had been trained."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = part_of(model).up.weight
        weight.copy_(torch.randn(weight.shape, generator=noise) * size)


# equation (9), by hand

EMBEDDING = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]  # of unit size: the norms leave them as they are
HEAD = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def three_tokens() -> LlamaForCausalLM:
    """A model of three tokens whose last hidden state is the embedding of the last token."""
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor(EMBEDDING))
        model.lm_head.weight.copy_(torch.tensor(HEAD))
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return model


def log_prob(after: int, token: int, part) -> float:
    one, two = part(*EMBEDDING[after])
    logits = [a * one + b * two for a, b in HEAD]
    return logits[token] - math.log(sum(map(math.exp, logits)))


def total(prompt: int, answer: list[int], part=lambda one, two: (one, two)) -> float:
    read = [prompt, *answer[:-1]]
    return sum(log_prob(a, token, part) for a, token in zip(read, answer, strict=True))


def mapped(one: float, two: float) -> tuple[float, float]:
    """(I + B A) h with A = [1 0], B = [.5 -.25]."""
    return one + 0.5 * one, two - 0.25 * one


def weighted(one: float, two: float) -> tuple[float, float]:
    """w * h with the same factors: the mean of two preferences, with states (1, -1) and (0, 1), of
    which the second changes nothing."""
    phi = math.tanh(1.0)
    return one * (1 + 0.5 * 0.5 * phi), two * (1 - 0.5 * 0.25 * phi)


@warnings_of_the_trainer
@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_is_equation_9_by_hand(arm, tmp_path):
    start = Vector("s", {"model.layers.0.self_attn.q_proj": (torch.ones(1, 2), torch.ones(2, 1))})
    recipe = HeadRecipe(
        rank=1,
        alpha=1,
        beta=0.7,
        loss="dpo",
        reference="untold",
        length_normalized=False,
        sft_weight=0.0,
        arm=arm,
        dropout=0.0,
    )
    row = {"prompt_ids": [0], "reference_ids": [2], "chosen_ids": [1, 2], "rejected_ids": [2, 1]}
    row |= {"strengths": [1.0], "retained": 0.0, "told": [1, 2], "shares": [0.5, 0.5]}
    part = PersonalMap(2, recipe) if arm == "map" else PersonalWeights(2, recipe, 2)
    with torch.no_grad():
        part.down.weight.copy_(torch.tensor([[1.0, 0.0]]))
        part.up.weight.copy_(torch.tensor([[0.5], [-0.25]]))
        if arm == "weights":
            part.told[1:] = torch.tensor([[1.0, -1.0], [0.0, 1.0]])
    with progress_bar(False) as bar:
        model, words = three_tokens(), tokenizer()
        trainer = head_trainer(recipe, model, words, [row], start, part, [], tmp_path, bar)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    loss = trainer.compute_loss(trainer.model, batch)
    change = mapped if arm == "map" else weighted
    chosen = total(0, [1, 2], change) - total(2, [1, 2])
    rejected = total(0, [2, 1], change) - total(2, [2, 1])
    expected = -math.log(1 / (1 + math.exp(-0.7 * (chosen - rejected))))
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - math.log(2)) > 0.05


# what is trained, and what is not


def frozen(model) -> dict[str, torch.Tensor]:
    return {
        name: weight.clone()
        for name, weight in model.state_dict().items()
        if "modules_to_save" not in name
    }


@trains
@pytest.mark.parametrize("arm", ARMS)
def test_backbone_and_lora_stay_bit_for_bit(arm, tmp_path, tiny_folder, start):
    base, words = training.load(str(tiny_folder))
    recipe = replace(RECIPES[arm], max_length=4000, batch=2, learning_rate=1e-2)
    kept, rows, _ = prepared(base, words, lessons(), recipe, ["x"], [start])
    texts = number(kept, rows)
    part = PersonalMap(64, recipe) if arm == "map" else PersonalWeights(64, recipe, len(texts))
    with progress_bar(False) as bar:
        trainer = head_trainer(
            recipe, base, words, rows, start, part, texts * (arm == "weights"), tmp_path, bar
        )
        before, untrained = frozen(trainer.model), part_of(trainer.model).up.weight.clone()
        trainer.train()
    after = frozen(trainer.model)
    assert before.keys() == after.keys()
    assert any("lora_A" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(untrained, part_of(trainer.model).up.weight)
    trainer.model.zero_grad(set_to_none=True)
    batch = trainer.data_collator([*trainer.train_dataset])
    trainer.compute_loss(trainer.model, batch).backward()
    learned = {name for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    assert learned == {
        f"base_model.model.personal.modules_to_save.default.{side}.weight"
        for side in ("down", "up")
    }


@pytest.mark.parametrize("arm", ARMS)
def test_the_identity_gives_the_numbers_of_stage_1_bit_for_bit(arm, tiny_folder, start):
    model, rows = reading(tiny_folder, start, arm)
    batch = collate(rows, pad=0)
    with torch.no_grad():
        found = read_with_part(model.eval(), batch, batch["strengths"])
        stage_1 = answer_logprobs(model, batch, batch["strengths"])
        disturb(model)
        moved = read_with_part(model, batch, batch["strengths"])
        off = read_with_part(model, batch, torch.zeros_like(batch["strengths"]))
    assert torch.equal(found, stage_1)
    assert not torch.equal(moved, stage_1)
    bare = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=model.dtype)
    with torch.no_grad():
        untouched = get_peft_model(bare, replace_part(_lora(start))).eval()
        base = answer_logprobs(untouched, batch, torch.zeros_like(batch["strengths"]))
    assert torch.equal(off, base)


def replace_part(config):
    """The same LoRA layers without a part."""
    config.modules_to_save = None
    return config


@pytest.mark.usefixtures("exact")
def test_stage_1_is_read_as_it_is_served(tiny_folder, start):
    """The vector in the LoRA layers, the part in front of the head: what training reads is what the
    engine gives with the factors."""
    model, rows = reading(tiny_folder, start, "map")
    disturb(model)
    batch = collate(rows, pad=0)
    with torch.no_grad():
        found = read_with_part(model.eval(), batch, batch["strengths"])
        down, up = part_of(model).factors
    with Fader(load(str(tiny_folder))) as fader:
        head = fader.backend.backbones[fader.model].weight("lm_head.weight")
        vector = replace(start, name="m", factors={**start.factors, "lm_head": (down, head @ up)})
        fader.add_vector(vector)
        served = [
            fader.score(
                {"messages": [turn.model_dump() for turn in lesson.messages]},
                text,
                alignment={
                    "vectors": {"m": 1.0},
                    **({"preferences": lesson.told.model_dump()} if lesson.told else {}),
                },
            )
            for text in (" the sea is wide", " a cat sat")
            for lesson in lessons()
        ]
    ending = len(rows[0]["chosen_ids"]) - len(served[0].tokens)
    assert ending > 0  # training reads the end of the turn too
    for place, one in enumerate(served):
        logprobs = token_logprobs(model, batch, place)
        assert logprobs[:-ending].tolist() == pytest.approx(one.logprobs, abs=2e-3)
        assert float(logprobs.sum()) == pytest.approx(float(found[place]), abs=1e-2)


@torch.no_grad()
def token_logprobs(model, batch, answer: int) -> torch.Tensor:
    """Those of one answer, token by token."""
    mine = batch["answer"] == answer
    found = []
    for place in mine.nonzero()[:, 0].tolist():
        one = {**batch, **{key: batch[key][place : place + 1] for key in ("source", "target")}}
        one["answer"] = torch.zeros(1, dtype=torch.long)
        found.append(read_with_part(model, one, batch["strengths"])[:1])
    return torch.cat(found)


# whole trainings


def train(arm: str, folder: Path, model: Path, start: Vector, **settings):
    recipe = replace(RECIPES[arm], batch=2, learning_rate=2e-2, max_length=4000, **settings)
    return train_personal_head(
        *("x", start, FLIPS, ["I am tall."], folder, recipe, 3),
        model=str(model),
        dtype="float32",
        progress=False,
    )


@pytest.mark.usefixtures("exact")
@trains
def test_a_map_is_saved_loaded_and_served_merged_into_the_head(
    tmp_path, tiny_folder, start, monkeypatch
):
    """An ordinary vector: stage 1's factors and a pair for the head, at any strength; and the
    embedding that the head is tied to stays as it is."""
    parts = []
    monkeypatch.setattr(
        "fader.training.personal_head.part_of",
        lambda model: parts.append(part_of(model)) or parts[-1],
    )
    trained = train("map", tmp_path / "x", tiny_folder, start)
    assert [one.name for one in tmp_path.iterdir()] == ["x"]  # no checkpoint is left
    assert trained.card["recipe"]["arm"] == "map"
    assert trained.card["start"] == [start.digest]
    assert {"loss", "accuracy"} <= trained.card["curve"][0].keys()
    loaded = Vector.load(tmp_path / "x", "x")
    assert loaded.digest == trained.digest
    assert loaded.factors.keys() - start.factors.keys() == {"lm_head"}
    for name, pair in start.factors.items():
        assert all(map(torch.equal, pair, loaded.factors[name]))
    down, up = parts[-1].factors
    assert torch.equal(loaded.factors["lm_head"][0], down)
    assert up.norm() > 0
    answer = "rivers bend slowly"
    with Fader(load(str(tiny_folder)), vectors={"x": tmp_path / "x"}) as fader:
        backbone = fader.backend.backbones[fader.model]
        embedding = backbone.weight("model.embed_tokens.weight").clone()
        prompt = list(fader.backend.plan(fader.request("the sea")).guided.base.prompt)
        said = backbone.encode(answer)
        served = {
            strength: fader.score(
                "the sea", answer, alignment={"vectors": {"x": strength}}
            ).logprobs
            for strength in (0.0, 0.5, 1.0)
        }
        bare = fader.score("the sea", answer).logprobs
        assert torch.equal(backbone.weight("model.embed_tokens.weight"), embedding)
    assert torch.allclose(loaded.factors["lm_head"][1], embedding @ up, atol=1e-5)  # W B
    assert served[0.0] == bare
    for strength, found in served.items():
        merged = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
        merged.lm_head.weight = torch.nn.Parameter(merged.lm_head.weight.clone())  # untied
        with torch.no_grad():
            for name in loaded.factors:
                merged.get_submodule(name).weight += strength * loaded.delta(name)
            log = merged(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        expected = log.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
        assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.usefixtures("exact")
@trains
@pytest.mark.parametrize("arm", ARMS)
def test_a_stopped_run_goes_on_to_the_same_end(arm, tmp_path, tiny_folder, start, monkeypatch):
    monkeypatch.setattr("fader.training.vector.SAVE", 3)
    whole = train(arm, tmp_path / "whole", tiny_folder, start)
    steps, step = [], HeadTrainer.training_step

    def stopping(self, *given, **settings):
        steps.append(self.state.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *given, **settings)

    monkeypatch.setattr(HeadTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(arm, tmp_path / "x", tiny_folder, start)
    found = train(arm, tmp_path / "x", tiny_folder, start)
    assert steps[5] == 3  # not from the beginning
    for one, two in zip(numbers(found), numbers(whole), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert len(found.card["curve"]) == len(whole.card["curve"])
    taken = len(steps)
    again = train(arm, tmp_path / "x", tiny_folder, start)  # what is there is taken as it is
    assert len(steps) == taken
    assert all(map(torch.equal, numbers(again), numbers(found)))
    with pytest.raises(ValueError, match="x holds a vector of other data, settings or model"):
        train(arm, tmp_path / "x", tiny_folder, start, beta=0.5)


def numbers(trained) -> list[torch.Tensor]:
    if isinstance(trained, PreferenceWeights):
        return [trained.down, trained.up]
    return [factor for _, pair in sorted(trained.factors.items()) for factor in pair]


# weights of preferences


@pytest.fixture
def weights(start) -> PreferenceWeights:
    noise = torch.Generator().manual_seed(3)
    down, up = (torch.randn(8, 64, generator=noise), torch.randn(64, 8, generator=noise) * 0.1)
    return PreferenceWeights("w", down, up, start.digest, start.base)


@pytest.mark.usefixtures("exact")
def test_preferences_in_a_batch_are_as_each_alone(tiny_folder, start, weights):
    several = lessons(4)
    together = rewards(weights, start, several, str(tiny_folder))
    alone = torch.cat([rewards(weights, start, [one], str(tiny_folder)) for one in several])
    assert together.shape == (4, 2)
    assert torch.allclose(together, alone, atol=1e-3)
    assert len(set(together[:, 0].tolist())) == 4


@pytest.mark.usefixtures("exact")
def test_weights_are_rows_of_their_own_and_none_where_nothing_is_told(tiny_folder, start, weights):
    """w = 1 + the mean of phi over what is told, in one row; told nothing, stage 1's numbers."""
    model, rows = reading(tiny_folder, start, "weights")
    part = part_of(model).eval()
    with torch.no_grad():
        part.down.weight.zero_()[:8] = weights.down
        part.up.weight.zero_()[:, :8] = weights.up
    batch = collate(rows, pad=0)
    ones = torch.ones(len(rows), 1, 64)
    with torch.no_grad():
        found = part(ones, batch["strengths"], batch)[:, 0] - 1  # [rows, hidden]
        states = part.told[1:]
        phi = torch.tanh(states @ weights.down.T) @ weights.up.T
    assert batch["told"].tolist() == [[1, 0], [1, 2], [0, 0], [3, 0]]
    expected = [phi[0], (phi[0] + phi[1]) / 2, torch.zeros(64), phi[2]]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert torch.allclose(states.square().mean(-1), torch.ones(3), atol=1e-3)


@pytest.mark.usefixtures("exact")
def test_weights_of_one_give_the_rewards_of_stage_1(tiny_folder, start, weights):
    """As the engine scores its vector: told, less the base told the same."""
    ones = replace(weights, up=torch.zeros_like(weights.up))
    found = rewards(ones, start, lessons(4), str(tiny_folder), batch=3)
    with Fader(load(str(tiny_folder))) as fader:
        fader.add_vector(start)
        for lesson, mine in zip(lessons(4), found.tolist(), strict=True):
            asked = {"messages": [turn.model_dump() for turn in lesson.messages]}
            told = {"preferences": lesson.told.model_dump()} if lesson.told else {}
            alignment = {"vectors": {"stage-1": 1.0}, **told}
            for text, reward in zip((lesson.chosen, lesson.rejected), mine, strict=True):
                ours, base = (
                    sum(fader.score(asked, text, alignment=one).logprobs)
                    for one in (alignment, told)
                )
                assert reward == pytest.approx(ours - base, abs=1e-2)


def test_weights_are_loaded_as_they_were_saved(tmp_path, weights):
    weights.save(tmp_path / "w")
    loaded = PreferenceWeights.load(tmp_path / "w")
    assert all(map(torch.equal, numbers(loaded), numbers(weights)))
    assert (loaded.name, loaded.start, loaded.base) == (weights.name, weights.start, weights.base)


# what cannot be done


def test_a_part_of_another_model_is_refused(tmp_path, tiny_folder, start, weights):
    small = replace(weights, down=weights.down[:, :32], up=weights.up[:32])
    with pytest.raises(ValueError, match=r"weights\.w: are for hidden states of 32 numbers, those"):
        rewards(small, start, lessons(1), str(tiny_folder))
    other = replace(weights, base="0123")
    with pytest.raises(ValueError, match=r"weights\.w: were trained on a model with fingerprint 0"):
        rewards(other, start, lessons(1), str(tiny_folder))
    other = replace(weights, start="0123")
    with pytest.raises(ValueError, match=r"weights\.w: were trained on the vector 0123, and stage"):
        rewards(other, start, lessons(1), str(tiny_folder))
    with pytest.raises(ValueError, match=r"w/preference_weights\.safetensors: no such file; train"):
        PreferenceWeights.load(tmp_path / "w")
    narrow = Vector("narrow", {"lm_head": (torch.ones(1, 32), torch.ones(400, 1))})
    said = r"vectors\.narrow: layer lm_head is 400 x 64 in .*, the vector's is 400 x 32"
    with Fader(load(str(tiny_folder))) as fader, pytest.raises(ValueError, match=said):
        fader.add_vector(narrow)


@pytest.mark.parametrize(
    ("factors", "base", "said"),
    [
        ({"lm_head": (torch.ones(1, 64), torch.ones(400, 1))}, None, "start: s changes the head"),
        ({}, "0123", "made for a model with fingerprint 0123"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, tiny_folder, factors, base, said):
    with pytest.raises(ValueError, match=said):
        train("map", tmp_path / "x", tiny_folder, Vector("s", factors, base))
    assert not [*tmp_path.glob("x*")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dropout": 1.0}, "dropout: must be at least 0 and below 1"),
        ({"sft_epochs": 1.0}, "sft_"),
        ({"retain": "divergence"}, "retain: stage 2 compares likelihoods alone"),
        ({"loss": "distil"}, "loss distil, retain likelihood"),
    ],
)
def test_settings_without_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        HeadRecipe(**wrong)


def test_past_choices_have_no_weights():
    said = Preferences(history=({"prompt": "q", "chosen": "a", "rejected": "b"},))
    with pytest.raises(ValueError, match=r"told\.history: preference weights are made of texts"):
        number([replace(lessons(1)[0], told=said)], [{}])


@pytest.mark.parametrize("arm", ARMS)
def test_a_folder_with_something_else_is_left_alone(arm, tmp_path, tiny_folder, start, weights):
    there = start if arm == "weights" else weights
    there.save(tmp_path / "x")
    with pytest.raises(ValueError, match=r"out: .*x is there already and"):
        train(arm, tmp_path / "x", tiny_folder, start)


@trains
def test_the_command_trains_both_arms(tmp_path, tiny_folder, start):
    start.save(tmp_path / "start")
    records = [row_of(judged) for flip in FLIPS for judged in flip]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    common = ["--data", "data.jsonl", "--model", str(tiny_folder), "--json", "--passes", "1"]
    command = ["train", "personal", "x", *common, "--max-length", "4000"]
    done = run(*command, "--stage", "map", "--out", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--start: the stage map goes on from a trained model; give the vector" in done.stderr
    done = run(*command, "--stage", "map", "--start", "", "--out", "x", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("--start: is empty")) == (2, 1)
    for arm in ARMS:
        more = ["--stage", arm, "--start", "start", "--rank", "2", "--out", arm]
        (row,) = printed(run(*command, *more, cwd=tmp_path))
        assert (row["name"], row["lessons"], row["retained"]) == ("x", 12, 4)
    assert Vector.load(tmp_path / "map").factors["lm_head"][0].shape == (2, 64)
    assert PreferenceWeights.load(tmp_path / "weights").down.shape == (2, 64)
