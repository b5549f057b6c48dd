"""GGUF files made from a model's folder, in floats by the `gguf` package, in quantised types by
llama.cpp's own quantiser.

The file holds what transformers' folder says, the tokenizer as it is among it, and the fingerprint
of the weights: vectors of that model fit it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from filelock import FileLock
from gguf.quants import quantize
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from fader.engine import builtin
from fader.engine.identity import fingerprint
from fader.engine.llama.binding import library, why
from fader.engine.llama.file import ENDS, FINGERPRINT, HEAD, PARTS, SAME, WHOLE
from fader.engine.loading import files_of, read
from fader.files import whole_file

FLOATS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
QUANTISED = {
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
}
"""Names of types -> llama.cpp's numbers of file types."""
TYPES = (*FLOATS, *QUANTISED)
BUILTIN_TYPE = "q8_0"
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(model: str, out: Path, to: str = "q8_0") -> Path:
    """Write a model's folder, the built-in model or a GGUF file as a GGUF file of a type. Whole
    or not there.

    Raises ValueError for an architecture or tokenizer that is not converted, and for a file that is
    there.
    """
    if to not in TYPES:
        raise ValueError(f"--to: {to!r} is not one of {', '.join(TYPES)}")
    if out.suffix != ".gguf":
        raise ValueError(f"--out: {out} must end with .gguf")
    if out.exists():
        raise ValueError(f"--out: {out} is there already; give another place or remove it")
    if to in QUANTISED:
        library()
    with whole_file(out) as ready, TemporaryDirectory(dir=out.parent, suffix=".part") as scratch:
        whole = Path(scratch) / "floats.gguf"
        if Path(model).suffix == ".gguf":
            if to in FLOATS:
                raise ValueError(f"--to: {model} is a GGUF file already; give a quantised type")
            whole = Path(model)
        else:
            _write(model, whole if to in QUANTISED else ready, to if to in FLOATS else "f32")
        if to in QUANTISED:
            _quantise(whole, ready, to)
    return out


def builtin_file() -> Path:
    """The built-in model as a GGUF file in the user's cache, made on the first call."""
    file = builtin.path().with_name(f"{builtin.NAME}.{BUILTIN_TYPE}.gguf")
    if not file.is_file():
        builtin.fetch()
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                convert(builtin.NAME, file, BUILTIN_TYPE)
    return file


def _quantise(whole: Path, out: Path, to: str) -> None:
    L = library()
    settings = L.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = QUANTISED[to], True
    if L.llama_model_quantize(os.fsencode(whole), os.fsencode(out), settings):
        raise ValueError(f"model: llama.cpp could not make {to} of {whole}: {why()}")


def _write(model: str, out: Path, to: str) -> None:
    """The model of a folder in a type of floats; norms and biases stay float32."""
    config = AutoConfig.from_pretrained(files_of(model)["pretrained_model_name_or_path"])
    _refuse_by_config(model, config)
    loaded, tokenizer = read(model, getattr(config, "dtype", None) or torch.float32)
    writer = gguf.GGUFWriter(str(out), config.model_type)
    writer.add_name(Path(model).name)
    _write_sizes(writer, config)
    _write_words(writer, model, tokenizer, loaded)
    writer.add_string(FINGERPRINT, fingerprint(loaded))
    kind = FLOATS[to]
    writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[to])
    weights = loaded.state_dict()
    if loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight:
        weights.pop(HEAD + ".weight")
    for name, weight in weights.items():
        values = _in_file_order(name, weight.float().numpy(), config)
        if values.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(_stored_name(name), values)
        else:
            writer.add_tensor(_stored_name(name), quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse_by_config(model: str, config: Any) -> None:
    if config.model_type not in SAME:
        raise ValueError(
            f"model: {model} ({config.model_type}) is not converted here ({', '.join(SAME)} are);"
            " make it with llama.cpp's own convert_hf_to_gguf.py"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default" or getattr(
        config, "use_sliding_window", False
    ):
        raise ValueError(
            f"model: {model} scales its positions or has a sliding window, which is not converted"
            " here; make it with llama.cpp's own convert_hf_to_gguf.py"
        )


def _write_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_words(
    writer: gguf.GGUFWriter, model: str, tokenizer: PreTrainedTokenizerBase, loaded: PreTrainedModel
) -> None:
    inner = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(inner.to_str()) if inner is not None else {}
    words, kinds = _words(whole, int(loaded.config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(model, whole))
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    merges = whole["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_string(gguf.Keys.Tokenizer.HF_JSON, json.dumps(whole))
    for role in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    ends = {tokenizer.eos_token_id}
    for settings in (loaded.generation_config, loaded.config):
        found = getattr(settings, "eos_token_id", None)
        ends.update(found if isinstance(found, list) else [found])
    writer.add_array(ENDS, sorted(int(token) for token in ends if token is not None))


def _words(whole: Mapping[str, Any], count: int) -> tuple[list[str], list[int]]:
    """The spelling of each token, and its kind in llama.cpp's numbers."""
    words = [f"[PAD{place}]" for place in range(count)]
    kinds = [int(gguf.TokenType.UNUSED)] * count
    for word, place in whole.get("model", {}).get("vocab", {}).items():
        words[place], kinds[place] = word, int(gguf.TokenType.NORMAL)
    for added in whole.get("added_tokens", ()):
        if added["id"] >= count:  # the tokenizer knows it, the model does not
            continue
        words[added["id"]] = added["content"]
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        kinds[added["id"]] = int(kind)
    return words, kinds


def _pre(model: str, whole: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer cuts texts. Raises ValueError for one without a name."""
    cut = whole.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    kinds = [step.get("type") for step in steps]
    is_bytes = whole.get("model", {}).get("type") == "BPE" and kinds[-1:] == ["ByteLevel"]
    if is_bytes and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if steps[0] == DIGITS and len(steps) == 2:
            return "smollm"
        pattern = steps[0].get("pattern", {}).get("Regex")
        if pattern in (QWEN, LLAMA) and len(steps) == 2:
            return "qwen2" if pattern == QWEN else "llama-bpe"
    raise ValueError(
        f"model: the tokenizer of {model} is not one that is converted here (byte-level BPE cut as"
        " GPT-2, SmolLM, Llama 3 or Qwen 2 do); make the file with llama.cpp's own"
        " convert_hf_to_gguf.py"
    )


def _stored_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    for stored, theirs in WHOLE.items():
        if stem == theirs:
            return f"{stored}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    found = next(stored for stored, theirs in PARTS.items() if theirs == part)
    return f"blk.{layer}.{found}.{kind}"


def _in_file_order(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Queries and keys of llama with the two halves of each head row beside row."""
    layer = name.rpartition(".")[0]
    if config.model_type != "llama" or not layer.endswith(("q_proj", "k_proj")):
        return values
    is_query = layer.endswith("q_proj")
    heads = config.num_attention_heads if is_query else config.num_key_value_heads
    turned = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(turned.reshape(values.shape))
