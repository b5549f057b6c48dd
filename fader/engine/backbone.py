"""`TorchBackbone`: one causal language model that reads many rows at once, on PyTorch.

It knows its tokenizer, its end tokens and its longest text, and forwards a pack of rows of any
lengths. A model that it cannot run faithfully is refused by name when it is made: the model's own
attention and ours read a short text, and must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fader.engine import attention
from fader.engine.adapters import AdapterMixer
from fader.engine.identity import fingerprint, identity
from fader.engine.linear import choose_kernels
from fader.engine.memory import TorchMemory
from fader.engine.protocols import Delta, Segment

PROBE = 7  # tokens of the text that checks a freshly loaded model
MAX_BATCH_TOKENS = 8192  # beyond this a forward gains nothing, and its activations grow large


class TorchBackbone:
    """A `Backbone` that runs a transformers model with the attention of `attention.py`."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        kv_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        _refuse_by_config(name, config)
        self.max_length: int = (
            getattr(config, "max_position_embeddings", None)
            or getattr(config, "n_positions", None)
            or 2**20
        )
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.max_batch_tokens = MAX_BATCH_TOKENS
        self.end_tokens = _end_tokens(name, model, tokenizer)
        self.dtype, self.device = model.dtype, model.device
        self.fingerprint = fingerprint(model)
        self.threads: int | None = None  # that compute; None: as many as torch takes
        shapes, expected, read_order = _probe(name, model)
        layers, heads, key_dim, value_dim = shapes
        bytes_per_position = layers * heads * (key_dim + value_dim) * self.dtype.itemsize
        if kv_bytes is None:
            kv_bytes = _spare_bytes(self.device)
        budget = kv_bytes // bytes_per_position // TorchMemory.STEP * TorchMemory.STEP
        if budget < TorchMemory.STEP:
            raise ValueError(
                f"kv_bytes: {kv_bytes} holds no {TorchMemory.STEP} positions of {name}; give at"
                f" least {TorchMemory.STEP * bytes_per_position}"
            )
        self.memory = TorchMemory(
            layers, heads, key_dim, value_dim, self.dtype, self.device, budget
        )
        self._mixer = AdapterMixer(model, read_order)
        self._check(expected)

    @property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """The linear layers that a vector may change, by name: (out, in)."""
        return self._mixer.shapes

    def forget(self, vector: Delta) -> None:
        """Take a vector's factors out of the layers. A row that still uses it brings them back."""
        self._mixer.drop(vector)

    @cached_property
    def identity(self) -> str:
        """A hash of all that its answers depend on. Read once, and only where it is asked for."""
        return identity(self.model, self.tokenizer)

    def choose_kernels(self, kernels: str | None = None) -> None:
        """Multiply from now on with the kernels that are fastest here: "measured", or torch's own
        ("default"); left out: as FADER_KERNELS says, else measured."""
        self.threads = choose_kernels(self._mixer.products, kernels)

    def weight(self, name: str) -> Tensor:
        """One of the model's weights by its name. Raises KeyError for a name that there is not."""
        found: Tensor = self.model.state_dict()[name]
        return found

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Read all segments in one forward; returns for each the logits of its last `keep` tokens
        [keep, vocabulary], float32.

        Costs one read of the weights however many segments there are. Each slot occurs once.
        """
        if self.threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self.threads)  # of this thread; another one may have loaded it
        self._mixer.use(vector for segment in segments for vector, _ in segment.vectors)
        order = sorted(
            range(len(segments)),
            key=lambda i: (len(segments[i].tokens) > 1, segments[i].slot),
        )
        ordered = [segments[i] for i in order]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        kept: list[int] = []
        for segment in ordered:
            count = len(segment.tokens)
            ids += segment.tokens
            positions += range(segment.start, segment.start + count)
            slots += [segment.slot] * count
            kept += range(len(ids) - segment.keep, len(ids))
            self.memory.wrote(segment.slot, segment.start + count)
        keep = torch.tensor(kept or [len(ids) - 1], device=self.device)
        where = torch.tensor(positions, device=self.device)
        rows = attention.Rows(
            self.memory, torch.tensor(slots, device=self.device), where, _spans(ordered)
        )
        self._mixer.set_mixtures(
            [segment.vectors for segment in ordered],
            [len(segment.tokens) for segment in ordered],
            keep,
        )
        inputs = torch.tensor([ids], device=self.device)
        output = self.model(
            input_ids=inputs,
            position_ids=where[None],
            use_cache=False,
            logits_to_keep=keep,
            rows=rows,
        )
        logits: Tensor = output.logits[0].float()
        sound = logits.amax(-1).isfinite().tolist()  # NaN wins a maximum
        found: list[Tensor] = [logits] * len(segments)
        taken = 0
        for index, segment in zip(order, ordered, strict=True):
            end = taken + segment.keep
            found[index] = logits[taken:end]
            # nothing is known of a piece without logits; those of a later one tell
            self.memory.judge(segment.slot, segment.keep > 0 and all(sound[taken:end]))
            taken = end
        return found

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own begin tokens where `special`."""
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        self.check_tokens(ids)
        return ids

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raises ValueError, with its text, for a token that the embedding has no row for."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]
        if ids and (beyond := max(ids)) >= rows:
            text = self.tokenizer.convert_ids_to_tokens(beyond)
            raise ValueError(
                f"{text!r} is token {beyond} of the tokenizer, but {self.name} has rows for"
                f" {rows} tokens; leave it out, or resize the model's embedding"
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _check(self, expected: Tensor) -> None:
        """Read the probe text in two ways, at once and token by token: what our attention gives
        must be what the model's own gives."""
        ids = _probe_ids(self.vocabulary)
        self.memory.reserve((2, PROBE))
        one, two = self.memory.allocate(), self.memory.allocate()
        try:
            whole = self.forward([Segment(one, 0, ids, PROBE, ())])[0]
            steps = [self.forward([Segment(two, 0, ids[:3], 3, ())])[0]]
            steps += [
                self.forward([Segment(two, place, ids[place : place + 1], 1, ())])[0]
                for place in range(3, PROBE)
            ]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"model: {self.name} ({self.model.config.model_type}) does not run on fader's"
                f" attention: {error}"
            ) from error
        finally:
            self.memory.free(one)
            self.memory.free(two)
        scale = expected.abs().max().clamp(min=1)
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        for found in (whole, torch.cat(steps)):
            if (
                not torch.isfinite(found).all()
                or (found - expected).abs().max() > tolerance * scale
            ):
                raise ValueError(
                    f"model: {self.name} ({self.model.config.model_type}) uses an attention that"
                    " fader does not reproduce (such as attention sinks or position biases); load"
                    " a model with plain or sliding-window attention"
                )


