"""Law 6, PEFT folders of every allowed kind against PEFT itself, and refusals that name what is wrong."""

import json
import shutil

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fader import Fader, Vector, load
from fader.methods.vector import CARD, CONFIG, WEIGHTS, available, find


def vector(name: str, seed: int, rank: int = 3, modules: tuple[str, ...] = ("a", "b")) -> Vector:
    noise = torch.Generator().manual_seed(seed)
    return Vector(name, {m: (torch.randn(rank, 6, generator=noise), torch.randn(5, rank, generator=noise)) for m in modules})


def close(one: Vector, two: Vector) -> bool:
    modules = one.factors.keys() | two.factors.keys()
    zero = torch.zeros(5, 6)
    deltas = [tuple(v.delta(m) if m in v.factors else zero for v in (one, two)) for m in modules]
    return all(torch.allclose(a, b, atol=1e-4) for a, b in deltas)


amounts = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(x=amounts, y=amounts, seed=st.integers(0, 9))
def test_algebra(x, y, seed):
    a, b = vector("a", seed), vector("b", seed + 50, rank=2, modules=("b", "c"))
    assert close(a + b - b, a)
    assert close(a + b, b + a)
    assert close(x * (a + b), x * a + x * b)
    assert close((x + y) * a, x * a + y * a)
    assert close(-1 * -a, a)
    torch.testing.assert_close((x * a + y * b).delta("b"), x * a.delta("b") + y * b.delta("b"), atol=1e-4, rtol=1e-4)


def test_norm_and_cosine_equal_the_dense_ones():
    a, b = vector("a", 1), vector("b", 2)
    assert a.norm("a") == pytest.approx(float(a.delta("a").norm()), rel=1e-5)
    dense = [torch.cat([v.delta(m).flatten() for m in ("a", "b")]) for v in (a, b)]
    assert a.cosine(b) == pytest.approx(float(torch.nn.functional.cosine_similarity(*dense, dim=0)), abs=1e-5)
    assert a.cosine(2 * a) == pytest.approx(1, abs=1e-6)
    assert a.cosine(-a) == pytest.approx(-1, abs=1e-6)


def test_save_load_equal(tmp_path):
    mixed = vector("a", 1) + vector("b", 2, rank=2, modules=("b", "c"))
    saved = Vector(mixed.name, mixed.factors, "print", {"kind": "test"}).save(tmp_path / "v")
    loaded = Vector.load(saved)
    assert loaded.base == "print"
    assert loaded.card["kind"] == "test"
    assert loaded.factors.keys() == mixed.factors.keys()
    assert all(torch.equal(x, y) for m in mixed.factors for x, y in zip(mixed.factors[m], loaded.factors[m], strict=True))
    vector("a", 3).save(tmp_path / "v")
    assert close(Vector.load(tmp_path / "v"), vector("a", 3))
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 3},
        },
    ],
)
def test_peft_folders_mean_what_peft_says(options, tmp_path, tiny_folder):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **options)).eval()
    model.save_pretrained(tmp_path / "lora")
    with Fader(load(str(tiny_folder)), vectors={"mine": tmp_path / "lora"}) as fader:
        backbone = fader.backbones[fader.model]
        found = fader.score("the sea", " is wide and small", alignment={"vectors": {"mine": 1.0}})
        resaved = fader._vectors["mine"].save(tmp_path / "again")
        prompt = fader._plan(fader.request("the sea")).aligned.base.prompt
    answer = backbone.encode(" is wide and small")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for theirs in (model, PeftModel.from_pretrained(fresh, str(resaved)).eval()):
        with torch.no_grad():
            log = theirs(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        expected = [float(log[len(prompt) + place - 1, token]) for place, token in enumerate(answer)]
        assert found.logprobs == pytest.approx(expected, abs=1e-3)


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path, tiny_folder):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(r=2, target_modules=["q_proj"]))
        model.save_pretrained(tmp_path / "lora")
        return tmp_path / "lora"

    def edit(self, folder, **changes):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
            ({"bias": "all"}, "bias is 'all'"),
            ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
            ({"use_dora": True}, "use_dora"),
            ({"r": 5}, "has rank 2, its adapter_config.json says 5"),
        ],
    )
    def test_what_low_rank_cannot_express(self, folder, changes, said):
        self.edit(folder, **changes)
        with pytest.raises(ValueError, match=said):
            Vector.load(folder)

    def test_corrupt_files(self, folder):
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="corrupt"):
            Vector.load(folder)
        (folder / WEIGHTS).unlink()
        with pytest.raises(ValueError, match=f"no {WEIGHTS}"):
            Vector.load(folder)
        (folder / CONFIG).write_text("{")
        with pytest.raises(ValueError, match="not valid JSON"):
            Vector.load(folder)

    def test_nan_and_embeddings(self, folder):
        tensors = load_file(folder / WEIGHTS)
        first = next(iter(tensors))
        save_file({**tensors, first: tensors[first] * float("nan")}, folder / WEIGHTS)
        with pytest.raises(ValueError, match="NaN"):
            Vector.load(folder)
        save_file({**tensors, "base_model.model.model.embed_tokens.weight": torch.zeros(2, 2)}, folder / WEIGHTS)
        with pytest.raises(ValueError, match="changes the embedding or the vocabulary"):
            Vector.load(folder)

    def test_another_model(self, folder, tmp_path, tiny):
        other = make_model(tmp_path / "other", seed=9)
        with Fader(load(str(other))) as fader:
            mine = Vector.load(folder)
            stamped = Vector("mine", mine.factors, tiny.backbones[tiny.model].fingerprint)
            with pytest.raises(ValueError, match=r"vectors.mine: made for a model with fingerprint"):
                fader.add_vector(stamped)
        factors = {module.replace("q_proj", "z_proj"): pair for module, pair in mine.factors.items()}
        with pytest.raises(ValueError, match="has no linear layer"):
            tiny.add_vector(Vector("mine", factors))
        factors = {module: (torch.zeros(2, 7), up) for module, (_, up) in mine.factors.items()}
        with pytest.raises(ValueError, match=r"layer .* is 64 x 64 in"):
            tiny.add_vector(Vector("mine", factors))

    def test_unknown_names_say_what_is_known(self, folder, monkeypatch, tiny):
        shutil.copytree(folder, folder.parent / "set" / "known")
        monkeypatch.setenv("FADER_VECTORS", str(folder.parent / "set"))
        assert available()["known"] == folder.parent / "set" / "known"
        assert find("known").name == "known"
        assert not (folder / CARD).exists()
        assert tiny.generate("x", max_tokens=1, alignment={"vectors": {"known": 0.5}})
        with pytest.raises(ValueError, match=r"alignment.vectors.unknown: no such vector; known: known"):
            tiny.generate("x", alignment={"vectors": {"unknown": 1}})
        tiny.remove_vector("known")
