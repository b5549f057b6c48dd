"""What a GGUF file says of its model: names and shapes of weights, fingerprint, tokenizer, end
tokens.

Weights go by the names that they have in transformers, so that vectors and fingerprints mean the
same there and here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fader.engine.identity import fingerprint_of_samples, sample_places
from fader.engine.loading import gguf_ends, one_message, quiet

HEAD = "lm_head"
WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": HEAD,
}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's weights in GGUF files -> in transformers."""
SAME = ("llama", "qwen2", "qwen3")
"""Architectures whose weights are the same numbers in both, so that a fingerprint can be compared,
and whose head is a plain product."""
ADAPTED = (*SAME, "gemma2", "gemma3")
"""Architectures whose linear layers a vector may change."""
FINGERPRINT = "fader.fingerprint"
"""Key for the fingerprint of the weights that a file was made from."""
ENDS = "fader.end_token_ids"
"""Key for all tokens that end an answer."""


class GGUFFile:
    """A GGUF file, its metadata read, its weights read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with one_message(str(path)):
            self._reader = gguf.GGUFReader(path)
        self.architecture = str(self.field("general.architecture", "unknown"))
        if (count := self.field("split.count", 1)) > 1:
            raise ValueError(
                f"model: {path} is one of {count} parts; join them with llama.cpp's"
                " `llama-gguf-split --merge`"
            )
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
        self.tensors = self._named()
        """Names in transformers -> in the file."""

    def field(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        found = self._reader.fields.get(key)
        return default if found is None else found.contents()

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """A value of the metadata under the architecture's name."""
        return self.field(f"{self.architecture}.{key}", default)

    @property
    def numbers(self) -> str:
        """The type that most of its matrices have, such as Q8_0."""
        kinds = Counter(one.tensor_type.name for one in self._stored.values() if len(one.shape) > 1)
        return str(kinds.most_common(1)[0][0]) if kinds else "F32"

    @property
    def kinds(self) -> dict[str, int]:
        """How many of its weights have each type and shape, such as `Q8_0 576x1536`."""
        return Counter(
            f"{one.tensor_type.name} {'x'.join(map(str, one.shape))}"
            for one in self._stored.values()
        )

    def _named(self) -> dict[str, str]:
        found = {}
        for name in self._stored:
            stem, _, kind = name.rpartition(".")
            if stem in WHOLE:
                found[f"{WHOLE[stem]}.{kind}"] = name
            elif (match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)) and match[2] in PARTS:
                found[f"model.layers.{match[1]}.{PARTS[match[2]]}.{kind}"] = name
        if "token_embd.weight" in self._stored:
            found.setdefault(HEAD + ".weight", "token_embd.weight")
        return found

    @cached_property
    def layers(self) -> dict[str, tuple[int, int]]:
        """The linear layers that a vector may change, by name: (out, in)."""
        if self.architecture not in ADAPTED:
            return {}
        found = {}
        for name, stored in self.tensors.items():
            layer, _, kind = name.rpartition(".")
            if kind != "weight":
                continue
            is_head = layer == HEAD
            if layer.endswith("_proj") or (is_head and self.architecture in SAME):
                inner, out = map(int, self._stored[stored].shape)
                found[layer] = (out, inner)
        return found

    def to_file(self, layer: str, values: np.ndarray) -> np.ndarray:
        """Rows of a layer's output [out, ...] in the order of the file."""
        order = self._order(layer, len(values))
        return values if order is None else np.ascontiguousarray(values[order])

    def _order(self, layer: str, rows: int) -> np.ndarray | None:
        """The order of rows in the file: for llama, the two halves of each head of queries and keys
        lie row beside row, as llama.cpp turns them."""
        if self.architecture != "llama" or not layer.endswith(("q_proj", "k_proj")):
            return None
        heads = int(self.of_architecture("attention.head_count"))
        if layer.endswith("k_proj"):
            heads = int(self.of_architecture("attention.head_count_kv", heads))
        found: np.ndarray = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        return found

    def weight(self, name: str) -> Tensor:
        """A weight by its name in transformers, in float32. Raises KeyError for one that it does
        not have."""
        stored = self._stored[self.tensors[name]]
        values = dequantize(stored.data, stored.tensor_type)
        order = self._order(name.rpartition(".")[0], len(values))
        if order is not None:
            values = values[np.argsort(order)]
        return torch.from_numpy(np.array(values, dtype=np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """That of the weights it was made from, where it says so; else of its own weights: the same
        as of the model in transformers, if those are its weights without loss."""
        if said := self.field(FINGERPRINT):
            return str(said)
        if self.architecture in SAME:
            return fingerprint_of_samples(map(self._sample, sorted(self.tensors)))
        digest = hashlib.sha256()
        for name, stored in sorted(self._stored.items()):
            flat = stored.data.reshape(-1)
            sample = flat[:: max(1, flat.size // 64)][:64]
            digest.update(f"{name}{list(stored.shape)}".encode() + sample.tobytes())
        return digest.hexdigest()[:16]

    def _sample(self, name: str) -> tuple[str, tuple[int, ...], Tensor]:
        """Name, shape and the numbers of a weight that make its fingerprint; no others are read."""
        stored = self._stored[self.tensors[name]]
        shape = tuple(int(size) for size in reversed(stored.shape))
        places = np.array(sample_places(int(np.prod(shape))))
        if len(shape) == 1:
            values = dequantize(stored.data, stored.tensor_type)[places]
        else:
            rows, columns = places // shape[1], places % shape[1]
            order = self._order(name.rpartition(".")[0], shape[0])
            if order is not None:
                rows = np.argsort(order)[rows]
            read = dequantize(np.ascontiguousarray(stored.data[rows]), stored.tensor_type)
            values = read[np.arange(len(rows)), columns]
        return name, shape, torch.from_numpy(np.array(values, dtype=np.float32))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with its chat template."""
        if not (whole := self.field(gguf.Keys.Tokenizer.HF_JSON)):
            with one_message(f"{self.path}: its tokenizer"), quiet():
                found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                    str(self.path.parent), gguf_file=self.path.name
                )
            return found
        words = self.field(gguf.Keys.Tokenizer.LIST)
        special = {}
        for role, key in (("bos", "BOS_ID"), ("eos", "EOS_ID"), ("pad", "PAD_ID")):
            if (token := self.field(getattr(gguf.Keys.Tokenizer, key))) is not None:
                special[f"{role}_token"] = words[token]
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(whole),
            chat_template=self.field(gguf.Keys.Tokenizer.CHAT_TEMPLATE),
            **special,
        )

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """All tokens that end an answer, by its metadata."""
        if said := self.field(ENDS):
            return frozenset(int(token) for token in said)
        return frozenset(gguf_ends(self._reader, tokenizer))

    @cached_property
    def identity(self) -> str:
        """A hash of the whole file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
