"""`Prefix`, an immutable token sequence, and the KV memory that hangs on it as a memo. Beside the
memo the `PromptTrie`, from which one job has what another has read.

A prefix remembers, per policy, the `CacheSlot` (one slot of a backbone's memory) that holds its
keys and values. A longer prefix is written into its parent's slot. A slot is copied only where two
living prefixes continue the same one. Programs never open, fork, rewind or close anything: a slot
is freed with the last prefix that refers to it, and a memo that is lost changes no result.

The trie outlives jobs. It keeps copies of keys and values by tokens and mixture, in what running
jobs leave of the memory's budget; a new row that begins with the same tokens gets them written into
its slot and reads the rest. (A radix tree of prompts: SGLang, arXiv 2312.07104. Deviation: there
rows attend to the shared memory itself, here each has its own copy, since slots are contiguous.)
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fader.engine.protocols import Delta, Kept, Memory, Mixture

WORTH_WAITING = 64
"""Tokens that another row is just reading and that are worth a wait of one forward pass."""


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


@dataclass(eq=False)
class _Stretch:
    """A node: consecutive tokens that were read under a mixture, and their keys and values."""

    mixture: Mixture
    tokens: tuple[int, ...]
    kept: Kept
    among: dict[int, _Stretch]
    """All that go on from the same text, itself included, by their first tokens."""
    after: dict[int, _Stretch] = field(default_factory=dict)


class PromptTrie:
    """What rows of one backbone have read, for later rows that begin with the same tokens under the
    same mixture.

    It never takes more of the budget than the slots leave. What was used least recently goes first;
    a row that has begun no longer needs it.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.positions = self.nbytes = 0
        self._first: dict[Mixture, dict[int, _Stretch]] = {}
        # The least recently used first. A stretch is used with all before it, which come after it
        # here: so the first of all has none behind it.
        self._by_use: OrderedDict[_Stretch, None] = OrderedDict()

    def known(self, mixture: Mixture, tokens: tuple[int, ...]) -> int:
        """How many of the first tokens are known."""
        return sum(count for _, count in self._path(mixture, tokens))

    def restore(self, mixture: Mixture, tokens: tuple[int, ...], slot: CacheSlot) -> int:
        """Write what is known of a text that begins with `tokens` into a new slot; how many
        positions that are."""
        for stretch, count in self._path(mixture, tokens):
            self.memory.restore(slot.index, slot.held, stretch.kept, count)
            slot.held += count
        return slot.held

    def add(self, mixture: Mixture, tokens: tuple[int, ...], slot: int) -> None:
        """Keep what a slot holds of a text that begins with `tokens`, as far as there is room."""
        path = self._path(mixture, tokens)
        known = sum(count for _, count in path)
        room = self.memory.room()
        end = min(len(tokens), room)
        if end <= known:
            return
        if path:
            self._cut(*path[-1])
            self._use(path)
        self.shrink(room - (end - known))  # the path is left: it was used last, and there is room
        kept = self.memory.keep(slot, known, end)
        among = path[-1][0].after if path else self._first.setdefault(mixture, {})
        stretch = _Stretch(mixture, tokens[known:end], kept, among)
        among[tokens[known]] = stretch
        self._by_use[stretch] = None
        self._use(path)
        self.positions += end - known
        self.nbytes += kept.nbytes

    def shrink(self, positions: int) -> None:
        """Let go of what was used least recently, until there are at most so many positions."""
        while self._by_use and self.positions > positions:
            self._drop(next(iter(self._by_use)))

    def forget(self, vector: Delta) -> None:
        """Let go of what was read with a vector."""
        for mixture in list(self._first):
            if any(one is vector for one, _ in mixture):
                self.forget_mixture(mixture)

    def forget_mixture(self, mixture: Mixture) -> None:
        """Let go of what was read under a mixture."""
        for stretch in [one for one in self._by_use if one.mixture == mixture]:
            self._drop(stretch)

    def _path(self, mixture: Mixture, tokens: tuple[int, ...]) -> list[tuple[_Stretch, int]]:
        """The stretches that `tokens` begin with, and how many tokens of each: all but of the
        last."""
        among, start = self._first.get(mixture, {}), 0
        path: list[tuple[_Stretch, int]] = []
        while start < len(tokens) and (stretch := among.get(tokens[start])) is not None:
            count = _alike(stretch.tokens, tokens[start:])
            path.append((stretch, count))
            if count < len(stretch.tokens):
                break
            start += count
            among = stretch.after
        self._use(path)
        return path

    def _use(self, path: Sequence[tuple[_Stretch, int]]) -> None:
        for stretch, _ in reversed(path):
            self._by_use.move_to_end(stretch)

    def _cut(self, stretch: _Stretch, count: int) -> None:
        """Leave a stretch its first `count` tokens; the others become one that goes on from it."""
        tokens, kept = stretch.tokens, stretch.kept
        if count < len(tokens):
            first, rest = kept.part(0, count), kept.part(count, len(tokens))
            new = _Stretch(stretch.mixture, tokens[count:], rest, {}, stretch.after)
            new.among[tokens[count]] = new
            stretch.tokens, stretch.kept, stretch.after = tokens[:count], first, new.among
            self._by_use[new] = None
            self.nbytes += first.nbytes + rest.nbytes - kept.nbytes

    def _drop(self, stretch: _Stretch) -> None:
        del self._by_use[stretch]
        del stretch.among[stretch.tokens[0]]
        self.positions -= len(stretch.tokens)
        self.nbytes -= stretch.kept.nbytes
        if not self._first[stretch.mixture]:  # it may be the last thing that holds a vector
            del self._first[stretch.mixture]


def _alike(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """How many tokens two texts begin with in common."""
    count = min(len(one), len(two))
    if one[:count] == two[:count]:
        return count
    return next(place for place in range(count) if one[place] != two[place])
