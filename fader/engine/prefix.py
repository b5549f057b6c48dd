"""`Prefix`, an immutable token sequence, and the KV memory that hangs on it as a memo.

A prefix remembers, per policy, the `CacheSlot` (one slot of a backbone's memory) that holds its
keys and values. A longer prefix is written into its parent's slot. A slot is copied only where two
living prefixes continue the same one. Programs never open, fork, rewind or close anything: a slot
is freed with the last prefix that refers to it, and a memo that is lost changes no result.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from fader.engine.protocols import Memory, Mixture


@dataclass(frozen=True)
class Policy:
    """A way to read a prefix: which backbone, with which mixture of vectors, after which prompt."""

    backbone: str
    prompt: tuple[int, ...]
    vectors: Mixture = ()
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
        """Free the cache of the prefixes on the way back to `until`, for policies that have read
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

    def __init__(self, memory: Memory, index: int, held: int = 0) -> None:
        self.memory = memory
        self.index = index
        self.held = held
        """Positions that it holds; a prefix that relies on more reads them again."""
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
        self.memory.free(self.index)


def find_or_allocate(memory: Memory, policy: Policy, prefix: Prefix) -> tuple[CacheSlot, int, bool]:
    """A slot in which `policy` may read `prefix`, how many of its positions the slot holds already,
    and whether the slot is new."""
    total = len(policy.prompt) + prefix.length
    node = next((node for node in prefix.line() if policy in node.memo), None)
    if node is None:
        slot = CacheSlot(memory, memory.allocate())
        slot.claim(prefix, total)
        return slot, 0, True
    slot = node.memo[policy]
    known = len(policy.prompt) + node.length
    held = min(known, slot.held)
    if node is prefix:
        return slot, held, False
    is_new = slot.used() > known
    if is_new:
        slot = CacheSlot(memory, memory.fork(slot.index, held), held)
    slot.claim(prefix, total)
    return slot, held, is_new
