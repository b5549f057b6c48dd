"""Which model it is: a hash of all that a model's answers depend on besides the request. Results
that are kept carry it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
)

from fader.engine.apart import apart

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ABOUT_FILES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


@apart
def identity(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of a model's weights (every one of them), its configuration, its tokenizer and
    its chat template. Reads the weights once."""
    found = hashlib.sha256(fingerprint(model).encode())
    for name, weight in sorted(model.state_dict().items()):
        numbers = weight.detach().view(_INTEGERS[weight.element_size()])
        found.update(f"{name} {weight.dtype} {int(numbers.sum(dtype=torch.int64))}".encode())
    for part in (
        _settings(getattr(model, "config", None)),
        _settings(getattr(model, "generation_config", None)),
        _words(tokenizer),
        tokenizer.chat_template,
    ):
        found.update(json.dumps(part, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


def _settings(config: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in (config.to_dict() if config is not None else {}).items()
        if name not in _ABOUT_FILES
    }


def _words(tokenizer: Any) -> list[Any]:
    """What decides how a tokenizer cuts a text."""
    inner = getattr(tokenizer, "backend_tokenizer", None)  # only fast tokenizers have one
    vocabulary = tokenizer.get_vocab() if inner is None else inner.to_str()
    return [type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map]


def fingerprint(model: nn.Module) -> str:
    """A short hash of the weights' names, shapes and a sample of their values, the same in float32
    and bfloat16."""
    weights = model.state_dict()
    return fingerprint_of((name, weights[name]) for name in sorted(weights))


def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """`fingerprint` of a model whose weights come one at a time, sorted by their names in the
    model; tied ones under each of their names."""

    def sampled() -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        for name, weight in weights:
            flat = weight.detach().reshape(-1)
            places = sample_places(flat.numel())
            yield name, tuple(weight.shape), flat[:: places.step][: len(places)]

    return fingerprint_of_samples(sampled())


def sample_places(count: int) -> range:
    """Which of a weight's `count` numbers its fingerprint reads."""
    return range(0, count, max(1, count // 64))[:64]


def fingerprint_of_samples(samples: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> str:
    """`fingerprint_of` from the numbers at `sample_places` alone: name, shape, numbers."""
    digest = hashlib.sha256()
    for name, shape, numbers in samples:
        sample = numbers.to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(f"{name}{shape}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]
