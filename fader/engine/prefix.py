"""`Prefix`, an immutable token sequence, and the KV memory that hangs on it as a memo.

A prefix remembers, per policy, the `CacheSlot` (one slot of the pool) that holds its keys and
values. A child that grows its parent's slot does so in place; only when two living prefixes part
ways is a slot copied. Nobody opens, forks, rewinds or closes anything: a slot returns to the pool
with the last prefix that refers to it, and a memo that is lost changes no result.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Delta(Protocol):
    """A weight difference that the desk can mix in: per linear layer, factors A [rank, in] and B
    [out, rank] with dW = B A."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Linear layer -> (A, B)."""


@dataclass(frozen=True)
class Policy:
    """A way to read a prefix: which backbone, with which mixture of vectors, after which prompt."""

    backbone: str
    prompt: tuple[int, ...]
    vectors: tuple[tuple[Delta, float], ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.backbone, self.prompt, self.vectors)))

    def __hash__(self) -> int:
        return self._hash


class Prefix:
    """An immutable sequence of answer tokens that shares its beginning with its parent."""

    __slots__ = ("__weakref__", "length", "memo", "parent", "tail")

    def __init__(self, parent: Prefix | None = None, tail: tuple[int, ...] = ()) -> None:
        self.parent = parent
        self.tail = tail
        self.length: int = len(tail) + (parent.length if parent else 0)
        self.memo: dict[Policy, CacheSlot] = {}

    def then(self, *tokens: int) -> Prefix:
        """This prefix continued by `tokens`."""
        return Prefix(self, tokens)

    def line(self) -> Iterator[Prefix]:
        """This prefix and its ancestors, longest first."""
        node: Prefix | None = self
        while node is not None:
            yield node
            node = node.parent

    def release_behind(self, until: Prefix) -> None:
        """Let go of what prefixes on the way back to `until` remember for policies that have read
        farther: nobody goes on from there again."""
        farther: set[Policy] = set()
        for node in self.line():
            if node is until:
                break
            for policy in list(node.memo):
                if policy in farther:
                    del node.memo[policy]
                farther.add(policy)

    @property
    def tokens(self) -> list[int]:
        """All token ids of the sequence."""
        return [token for node in reversed(list(self.line())) for token in node.tail]

    def ending(self, count: int) -> list[int]:
        """The last `count` token ids."""
        found: list[int] = []
        for node in self.line():
            if len(found) >= count:
                break
            found[:0] = node.tail
        return found[len(found) - count :]


class CacheSlot:
    """One slot of KV memory, written along one line of prefixes."""

    def __init__(self, pool: Pool, index: int) -> None:
        self.pool = pool
        self.index = index
        self._owners: list[
            tuple[weakref.ref[Prefix], int]
        ] = []  # growing lengths, the longest last

    def claim(self, prefix: Prefix, length: int) -> None:
        """`prefix` is going to use the first `length` positions."""
        self._owners.append((weakref.ref(prefix), length))

    def used(self) -> int:
        """Positions that a living prefix relies on."""
        while self._owners and self._owners[-1][0]() is None:
            self._owners.pop()
        return self._owners[-1][1] if self._owners else 0

    def __del__(self) -> None:
        self.pool.free(self.index)


def find_or_allocate(
    pool: Pool, policy: Policy, prefix: Prefix, wanted: int
) -> tuple[CacheSlot, int, bool]:
    """A slot for `prefix` read by `policy`, how many of its positions need no forward, and whether
    it is one that nobody had before.

    `wanted`: logits are wanted at this many last positions, so those are forwarded again even if
    they are known.
    """
    total = len(policy.prompt) + prefix.length
    node = next((node for node in prefix.line() if policy in node.memo), None)
    if node is None:
        slot = CacheSlot(pool, pool.allocate())
        slot.claim(prefix, total)
        return slot, 0, True
    slot = node.memo[policy]
    known = len(policy.prompt) + node.length
    is_new = node is not prefix and slot.used() > known
    if is_new:
        slot = slot.pool.fork(slot, known)
    if node is not prefix:
        slot.claim(prefix, total)
    return slot, min(known, total - wanted), is_new


