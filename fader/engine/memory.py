"""The KV memory of the PyTorch backbone: keys and values as [layers, slots, kv heads, capacity,
head dim], allocated ahead of need.

The memory is a rectangle of slots x capacity within `budget` positions; `reserve` grows it,
decoding never does.
"""

from __future__ import annotations

import heapq
from collections import deque

import torch
from torch import Tensor


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
