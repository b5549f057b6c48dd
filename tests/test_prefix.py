"""Prefixes, and the slots of memory that hang on them."""

import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fader.engine.memory import TorchMemory
from fader.engine.prefix import CacheSlot, Policy, Prefix, PromptTrie, find_or_allocate

POLICY = Policy("model", (1, 2, 3))


def memory(slots: int = 4, paged: bool | None = None) -> TorchMemory:
    made = TorchMemory(2, 1, 4, 4, torch.float32, torch.device("cpu"), 64 * 64, paged)
    made.reserve((slots, 64))
    return made


def read(memory: TorchMemory, prefix: Prefix) -> tuple[CacheSlot, int, bool]:
    """What the engine does with a prefix, but for the forward."""
    slot, held, is_new = find_or_allocate(memory, POLICY, prefix)
    slot.held = len(POLICY.prompt) + prefix.length
    prefix.memo[POLICY] = slot
    return slot, held, is_new


def test_a_prefix_is_its_tokens():
    root = Prefix()
    child = root.then(5).then(6, 7)
    assert (root.tokens, child.tokens, child.length) == ([], [5, 6, 7], 3)
    assert [child.ending(count) for count in (0, 1, 2, 3, 9)] == [
        [],
        [7],
        [6, 7],
        [5, 6, 7],
        [5, 6, 7],
    ]
    assert [node.length for node in child.line()] == [3, 1, 0]


def test_a_child_grows_in_place_and_a_second_one_is_a_fork():
    pool, root = memory(), Prefix()
    slot, held, is_new = read(pool, root)
    assert (held, is_new) == (0, True)
    first, second = root.then(5), root.then(6)
    assert read(pool, first) == (slot, 3, False)
    fork, held, is_new = read(pool, second)
    assert (fork is slot, held, is_new) == (False, 3, True)
    assert read(pool, second) == (fork, 4, False)  # known to its end
    assert pool.taken == 2


def test_when_a_child_is_gone_the_next_one_grows_in_its_place():
    pool, root = memory(), Prefix()
    slot, *_ = read(pool, root)
    child = root.then(5, 6)
    read(pool, child)
    del child
    assert slot.held == 5
    other = root.then(7)
    assert read(pool, other) == (slot, 3, False)  # of what it holds, 3 positions are this one's


def test_what_a_slot_holds_no_more_is_not_known():
    pool, root = memory(), Prefix()
    slot, *_ = read(pool, root)
    child = root.then(5, 6)
    read(pool, child)
    slot.held = 2  # somebody reads from farther back, and was stopped on the way
    assert find_or_allocate(pool, POLICY, child) == (slot, 2, False)
    fork, held, is_new = find_or_allocate(pool, POLICY, root.then(9))
    assert (fork.held, held, is_new) == (2, 2, True)


def test_release_behind_keeps_the_farthest_memo_of_each_policy():
    pool, other = memory(), Policy("model", (4,))
    root = Prefix()
    middle = root.then(5)
    end = middle.then(6)
    for node in (root, middle, end):
        read(pool, node)
    middle.memo[other] = CacheSlot(pool, pool.allocate())
    end.release_behind(root)
    assert [set(node.memo) for node in (root, middle, end)] == [{POLICY}, {other}, {POLICY}]


def test_a_slot_returns_with_the_last_prefix_on_any_thread():
    """Four threads drop prefixes while one reads new ones and the memory grows."""
    pool, handed, done = memory(1), deque(), threading.Event()

    def drop() -> None:
        while handed or not done.is_set():
            with suppress(IndexError):
                handed.popleft()

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for slots in range(1, 60):
        pool.reserve((slots, 64))
        for _ in range(30):
            prefix = Prefix()
            with suppress(MemoryError):
                read(pool, prefix)
            handed.append(prefix)
    done.set()
    for thread in threads:
        thread.join()
    del prefix
    assert pool.taken == 0
    slots = [pool.allocate() for _ in range(pool.slots)]
    assert sorted(slots) == list(range(pool.slots))  # none lost, none twice