class Pool:
    """KV memory of one backbone: keys and values as [layers, slots, kv heads, capacity, head dim],
    allocated ahead of need.

    The memory is a rectangle of slots x capacity within `budget` positions; `reserve` grows it,
    decoding never does.
    """

    STEP = 64  # capacities are multiples of this

    def __init__(
        self,
        layers: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
    ) -> None:
        self.budget = budget
        self.slots = self.capacity = 0
        self._free: list[int] = []
        self.keys = torch.zeros(layers, 0, heads, 0, key_dim, dtype=dtype, device=device)
        self.values = torch.zeros(layers, 0, heads, 0, value_dim, dtype=dtype, device=device)

    @classmethod
    def area(cls, slots: int, length: int) -> int:
        """Positions that `slots` rows of up to `length` positions take."""
        return slots * (-(-length // cls.STEP) * cls.STEP)

    def _rectangle(self, slots: int, length: int) -> tuple[int, int]:
        capacity = self.area(1, length)
        if self.taken:  # rows in use stay where they are, so the rectangle can only grow
            return max(slots, self.slots), max(capacity, self.capacity)
        return slots, capacity

    def fits(self, slots: int, length: int) -> bool:
        """Whether the budget has room for `slots` rows in all, the longest of `length` positions,
        beside the rows in use."""
        slots, capacity = self._rectangle(slots, length)
        return slots * capacity <= self.budget

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `slots` rows in all, the longest of `length` positions. Moves the memory
        only to grow it."""
        slots, capacity = self._rectangle(slots, length)
        if slots <= self.slots and capacity <= self.capacity:
            return
        if slots > self.slots:  # some room ahead, so that growing is rare
            slots = max(slots, min(2 * self.slots, self.budget // capacity))
        if not self.taken:  # nothing to keep: the old memory goes before the new is asked for
            self._free, self.slots, self.capacity = [], 0, 0
            self.keys, self.values = (
                self.keys[:, :0, :, :0].clone(),
                self.values[:, :0, :, :0].clone(),
            )
        self.keys, self.values = (
            self._grown(memory, slots, capacity) for memory in (self.keys, self.values)
        )
        self._free = [slot for slot in self._free if slot < slots] + list(range(self.slots, slots))
        heapq.heapify(self._free)
        self.slots, self.capacity = slots, capacity

    def _grown(self, memory: Tensor, slots: int, capacity: int) -> Tensor:
        new = memory.new_zeros(memory.shape[0], slots, memory.shape[2], capacity, memory.shape[4])
        new[:, : self.slots, :, : self.capacity] = memory
        return new

    def allocate(self) -> int:
        """The lowest free slot, so that the slots in use stay together."""
        if not self._free:
            raise MemoryError(
                f"a program uses more rows than it announced: all {self.slots} slots of KV memory"
                " are taken"
            )
        return heapq.heappop(self._free)

    def free(self, slot: int) -> None:
        """Put a slot back."""
        heapq.heappush(self._free, slot)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self.slots - len(self._free)

    @property
    def used(self) -> int:
        """Bytes that belong to the slots in use."""
        return self.reserved // self.slots * self.taken if self.slots else 0

    @property
    def reserved(self) -> int:
        """Bytes set aside."""
        return int(self.keys.nbytes + self.values.nbytes)

    def fork(self, slot: CacheSlot, length: int) -> CacheSlot:
        """A new slot with the first `length` positions of `slot`."""
        copy = CacheSlot(self, self.allocate())
        for memory in (self.keys, self.values):
            memory[:, copy.index, :, :length] = memory[:, slot.index, :, :length]
        return copy
