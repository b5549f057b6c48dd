"""Law 6, PEFT folders of every allowed kind against PEFT itself, and refusals that name what is
wrong."""

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
from fader.vectors.checkpoint import adopt, merge
from fader.vectors.peft_folder import CONFIG, WEIGHTS
from fader.vectors.store import available, find, open_vector
from fader.vectors.vector import CARD, compress, project_out, sparsify


def vector(name: str, seed: int, rank: int = 3, modules: tuple[str, ...] = ("a", "b")) -> Vector:
    noise = torch.Generator().manual_seed(seed)
    return Vector(
        name,
        {
            m: (torch.randn(rank, 6, generator=noise), torch.randn(5, rank, generator=noise))
            for m in modules
        },
    )


def close(one: Vector, two: Vector) -> bool:
    modules = one.factors.keys() | two.factors.keys()
    zero = torch.zeros(5, 6)
    deltas = [tuple(v.delta(m) if m in v.factors else zero for v in (one, two)) for m in modules]
    return all(torch.allclose(a, b, atol=1e-4) for a, b in deltas)


strengths = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(x=strengths, y=strengths, seed=st.integers(0, 9))
def test_algebra(x, y, seed):
    a, b = vector("a", seed), vector("b", seed + 50, rank=2, modules=("b", "c"))
    assert close(a + b - b, a)
    assert close(a + b, b + a)
    assert close(x * (a + b), x * a + x * b)
    assert close((x + y) * a, x * a + y * a)
    assert close(-1 * -a, a)
    torch.testing.assert_close(
        (x * a + y * b).delta("b"), x * a.delta("b") + y * b.delta("b"), atol=1e-4, rtol=1e-4
    )


def test_norm_and_cosine_equal_the_dense_ones():
    a, b = vector("a", 1), vector("b", 2)
    assert a.norm("a") == pytest.approx(float(a.delta("a").norm()), rel=1e-5)
    dense = [torch.cat([v.delta(m).flatten() for m in ("a", "b")]) for v in (a, b)]
    assert a.cosine(b) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(*dense, dim=0)), abs=1e-5
    )
    assert a.cosine(2 * a) == pytest.approx(1, abs=1e-6)
    assert a.cosine(-a) == pytest.approx(-1, abs=1e-6)


def test_save_load_equal(tmp_path):
    mixed = vector("a", 1) + vector("b", 2, rank=2, modules=("b", "c"))
    saved = Vector(mixed.name, mixed.factors, "print", {"kind": "test"}).save(tmp_path / "v")
    loaded = Vector.load(saved)
    assert loaded.base == "print"
    assert loaded.card["kind"] == "test"
    assert loaded.factors.keys() == mixed.factors.keys()
    assert all(
        torch.equal(x, y)
        for m in mixed.factors
        for x, y in zip(mixed.factors[m], loaded.factors[m], strict=True)
    )
    vector("a", 3).save(tmp_path / "v")
    assert close(Vector.load(tmp_path / "v"), vector("a", 3))
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, 9))
def test_compress_is_the_truncated_svd(seed, rank):
    a = vector("a", seed, rank=4) + vector("b", seed + 100, rank=5, modules=("b", "c"))
    small, kept = compress(a, rank=rank)
    assert kept.keys() == small.factors.keys() == a.factors.keys()
    for module, row in kept.items():
        dense = a.delta(module).double()
        u, singular, v = torch.linalg.svd(dense, full_matrices=False)
        best = u[:, :rank] * singular[:rank] @ v[:rank]
        torch.testing.assert_close(small.delta(module).double(), best, atol=1e-5, rtol=1e-5)
        assert (
            row.rank == small.factors[module][0].shape[0] == min(rank, int((singular > 1e-5).sum()))
        )
        assert row.error == pytest.approx(float((dense - best).norm() / dense.norm()), abs=1e-5)
        assert row.norm == pytest.approx(float(best.norm()), rel=1e-5)
        assert row.before == pytest.approx(float(dense.norm()), rel=1e-5)
    assert small.card["layers"]["b"]["rank"] == kept["b"].rank


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), energy=st.floats(0.05, 0.9999))
def test_compress_keeps_the_least_rank_that_holds_the_energy(seed, energy):
    a = vector("a", seed, rank=5)
    for module, row in compress(a, energy=energy)[1].items():
        held = torch.linalg.svdvals(a.delta(module).double()).square().cumsum(0)
        least = int((held / held[-1] < energy).sum()) + 1
        assert row.rank == least
        assert 1 - row.error**2 >= energy - 1e-6
    assert max(row.rank for row in compress(a, rank=2, energy=energy)[1].values()) <= 2