BOTH = pytest.mark.parametrize("paged", [True, False])
"""Memory that is taken by pages, and memory that is taken at once."""


@BOTH
def test_giving_a_slot_back_touches_nothing_until_the_engine_looks(paged):
    pool = memory(2, paged)
    slot = pool.allocate()
    pool.wrote(slot, 64)
    pool.keys[:, slot] = float("nan")
    pool.judge(slot, is_sound=False)
    thread = threading.Thread(target=pool.free, args=(slot,))
    thread.start()
    thread.join()
    assert pool.taken == 0
    assert pool.keys[:, slot].isnan().all()
    assert pool.allocate() == slot
    assert not pool.keys.isnan().any()  # wiped before another row gets it


@BOTH
def test_a_fork_of_what_may_not_be_finite_may_not_be_either(paged):
    pool = memory(2, paged)
    slot = pool.allocate()
    pool.wrote(slot, 64)
    pool.judge(slot, is_sound=False)
    pool.values[:, slot] = float("inf")
    copy = pool.fork(slot, 5)
    assert pool.values[:, copy, :, :5].isinf().all()
    pool.free(copy)
    pool.judge(slot, is_sound=True)
    assert pool.allocate() == copy
    assert pool.values[:, copy].isfinite().all()


@BOTH
def test_memory_grows_and_keeps_what_is_in_use(paged):
    pool = memory(1, paged)
    each = 2 * 2 * 4 * 4  # layers, keys and values, dim, bytes
    slot, free = pool.allocate(), set(range(pool.slots))
    pool.wrote(slot, 60)
    pool.keys[:, slot, :, :60] = 7
    pool.reserve((1, 64), (3, 100))
    assert (pool.slots >= 4, pool.capacity) == (True, 128)
    assert (pool.keys[:, slot, :, :60] == 7).all()
    assert not pool.keys[:, slot, :, 60:].any()
    assert not any(pool.keys[:, other].any() for other in free - {slot})
    assert pool.used == (60 if paged else 128) * each
    assert pool.reserved == pool.used * (1 if paged else pool.slots)
    pool.free(slot)
    assert pool.used == 0
    pool.reserve((pool.slots, 64))
    assert pool.capacity == 128  # it fits as it is


def test_by_pages_a_long_row_makes_the_others_no_dearer():
    """Of 64 x 64 positions."""
    needs = (1, 48 * 64), (15, 64)
    whole, paged = memory(1, False), memory(1, True)
    assert (whole.area(*needs), paged.area(*needs)) == (16 * 48 * 64, 63 * 64)
    assert whole.room(*needs) < 0
    assert paged.room(*needs) == 64
    paged.reserve(*needs)
    assert (paged.slots, paged.capacity) == (16, 48 * 64)
    slots = [paged.allocate() for _ in range(16)]
    for slot in slots:
        paged.wrote(slot, 64)
    paged.wrote(slots[3], 48 * 64)
    assert paged.reserved == paged.used == 2 * 2 * 4 * 4 * 63 * 64
    assert paged.room() == 64


def test_no_mix_of_long_and_short_rows_exceeds_the_budget():
    """A slot that a long row has left takes no more than its new row announces."""
    pool, budget = memory(1, True), 64 * 64
    for place in range(16):
        running = [(1, 64)] * place
        assert pool.room(*running, (1, 48 * 64)) >= 0
        pool.reserve(*running, (1, 48 * 64))
        long = pool.allocate()
        pool.wrote(long, 48 * 64)
        pool.free(long)
        assert pool.room(*running, (1, 64)) >= 0
        pool.reserve(*running, (1, 64))
        pool.wrote(pool.allocate(), 60)  # it stays
        assert pool.reserved <= budget * 2 * 2 * 4 * 4
    assert pool.taken == 16


def test_addresses_may_exceed_the_memory_that_there_is():
    position = 1 << 20  # bytes
    there = psutil.virtual_memory().total // position
    pool = TorchMemory(
        1, 1, position // 8, position // 8, torch.float32, torch.device("cpu"), 4 * there, True
    )
    pool.reserve((1, 2 * there))
    slot = pool.allocate()
    pool.wrote(slot, 1)
    pool.keys[:, slot, :, 0] = 1
    assert pool.used == position


