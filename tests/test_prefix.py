"""Prefixes, and the slots of memory that hang on them."""

import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

import torch

from fader.engine.memory import TorchMemory
from fader.engine.prefix import CacheSlot, Policy, Prefix, find_or_allocate

POLICY = Policy("model", (1, 2, 3))


def memory(slots: int = 4) -> TorchMemory:
    made = TorchMemory(2, 1, 4, 4, torch.float32, torch.device("cpu"), budget=64 * 64)
    made.reserve(slots, 64)
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
        pool.reserve(slots, 64)
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


def test_giving_a_slot_back_touches_nothing_until_the_engine_looks():
    pool = memory(2)
    slot = pool.allocate()
    pool.keys[:, slot] = float("nan")
    pool.judge(slot, is_sound=False)
    thread = threading.Thread(target=pool.free, args=(slot,))
    thread.start()
    thread.join()
    assert pool.taken == 0
    assert pool.keys[:, slot].isnan().all()
    assert pool.allocate() == slot
    assert not pool.keys.isnan().any()  # wiped before another row gets it


def test_a_fork_of_what_may_not_be_finite_may_not_be_either():
    pool = memory(2)
    slot = pool.allocate()
    pool.judge(slot, is_sound=False)
    pool.values[:, slot] = float("inf")
    copy = pool.fork(slot, 5)
    assert pool.values[:, copy, :, :5].isinf().all()
    pool.free(copy)
    pool.judge(slot, is_sound=True)
    assert pool.allocate() == copy
    assert pool.values[:, copy].isfinite().all()


def test_memory_grows_and_keeps_what_is_in_use():
    pool = memory(1)
    slot = pool.allocate()
    pool.keys[:, slot, :, :64] = 7
    pool.reserve(3, 100)
    assert (pool.slots >= 3, pool.capacity) == (True, 128)
    assert (pool.keys[:, slot, :, :64] == 7).all()
    assert pool.used == 2 * 128 * 2 * 4 * 4  # layers, positions, keys and values, dim, bytes
    assert pool.reserved == pool.used * pool.slots
    pool.free(slot)
    pool.reserve(pool.slots, 64)
    assert pool.capacity == 128  # it fits as it is


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