def test_compress_drops_empty_ranks_and_nothing_else():
    a, b = vector("a", 1), vector("b", 2, rank=2, modules=("b", "c"))
    again, kept = compress(a + b - b)
    assert again.factors.keys() == {"a", "b"}
    assert {row.rank for row in kept.values()} == {3}
    assert close(again, a)
    assert all(
        new is old for new, old in zip(compress(a)[0].factors["a"], a.factors["a"], strict=True)
    )
    assert compress(a - a)[0].factors == {}
    with pytest.raises(ValueError, match="rank: 0 must be at least 1"):
        compress(a, rank=0)
    for energy in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"energy: .* must be above 0 and at most 1"):
            compress(a, energy=energy)


def test_compress_keeps_the_dtype_and_says_what_it_costs():
    rough = Vector(
        "a",
        {
            m: (down.bfloat16(), up.bfloat16())
            for m, (down, up) in vector("a", 1, rank=4).factors.items()
        },
    )
    doubled = rough + rough
    small, kept = compress(doubled)
    for module, row in kept.items():
        assert small.factors[module][0].dtype == torch.bfloat16
        assert row.rank == 4
        missing = (doubled.delta(module) - small.delta(module)).norm() / doubled.delta(
            module
        ).norm()
        assert row.error == pytest.approx(float(missing), rel=1e-3)
        assert 0 < row.error < 0.02


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), copies=st.just(0.0) | st.floats(0.01, 3))
def test_project_out_leaves_what_is_orthogonal(seed, copies):
    a = vector("a", seed)
    others = [vector("b", seed + 100, rank=2), vector("c", seed + 200, modules=("b", "c"))]
    others.append(copies * others[0] + others[1])  # dependent where both are there
    others.append(0 * others[0])
    left = project_out(a, others)
    for module in ("a", "b"):
        spanned = torch.stack(
            [other.delta(module).flatten() for other in others if module in other.factors]
        ).double()
        was, now = a.delta(module).flatten().double(), left.delta(module).flatten().double()
        assert (spanned @ now).abs().max() < 1e-3 * (1 + spanned.norm())
        weights = torch.linalg.lstsq(spanned.T, was[:, None], rcond=1e-5, driver="gelsd").solution
        torch.testing.assert_close(now, was - (spanned.T @ weights)[:, 0], atol=1e-3, rtol=1e-3)
    assert close(project_out(left, others), left)


def test_project_out_of_itself_is_zero_and_of_nothing_is_the_same():
    a, b = vector("a", 1), vector("b", 2)
    assert project_out(a, []).factors == a.factors
    assert project_out(a, [2 * a]).norm() < 1e-4
    assert abs(project_out(a, [b]).cosine(b)) < 1e-6
    wrong = Vector("w", {"a": (torch.zeros(1, 7), torch.zeros(5, 1))})
    with pytest.raises(ValueError, match="different shapes in layer a"):
        project_out(a, [wrong])
    with pytest.raises(ValueError, match="different shapes in layer a"):
        a.cosine(wrong)
    with pytest.raises(ValueError, match="belong to different models"):
        project_out(Vector("a", a.factors, "x"), [Vector("b", b.factors, "y")])


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_sparsify_keeps_the_fewest_largest_layers(share, seed):
    parts = [(i + 1) * vector(m, seed + i, modules=(m,)) for i, m in enumerate("abcd")]
    whole = sum(parts[1:], parts[0])
    kept = sparsify(whole, share)
    squares = {m: n * n for m, n in whole.norms().items()}
    total = sum(squares.values())
    assert sum(squares[m] for m in kept.factors) >= share * total * (1 - 1e-9)
    smallest = min(kept.factors, key=squares.get)
    assert sum(squares[m] for m in kept.factors if m != smallest) < share * total
    assert all(squares[m] <= squares[smallest] for m in squares if m not in kept.factors)


