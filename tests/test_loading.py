"""Loading: what is loaded is exactly what the files say, and whatever is not is one message."""

import asyncio
import json
import logging
import shutil
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, GROUPED, TEMPLATE, make_model, tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fader import Fader, load
from fader.engine.loading import quiet
from fader.vectors.weights import open_checkpoint

WHOLE = "model.safetensors"
LATENT = {
    **GROUPED,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def rewrite(folder, change):
    """The weights with `change` done to them."""
    save_file(change(load_file(folder / WHOLE)), folder / WHOLE, metadata={"format": "pt"})


def settings(folder, file="config.json", **changes):
    whole = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**whole, **changes}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj" not in k},
            r"lacks model\.layers\.1\.mlp\.up_proj\.weight, which would be random",
        ),
        (
            lambda w: {f"base_model.model.{k}": v for k, v in w.items()},
            r"lacks .* and \d+ more weights",
        ),
        (lambda w: {**w, "score.weight": torch.zeros(1, 64)}, r"holds score\.weight, which"),
        (
            lambda w: {**w, "model.norm.weight": torch.zeros(7)},
            r"model\.norm\.weight is \[7\] in the files, config\.json says \[64\]",
        ),
        (lambda w: {}, "lacks"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(folder, change, said):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=said):
        load(str(folder))


def test_a_head_that_is_missing_is_random_numbers_unless_it_is_tied(tmp_path):
    folder = make_model(tmp_path / "untied", "qwen2")
    rewrite(folder, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        load(str(folder))
    settings(folder, tie_word_embeddings=True)
    assert load(str(folder)).vocabulary


def test_buffers_that_are_computed_anew_do_no_harm(folder):
    bare = load(str(folder)).fingerprint
    rewrite(
        folder,
        lambda w: {
            **w,
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
            "model.embeddings.position_ids": torch.zeros(1, 8),
        },
    )
    assert load(str(folder)).fingerprint == bare


def test_an_adapter_in_the_models_folder_is_applied_only_when_asked(folder, capsys):
    bare = Fader(load(str(folder)))
    asked = bare.score("the sea", " is wide").logprobs
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
    )
    model.save_pretrained(folder)
    capsys.readouterr()
    with bare, Fader(load(str(folder))) as fader:
        assert fader.score("the sea", " is wide").logprobs == asked
        assert "also holds an adapter, which is not applied" in capsys.readouterr().err
        moved = fader.score("the sea", " is wide", alignment={"vectors": {str(folder): 1}})
        assert moved.logprobs != asked
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="is an adapter, not a model"):
        load(str(folder))


def test_files_that_are_not_whole_are_named(folder):
    whole = (folder / WHOLE).read_bytes()
    (folder / WHOLE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: corrupt or cut short"):
        load(str(folder))
    for file in (WHOLE, "tokenizer.json"):
        kept = (folder / file).read_bytes()
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(ValueError, match=rf"{file}: a git-lfs pointer.*git lfs pull"):
            load(str(folder))
        (folder / file).write_bytes(whole if file == WHOLE else kept)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="its tokenizer could not be loaded"):
        load(str(folder))


def test_a_missing_shard_is_named(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WHOLE).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    load(str(folder))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name}: no such file, but .*index\.json names"):
        load(str(folder))
    with pytest.raises(ValueError, match=rf"{shard.name}: no such file"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    for index in ("[]", '{"weight_map": {"a": 3}}'):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match=r"index\.json: not an index of shards"):
            load(str(folder))


def test_whole_numbers_are_no_weights_unless_the_config_says_what_they_stand_for(folder):
    weights = load_file(folder / WHOLE)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, folder / WHOLE)
    with pytest.raises(ValueError, match=rf"{name} is stored as I8, and config\.json has no"):
        load(str(folder))


@pytest.mark.parametrize("token", [4000, "</s>"])
def test_an_end_that_is_no_token_is_named(folder, token):
    settings(folder, "generation_config.json", eos_token_id=token)
    with pytest.raises(ValueError, match=f"model: .*: eos_token_id {token!r} is no token of its"):
        load(str(folder))


def test_settings_that_cannot_be_read_are_not_passed_over(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json: no JSON object"):
        load(str(folder))


def test_the_reason_is_said_with_the_line_that_announces_it(folder):
    settings(folder, num_attention_heads=5)
    with pytest.raises(ValueError, match=r"could not be loaded: .*: .*hidden size"):
        load(str(folder))
    settings(folder, num_attention_heads=4, hidden_act="zap")
    with pytest.raises(ValueError, match="could not be loaded: there is no 'zap'"):
        load(str(folder))


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "new"},
    ],
)
def test_a_quantised_checkpoint_without_its_library_is_one_message(folder, how, caplog):
    said = logging.getLogger("transformers")
    said.addHandler(caplog.handler)
    settings(folder, quantization_config=how)
    with pytest.raises(ValueError, match=r"model: ") as caught:
        load(str(folder))
    assert how["quant_method"] in str(caught.value)
    assert "\n" not in str(caught.value)
    said.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_code_of_a_models_own_is_not_run(folder):
    settings(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="needs code of its own"):
        load(str(folder))
    whole = json.loads((folder / "config.json").read_text())
    whole.pop("auto_map")
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"could not be loaded: .*mine"):
        load(str(folder))


