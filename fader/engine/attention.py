"""Attention over a packed batch: all rows' new tokens lie in one sequence, each row attends to its
own slot of the memory.

Registered with transformers as the attention function `fader`, so the model code runs unmodified on
inputs [1, tokens]: nothing is padded in the linear layers, and prefill and decoding mix in one
forward. The batch reaches this function as the keyword `rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from fader.engine.memory import TorchMemory

NAME = "fader"


@dataclass
class Span:
    """Tokens start:end of the pack. Many slots: one token of each slot (decoding). One slot:
    consecutive tokens of it (prefill)."""

    start: int
    end: int
    slots: list[int]
    longest: int
    """Positions to attend to: of the longest row, its new tokens included."""


@dataclass
class Rows:
    """Where each token of a pack lives: slot and position, and the spans that attend together."""

    memory: TorchMemory
    slots: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    spans: list[Span]
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [heads, tokens, dim]; returns the layer's memory [slots, heads,
        capacity, dim]."""
        keys, values = self.memory.keys[layer], self.memory.values[layer]
        keys[self.slots, :, self.positions] = key.transpose(0, 1)
        values[self.slots, :, self.positions] = value.transpose(0, 1)
        return keys, values

    def mask(self, span: Span, window: int | None) -> Tensor | None:
        """What is added to the scores: 0 for the positions that each token of the span sees, else
        -inf [tokens, longest]; None where all see all."""
        known = (span.start, window)
        if known not in self._masks:
            here = self.positions[span.start : span.end, None]
            there = torch.arange(span.longest, device=here.device)
            seen = there <= here
            if window is not None:
                seen &= there > here - window
            self._masks[known] = (
                None
                if bool(seen.all())
                else self.memory.keys.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            )
        return self._masks[known]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows: Rows | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, dim], key and value [1, kv heads,
    tokens, dim] -> [1, tokens, heads, dim]."""
    assert rows is not None
    layer: Any = module.layer_idx
    keys, values = rows.write(layer, key[0], value[0])
    heads, kv_heads = query.shape[1], keys.shape[1]
    outputs = []
    for span in rows.spans:
        asked = query[0, :, span.start : span.end]  # [heads, n, dim]
        count = span.end - span.start
        mask = rows.mask(span, sliding_window)
        if (
            len(span.slots) > 1 or count == 1
        ):  # one token per slot: the heads that share a kv head are the "query length"
            lo, hi = span.slots[0], span.slots[-1] + 1
            where: slice | Tensor = slice(lo, hi)
            if span.slots != list(range(lo, hi)):
                where = torch.tensor(span.slots, device=keys.device)
            k, v = keys[where, :, : span.longest], values[where, :, : span.longest]
            grouped = asked.view(kv_heads, heads // kv_heads, count, -1).permute(
                2, 0, 1, 3
            )  # [n, kv heads, group, dim]
            found = _softmax_average(
                grouped, k, v, None if mask is None else mask[:, None, None], scaling, softcap
            )
            outputs.append(found.reshape(count, heads, -1))
        else:
            k = keys[span.slots[0] : span.slots[0] + 1, :, : span.longest]
            v = values[span.slots[0] : span.slots[0] + 1, :, : span.longest]
            found = _softmax_average(asked[None], k, v, mask, scaling, softcap)
            outputs.append(found[0].transpose(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _softmax_average(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared
        )
    if shared:
        key, value = (
            memory.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            for memory in (key, value)
        )
    scores = (
        query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(NAME, attend)