def test_sparsify_refuses_no_share():
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=r"share: .* must be above 0 and at most 1"):
            sparsify(vector("a", 1), share)


def test_scaled_to_sets_the_norm_and_keeps_the_direction():
    a = vector("a", 1)
    assert a.norm() == pytest.approx(
        float(torch.cat([a.delta(m).flatten() for m in "ab"]).norm()), rel=1e-5
    )
    long = a.scaled_to(7)
    assert long.norm() == pytest.approx(7)
    assert long.cosine(a) == pytest.approx(1)
    assert long.name == "a"
    with pytest.raises(ValueError, match="zero and has no direction"):
        (0 * a).scaled_to(1)
    for norm in (-1, float("nan")):
        with pytest.raises(ValueError, match="is not a length"):
            a.scaled_to(norm)


def test_a_vector_of_no_layers_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="changes no layer"):
        Vector("none", {}).save(tmp_path / "v")
    assert not list(tmp_path.iterdir())


def test_a_saved_vector_replaces_vectors_alone(tmp_path):
    made = vector("v", 1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "kept.txt").write_text("kept")
    with pytest.raises(ValueError, match="notes is there already and is no vector"):
        made.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "kept.txt").read_text() == "kept"
    made.save(tmp_path / "v")
    vector("v", 2).save(tmp_path / "v")
    assert Vector.load(tmp_path / "v").digest == vector("v", 2).digest
    (tmp_path / "v" / "model.safetensors").write_text("a model that an adapter lies beside")
    with pytest.raises(ValueError, match=r"v holds model\.safetensors beside a vector"):
        made.save(tmp_path / "v")
    assert Vector.load(tmp_path / "v").digest == vector("v", 2).digest


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
        backbone = fader.backend.backbones[fader.model]
        found = fader.score("the sea", " is wide and small", alignment={"vectors": {"mine": 1.0}})
        resaved = fader.backend._vectors["mine"].save(tmp_path / "again")
        prompt = fader.backend.plan(fader.request("the sea")).guided.base.prompt
    answer = backbone.encode(" is wide and small")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for theirs in (model, PeftModel.from_pretrained(fresh, str(resaved)).eval()):
        with torch.no_grad():
            log = theirs(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        expected = [
            float(log[len(prompt) + place - 1, token]) for place, token in enumerate(answer)
        ]
        assert found.logprobs == pytest.approx(expected, abs=1e-3)


def peft_logprobs(base, folder, fader, answer=" is wide and small"):
    """What PEFT makes of a folder."""
    prompt = fader.backend.plan(fader.request("the sea")).guided.base.prompt
    answer = fader.backend.backbones[fader.model].encode(answer)
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model = PeftModel.from_pretrained(fresh, str(folder)).eval()
        log = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return [float(log[len(prompt) + place - 1, token]) for place, token in enumerate(answer)]


@pytest.mark.parametrize("left_out", [("lora_alpha",), ("r",), ("lora_alpha", "r")])
def test_what_is_left_out_is_pefts_default(left_out, tmp_path, tiny_folder, tiny):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    options = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    rank = 8 if "r" in left_out else 2
    get_peft_model(base, LoraConfig(r=rank, **options)).save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / CONFIG).read_text())
    for field in left_out:
        config.pop(field)
    (tmp_path / "lora" / CONFIG).write_text(json.dumps(config))
    found = tiny.score(
        "the sea", " is wide and small", alignment={"vectors": {str(tmp_path / "lora"): 1}}
    )
    assert found.logprobs == pytest.approx(
        peft_logprobs(tiny_folder, tmp_path / "lora", tiny), abs=1e-3
    )