def test_a_token_beyond_the_embedding_is_refused_alone(folder):
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["<tool>"])
    words.save_pretrained(folder)

    async def together(fader):
        texts = ("the sea is wide", "use the <tool> now", "the ship is small")
        return await asyncio.gather(
            *(fader.agenerate(text, max_tokens=3) for text in texts), return_exceptions=True
        )

    with Fader(load(str(folder))) as fader:
        for ask in (
            lambda: fader.generate("use the <tool> now", max_tokens=3),
            lambda: fader.score("use", " <tool>"),
        ):
            with pytest.raises(ValueError, match=r"'<tool>' is token \d+ of the tokenizer"):
                ask()
        good, bad, also = asyncio.run(together(fader))
        assert isinstance(bad, ValueError)
        assert good.text == fader.generate("the sea is wide", max_tokens=3).text
        assert also.text == fader.generate("the ship is small", max_tokens=3).text


def test_what_generate_would_do_besides_is_said(folder, capsys):
    load(str(folder))
    assert capsys.readouterr().err == ""
    settings(
        folder,
        "generation_config.json",
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        suppress_tokens=[5],
        do_sample=True,
        temperature=0.6,
    )
    load(str(folder))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for setting in ("repetition_penalty 1.3", "no_repeat_ngram_size 2", "suppress_tokens [5]"):
        assert setting in said
    assert "temperature" not in said


def gguf_file(
    file: Path, without: str = "", more: dict[str, np.ndarray] | None = None, **ends: int
) -> Path:
    """A tiny llama as GGUF, with these entries among the tokenizer's, less one tensor or with
    others."""
    words = tokenizer(TEMPLATE)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(words),
    )
    torch.manual_seed(0)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(words))
    inner = json.loads(words.backend_tokenizer.to_str())["model"]
    by_id = {place: token for token, place in words.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([by_id[place] for place in range(len(words))])
    writer.add_token_types([3 if place < 6 else 1 for place in range(len(words))])
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    for name, token in ends.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in weights.items():
        found = names.get_name(name, try_suffixes=(".weight",))
        if found != without:
            writer.add_tensor(found, weight.float().numpy())
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_every_end_that_a_gguf_file_names_ends_an_answer(tmp_path):
    assert load(str(gguf_file(tmp_path / "one.gguf"))).end_tokens == {1}
    assert load(str(gguf_file(tmp_path / "more.gguf", eot=2, eom=4))).end_tokens == {1, 2, 4}


def test_a_gguf_file_is_read_whole(tmp_path):
    whole = load(str(gguf_file(tmp_path / "whole.gguf"))).fingerprint
    ones = {"rope_freqs.weight": np.ones(8, dtype=np.float32)}
    assert load(str(gguf_file(tmp_path / "ones.gguf", more=ones))).fingerprint == whole
    tied = load(str(gguf_file(tmp_path / "tied.gguf", without="output.weight")))
    assert tied.fingerprint != whole
    for name, said, change in (
        ("less", r"lacks model\.layers\.1\.mlp\.up_proj", {"without": "blk.1.ffn_up.weight"}),
        (
            "rope",
            r"holds rope_freqs\.weight",
            {"more": {"rope_freqs.weight": 2 * ones.popitem()[1]}},
        ),
        ("more", r"holds other\.weight", {"more": {"other.weight": np.ones(8, dtype=np.float32)}}),
    ):
        with pytest.raises(ValueError, match=said):
            load(str(gguf_file(tmp_path / f"{name}.gguf", **change)))


def test_weights_that_are_no_numbers_are_named(folder):
    rewrite(folder, lambda w: {**w, "model.norm.weight": w["model.norm.weight"] * float("nan")})
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds NaN or infinite numbers"):
        load(str(folder))
    rewrite(folder, lambda w: {**w, "model.norm.weight": torch.full((64,), 1e6)})
    with pytest.raises(ValueError, match=r"infinite numbers in torch\.float16"):
        load(str(folder), dtype="float16")


def test_a_model_that_breaks_when_it_runs_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "deepseek_v3", LATENT)
    with pytest.raises(ValueError, match=r"\(deepseek_v3\)") as caught:
        load(str(make_model(tmp_path / "deepseek", "deepseek_v3")))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_not_whole_is_one_message(tmp_path):
    file = gguf_file(tmp_path / "one.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="could not be loaded"):
        load(str(file))
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        load(str(file))


def test_models_loaded_side_by_side_leave_transformers_as_talkative_as_it_was():
    before = transformers_logging.get_verbosity()
    begun, ends = threading.Event(), threading.Event()

    def second():
        begun.set()
        with quiet():
            ends.wait(30)

    with quiet():
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait(30)
        thread.join(0.2)  # long enough to begin, if it may
    ends.set()
    thread.join(30)
    assert transformers_logging.get_verbosity() == before
