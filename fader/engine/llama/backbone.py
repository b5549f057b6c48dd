"""`LlamaBackbone`: a GGUF file that reads many rows at once, on llama.cpp.

A slot is a sequence, rows are grouped by mixture, and each group is read in the context of its
mixture. llama.cpp's products in quantised types round what they read, so a row's logits depend on
its company there by a little; with F32 weights they do not.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fader.engine.llama.adapters import AdapterStore, head_parts, with_head
from fader.engine.llama.binding import library, why
from fader.engine.llama.contexts import MOST, Context, Contexts, free
from fader.engine.llama.file import GGUFFile
from fader.engine.llama.measure import BATCH, choose
from fader.engine.llama.memory import LlamaMemory
from fader.engine.protocols import Delta, Segment

SEQUENCES = 128
"""Sequences of a context, and the most logits of one call: room for them is set aside."""
CELLS = 16384
"""Positions at most unless a budget is given: steps get longer with what is in memory."""
NO_VOCABULARY = 0  # a type of llama.cpp's, whose tokenizer ends the process
PROBE = "In 2024, it cost $17.50:\n\n  naïve café: 3x the 世界!  \tOK?"
"""A text of which the tokenizer has to make what llama.cpp makes."""


@dataclass(frozen=True)
class _Piece:
    """Some tokens of one segment that are read in one call."""

    index: int
    start: int
    tokens: Sequence[int]
    keep: int


class LlamaBackbone:
    """A `Backbone` on llama.cpp. `kv_bytes`: for the KV memory of all contexts together; left out,
    at most a quarter of the free memory. `gpu`: whether layers go to a GPU where llama.cpp was
    built for one. `measured`: whether the number of threads and of tokens of one call are; `batch`:
    the latter, by hand."""

    def __init__(
        self,
        name: str,
        path: Path,
        kv_bytes: int | None = None,
        gpu: bool = True,
        measured: bool = False,
        batch: int | None = None,
    ) -> None:
        L = library()
        self.name = name
        self._file = GGUFFile(path)
        self.tokenizer: PreTrainedTokenizerBase = self._file.tokenizer()
        options = L.llama_model_default_params()
        options.n_gpu_layers = -1 if gpu and L.llama_supports_gpu_offload() else 0
        model = L.llama_model_load_from_file(os.fsencode(path), options)
        if not model:
            raise ValueError(f"model: llama.cpp cannot load {path}: {why()}")
        try:
            self._refuse_by_kind(model)
            self._vocab = L.llama_model_get_vocab(model)
            self._check_tokenizer()
            self.vocabulary = int(L.llama_vocab_n_tokens(self._vocab))
            self.max_length = int(L.llama_model_n_ctx_train(model))
            self.end_tokens = self._file.end_tokens(self.tokenizer)
            self._width = int(L.llama_model_n_embd_out(model))
            self._whole = self._file.numbers == "F32"
            each = self._bytes_per_position(model)
            cells = self._cells(kv_bytes, each)
            self._adapters = AdapterStore(model, self._file)
            try:
                self._contexts = Contexts(model, _settings(cells, self._whole), self._adapters)
            except MemoryError as error:
                raise ValueError(
                    f"kv_bytes: {error}; give less than {MOST * cells * each}"
                ) from None
        except BaseException:
            L.llama_model_free(model)
            raise
        self._freed = weakref.finalize(self, free, self._contexts.all, model)
        self._freed.atexit = False
        self.memory = LlamaMemory(self._contexts, SEQUENCES, cells, each)
        self._batch = _Batch()
        weights = {"gpu": options.n_gpu_layers != 0, "weights": self._file.kinds}
        room = min(cells, self.max_length)
        fastest = choose(self._contexts.all[0], weights, room, measured, batch)
        self.threads, self.max_batch_tokens = (fastest.threads, fastest.several), fastest.batch
        self._contexts.set_threads(*self.threads)

    @property
    def dtype(self) -> str:
        """What llama.cpp computes with: the type of the file's matrices."""
        return f"llama.cpp {self._file.numbers}"

    @cached_property
    def fingerprint(self) -> str:
        """Says which weights these are."""
        return self._file.fingerprint

    @property
    def identity(self) -> str:
        """A hash of the file."""
        return self._file.identity

    @property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """The linear layers that a vector may change, by name: (out, in)."""
        return self._file.layers

    def weight(self, name: str) -> Tensor:
        """One of the model's weights by its name in transformers. Raises KeyError for none."""
        return self._file.weight(name)

    def forget(self, vector: Delta) -> None:
        """Free a vector's adapter. A row that still uses it brings it back."""
        self._contexts.forget(vector)
        self._adapters.drop(vector)

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Read all segments, those of one mixture together; returns for each the logits of its last
        `keep` tokens [keep, vocabulary], float32."""
        self._check(segments)
        self.memory.collect()
        groups: dict[tuple[int, Any], tuple[Context, list[int]]] = {}
        try:
            for index, segment in enumerate(segments):
                context = self.memory.context_of(segment.slot, segment.start, segment.vectors)
                key = (id(context), segment.vectors)
                groups.setdefault(key, (context, []))[1].append(index)
            found: list[list[Tensor]] = [[] for _ in segments]
            # the mixture that a context computes with already goes first
            for (_, mixture), (context, chosen) in sorted(
                groups.items(), key=lambda item: item[0][1] != item[1][0].mixture
            ):
                self._contexts.use(context, mixture)
                self._read(context, segments, chosen, found)
        except Exception:
            for segment in segments:  # what is behind their starts is not known
                self.memory.lose(segment.slot, segment.start)
            raise
        empty = torch.empty(0, self.vocabulary)
        return [
            (rows[0] if len(rows) == 1 else torch.cat(rows)) if rows else empty for rows in found
        ]

    def _check(self, segments: Sequence[Segment]) -> None:
        """Raises ValueError for what would end the process."""
        most = min(self.memory.budget, self.max_length)
        for segment in segments:
            end = segment.start + len(segment.tokens)
            if not segment.tokens or end > most:
                raise ValueError(
                    f"{self.name} cannot read {len(segment.tokens)} tokens up to {end}; give at"
                    f" least one, up to {most} at most"
                )
            if min(segment.tokens) < 0 or max(segment.tokens) >= self.vocabulary:
                raise ValueError(f"{self.name} has no token {max(segment.tokens)}")

    def _read(
        self,
        context: Context,
        segments: Sequence[Segment],
        chosen: Sequence[int],
        found: list[list[Tensor]],
    ) -> None:
        """Read segments of one mixture in as few calls as the limits allow."""
        heads = bool(head_parts(context.mixture))
        # where hidden states are wanted, llama.cpp gives them and logits of all tokens
        most = min(SEQUENCES, self.max_batch_tokens) if heads else self.max_batch_tokens
        pieces: list[_Piece] = []
        tokens = kept = 0
        for index in chosen:
            segment = segments[index]
            place, count = 0, len(segment.tokens)
            while place < count:
                step = min(count - place, most - tokens)
                first_kept = count - segment.keep
                keep = min(step, max(0, place + step - first_kept))
                if kept + keep > SEQUENCES:
                    keep = SEQUENCES - kept
                    step = max(0, first_kept - place) + keep
                if step:
                    part = segment.tokens[place : place + step]
                    pieces.append(_Piece(index, segment.start + place, part, keep))
                    place, tokens, kept = place + step, tokens + step, kept + keep
                if tokens == most or kept == SEQUENCES:
                    self._decode(context, segments, pieces, found, heads)
                    pieces, tokens, kept = [], 0, 0
        if pieces:
            self._decode(context, segments, pieces, found, heads)

    def _decode(
        self,
        context: Context,
        segments: Sequence[Segment],
        pieces: Sequence[_Piece],
        found: list[list[Tensor]],
        heads: bool,
    ) -> None:
        """One call of llama.cpp."""
        L = library()
        count = self._batch.fill(segments, pieces)
        if code := L.llama_decode(context.handle, self._batch.of(count)):
            raise MemoryError(f"llama.cpp could not read {count} tokens ({code}): {why()}")
        for piece in pieces:
            end = piece.start + len(piece.tokens)
            self.memory.grow(segments[piece.index].slot, end)
        rows = count if heads else sum(piece.keep for piece in pieces)
        if not rows:
            return
        logits = _copied(L.llama_get_logits(context.handle), rows, self.vocabulary)
        if heads:
            wanted = torch.from_numpy(self._batch.wanted[:count] != 0)
            hidden = _copied(L.llama_get_embeddings(context.handle), rows, self._width)
            logits = with_head(logits[wanted], hidden[wanted], context.mixture)
        parts = logits.split([piece.keep for piece in pieces])
        for piece, part in zip(pieces, parts, strict=True):
            if piece.keep:
                found[piece.index].append(part)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own begin tokens where `special`."""
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        self.check_tokens(ids)
        return ids

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raises ValueError for a token that the model has no embedding for."""
        if ids and (beyond := max(ids)) >= self.vocabulary:
            raise ValueError(
                f"token {beyond} is none of the {self.vocabulary} that {self.name} reads; leave it"
                " out"
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _refuse_by_kind(self, model: Any) -> None:
        L = library()
        for kind, is_one in (
            ("has recurrent state", L.llama_model_is_recurrent),
            ("has recurrent state", L.llama_model_is_hybrid),
            ("is an encoder-decoder", L.llama_model_has_encoder),
            ("writes by diffusion", L.llama_model_is_diffusion),
        ):
            if is_one(model):
                raise ValueError(
                    f"model: {self._file.path} ({self._file.architecture}) {kind}; fader runs"
                    " causal language models whose layers all keep keys and values"
                )

    def _check_tokenizer(self) -> None:
        """Raises ValueError where its tokens are not llama.cpp's."""
        if library().llama_vocab_type(self._vocab) == NO_VOCABULARY:
            raise ValueError(
                f"model: {self._file.path} has no vocabulary; make the file with `fader models"
                " convert` from the model's folder"
            )
        text, mine = (
            PROBE.encode(),
            list(self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]),
        )
        buffer = (ctypes.c_int32 * (len(text) + 8))()
        count = library().llama_tokenize(
            self._vocab, text, len(text), buffer, len(buffer), False, False
        )
        theirs = list(buffer[: max(0, count)])
        if mine != theirs:
            place = next(
                (i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(mine), len(theirs)),
            )
            raise ValueError(
                f"model: {self._file.path}: its tokenizer"
                f" ({self._file.field('tokenizer.ggml.pre', 'no tokenizer.ggml.pre')}) is not read"
                f" alike by llama.cpp and transformers (token {place} of {PROBE!r}); make the file"
                " with `fader models convert` from the model's folder"
            )

    def _bytes_per_position(self, model: Any) -> int:
        """Of keys and values: in float32 beside weights in float32, else in float16."""
        L, file = library(), self._file
        heads = max(1, int(L.llama_model_n_head_kv(model)))
        width = int(L.llama_model_n_embd(model)) // max(1, int(L.llama_model_n_head(model)))
        key = int(file.of_architecture("attention.key_length", width))
        value = int(file.of_architecture("attention.value_length", width))
        return int(L.llama_model_n_layer(model)) * heads * (key + value) * (4 if self._whole else 2)

    def _cells(self, kv_bytes: int | None, each: int) -> int:
        """Positions of each context."""
        least = 256
        machine = psutil.virtual_memory()
        if kv_bytes is None:
            kv_bytes = min(int(machine.available) // 4, MOST * CELLS * each)
        elif kv_bytes > machine.total:
            raise ValueError(
                f"kv_bytes: {kv_bytes} is more than the {machine.total} bytes of this machine; give"
                " less, or leave it out"
            )
        cells = kv_bytes // (MOST * each) // least * least
        if cells < least:
            raise ValueError(
                f"kv_bytes: {kv_bytes} holds no {least} positions of {self.name} in {MOST}"
                f" contexts; give at least {MOST * least * each}"
            )
        return cells


class _Batch:
    """The arrays of one call: numpy's, which llama.cpp reads."""

    def __init__(self) -> None:
        self._tokens = np.zeros(BATCH, np.int32)
        self._positions = np.zeros(BATCH, np.int32)
        self._counts = np.ones(BATCH, np.int32)
        self._sequences = np.zeros(BATCH, np.int32)
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(BATCH, dtype=np.uint64)
        self.wanted = np.zeros(BATCH, np.int8)
        """Of which tokens logits are wanted."""

    def fill(self, segments: Sequence[Segment], pieces: Sequence[_Piece]) -> int:
        """Put the tokens of these pieces in; how many they are."""
        at = 0
        for piece in pieces:
            count = len(piece.tokens)
            end = at + count
            self._tokens[at:end] = piece.tokens
            self._positions[at:end] = np.arange(piece.start, piece.start + count)
            self._sequences[at:end] = segments[piece.index].slot
            self.wanted[at : end - piece.keep] = 0
            self.wanted[end - piece.keep : end] = 1
            at = end
        return at

    def of(self, count: int) -> Any:
        """The first `count` tokens as llama.cpp takes them."""
        L = library()
        batch = L.llama_batch()
        batch.n_tokens = count
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self.wanted),
        ):
            kind = dict(L.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        return batch


def _settings(cells: int, whole: bool) -> Any:
    """What every context is made with; `whole`: all in float32."""
    L = library()
    settings = L.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, BATCH, BATCH
    settings.n_seq_max = settings.n_outputs_max = SEQUENCES
    settings.pooling_type = 0  # none: the hidden states of each token
    settings.kv_unified = True  # one memory for all sequences, so that forks share it
    settings.swa_full = True  # or rows could not be read again from farther back
    settings.no_perf = True
    if whole:
        settings.type_k = settings.type_v = 0  # float32
        settings.flash_attn_type = 0  # off: it adds up in float16
    return settings


def _copied(memory: Any, rows: int, columns: int) -> Tensor:
    """What llama.cpp has computed, as a tensor of its own [rows, columns]."""
    floats = ctypes.cast(memory, ctypes.POINTER(ctypes.c_float))
    return torch.from_numpy(np.ctypeslib.as_array(floats, (rows, columns)).copy())