def _spans(segments: Sequence[Segment]) -> list[attention.Span]:
    """The packed segments as spans: first the single tokens, together; then each longer segment."""
    spans: list[attention.Span] = []
    singles = [segment for segment in segments if len(segment.tokens) == 1]
    # a row much longer than its neighbours would make them all as wide: it attends alone
    groups: list[list[Segment]] = []
    for segment in singles:
        if groups and max(segment.start, *(s.start for s in groups[-1])) + 1 <= 2 * (
            min(segment.start, *(s.start for s in groups[-1])) + 64
        ):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    at = 0
    for group in groups:
        longest = max(segment.start for segment in group) + 1
        spans.append(
            attention.Span(at, at + len(group), [segment.slot for segment in group], longest)
        )
        at += len(group)
    for segment in segments[len(singles) :]:
        count = len(segment.tokens)
        spans.append(attention.Span(at, at + count, [segment.slot], segment.start + count))
        at += count
    return spans


def quick_dtype() -> str:
    """The type in which this machine multiplies fastest, for training and measuring: bfloat16 where
    it has instructions for it, else float32."""
    fast = (
        torch.cuda.is_bf16_supported()
        if torch.cuda.is_available()
        else torch.cpu._is_avx512_bf16_supported()
    )
    return "bfloat16" if fast else "float32"


def _refuse_by_config(name: str, config: PreTrainedConfig) -> None:
    """Raises ValueError for what a short text would not show: positions that depend on the longest
    row, chunked attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        value.get("rope_type") for value in rope.values() if isinstance(value, dict)
    }
    if kinds & {"dynamic", "longrope"}:
        raise ValueError(
            f"model: {name} scales its positions by the length of the text"
            f" ({kinds & {'dynamic', 'longrope'}}); not supported"
        )
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(f"model: {name} has chunked attention; not supported")


def _end_tokens(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """All tokens that end an answer: the generation config's, the model config's and the
    tokenizer's. Raises ValueError for one that the embedding has no row for."""
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if value is not None:
            found.update(value if isinstance(value, (list, tuple)) else [value])
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    for token in found:
        if type(token) is not int or token >= rows:
            raise ValueError(
                f"model: {name}: eos_token_id {token!r} is no token of its {rows}, so no answer"
                " would end there; mend generation_config.json or config.json"
            )
    return frozenset(found)


def _probe_ids(vocabulary: int) -> list[int]:
    return [(37 * place + 11) % vocabulary for place in range(PROBE)]


@torch.inference_mode()
def _probe(
    name: str, model: PreTrainedModel
) -> tuple[tuple[int, int, int, int], Tensor, list[tuple[str, Tensor]]]:
    """The model's KV shape (layers, heads, key dim, value dim), its own logits for the probe text
    [PROBE, vocabulary], and its linear layers as they ran, each with the tensor that it read.

    Raises ValueError for a model whose layers do not all keep keys and values of one shape.
    """
    ids = torch.tensor(
        [_probe_ids(model.get_output_embeddings().weight.shape[0])], device=model.device
    )
    read_order: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: read_order.append((name, inputs[0]))

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    ]
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    for hook in hooks:
        hook.remove()
    seen: dict[int, tuple[int, int, int]] = {}

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        layer: Any = module.layer_idx
        seen[layer] = (key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register("fader-probe", record)
    model_type = model.config.model_type
    try:
        model.set_attn_implementation("fader-probe")
        model(input_ids=ids, use_cache=False)
        model.set_attn_implementation(attention.NAME)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"model: {name} ({model_type}) cannot take another attention: {error}"
        ) from error
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(seen) != list(range(layers)):
        raise ValueError(
            f"model: {name} ({model_type}) has {layers} layers of which {len(seen)} keep keys and"
            " values; recurrent state and shared caches are not supported"
        )
    shapes = set(seen.values())
    if len(shapes) != 1:
        raise ValueError(
            f"model: {name} ({model_type}) has layers of different cache shapes {sorted(shapes)};"
            " not supported"
        )
    return (layers, *shapes.pop()), expected, read_order


def _spare_bytes(device: torch.device) -> int:
    """A quarter of the memory that is free: what keys and values may take unless a budget is
    given."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) * 3 // 4
    return int(psutil.virtual_memory().available) // 4
