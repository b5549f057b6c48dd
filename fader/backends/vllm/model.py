"""A model as planning sees it, while vLLM holds its weights: a `Backbone` that tells and does not
read."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from fader.engine import builtin
from fader.engine.loading import one_message, quiet
from fader.engine.protocols import Delta, Kept, Need, Segment
from fader.vectors.checkpoint import merge
from fader.vectors.vector import Vector, mixture
from fader.vectors.weights import Checkpoint, open_checkpoint


@dataclass
class Room:
    """How much vLLM can hold, as a `Memory`. It places rows itself, pushes some out where they need
    more than there is, and reads them again: so one row must have room, and the others take
    turns."""

    budget: int
    """Positions of its memory for keys and values."""
    used: int = 0
    reserved: int = 0

    def area(self, *needs: Need) -> int:
        """Positions that must be there for rows of up to these lengths."""
        return max((length for _, length in needs), default=0)

    def room(self, *needs: Need) -> int:
        """Positions that are left beside others."""
        return self.budget - self.area(*needs)

    def reserve(self, *needs: Need, beside: int = 0) -> None:
        """Nothing: vLLM has its memory from the start."""

    def allocate(self) -> int:
        """Never asked for: vLLM places rows."""
        raise NotImplementedError

    def free(self, slot: int) -> None:
        """Never asked for: vLLM places rows."""
        raise NotImplementedError

    def fork(self, slot: int, length: int) -> int:
        """Never asked for: vLLM places rows."""
        raise NotImplementedError

    def keep(self, slot: int, start: int, end: int) -> Kept:
        """Never asked for: vLLM remembers prefixes."""
        raise NotImplementedError

    def restore(self, slot: int, start: int, kept: Kept, count: int) -> None:
        """Never asked for: vLLM remembers prefixes."""
        raise NotImplementedError


class ServedModel:
    """A `Backbone` for planning: a checkpoint's layers, tokenizer and end tokens. `forward` is
    vLLM's. `merged`: vectors that are in the weights which it reads; others of the same base model
    still fit."""

    max_batch_tokens = 2**31

    def __init__(
        self, name: str, source: str | Path, dtype: str, merged: Mapping[Vector, float]
    ) -> None:
        self.name = name
        self.merged = mixture(merged.items())
        self.checkpoint: Checkpoint = open_checkpoint(source)
        self.folder = self.checkpoint.folder
        self.dtype = dtype
        with one_message(f"{source}: its tokenizer"), quiet():
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=False
            )
        self.end_tokens = _end_tokens(self.folder, self.checkpoint.config, self.tokenizer)
        self.layers: Mapping[str, tuple[int, int]] = self.checkpoint.layers
        self.vocabulary: int = self.checkpoint.config.get_text_config().vocab_size
        self.max_length: int = self.checkpoint.config.get_text_config().max_position_embeddings
        self.memory = Room(1)

    @property
    def position_bytes(self) -> int:
        """Bytes of the keys and values of one position."""
        config = self.checkpoint.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        numbers: Any = getattr(torch, self.dtype, None) or config.dtype  # "auto": the checkpoint's
        size = (numbers or torch.float32).itemsize
        return int(2 * config.num_hidden_layers * heads * width * size)

    @contextmanager
    def files(self) -> Iterator[Path]:
        """The folder that vLLM reads at the start: the checkpoint's, or, within the block, one
        whose weights have the vectors merged in. Raises ValueError naming a vector that cannot
        be."""
        if not self.merged:
            yield self.folder
            return
        room = builtin.cache_folder()
        room.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="merged-", dir=room) as scratch:
            yield merge(self.checkpoint.name, dict(self.merged), Path(scratch) / "model")

    @cached_property
    def fingerprint(self) -> str:
        """Says which weights these are, before any vector is merged into them."""
        return self.checkpoint.fingerprint()

    @cached_property
    def identity(self) -> str:
        """A hash of all that its answers depend on. Reads the weights once."""
        merged = [(vector.digest, strength) for vector, strength in self.merged]
        found = hashlib.sha256(f"vllm {self.fingerprint} {self.dtype} {merged}".encode())
        for name in self.checkpoint.stored:
            numbers = self.checkpoint.read(name).double().sum()
            found.update(f"{name} {float(numbers)!r}".encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        for part in (
            self.checkpoint.config.to_dict(),
            vocabulary,
            self.tokenizer.chat_template,
            sorted(self.end_tokens),
        ):
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
        return found.hexdigest()[:16]

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Never asked for: vLLM reads."""
        raise NotImplementedError

    def forget(self, vector: Delta) -> None:
        """Nothing: adapters that are used least recently make room for others."""

    def weight(self, name: str) -> Tensor:
        """One of the model's weights by its name. Raises KeyError for a name that there is not."""
        return self.checkpoint.read(name)

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raises ValueError, with its text, for a token that the embedding has no row for."""
        if ids and (beyond := max(ids)) >= self.vocabulary:
            text = self.tokenizer.convert_ids_to_tokens(beyond)
            raise ValueError(
                f"{text!r} is token {beyond} of the tokenizer, but {self.name} has rows for"
                f" {self.vocabulary} tokens; leave it out, or resize the model's embedding"
            )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own begin tokens where `special`."""
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        self.check_tokens(ids)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def _end_tokens(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that end an answer: the generation config's, the model config's and the
    tokenizer's."""
    found: set[int] = set()
    settings = None
    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder).eos_token_id
    for value in (settings, config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        if value is not None:
            found.update(value if isinstance(value, list | tuple) else [value])
    return frozenset(int(token) for token in found)


def default_dtype() -> str:
    """The type in which a model is run unless one is given."""
    return "bfloat16" if torch.cuda.is_available() else "float32"
