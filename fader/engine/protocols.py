"""What the engine needs of a model, on one page: `Backbone`, its `Memory`, the `Segment`s that it
reads and the `Delta`s that it mixes in.

`backbone.py` is a backbone on PyTorch. Another reader of weights fits if it keeps to this page: the
engine and everything above it speak to these names alone. One
thread, the engine's, calls `forward`, `forget` and what changes the memory. `Memory.free` and all
that only tells something may be called from any thread at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Delta(Protocol):
    """A weight difference that can be mixed in: per linear layer, factors A [rank, in] and B [out,
    rank] with dW = B A."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Linear layer -> (A, B)."""


Mixture = tuple[tuple[Delta, float], ...]
"""Vectors and their strengths λ: W + the sum of λ * dW."""


@dataclass(frozen=True)
class Segment:
    """Some consecutive new tokens of one row."""

    slot: int
    start: int
    """Position of the first of them. It may lie below what the slot holds; never above."""
    tokens: Sequence[int]
    keep: int
    """Logits are returned for this many of the last ones; may be 0."""
    vectors: Mixture


Need = tuple[int, int]
"""How many rows a job keeps alive at most, and how many positions the longest of them takes."""


def held(lengths: Iterable[int], needs: Sequence[Need]) -> int:
    """Positions that results hold, at least: of slots in use with these lengths, those that the
    jobs of `needs` did not announce, but for the last, which is to begin."""
    shortest = sorted(lengths)
    return sum(shortest[: max(0, len(shortest) - sum(rows for rows, _ in needs[:-1]))])


class Kept(Protocol):
    """A copy of what some consecutive positions of a slot held. It stays when the slot is freed."""

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""

    def part(self, start: int, end: int) -> Kept:
        """A copy of its positions start:end. It does not keep the whole alive."""


class Memory(Protocol):
    """The KV memory of a backbone: slots, each of which holds the beginning of one row."""

    @property
    def budget(self) -> int:
        """Positions that all slots together may take."""

    @property
    def used(self) -> int:
        """Bytes that belong to slots in use."""

    @property
    def reserved(self) -> int:
        """Bytes set aside, in use or not."""

    def area(self, *needs: Need) -> int:
        """Positions of the budget that jobs of these needs take together. More than `budget` for
        those that can never be there together."""

    def room(self, *needs: Need) -> int:
        """Positions of the budget that are left beside the slots in use and jobs of these needs:
        those that run and, the last of them, one that is to begin. Below 0 if there is no room.
        Without needs: beside what was reserved last, as long as slots are in use."""

    def reserve(self, *needs: Need, beside: int = 0) -> None:
        """Make room for jobs of these needs, which are all that run. `beside`: how many positions
        of the budget copies take."""

    def allocate(self) -> int:
        """A free slot, which holds nothing yet. Raises MemoryError if none is free."""

    def free(self, slot: int) -> None:
        """Take a slot back: from any thread, at any time, also while another call is under way."""

    def fork(self, slot: int, length: int) -> int:
        """A new slot that holds the first `length` positions of `slot`. Raises MemoryError if none
        is free."""

    def keep(self, slot: int, start: int, end: int) -> Kept:
        """A copy of what positions start:end of a slot hold."""

    def restore(self, slot: int, start: int, kept: Kept, count: int) -> None:
        """Write the first `count` positions of a copy into a slot, from position `start` on: where
        they were when it was made."""


@runtime_checkable
class Backbone(Protocol):
    """A causal language model as the engine sees it."""

    name: str
    """What policies call it."""

    @property
    def fingerprint(self) -> str:
        """Says which weights these are."""

    @property
    def dtype(self) -> object:
        """The type of number it computes in; its text tells results of other types apart."""

    @property
    def vocabulary(self) -> int:
        """Token ids below this are read and scored."""

    @property
    def max_length(self) -> int:
        """Positions of the longest text that it reads."""

    @property
    def max_batch_tokens(self) -> int:
        """The most tokens of one forward, over all its segments."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """All tokens that end an answer."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template."""

    @property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """The linear layers that a vector may change, by name: (out, in)."""

    @property
    def memory(self) -> Memory:
        """Where it keeps what rows have read."""

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Read all segments; returns for each the logits of its last `keep` tokens [keep,
        vocabulary], float32.

        Each slot occurs once. A segment that begins below what its slot holds replaces the rest:
        afterwards the slot holds start + len(tokens) positions. Rows may have different mixtures;
        one pass or several, as the backbone can. If it raises, nothing but the positions from each
        segment's start on is lost, and the segments may be read again, also by themselves.
        """

    def forget(self, vector: Delta) -> None:
        """Drop what is held for a vector. A row that still uses it brings it back."""

    @property
    def identity(self) -> str:
        """A hash of all that its answers depend on: weights, settings, tokenizer, chat template."""

    def weight(self, name: str) -> Tensor:
        """One of the model's weights by its name, to be compared with what a vector was made on.
        Raises KeyError for a name that there is not."""

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raises ValueError for a token that the model has no embedding for."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own begin tokens where `special`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
