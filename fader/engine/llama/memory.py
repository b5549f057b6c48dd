"""The KV memory of the backbone on llama.cpp: a slot is a sequence, a fork shares its cells.

Every context has `budget` cells, so rows that fit the budget fit any context. A slot belongs to the
context in which it was first read. What is kept for later rows is copied out of the contexts: cells
in use make every step longer.
"""

from __future__ import annotations

import ctypes
import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

from fader.engine.llama.binding import library, why
from fader.engine.llama.contexts import Context, Contexts
from fader.engine.protocols import Kept, Mixture, Need, held

BYTES = ctypes.POINTER(ctypes.c_uint8)


@dataclass(frozen=True, eq=False)
class KeptState:
    """A `Kept` in llama.cpp's own form."""

    memory: LlamaMemory
    data: np.ndarray
    start: int
    end: int
    """The positions that it holds."""

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return int(self.data.nbytes)

    def part(self, start: int, end: int) -> KeptState:
        """A copy of its positions start:end."""
        memory, context = self.memory, self.memory.contexts.all[0]
        memory.fill_scratch(context, self)
        first, last = self.start + start, self.start + end
        return memory.take_scratch(context, first, last)


class LlamaMemory:
    """A `Memory` of sequences. The last sequence of each context is for copying."""

    def __init__(self, contexts: Contexts, sequences: int, budget: int, bytes_each: int) -> None:
        self.contexts, self.budget, self.bytes_each = contexts, budget, bytes_each
        self.slots = self.scratch = sequences - 1
        self._free = list(range(self.slots))
        # from any thread, and from the garbage collector in the midst of anything
        self._returned: deque[int] = deque()
        self._owner: dict[int, Context] = {}
        self._held = [0] * self.slots  # positions, those that wait to be restored included
        self._waiting: dict[int, list[tuple[int, KeptState, int]]] = {}  # to be restored
        self._promised: tuple[Need, ...] = ()

    @property
    def used(self) -> int:
        """Bytes that belong to slots in use."""
        return sum(self._held) * self.bytes_each

    @property
    def reserved(self) -> int:
        """Bytes set aside."""
        return len(self.contexts.all) * self.budget * self.bytes_each

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self.slots - len(self._free) - len(self._returned)

    def area(self, *needs: Need) -> int:
        """Positions that jobs of these needs take together."""
        taken = sum(rows * length for rows, length in needs)
        return taken if sum(rows for rows, _ in needs) <= self.slots else self.budget + taken

    def room(self, *needs: Need) -> int:
        """Positions of the budget that are left beside these jobs and the slots in use."""
        self.collect()
        if not needs:
            return self.budget - (self.area(*self._promised) if self.taken else 0)
        free = set(self._free)
        taken = (length for slot, length in enumerate(self._held) if slot not in free)
        return self.budget - self.area(*needs) - held(taken, needs)

    def reserve(self, *needs: Need, beside: int = 0) -> None:
        """Remember who runs; a context's memory is made with it."""
        self._promised = needs

    def allocate(self) -> int:
        """The lowest free slot."""
        self.collect()
        if not self._free:
            raise MemoryError(
                f"a program uses more rows than it announced: all {self.slots} sequences are taken"
            )
        return heapq.heappop(self._free)

    def free(self, slot: int) -> None:
        """Take a slot back; from any thread."""
        self._returned.append(slot)

    def collect(self) -> None:
        """Make the slots that came back free again. Not while a context computes."""
        while self._returned:
            slot = self._returned.popleft()
            self._clear(slot)
            heapq.heappush(self._free, slot)

    def _clear(self, slot: int) -> None:
        self._held[slot] = 0
        self._waiting.pop(slot, None)
        if (context := self._owner.pop(slot, None)) is not None:
            context.slots.discard(slot)
            library().llama_memory_seq_rm(context.memory, slot, -1, -1)

    def fork(self, slot: int, length: int) -> int:
        """A new slot with the first `length` positions of `slot`: the cells are shared."""
        copy = self.allocate()
        length = min(length, self._held[slot])
        if (context := self._owner.get(slot)) is not None:
            self._give(copy, context)
            library().llama_memory_seq_cp(context.memory, slot, copy, 0, length)
        elif slot in self._waiting:
            self._waiting[copy] = [
                (start, kept, min(count, length - start))
                for start, kept, count in self._waiting[slot]
                if start < length
            ]
        self._held[copy] = length
        return copy

    def context_of(self, slot: int, start: int, mixture: Mixture) -> Context:
        """The context in which a slot is read from position `start` on, with what is to be restored
        in it and nothing behind `start`."""
        context = self._owner.get(slot)
        if context is not None and start == 0 and context.mixture != mixture:
            self._clear(slot)
            context = None
        if context is None:
            context = self.contexts.for_mixture(mixture)
            self._give(slot, context)
            for first, kept, count in self._waiting.pop(slot, []):
                self._write(context, slot, first, kept, count)
        self.cut(slot, start)
        return context

    def cut(self, slot: int, length: int) -> None:
        """Forget what a slot holds from position `length` on."""
        context = self._owner[slot]
        if self._held[slot] > length:
            if not library().llama_memory_seq_rm(context.memory, slot, length, -1):
                raise MemoryError("llama.cpp cannot forget a part of what it has read")
            self._held[slot] = length

    def lose(self, slot: int, length: int) -> None:
        """Forget what a slot may hold from position `length` on, after a failure."""
        if (context := self._owner.get(slot)) is not None:
            library().llama_memory_seq_rm(context.memory, slot, length, -1)
        self._held[slot] = min(self._held[slot], length)

    def grow(self, slot: int, length: int) -> None:
        """Say how many positions a slot holds now, as far as is known."""
        self._held[slot] = length

    def _give(self, slot: int, context: Context) -> None:
        self._owner[slot] = context
        context.slots.add(slot)

    def keep(self, slot: int, start: int, end: int) -> KeptState:
        """A copy of what positions start:end of a slot hold."""
        context = self._owner[slot]
        library().llama_memory_seq_cp(context.memory, slot, self.scratch, start, end)
        return self.take_scratch(context, start, end)

    def restore(self, slot: int, start: int, kept: Kept, count: int) -> None:
        """Write the first `count` positions of a copy into a slot, when it is next read."""
        assert isinstance(kept, KeptState)
        assert slot not in self._owner
        assert start == kept.start
        self._waiting.setdefault(slot, []).append((start, kept, count))
        self._held[slot] = start + count

    def _write(self, context: Context, slot: int, start: int, kept: KeptState, count: int) -> None:
        self.fill_scratch(context, kept)
        L = library()
        L.llama_memory_seq_cp(context.memory, self.scratch, slot, start, start + count)
        L.llama_memory_seq_rm(context.memory, self.scratch, -1, -1)

    def fill_scratch(self, context: Context, kept: KeptState) -> None:
        """Put a copy into a context's sequence for copying."""
        L = library()
        where = kept.data.ctypes.data_as(BYTES)
        if not L.llama_state_seq_set_data(context.handle, where, kept.nbytes, self.scratch):
            raise MemoryError(f"llama.cpp could not take back what was kept: {why()}")

    def take_scratch(self, context: Context, start: int, end: int) -> KeptState:
        """A copy of positions start:end of the sequence for copying, which is emptied."""
        L = library()
        L.llama_memory_seq_rm(context.memory, self.scratch, 0, start)
        L.llama_memory_seq_rm(context.memory, self.scratch, end, -1)
        data = np.empty(L.llama_state_seq_get_size(context.handle, self.scratch), np.uint8)
        where = data.ctypes.data_as(BYTES)
        count = L.llama_state_seq_get_data(context.handle, where, data.nbytes, self.scratch)
        L.llama_memory_seq_rm(context.memory, self.scratch, -1, -1)
        if count != data.nbytes:
            raise MemoryError(f"llama.cpp could not copy what it has read: {why()}")
        return KeptState(self, data, start, end)
