"""The KV memory of the PyTorch backbone: keys and values as [layers, slots, kv heads, capacity,
head dim], made ahead of need.

The memory is a rectangle of slots x capacity; `reserve` grows it, decoding never does. On a CPU the
rectangle is of addresses alone (`_paged_zeros`): a page of it takes memory once a row has written
there. So the `budget`, in positions, is spent on what jobs announced, and one long row makes the
others no dearer. What freed slots have written stays theirs until the budget needs it. Elsewhere
the rectangle is memory, and must fit the budget as a whole.
"""

from __future__ import annotations

import heapq
import math
import mmap
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from fader.engine.protocols import Kept, Need, held


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
    AHEAD = 16  # slots of addresses that are made at once

    def __init__(
        self,
        layers: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
        paged: bool | None = None,
    ) -> None:
        """`paged`: whether memory is taken by pages, as they are written; left out: where that is
        possible."""
        self.budget = budget
        self.paged = device.type == "cpu" and PAGED if paged is None else paged
        self.slots = self.capacity = 0
        self._promised = 0  # positions of the jobs that run
        self._narrowest = 0  # of the jobs that run: the fewest positions that a row may take
        self._written: list[int] = []  # of each slot: how many of its first positions take memory
        self._free: list[int] = []
        # Slots come back from any thread, and from the garbage collector in the midst of anything:
        # appending to a deque is safe there, a lock or the heap is not.
        self._returned: deque[int] = deque()
        self._unsound: set[int] = set()
        self.keys = torch.zeros(layers, 0, heads, 0, key_dim, dtype=dtype, device=device)
        self.values = torch.zeros(layers, 0, heads, 0, value_dim, dtype=dtype, device=device)
        self._pages: list[mmap.mmap | None] = []  # of keys and values
        self._bytes = layers * heads * (key_dim + value_dim) * dtype.itemsize  # of a position

    def area(self, *needs: Need) -> int:
        """Positions of the budget that jobs of these needs take together."""
        if self.paged:
            return sum(rows * self._width(length) for rows, length in needs)
        return math.prod(self._shape(needs))

    def _width(self, length: int) -> int:
        return -(-max(length, 1) // self.STEP) * self.STEP

    def _shape(self, needs: Sequence[Need]) -> tuple[int, int]:
        """The slots and the capacity of a rectangle for these needs alone."""
        longest = max((length for _, length in needs), default=0)
        return sum(rows for rows, _ in needs), self._width(longest)

    def _rectangle(self, needs: Sequence[Need]) -> tuple[int, int]:
        """The same beside the rows in use: they stay where they are, so it can only grow."""
        self._collect()
        slots, capacity = self._shape(needs)
        if len(self._free) < self.slots:
            return max(slots, self.slots), max(capacity, self.capacity)
        return slots, capacity

    def room(self, *needs: Need) -> int:
        """Positions of the budget that are left beside the rows in use and these jobs, of which the
        last is to begin."""
        if not self.paged:
            return self.budget - math.prod(self._rectangle(needs))
        self._collect()
        if not needs:
            return self.budget - (self._promised if len(self._free) < self.slots else 0)
        written = (self._written[slot] for slot in self._taken())
        return self.budget - self.area(*needs) - held(written, needs)

    def reserve(self, *needs: Need, beside: int = 0) -> None:
        """Make room for these jobs, where copies take `beside` positions of the budget. Moves the
        memory only to grow it."""
        slots, capacity = self._rectangle(needs)
        self._promised = self.area(*needs)
        self._narrowest = min((self._width(length) for _, length in needs), default=0)
        if slots > self.slots or capacity > self.capacity:
            self._grow(self._ahead(slots, capacity, beside), capacity)
        if self.paged:
            self._give_back(self._promised + beside)

    def _ahead(self, slots: int, capacity: int, beside: int) -> int:
        """So many slots and some ahead of need, so that growing is rare."""
        if self.paged:
            return max(slots, self.AHEAD, 2 * self.slots if slots > self.slots else 0)
        if slots <= self.slots:
            return slots
        return max(slots, min(2 * self.slots, (self.budget - beside) // capacity))

    def _grow(self, slots: int, capacity: int) -> None:
        taken = self._taken()
        if not taken:  # nothing to keep: the old goes before the new is asked
            self._free, self._written, self.slots, self.capacity = [], [], 0, 0
            self.keys, self.values = (
                self.keys[:, :0, :, :0].clone(),
                self.values[:, :0, :, :0].clone(),
            )
            self._pages = []
        grown = [self._grown(one, slots, capacity, taken) for one in (self.keys, self.values)]
        self.keys, self.values = (memory for memory, _ in grown)
        self._pages = [pages for _, pages in grown]
        kept = {slot: self._written[slot] for slot in taken}
        self._written = [kept.get(slot, 0) for slot in range(slots)]
        self._free = [slot for slot in range(slots) if slot not in kept]  # sorted, so it is a heap
        self.slots, self.capacity = slots, capacity

    def _grown(
        self, memory: Tensor, slots: int, capacity: int, taken: Sequence[int]
    ) -> tuple[Tensor, mmap.mmap | None]:
        """A greater memory with what the slots in use hold, and its pages."""
        shape = (memory.shape[0], slots, memory.shape[2], capacity, memory.shape[4])
        pages = None
        if self.paged:
            new, pages = _paged_zeros(shape, memory.dtype)
        else:
            new = memory.new_zeros(shape)
        for slot in taken:
            written = self._written[slot]
            new[:, slot, :, :written] = memory[:, slot, :, :written]
        return new, pages

    def _give_back(self, promised: int) -> None:
        """Free the pages of slots that nobody uses, the last ones first, as far as the budget is
        exceeded by what is promised and what they take."""
        free = sorted(self._free, reverse=True)
        over = promised + sum(self._written[slot] for slot in free) - self.budget
        for slot in free:
            if over <= 0:
                break
            if self._written[slot]:
                over -= self._written[slot]
                self._release(slot)

    def _release(self, slot: int) -> None:
        """Give the pages of a slot back to the system."""
        for memory, pages in zip((self.keys, self.values), self._pages, strict=True):
            assert pages is not None
            size = memory.stride(1) * memory.itemsize  # a slot's bytes lie together in each layer
            for layer in range(memory.shape[0]):
                start = (layer * self.slots + slot) * size
                first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
                if last > first:
                    where = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
                    pages.madvise(mmap.MADV_DONTNEED, *where)
        self._written[slot] = 0

    def allocate(self) -> int:
        """The lowest free slot, so that the slots in use stay together."""
        self._collect()
        if not self._free:
            raise MemoryError(
                f"a program uses more rows than it announced: all {self.slots} slots of KV memory"
                " are taken"
            )
        slot = heapq.heappop(self._free)
        if self.paged and self._written[slot] > self._narrowest:
            self._release(slot)  # a row in use holds no more than its job announced
        return slot

    def free(self, slot: int) -> None:
        """Take a slot back; from any thread."""
        self._returned.append(slot)

    def _collect(self) -> None:
        """Make the slots that came back free again."""
        while self._returned:
            slot = self._returned.popleft()
            if slot in self._unsound:
                self._unsound.remove(slot)
                self.keys[:, slot, :, : self._written[slot]] = 0
                self.values[:, slot, :, : self._written[slot]] = 0
            heapq.heappush(self._free, slot)

    def _taken(self) -> list[int]:
        """The slots in use, among them those that are about to come back."""
        free = set(self._free)
        return [slot for slot in range(self.slots) if slot not in free]

    def wrote(self, slot: int, end: int) -> None:
        """Say, beforehand, that a slot's positions up to `end` are about to be written."""
        self._written[slot] = max(self._written[slot], end)

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
        if not self.paged or not self.taken:
            return self._bytes * self.capacity * self.taken
        free, written = set(self._free), list(self._written)
        return self._bytes * sum(count for slot, count in enumerate(written) if slot not in free)

    @property
    def reserved(self) -> int:
        """Bytes set aside."""
        return self._bytes * (sum(self._written) if self.paged else self.slots * self.capacity)

    def fork(self, slot: int, length: int) -> int:
        """A new slot with the first `length` positions of `slot`."""
        copy = self.allocate()
        self.wrote(copy, length)
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
        self.wrote(slot, start + count)
        self.keys[:, slot, :, start : start + count] = kept.keys[:, :, :count]
        self.values[:, slot, :, start : start + count] = kept.values[:, :, :count]
        self.judge(slot, is_sound=False)  # until logits that are computed from it tell


PAGED = hasattr(mmap, "MADV_DONTNEED") and hasattr(mmap, "MAP_PRIVATE")
"""Whether this system hands out pages of memory as they are written, and takes them back."""


NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Addresses may exceed the memory that there is. (Python names the flag from 3.13 on.)"""


def _paged_zeros(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, mmap.mmap]:
    """Zeros on the CPU that take memory as they are written, page by page; and these pages."""
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    try:
        pages = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError(f"no {size} bytes of addresses could be had: {error}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape), pages