def test_pages_of_free_slots_are_given_back_when_the_budget_needs_them():
    width = 512
    pool = TorchMemory(4, 2, 64, 64, torch.float32, torch.device("cpu"), 20 * width, True)
    pool.reserve((16, width))
    slots = [pool.allocate() for _ in range(16)]
    for slot in slots:
        pool.wrote(slot, width)
        pool.keys[:, slot], pool.values[:, slot] = slot + 1, slot + 1
    each = 4 * 2 * 128 * 4 * width
    assert pool.reserved == 16 * each
    for slot in slots[1:]:
        pool.free(slot)
    pool.reserve((3, width), (1, width))
    assert pool.reserved == 16 * each  # 1 in use and 15 free: 3 more of 20 fit
    assert (pool.keys[:, 1:] == torch.arange(2.0, 17).view(1, 15, 1, 1, 1)).all()
    taken = psutil.Process().memory_info().rss
    pool.reserve((3, width), (1, width), beside=6 * width)
    assert taken - psutil.Process().memory_info().rss > 4 * each
    assert pool.reserved == 11 * each  # 4, 6 and 10 free ones
    assert not pool.keys[:, 11:].any()
    assert not pool.values[:, 11:].any()
    assert (pool.values[:, :11] == torch.arange(1.0, 12).view(1, 11, 1, 1, 1)).all()
    assert pool.allocate() == 1


class Texts:
    """A trie over a memory in which what a position holds says of which text and mixture it is."""

    def __init__(self, budget: int = 512) -> None:
        self.memory = TorchMemory(2, 1, 4, 4, torch.float32, torch.device("cpu"), budget)
        self.memory.reserve((1, 64))
        self.trie = PromptTrie(self.memory)

    def truth(self, mixture, tokens) -> torch.Tensor:
        ends = range(1, len(tokens) + 1)
        marks = [float(hash((mixture, tokens[:end])) % 10**6) for end in ends]
        return torch.tensor(marks)[:, None].expand(-1, 4)

    def read(self, mixture, tokens) -> None:
        slot = self.memory.allocate()
        for memory in (self.memory.keys, self.memory.values):
            memory[:, slot, :, : len(tokens)] = self.truth(mixture, tokens)
        self.trie.add(mixture, tokens, slot)
        self.memory.free(slot)

    def restored(self, mixture, tokens) -> int:
        """How much of a text is known. It must be that text's."""
        slot = CacheSlot(self.memory, self.memory.allocate())
        count = self.trie.restore(mixture, tokens, slot)
        assert slot.held == count == self.trie.known(mixture, tokens)
        for memory in (self.memory.keys, self.memory.values):
            held = memory[:, slot.index, 0, :count]
            assert (held == self.truth(mixture, tokens)[:count]).all()
        return count


def test_the_trie_knows_the_longest_beginning_under_the_same_mixture():
    texts, warm = Texts(), (("warm", 0.5),)
    texts.read((), (1, 2, 3, 4, 5))
    assert texts.restored((), (1, 2, 3, 9)) == 3  # the middle of what was read at once
    texts.read((), (1, 2, 3, 9, 9))
    texts.read((), (1, 2, 3, 4, 5, 6, 7))
    assert texts.trie.positions == 9  # what they have in common is there once
    assert texts.trie.nbytes == 9 * 2 * 2 * 4 * 4  # layers, keys and values, dim, bytes
    assert texts.restored((), (1, 2, 3, 4, 5, 6, 7, 8)) == 7
    assert texts.restored((), (1, 2, 3, 9, 9)) == 5
    assert texts.restored((), (2, 3)) == texts.restored(warm, (1, 2, 3)) == 0
    texts.read(warm, (1, 2))
    assert texts.restored(warm, (1, 2, 3)) == 2


