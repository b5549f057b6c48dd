"""The KV memory of the PyTorch backbone: keys and values as [layers, slots, kv heads, capacity,
head dim], allocated ahead of need.

The memory is a rectangle of slots x capacity within `budget` positions; `reserve` grows it,
decoding never does.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from fader.engine.protocols import Kept


@dataclass(frozen=True, eq=False)
class KeptTensors:
    """A `Kept` of tensors: keys and values as [layers, kv heads, positions, head dim]."""

    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return int(self.keys.nbytes + self.values.nbytes)

    def part(self, start: int, end: int) -> KeptTensors:
        """A copy of its positions start:end."""
        return KeptTensors(self.keys[:, :, start:end].clone(), self.values[:, :, start:end].clone())


class TorchMemory:
    """A `Memory` of tensors."""

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
        # Slots come back from any thread, and from the garbage collector in the midst of anything:
        # appending to a deque is safe there, a lock or the heap is not.
        self._returned: deque[int] = deque()
        self._unsound: set[int] = set()
        self.keys = torch.zeros(layers, 0, heads, 0, key_dim, dtype=dtype, device=device)
        self.values = torch.zeros(layers, 0, heads, 0, value_dim, dtype=dtype, device=device)

    @classmethod
    def area(cls, slots: int, length: int) -> int:
        """Positions that `slots` rows of up to `length` positions take."""
        return slots * (-(-length // cls.STEP) * cls.STEP)

    def _rectangle(self, slots: int, length: int) -> tuple[int, int]:
        self._collect()
        capacity = self.area(1, length)
        if len(self._free) < self.slots:  # rows in use stay where they are: it can only grow
            return max(slots, self.slots), max(capacity, self.capacity)
        return slots, capacity

    def room(self, slots: int, length: int) -> int:
        """Positions of the budget that are left beside `slots` rows in all, the longest of `length`
        positions, and the rows in use; below 0 if there is no room for them."""
        slots, capacity = self._rectangle(slots, length)
        return self.budget - slots * capacity

    def reserve(self, slots: int, length: int, beside: int = 0) -> None:
        """Make room for `slots` rows in all, the longest of `length` positions, where copies take
        `beside` positions of the budget. Moves the memory only to grow it."""
        slots, capacity = self._rectangle(slots, length)
        if slots <= self.slots and capacity <= self.capacity:
            return
        if slots > self.slots:  # some room ahead, so that growing is rare
            slots = max(slots, min(2 * self.slots, (self.budget - beside) // capacity))
        if len(self._free) == self.slots:  # nothing to keep: the old goes before the new is asked
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
        self._collect()
        if not self._free:
            raise MemoryError(
                f"a program uses more rows than it announced: all {self.slots} slots of KV memory"
                " are taken"
            )
        return heapq.heappop(self._free)

    def free(self, slot: int) -> None:
        """Take a slot back; from any thread."""
        self._returned.append(slot)

    def _collect(self) -> None:
        """Make the slots that came back free again."""
        while self._returned:
            slot = self._returned.popleft()
            if slot in self._unsound:
                self._unsound.remove(slot)
                self.keys[:, slot] = 0
                self.values[:, slot] = 0
            heapq.heappush(self._free, slot)

    def judge(self, slot: int, is_sound: bool) -> None:
        """Say whether what a slot holds is known to be finite. If not, it is wiped before another
        row gets it: attention gives positions that it does not see the weight 0, and 0 times NaN
        is NaN."""
        if is_sound:
            self._unsound.discard(slot)
        else:
            self._unsound.add(slot)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self.slots - len(self._free) - len(self._returned)

    @property
    def used(self) -> int:
        """Bytes that belong to the slots in use."""
        slots = self.slots
        return self.reserved // slots * self.taken if slots else 0

    @property
    def reserved(self) -> int:
        """Bytes set aside."""
        return int(self.keys.nbytes + self.values.nbytes)

    def fork(self, slot: int, length: int) -> int:
        """A new slot with the first `length` positions of `slot`."""
        copy = self.allocate()
        for memory in (self.keys, self.values):
            memory[:, copy, :, :length] = memory[:, slot, :, :length]
        self.judge(copy, slot not in self._unsound)
        return copy

    def keep(self, slot: int, start: int, end: int) -> KeptTensors:
        """A copy of what positions start:end of a slot hold."""
        where = slice(start, end)
        return KeptTensors(
            self.keys[:, slot, :, where].clone(), self.values[:, slot, :, where].clone()
        )

    def restore(self, slot: int, start: int, kept: Kept, count: int) -> None:
        """Write the first `count` positions of a copy into a slot, from position `start` on."""
        assert isinstance(kept, KeptTensors)
        self.keys[:, slot, :, start : start + count] = kept.keys[:, :, :count]
        self.values[:, slot, :, start : start + count] = kept.values[:, :, :count]
        self.judge(slot, is_sound=False)  # until logits that are computed from it tell
