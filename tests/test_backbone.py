"""Loading: what can be run is run faithfully, what cannot is refused by name."""

import pytest
import torch
from conftest import make_model, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from fader import Fader, load
from fader.engine.backbone import TorchBackbone
from fader.engine.identity import fingerprint


def model_of(kind: str, **sizes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=400, **sizes), attn_implementation="eager"
    )


def test_recurrent_state_is_refused_by_name():
    model = model_of("mamba", hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ValueError, match=r"tiny \(mamba\)"):
        TorchBackbone("tiny", model, tokenizer())


def test_attention_that_is_not_reproduced_is_refused_by_name():
    model = model_of("bloom", hidden_size=32, n_layer=2, n_head=2)  # ALiBi position biases
    with pytest.raises(ValueError, match=r"tiny \(bloom\)"):
        TorchBackbone("tiny", model, tokenizer())


def test_encoder_decoders_are_refused_by_name(tmp_path):
    AutoConfig.for_model("t5", d_model=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("no/such-model", OSError, "could not be loaded"),
        ("missing.gguf", ValueError, "there is no file"),
        (__file__, ValueError, "is a file but not a .gguf"),
    ],
)
def test_what_is_not_there(name, error, said):
    with pytest.raises(error, match=said):
        load(name)


def test_dtype_is_checked(tiny_folder):
    with pytest.raises(ValueError, match="dtype: 'int8'"):
        load(str(tiny_folder), dtype="int8")


def test_bfloat16_runs(tiny_folder):
    with Fader(str(tiny_folder), dtype="bfloat16") as fader:
        assert len(fader.generate("the sea", max_tokens=5).answers[0].token_ids) == 5


def test_fingerprint_is_the_weights_not_the_precision(tmp_path, tiny_folder):
    same = [
        AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    other = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "other", seed=1))
    assert fingerprint(same[0]) == fingerprint(same[1]) == load(str(tiny_folder)).fingerprint
    assert fingerprint(other) != fingerprint(same[0])


def test_a_proxy_of_another_vocabulary_is_refused_and_of_the_same_is_not(tmp_path, tiny_folder):
    folder = make_model(tmp_path / "small", seed=3)
    small, other = load(str(folder)), load(str(make_model(tmp_path / "other", seed=4)))
    other.tokenizer.add_tokens(["<new>"])
    small.name, other.name = "small", "other"
    with Fader(
        load(str(tiny_folder)), models={"small": small, "same": load(str(folder)), "other": other}
    ) as fader:
        guide = {"kind": "proxy", "tuned": "small", "untuned": "small", "weight": 1.0}
        bare = fader.generate("the sea", max_tokens=6).answers[0]
        assert (
            fader.generate("the sea", max_tokens=6, alignment={"guides": [guide]}).answers[0]
            == bare
        )  # its own reference: off
        steered = fader.generate(
            "the sea",
            max_tokens=6,
            alignment={"guides": [{"kind": "realign", "aligned": {"model": "small"}, "weight": 1}]},
        )
        alone = fader.generate({"prompt": "the sea", "model": "small"}, max_tokens=6)
        assert steered.answers[0].token_ids == alone.answers[0].token_ids
        with pytest.raises(ValueError, match=r"other has another vocabulary .* '<new>'"):
            fader.generate("the sea", alignment={"guides": [{**guide, "tuned": "other"}]})
        with pytest.raises(ValueError, match="'missing' is not loaded"):
            fader.generate({"prompt": "x", "model": "missing"})


def test_too_long_a_prompt_is_refused(tiny):
    with pytest.raises(
        ValueError, match=r"reads at most 512; shorten the prompt or lower max_tokens"
    ):
        tiny.generate("the sea " * 600)
    with pytest.raises(ValueError, match=r"reads at most 512"):
        tiny.generate("the sea", max_tokens=600)


@pytest.mark.parametrize("kv_bytes", [100, 0, -1])
def test_kv_bytes_too_small(tiny_folder, kv_bytes):
    with pytest.raises(ValueError, match=f"kv_bytes: {kv_bytes} holds no 64 positions"):
        load(str(tiny_folder), kv_bytes=kv_bytes)