@pytest.mark.parametrize("start", [False, True])
def test_a_layer_that_peft_fills_at_random_is_refused(start, tmp_path, tiny_folder, tiny):
    """The config targets a layer of which the file has no factors; those that start without effect
    change nothing."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    options = {
        "target_modules": ["q_proj"],
        "exclude_modules": [r"model.layers.1.self_attn.q_proj"],
    }
    folder = tmp_path / "lora"
    get_peft_model(base, LoraConfig(init_lora_weights=start, **options)).save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "exclude_modules": None}))
    asked = ("the sea", " is wide")
    fields = {"alignment": {"vectors": {str(folder): 1}}}
    if start:
        assert tiny.score(*asked, **fields).logprobs == pytest.approx(tiny.score(*asked).logprobs)
    else:
        with pytest.raises(ValueError, match=r"no factors for model\.layers\.1\.self_attn\.q_proj"):
            tiny.score(*asked, **fields)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_scales_are_multiplied_in_float32(kind, tmp_path, tiny_folder, tiny):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    options = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=64, **options))
    model.save_pretrained(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    for key, tensor in tensors.items():  # 16 times 8000 leaves float16
        tensors[key] = (torch.sign(tensor) * 8e3 if "lora_B" in key else tensor * 2e-6).to(kind)
    save_file(tensors, tmp_path / "lora" / WEIGHTS)
    found = tiny.score(
        "the sea", " is wide and small", alignment={"vectors": {str(tmp_path / "lora"): 1}}
    )
    assert found.logprobs == pytest.approx(
        peft_logprobs(tiny_folder, tmp_path / "lora", tiny), abs=1e-4
    )


class TestASavedHead:
    """PEFT saves a head's own weights beside its factors, and whatever modules_to_save names."""

    @pytest.fixture(params=["llama", "qwen2"])
    def base(self, request, tmp_path):
        return make_model(tmp_path / "base", request.param)

    def adapter(self, base, folder, **options):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **options))
        adapted.save_pretrained(folder)
        return folder

    @pytest.mark.filterwarnings("ignore")
    def test_the_bases_own_is_read_and_kept(self, base, tmp_path):
        folder = self.adapter(base, tmp_path / "lora", target_modules=["q_proj", "lm_head"])
        assert any("base_layer" in key for key in load_file(folder / WEIGHTS))
        with Fader(load(str(base))) as fader:
            expected = peft_logprobs(base, folder, fader)
            vector = Vector.load(folder, "mine")
            assert vector.base_weights.keys() == {"lm_head.weight"}
            turned = (2 * vector - vector).save(tmp_path / "turned")
            for source in (folder, turned):
                found = fader.score(
                    "the sea", " is wide and small", alignment={"vectors": {str(source): 1}}
                )
                assert found.logprobs == pytest.approx(expected, abs=1e-3)
        made = adopt(folder, base, "mine")
        assert made.base_weights == {}
        assert made.digest == vector.digest

    @pytest.mark.filterwarnings("ignore")
    def test_a_trained_or_resized_one_is_refused(self, base, tmp_path):
        folder = self.adapter(
            base, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"]
        )
        key = "base_model.model.lm_head.weight"
        tensors = load_file(folder / WEIGHTS)
        with Fader(load(str(base))) as fader:
            fader.add_vector(Vector.load(folder, "untrained"))
            fader.add_vector(Vector.load(folder, "twice") + Vector.load(folder, "again"))
            for change, said in (
                (lambda head: head + 1e-3, r"lm_head\.weight differs from .* \(trained, or"),
                (lambda head: head[:-1], r"lm_head\.weight is \[\d+, 64\], .* has \[\d+, 64\]"),
            ):
                save_file({**tensors, key: change(tensors[key]).clone()}, folder / WEIGHTS)
                for use in (
                    lambda: fader.add_vector(Vector.load(folder, "mine")),
                    lambda: adopt(folder, base, "mine"),
                    lambda: merge(base, {Vector.load(folder): 1.0}, tmp_path / "merged"),
                ):
                    with pytest.raises(ValueError, match=said):
                        use()
            save_file({**tensors, "base_model.model.x.weight": torch.ones(2)}, folder / WEIGHTS)
            with pytest.raises(ValueError, match=r"x\.weight is no weight of"):
                fader.add_vector(Vector.load(folder, "mine"))


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path, tiny_folder):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            LoraConfig(r=2, target_modules=["q_proj"]),
        )
        model.save_pretrained(tmp_path / "lora")
        return tmp_path / "lora"

    def edit(self, folder, **changes):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
            ({"peft_type": "lora"}, "peft_type is 'lora'"),
            ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
            ({"bias": "all"}, "bias is 'all'"),
            ({"bias": None}, "bias is None"),
            ({"lora_bias": True}, "lora_bias is True"),
            ({"modules_to_save": ["embed_tokens"]}, "modules_to_save names 'embed_tokens'"),
            ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; give a list"),
            ({"use_dora": True}, "use_dora is True"),
            ({"use_dora": "false"}, "use_dora is 'false'"),
            ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens is \[5\]"),
            ({"layer_replication": [[0, 2]]}, r"layer_replication is \[\[0, 2\]\]"),
            ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
            ({"ensure_weight_tying": True}, "ensure_weight_tying is True"),
            ({"target_parameters": ["experts"]}, "target_parameters is"),
            ({"loftq_config": {"loftq_bits": 4}}, "loftq_config is"),
            ({"corda_config": {}}, "corda_config is"),
            ({"lora_ga_config": {}}, "lora_ga_config is"),
            ({"kasa_config": {}}, "kasa_config is"),
            ({"use_qalora": True}, "use_qalora is True"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
            ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
            ({"init_lora_weights": "OLoRA"}, "init_lora_weights is 'OLoRA'"),
            ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
            ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
            ({"init_lora_weights": "MiCA"}, "init_lora_weights is 'MiCA'"),
            ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
            ({"of_tomorrow": None}, "of_tomorrow is None, a field that is not known here"),
            ({"r": 5}, "has rank 2, its adapter_config.json says 5"),
            ({"r": "2"}, "r is '2'; give a whole number of at least 1"),
            ({"r": True}, "r is True; give a whole number"),
            ({"lora_alpha": None}, "lora_alpha is None; give a finite number"),
            ({"lora_alpha": "16"}, "lora_alpha is '16'; give a finite number"),
            ({"lora_alpha": float("inf")}, "lora_alpha is inf; give a finite number"),
            ({"use_rslora": "yes"}, "use_rslora is 'yes'; give true or false"),
            ({"rank_pattern": ["q_proj"]}, "rank_pattern is .*; it must map layers to numbers"),
            ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj is 0; give a whole number"),
            ({"alpha_pattern": {"*.q": 4}}, r"alpha_pattern\.\*\.q is no regular expression"),
            ({"target_modules": None}, "target_modules is left out"),
            ({"target_modules": [1]}, r"target_modules is \[1\]; give names of layers"),
            (
                {"target_modules": ["v_proj"]},
                r"q_proj is not among those that .* PEFT would ignore",
            ),
            ({"target_modules": "q_proj"}, "is not among those"),
            ({"target_modules": "("}, "target_modules is no regular expression"),
            ({"exclude_modules": ["self_attn.q_proj"]}, "is not among those"),
            ({"layers_to_transform": [0, 2]}, r"layers\.1\.self_attn\.q_proj is not among those"),
            ({"layers_to_transform": 0, "layers_pattern": "blocks"}, "is not among those"),
            ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
            (
                {"layers_to_transform": 0, "target_modules": ".*q_proj"},
                "which PEFT takes only with a list",
            ),
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
        (folder / CONFIG).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(ValueError, match=rf"{CONFIG}: a git-lfs pointer"):
            Vector.load(folder)

    def test_factors_that_are_none(self, folder):
        tensors = load_file(folder / WEIGHTS)
        first = next(iter(tensors))
        for change, said in (
            (lambda t: t.clear(), "holds no factors"),
            (lambda t: t.update({first: t[first].to(torch.int8)}), "is stored as torch.int8"),
            (lambda t: t.update({first: t[first].to(torch.float8_e4m3fn)}), "is stored as torch.f"),
            (lambda t: t.update({first: t[first][:0]}), "no matching pair of factors"),
            (lambda t: t.pop(first), "no matching pair of factors"),
            (
                lambda t: t.update({first.replace(".weight", ".default.weight"): t.pop(first)}),
                "is no LoRA factor of a linear layer under a name that PEFT reads",
            ),
        ):
            changed = dict(tensors)
            change(changed)
            save_file(changed, folder / WEIGHTS)
            with pytest.raises(ValueError, match=said):
                Vector.load(folder)
        (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ValueError, match="git-lfs pointer"):
            Vector.load(folder)

    def test_nan_and_embeddings(self, folder):
        tensors = load_file(folder / WEIGHTS)
        first = next(iter(tensors))
        save_file({**tensors, first: tensors[first] * float("nan")}, folder / WEIGHTS)
        with pytest.raises(ValueError, match="NaN"):
            Vector.load(folder)
        save_file(
            {**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 2)},
            folder / WEIGHTS,
        )
        with pytest.raises(ValueError, match="changes the embedding"):
            Vector.load(folder)

    def test_another_model(self, folder, tmp_path, tiny):
        other = make_model(tmp_path / "other", seed=9)
        with Fader(load(str(other))) as fader:
            mine = Vector.load(folder)
            stamped = Vector("mine", mine.factors, tiny.backend.backbones[tiny.model].fingerprint)
            with pytest.raises(
                ValueError, match=r"^vectors\.mine: made for a model with fingerprint"
            ):
                fader.add_vector(stamped)
        factors = {
            module.replace("q_proj", "z_proj"): pair for module, pair in mine.factors.items()
        }
        with pytest.raises(ValueError, match="has no linear layer"):
            tiny.add_vector(Vector("mine", factors))
        factors = {module: (torch.zeros(2, 7), up) for module, (_, up) in mine.factors.items()}
        with pytest.raises(ValueError, match=r"layer .* is 64 x 64 in"):
            tiny.add_vector(Vector("mine", factors))

    def test_a_name_is_no_path_address_or_way_out(self, folder, tmp_path, monkeypatch):
        root = tmp_path / "set"
        shutil.copytree(folder, root / "known")
        shutil.copytree(folder, root / "half")
        (root / "out").symlink_to(folder, target_is_directory=True)
        (root / "half" / WEIGHTS).unlink()
        (root / "half" / WEIGHTS).symlink_to(folder / WEIGHTS)
        (root / "again").symlink_to(root / "known", target_is_directory=True)
        monkeypatch.setenv("FADER_VECTORS", str(root))
        monkeypatch.chdir(root)
        assert find("known").name == "known"
        assert find("again").digest == find("known").digest
        opened = []
        monkeypatch.setattr(Vector, "load", lambda *found: opened.append(found))
        for name in (
            str(folder),
            "known/",
            "./known",
            "../lora",
            "set/../known",
            "..",
            ".",
            "",
            "out",
            "half",
            "https://example.com/lora",
            "known\0",
            "known\n",
        ):
            with pytest.raises(ValueError, match="no such vector; known: "):
                find(name)
        assert not opened
        open_vector(str(folder))
        assert opened == [(folder, str(folder))]

    def test_unknown_names_say_what_is_known(self, folder, monkeypatch, tiny):
        shutil.copytree(folder, folder.parent / "set" / "known")
        monkeypatch.setenv("FADER_VECTORS", str(folder.parent / "set"))
        assert available()["known"] == folder.parent / "set" / "known"
        assert find("known").name == "known"
        shutil.copytree(folder, folder.parent / "set" / "not so")
        with pytest.raises(ValueError, match=r"^vectors\.not so: no request can name it so; call"):
            find("not so")
        assert not (folder / CARD).exists()
        assert tiny.generate("x", max_tokens=1, alignment={"vectors": {"known": 0.5}})
        with pytest.raises(
            ValueError, match=r"^alignment\.vectors\.unknown: no such vector; known: known"
        ):
            tiny.generate("x", alignment={"vectors": {"unknown": 1}})
        tiny.remove_vector("known")