def test_the_trie_lets_go_of_what_was_used_least_recently():
    texts = Texts(budget=64 + 9)  # a slot, and nine positions beside it
    texts.read((), (1, 2, 3, 4))
    texts.read((), (5, 6, 7))
    texts.read((), (1, 2, 8, 9))
    assert texts.restored((), (5, 6, 7)) == 3
    texts.read((), (1, 2, 7, 7))  # two more than there is room for: the tail 3, 4 goes
    assert texts.restored((), (1, 2, 3, 4)) == 2
    assert texts.restored((), (1, 2, 8, 9)) == texts.restored((), (1, 2, 7, 7)) == 4
    assert texts.restored((), (5, 6, 7)) == 3
    texts.read((), tuple(range(20, 40)))  # more than there is room for at all
    assert texts.restored((), tuple(range(20, 40))) == texts.trie.positions == 9
    texts.trie.shrink(0)
    assert (texts.trie.positions, texts.trie.nbytes) == (0, 0)
    assert not texts.trie._first  # nor does it hold mixtures, and so their vectors


def test_the_trie_forgets_what_was_read_with_a_vector():
    texts, one, two = Texts(), object(), object()
    for mixture in ((), ((one, 1.0),), ((one, 1.0), (two, 0.5)), ((two, 1.0),)):
        texts.read(mixture, (1, 2, 3))
        texts.read(mixture, (1, 2, 4))
    texts.trie.forget(one)
    assert [*texts.trie._first] == [(), ((two, 1.0),)]
    assert texts.trie.positions == 8
    texts.trie.forget_mixture(())
    assert texts.restored((), (1, 2, 3)) == 0
    assert texts.restored(((two, 1.0),), (1, 2, 3)) == 3


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([(), (("warm", 1.0),)]),
            st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple),
            st.booleans(),
        ),
        max_size=40,
    ),
    beside=st.integers(0, 30),
)
def test_whatever_the_trie_gives_back_is_of_the_text_that_was_asked(asked, beside):
    texts = Texts(64 + beside)
    for mixture, tokens, reads in asked:
        if reads:
            texts.read(mixture, tokens)
            assert texts.restored(mixture, tokens) == min(len(tokens), beside)
        else:
            texts.restored(mixture, tokens)
        assert texts.trie.positions <= beside
        held = sum(len(stretch.tokens) for stretch in texts.trie._by_use)
        assert texts.trie.positions == held
    texts.trie.shrink(0)
    assert texts.trie.nbytes == 0


def test_what_is_restored_is_wiped_if_its_row_ends_unread():
    """It may be that it is not finite."""
    pool = memory(2)
    slot = pool.allocate()
    pool.keys[:, slot] = float("nan")
    kept = pool.keep(slot, 0, 3)
    other = pool.allocate()
    pool.restore(other, 0, kept, 2)
    assert pool.keys[:, other].isnan().any()
    pool.free(other)
    assert pool.allocate() == other
    assert not pool.keys[:, other].isnan().any()


def test_copies_take_of_the_room_ahead_of_need_and_leave_what_is_needed():
    pool = memory(1, False)
    slot = pool.allocate()
    assert pool.room() == pool.room((1, 64)) == 63 * 64
    pool.reserve((40, 64), beside=20 * 64)
    assert (pool.slots, pool.room()) == (40, 24 * 64)
    pool.reserve((41, 64), beside=20 * 64)
    assert pool.slots == 44  # not 80, nor the 64 of the budget
    pool.free(slot)


def test_what_runs_leaves_the_rest_of_the_budget_to_copies():
    pool = memory(1, True)
    assert pool.room() == 64 * 64
    slot = pool.allocate()
    pool.reserve((1, 64), (2, 100))
    assert pool.room() == pool.room((1, 64), (2, 100)) == (64 - 5) * 64
    pool.free(slot)
    assert pool.room() == 64 * 64


def test_programs_and_prefixes_need_no_torch():
    """They are imported in a process that has the package's folder but not its front."""
    folder = Path(__file__).parent.parent / "fader"
    code = f"""
import sys, types
package = types.ModuleType("fader")
package.__path__ = [{str(folder)!r}]
sys.modules["fader"] = package
import fader.engine.prefix, fader.engine.program, fader.engine.protocols
import fader.engine.running, fader.engine.stats
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
