"""Whole checkpoints: extraction, merging and transfer against transformers and PEFT, and refusals
that name what is wrong."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, GROUPED, make_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fader import Fader, Vector, load
from fader.vectors import checkpoint
from fader.vectors.checkpoint import adopt, extract, merge, open_checkpoint, transfer
from fader.vectors.vector import CARD, compress

NOT_LINEAR = ("self_attn.q_proj.bias", "input_layernorm.weight", "post_attention_layernorm.weight")
IDS = torch.tensor([[5, 90, 31, 200, 77, 8, 150]])
ASKED = {"max_tokens": 8, "logprobs": 5}


def read(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits[0].float()


def logprobs(answer):
    return [row.logprob for row in answer.logprobs]


def perturb(
    base: Path, folder: Path, parts=("q_proj", "down_proj"), rank=None, seed=7, shard=None
) -> Path:
    """A copy of a model, noise added to the weights whose names hold one of `parts`; of that rank
    for matrices."""
    model = read(base)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in parts):
                change = torch.randn(weight.shape, generator=noise)
                if rank is not None and weight.ndim == 2:
                    change = torch.randn(len(weight), rank, generator=noise) @ torch.randn(
                        rank, weight.shape[1], generator=noise
                    )
                weight += 0.05 * change
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def noisy(base: Path, name: str, modules=("q_proj", "o_proj"), rank=2, seed=0) -> Vector:
    noise = torch.Generator().manual_seed(seed)
    found = open_checkpoint(base)
    factors = {
        module: (
            0.2 * torch.randn(rank, inner, generator=noise),
            0.2 * torch.randn(out, rank, generator=noise),
        )
        for module, (out, inner) in found.layers.items()
        if module.endswith(modules)
    }
    return Vector(name, factors, found.fingerprint())


@pytest.fixture(scope="module")
def aligned(tiny_folder, tmp_path_factory):
    return perturb(tiny_folder, tmp_path_factory.mktemp("aligned") / "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fingerprint_is_the_one_that_load_gives(architecture, tmp_path):
    folder = make_model(tmp_path / architecture, architecture)
    found, model = open_checkpoint(folder), read(folder)
    backbone = load(str(folder))
    assert found.fingerprint() == backbone.fingerprint
    assert found.layers == backbone.layers
    for name, weight in model.state_dict().items():
        assert torch.equal(found.read(name), weight)


def test_shards_and_dtype_leave_the_fingerprint_alone(tiny_folder, tmp_path):
    read(tiny_folder, torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="50KB")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    found = open_checkpoint(tmp_path / "model")
    assert len(found.files) > 3
    assert (
        found.fingerprint()
        == open_checkpoint(tiny_folder).fingerprint()
        == load(str(tmp_path / "model")).fingerprint
    )


EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize("layout", ["one tensor for each expert", "stacked"])
def test_experts_are_read_in_both_layouts(architecture, layout, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, architecture, {**GROUPED, **EXPERTS[architecture]})
    base = make_model(tmp_path / "base", architecture)
    model = read(base)
    tuned = perturb(base, tmp_path / "tuned", ("q_proj", "experts.down_proj"))
    if layout == "stacked":
        for folder in (base, tuned):
            weights = {k: v.clone() for k, v in read(folder).state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(base)
    assert found.fingerprint() == load(str(base)).fingerprint
    for name, weight in model.state_dict().items():
        assert torch.equal(found.read(name), weight)
    vector = extract(tuned, base, "mine")
    assert {module.rpartition(".")[2] for module in vector.factors} == {"q_proj"}
    assert len(vector.card["not_carried"]) == 3
    assert all(name.endswith("experts.down_proj") for name in vector.card["not_carried"])
    merged = merge(base, {vector: 0.5}, tmp_path / "merged")
    with Fader(load(str(base))) as fader, Fader(load(str(merged))) as dense:
        fader.add_vector(vector)
        mixed = fader.generate("the sea", **ASKED, alignment={"vectors": {"mine": 0.5}}).answers[0]
        assert logprobs(mixed) == pytest.approx(
            logprobs(dense.generate("the sea", **ASKED).answers[0]), abs=1e-3
        )
    tensors = load_file(base / "model.safetensors")
    tensors.pop(next(key for key in tensors if "experts" in key))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for opened in (open_checkpoint, lambda folder: load(str(folder))):
        with pytest.raises(ValueError, match="model: ") as caught:
            opened(base)
        assert "\n" not in str(caught.value)


class TestExtract:
    def test_in_full_it_is_the_difference(self, tiny_folder, aligned):
        vector = extract(aligned, tiny_folder, "mine")
        one, two = read(aligned).state_dict(), read(tiny_folder).state_dict()
        assert vector.factors.keys() == {
            f"model.layers.{i}.{part}"
            for i in range(3)
            for part in ("self_attn.q_proj", "mlp.down_proj")
        }
        for module in vector.factors:
            torch.testing.assert_close(
                vector.delta(module),
                one[f"{module}.weight"] - two[f"{module}.weight"],
                atol=1e-5,
                rtol=1e-4,
            )
        assert all(row["error"] < 1e-5 for row in vector.card["layers"].values())
        assert vector.card["not_carried"] == {}
        assert vector.base == load(str(tiny_folder)).fingerprint

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_one_of_it_is_the_aligned_model(self, architecture, tmp_path):
        base = make_model(tmp_path / "base", architecture)
        linear = [
            module.rpartition(".")[2]
            for module in open_checkpoint(base).layers
            if "layers" in module
        ]
        parts = sorted({f"{part}.weight" for part in linear})
        tuned = perturb(base, tmp_path / "tuned", parts, shard="60KB")
        with Fader(load(str(base))) as fader:
            fader.add_vector(extract(tuned, base, "mine"))
            mixed = fader.generate(
                "the sea", **ASKED, alignment={"vectors": {"mine": 1.0}}
            ).answers[0]
            bare = fader.generate("the sea", **ASKED).answers[0]
        with Fader(load(str(tuned))) as fader:
            expected = fader.generate("the sea", **ASKED).answers[0]
        assert mixed.token_ids == expected.token_ids
        assert logprobs(mixed) == pytest.approx(logprobs(expected), abs=1e-3)
        assert logprobs(mixed) != pytest.approx(logprobs(bare), abs=1e-2)

    def test_a_rank_is_found_again(self, tiny_folder, tmp_path):
        tuned = perturb(tiny_folder, tmp_path / "tuned", ("v_proj", "up_proj"), rank=3)
        for cut in ({"rank": 3}, {"energy": 0.999999}):
            vector = extract(tuned, tiny_folder, "mine", **cut)
            assert {down.shape[0] for down, _ in vector.factors.values()} == {3}
            assert all(row["error"] < 1e-4 for row in vector.card["layers"].values())

    @pytest.mark.parametrize("cut", [{"rank": 2}, {"rank": 5, "energy": 0.5}, {"energy": 0.9}])
    @pytest.mark.parametrize("small", [256, 8])
    def test_the_card_says_what_a_cut_costs(self, tiny_folder, aligned, cut, small, monkeypatch):
        monkeypatch.setattr(checkpoint, "SMALL", small)
        vector, whole = (
            extract(aligned, tiny_folder, "mine", **cut),
            extract(aligned, tiny_folder, "whole"),
        )
        assert vector.card["cut"] == {"rank": None, "energy": None, **cut}
        best, kept = compress(whole, **cut)
        for module, row in vector.card["layers"].items():
            missing = (whole.delta(module) - vector.delta(module)).norm() / whole.delta(
                module
            ).norm()
            assert row["error"] == pytest.approx(float(missing), abs=1e-5)
            assert row["error"] == pytest.approx(
                kept[module].error, rel=0.02
            )  # exact in full, near it where drawn
            assert row["rank"] == vector.factors[module][0].shape[0] <= cut.get("rank", 64)
            assert row["norm"] == pytest.approx(vector.norm(module), rel=1e-5)
            assert row["before"] == pytest.approx(whole.norm(module), rel=1e-5)
            if "rank" not in cut:
                assert 1 - row["error"] ** 2 >= cut["energy"] - 1e-6
        assert best.factors.keys() == vector.factors.keys()

    def test_large_matrices_are_drawn_the_same_each_time(self, monkeypatch):
        monkeypatch.setattr(checkpoint, "SMALL", 8)
        drawn, real = [], torch.svd_lowrank
        monkeypatch.setattr(
            torch, "svd_lowrank", lambda *a, **k: drawn.append(k["q"]) or real(*a, **k)
        )
        difference = torch.randn(90, 70, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        one = checkpoint._cut(difference, 4, None)[0]
        torch.manual_seed(2)
        state = torch.get_rng_state()
        two = checkpoint._cut(difference, 4, None)[0]
        assert drawn == [12, 12]
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("architecture", "parts", "said"),
        [
            ("llama", ("q_proj", "embed_tokens"), {"model.embed_tokens.weight"}),
            (
                "qwen2",
                ("q_proj.", "norm"),
                {
                    "model.norm.weight",
                    *(f"model.layers.{i}.{part}" for i in range(3) for part in NOT_LINEAR),
                },
            ),
            ("qwen2", ("lm_head", "embed_tokens"), {"model.embed_tokens.weight"}),
        ],
    )
    def test_what_no_linear_layer_carries_is_named(self, architecture, parts, said, tmp_path):
        base = make_model(tmp_path / "base", architecture)
        vector = extract(perturb(base, tmp_path / "tuned", parts), base, "mine")
        assert vector.card["not_carried"].keys() == said
        assert all(norm > 0 for norm in vector.card["not_carried"].values())
        assert ("lm_head" in vector.factors) == ("lm_head" in parts)

    def test_no_more_than_a_pair_of_tensors_is_held(self, tiny_folder, tmp_path, monkeypatch):
        tuned = perturb(tiny_folder, tmp_path / "tuned", shard="60KB")
        alive: list[weakref.ref] = []
        most, real = 0, checkpoint.Checkpoint.read

        def watched(self, weight):
            nonlocal most
            tensor = real(self, weight)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            return tensor

        monkeypatch.setattr(checkpoint.Checkpoint, "read", watched)
        vector = extract(tuned, tiny_folder, "mine", rank=2)
        merge(tiny_folder, {vector: 1.0}, tmp_path / "merged")
        assert len(alive) > 60
        assert most <= 2

    def test_save_load_equal_and_peft_reads_it(self, tiny_folder, aligned, tmp_path):
        whole = extract(aligned, tiny_folder, "mine")
        for vector in (whole, compress(whole, rank=3)[0]):
            folder = vector.save(tmp_path / "v")
            again = Vector.load(folder)
            assert again.base == vector.base
            assert again.card["layers"] == vector.card["layers"]
            assert all(
                torch.equal(a, b)
                for m in vector.factors
                for a, b in zip(vector.factors[m], again.factors[m], strict=True)
            )
            theirs = PeftModel.from_pretrained(read(tiny_folder), str(folder)).eval()
            ours = read(tiny_folder)
            with torch.no_grad():
                for module in again.factors:
                    ours.get_submodule(module).weight += again.delta(module)
            torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-3, rtol=1e-3)
            assert (logits(ours) - logits(read(tiny_folder))).abs().max() > 0.1
        theirs = PeftModel.from_pretrained(
            read(tiny_folder), str(whole.save(tmp_path / "v"))
        ).eval()
        torch.testing.assert_close(logits(theirs), logits(read(aligned)), atol=1e-3, rtol=1e-3)

    def test_progress_sees_every_tensor(self, tiny_folder, aligned):
        seen: list[str] = []
        extract(
            aligned,
            tiny_folder,
            "mine",
            rank=1,
            track=lambda names: (seen.append(name) or name for name in names),
        )
        assert seen == sorted(read(tiny_folder).state_dict())


class TestRefusals:
    @pytest.fixture
    def tuned(self, aligned, tmp_path):
        return Path(shutil.copytree(aligned, tmp_path / "tuned"))

    def edit(self, folder, change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def refused(self, tuned, base, said):
        with pytest.raises(ValueError, match=said):
            extract(tuned, base, "mine")

    def test_missing_tensor(self, tuned, tiny_folder):
        self.edit(tuned, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        self.refused(tuned, tiny_folder, r"lacks model\.layers\.1\.mlp\.up_proj\.weight")

    def test_a_shape_that_the_config_denies(self, tuned, tiny_folder):
        self.edit(tuned, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
        self.refused(tuned, tiny_folder, r"model\.norm\.weight is \[65\] in the files, config")

    def test_other_shapes(self, tiny_folder, tmp_path):
        model = read(tiny_folder)
        model.resize_token_embeddings(410)
        model.save_pretrained(tmp_path / "tuned")
        self.refused(
            tmp_path / "tuned", tiny_folder, r"the tensor lm_head\.weight is \[410, 64\] in"
        )

    def test_other_tensors_and_architecture(self, tuned, tiny_folder, tmp_path):
        config = json.loads((tuned / "config.json").read_text())
        config["num_hidden_layers"] = 2
        (tuned / "config.json").write_text(json.dumps(config))
        self.refused(tuned, tiny_folder, r"holds model\.layers\.2\.input_layernorm\.weight, ")
        self.edit(
            tuned, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".2." in key]
        )
        self.refused(
            tuned,
            tiny_folder,
            r"the tensor model\.layers\.2\.input_layernorm\.weight is in .* only",
        )
        self.refused(make_model(tmp_path / "q", "qwen3"), tiny_folder, "is a qwen3, .* a llama")

    def test_other_vocabulary(self, tuned, tiny_folder):
        words = json.loads((tuned / "tokenizer.json").read_text())
        vocabulary = words["model"]["vocab"]
        one, two = list(vocabulary)[20:22]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        (tuned / "tokenizer.json").write_text(json.dumps(words))
        self.refused(tuned, tiny_folder, "has another vocabulary than")
        (tuned / "tokenizer.json").unlink()
        assert extract(tuned, tiny_folder, "mine", rank=1).factors  # nothing to compare

    def test_no_difference(self, tiny_folder):
        self.refused(tiny_folder, tiny_folder, "no linear layer of .* differs")

    def test_files_that_are_not_there_or_broken(self, tuned, tiny_folder, tmp_path):
        self.refused(tmp_path, tiny_folder, r"is no folder with a config\.json")
        whole = (tuned / "model.safetensors").read_bytes()
        (tuned / "model.safetensors").write_bytes(whole[:1000])
        self.refused(tuned, tiny_folder, r"model\.safetensors: corrupt")
        (tuned / "model.safetensors").unlink()
        self.refused(tuned, tiny_folder, r"there is no model\.safetensors .* from safetensors only")
        (tuned / "model.safetensors.index.json").write_text("{}")
        self.refused(tuned, tiny_folder, "not an index of shards")
        (tuned / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "model-1.safetensors"}}'
        )
        self.refused(tuned, tiny_folder, r"model-1\.safetensors: no such file")

    def test_numbers_that_are_none(self, tuned, tiny_folder):
        self.edit(tuned, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
        self.refused(tuned, tiny_folder, r"model\.norm\.weight holds NaN")
        self.edit(
            tuned,
            lambda tensors: tensors.update(
                {"model.norm.weight": torch.zeros(64, dtype=torch.int8)}
            ),
        )
        self.refused(tuned, tiny_folder, r"model\.norm\.weight is stored as torch\.int8")

    def test_cuts_that_are_none(self, tuned, tiny_folder):
        with pytest.raises(ValueError, match="rank: -1"):
            extract(tuned, tiny_folder, "mine", rank=-1)
        with pytest.raises(ValueError, match="energy: 2"):
            extract(tuned, tiny_folder, "mine", energy=2)


class TestAdopt:
    @pytest.fixture
    def adapter(self, tiny_folder, tmp_path):
        torch.manual_seed(0)
        model = get_peft_model(
            read(tiny_folder), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / "lora")
        return tmp_path / "lora"

    def test_a_lora_becomes_a_vector_of_its_base(self, adapter, tiny_folder, tmp_path):
        assert checkpoint.is_adapter(adapter)
        assert not checkpoint.is_adapter(tiny_folder)
        vector = adopt(adapter, tiny_folder, "mine")
        assert (vector.name, vector.base) == ("mine", load(str(tiny_folder)).fingerprint)
        assert vector.rank == 4
        assert adopt(adapter, tiny_folder, "mine", rank=2).rank == 2
        saved = json.loads((vector.save(tmp_path / "v") / CARD).read_text())
        assert saved["base_fingerprint"] == vector.base
        assert saved["base_model"] == str(tiny_folder)

    def test_of_another_model(self, adapter, tiny_folder, tmp_path):
        with pytest.raises(ValueError, match="has no linear layer"):
            adopt(adapter, make_model(tmp_path / "neox", "gpt_neox"), "mine")
        mine = adopt(adapter, tiny_folder, "mine").save(tmp_path / "v")
        with pytest.raises(ValueError, match="made for a model with fingerprint"):
            adopt(mine, make_model(tmp_path / "other", seed=9), "mine")


class TestMerge:
    @pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox"])
    @pytest.mark.parametrize("shard", [None, "60KB"])
    def test_merged_is_the_mixture(self, architecture, shard, tmp_path):
        """Law 5, on files."""
        base = perturb(
            make_model(tmp_path / "made", architecture), tmp_path / "base", (), shard=shard
        )
        modules = ("query_key_value",) if architecture == "gpt_neox" else ("q_proj", "o_proj")
        a, b = noisy(base, "a", modules), noisy(base, "b", modules[:1], rank=3, seed=1)
        merged = merge(base, {a: 0.7, b: -0.4}, tmp_path / "merged")
        plain, mixture = read(base), {"a": 0.7, "b": -0.4}
        with torch.no_grad():
            for vector, strength in ((a, 0.7), (b, -0.4)):
                for module in vector.factors:
                    plain.get_submodule(module).weight += strength * vector.delta(module)
        torch.testing.assert_close(logits(read(merged)), logits(plain), atol=1e-4, rtol=1e-4)
        with Fader(load(str(base))) as fader:
            fader.add_vector(a)
            fader.add_vector(b)
            mixed = fader.generate("the sea", **ASKED, alignment={"vectors": mixture}).answers[0]
        with Fader(load(str(merged))) as fader:
            dense = fader.generate("the sea", **ASKED).answers[0]
        assert mixed.token_ids == dense.token_ids
        assert logprobs(mixed) == pytest.approx(logprobs(dense), abs=1e-3)

    def test_the_folder_is_as_the_base(self, tiny_folder, tmp_path):
        read(tiny_folder, torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="60KB")
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "base")
        for name in ("pytorch_model.bin", "old.safetensors", "model.gguf"):
            (tmp_path / "base" / name).write_text("weights of another format")
        vector = noisy(tmp_path / "base", "a")
        merged = merge(tmp_path / "base", {vector: 0.5}, tmp_path / "out" / "merged")
        base = tmp_path / "base"
        names = {file.name for file in base.iterdir()} - {
            "pytorch_model.bin",
            "old.safetensors",
            "model.gguf",
        }
        assert {file.name for file in merged.iterdir()} == names | {CARD}
        assert (merged.stat().st_mode & 0o777) == 0o755
        for file in base.glob("model-*.safetensors"):
            with safe_open(file, "pt") as one, safe_open(merged / file.name, "pt") as two:
                assert one.metadata() == two.metadata()
                assert list(one.keys()) == list(two.keys())
                for key in one.keys():  # noqa: SIM118
                    before, after = one.get_tensor(key), two.get_tensor(key)
                    assert before.dtype == after.dtype == torch.bfloat16
                    module = key.removesuffix(".weight")
                    change = 0.5 * vector.delta(module) if module in vector.factors else 0.0
                    assert torch.equal(after, (before.float() + change).bfloat16())
        card = json.loads((merged / CARD).read_text())
        assert card["vectors"] == [{"name": "a", "strength": 0.5, "base_fingerprint": vector.base}]
        assert (
            AutoTokenizer.from_pretrained(merged).get_vocab()
            == AutoTokenizer.from_pretrained(base).get_vocab()
        )

    def test_what_belongs_to_the_folder_is_carried_along_and_nothing_else(
        self, tiny_folder, tmp_path
    ):
        base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
        words = AutoTokenizer.from_pretrained(base)
        words.chat_template = {"default": words.chat_template, "tools": "{{ messages }} tools"}
        words.save_pretrained(base)
        (base / "notes.txt").write_text("kept")
        (base / "checkpoint-5").mkdir()
        (base / "checkpoint-5" / "optimizer.pt").write_text("weights of another time")
        (base / ".cache").mkdir()
        vector = noisy(base, "a")
        vector.save(tmp_path / "lora")
        for file in (tmp_path / "lora").iterdir():
            shutil.copyfile(file, base / file.name)
        old = (base / "model.safetensors").read_bytes()
        read(tiny_folder, torch.bfloat16).save_pretrained(base, max_shard_size="60KB")
        (base / "model.safetensors").write_bytes(old)
        merged = merge(base, {vector: 0.5}, tmp_path / "merged")
        left_out = {"checkpoint-5", ".cache", "adapter_model.safetensors", "adapter_config.json"}
        left_out |= {file.name for file in base.glob("model-*")} | {"model.safetensors.index.json"}
        assert {file.name for file in merged.iterdir()} == {
            file.name for file in base.iterdir()
        } - left_out
        settings = "generation_config.json"
        assert (merged / settings).read_text() == (base / settings).read_text()
        assert AutoTokenizer.from_pretrained(merged).chat_template == words.chat_template

    def test_zero_is_off(self, tiny_folder, tmp_path):
        merged = merge(tiny_folder, {noisy(tiny_folder, "a"): 0.0}, tmp_path / "merged")
        for file in tiny_folder.iterdir():
            assert (merged / file.name).read_bytes() == file.read_bytes()

    def test_extract_of_merged_is_the_vector(self, tiny_folder, tmp_path):
        """Law 6, on files."""
        vector = noisy(tiny_folder, "a", rank=3)
        back = extract(
            merge(tiny_folder, {vector: 2.0}, tmp_path / "merged"), tiny_folder, "b", rank=3
        )
        assert back.factors.keys() == vector.factors.keys()
        for module in back.factors:
            torch.testing.assert_close(
                back.delta(module), 2 * vector.delta(module), atol=1e-4, rtol=1e-4
            )

    def test_nothing_is_left_of_a_failure(self, tiny_folder, tmp_path, monkeypatch):
        def broken(*_):
            raise OSError("disk full")

        monkeypatch.setattr(checkpoint, "_overwrite", broken)
        with pytest.raises(OSError, match="disk full"):
            merge(tiny_folder, {noisy(tiny_folder, "a"): 1.0}, tmp_path / "merged")
        assert not list(tmp_path.iterdir())

    def test_refusals(self, tiny_folder, tmp_path):
        vector, out = noisy(tiny_folder, "a"), tmp_path / "merged"
        with pytest.raises(ValueError, match="strength inf is not finite"):
            merge(tiny_folder, {vector: float("inf")}, out)
        with pytest.raises(ValueError, match="made for a model with fingerprint"):
            merge(make_model(tmp_path / "other", seed=9), {vector: 1.0}, out)
        head = Vector(
            "h",
            {
                "lm_head": (
                    torch.ones(1, 64),
                    torch.ones(open_checkpoint(tiny_folder).shapes["lm_head.weight"][0], 1),
                )
            },
        )
        with pytest.raises(ValueError, match="lm_head shares its weights with the embedding"):
            merge(tiny_folder, {head: 1.0}, out)
        read(tiny_folder, torch.float16).save_pretrained(tmp_path / "half")
        with pytest.raises(ValueError, match=r"do not fit into torch\.float16"):
            merge(tmp_path / "half", {noisy(tmp_path / "half", "a"): 1e9}, out)
        assert not out.exists()
        with pytest.raises(ValueError, match="is there already"):
            merge(tiny_folder, {vector: 1.0}, tmp_path / "half")


class TestTransfer:
    def test_relabelled_with_the_distance(self, tiny_folder, tmp_path):
        stage = perturb(tiny_folder, tmp_path / "stage", ("q_proj", "v_proj"))
        vector = noisy(tiny_folder, "a")
        moved = transfer(vector, stage, tiny_folder)
        assert moved.base == load(str(stage)).fingerprint != vector.base
        assert moved.factors == vector.factors
        note = moved.card["transferred_from"]
        assert note["base_fingerprint"] == vector.base
        one, two = read(stage).state_dict(), read(tiny_folder).state_dict()
        assert note["moved"].keys() == vector.factors.keys()
        for module, row in note["moved"].items():
            before, change = (
                two[f"{module}.weight"],
                one[f"{module}.weight"] - two[f"{module}.weight"],
            )
            assert row["distance"] == pytest.approx(float(change.norm() / before.norm()), rel=1e-4)
            wanted = torch.nn.functional.cosine_similarity(
                change.flatten(), vector.delta(module).flatten(), dim=0
            )
            assert row["cosine"] == pytest.approx(float(wanted), abs=1e-4)
            assert (row["distance"] > 0) == ("q_proj" in module)
        with Fader(load(str(stage))) as fader:
            with pytest.raises(ValueError, match="made for a model with fingerprint"):
                fader.add_vector(vector)
            fader.add_vector(moved)

    def test_the_cosine_of_the_stage_s_own_vector_is_one(self, tiny_folder, aligned):
        note = transfer(extract(aligned, tiny_folder, "a"), aligned, tiny_folder).card[
            "transferred_from"
        ]
        assert all(row["cosine"] == pytest.approx(1, abs=1e-4) for row in note["moved"].values())

    def test_again_and_without_the_base(self, tiny_folder, aligned, tmp_path):
        vector = transfer(noisy(tiny_folder, "a"), aligned)
        assert vector.card["transferred_from"]["moved"] is None
        back = transfer(vector, tiny_folder)
        assert back.base == open_checkpoint(tiny_folder).fingerprint()
        assert back.card["transferred_from"]["transferred_from"] == vector.card["transferred_from"]

    def test_refusals(self, tiny_folder, aligned, tmp_path):
        vector = noisy(tiny_folder, "a")
        with pytest.raises(ValueError, match="is the model that a belongs to"):
            transfer(vector, tiny_folder)
        with pytest.raises(ValueError, match="has no linear layer"):
            transfer(vector, make_model(tmp_path / "neox", "gpt_neox"))
        wide = Vector(
            "w", {module: (torch.zeros(1, 7), up) for module, (_, up) in vector.factors.items()}
        )
        with pytest.raises(ValueError, match="is 64 x 64 in"):
            transfer(wide, aligned)
        with pytest.raises(ValueError, match="made for a model with fingerprint"):
            transfer(vector, aligned, make_model(tmp_path / "other", seed=9))
        with pytest.raises(ValueError, match="is a qwen3"):
            transfer(vector, make_model(tmp_path / "qwen", "qwen3"), tiny_folder)
        other = make_model(tmp_path / "words", seed=3)
        words = json.loads((other / "tokenizer.json").read_text())
        words["added_tokens"][2]["content"] = "<|halt|>"
        words["model"]["vocab"]["<|halt|>"] = words["model"]["vocab"].pop("<|stop|>")
        (other / "tokenizer.json").write_text(json.dumps(words))
        with pytest.raises(ValueError, match="has another vocabulary than"):
            transfer(vector, other, tiny_folder)
