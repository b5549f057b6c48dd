"""The engine: jobs, faults, memory, figures."""

import asyncio
import logging
import threading

import pytest
from conftest import until

from fader import Busy, Cancelled, Fader, load
from fader.engine.loop import Engine, Stats
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import Emit, NextLogits, Score, UsageSoFar

POLICY_PROMPT = (7, 8, 9)


def counting(model, steps=10**6):
    """A program that reads token after token, and says each."""
    policy, prefix = Policy(model, POLICY_PROMPT), Prefix()
    for step in range(steps):
        yield NextLogits(policy, [prefix])
        yield Emit(step)
        prefix = prefix.then(10 + step % 300)
    return (yield UsageSoFar())


class TestRunning:
    def test_it_gives_the_result_the_items_and_the_cost(self, tiny):
        items = []
        running = tiny.backend.engine.run(
            counting(tiny.model, 5), {tiny.model: (1, 64)}, items.append
        )
        usage = running.result(timeout=30)
        assert items == [0, 1, 2, 3, 4]
        assert (usage.rows, usage.forward_passes, usage.tokens_read) == (5, 5, 3 + 4)
        assert 0 < usage.seconds <= running.usage.seconds
        assert not running.cancel()
        assert running.result() is usage

    def test_cancelled_while_it_runs(self, tiny):
        begun = threading.Event()
        running = tiny.backend.engine.run(
            counting(tiny.model), {tiny.model: (1, 500)}, lambda item: begun.set()
        )
        assert begun.wait(30)
        assert running.cancel()
        with pytest.raises(Cancelled):
            running.result(timeout=30)
        assert not running.cancel()
        assert tiny.backend.backbones[tiny.model].memory.taken == 0

    def test_cancelled_while_it_waits_and_after_the_end_of_the_engine(self, tiny_folder):
        with Fader(load(str(tiny_folder), kv_bytes=64 * 768)) as fader:  # one row of 64 positions
            needs = {fader.model: (1, 64)}
            first = fader.backend.engine.run(counting(fader.model), needs)
            second = fader.backend.engine.run(counting(fader.model), needs)
            third = fader.backend.engine.run(counting(fader.model), needs)
            assert second.cancel()
            with pytest.raises(Cancelled):
                second.result(timeout=30)
            assert not first.done()
        for running in (first, third):  # closing ends those that run and those that wait
            assert isinstance(running.exception(timeout=30), Cancelled)
            assert not running.cancel()
        with pytest.raises(RuntimeError, match="closed"):
            fader.backend.engine.run(counting(fader.model), needs)

    def test_a_cancelled_asyncio_task_cancels_it(self, tiny):
        async def run():
            running = tiny.backend.engine.run(counting(tiny.model), {tiny.model: (1, 500)})
            task = asyncio.wrap_future(running)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return running

        assert isinstance(asyncio.run(run()).exception(timeout=30), Cancelled)

    def test_more_than_may_wait_are_refused(self, tiny_folder):
        backbone = load(str(tiny_folder), kv_bytes=64 * 768)
        engine = Engine({backbone.name: backbone}, max_waiting=2)
        needs = {backbone.name: (1, 64)}
        begun = threading.Event()
        first = engine.run(counting(backbone.name), needs, lambda item: begun.set())
        assert begun.wait(30)
        waiting = [engine.run(counting(backbone.name), needs) for _ in range(2)]
        with pytest.raises(Busy, match=r"2 jobs wait, as many as may \(max_waiting=2\)"):
            engine.run(counting(backbone.name), needs)
        waiting[0].cancel()
        assert isinstance(waiting[0].exception(timeout=30), Cancelled)
        later = engine.run(counting(backbone.name), needs)
        assert (engine.stats().live, engine.stats().waiting) == (1, 2)
        engine.close()
        assert all(isinstance(one.exception(), Cancelled) for one in (first, waiting[1], later))
        assert (engine.stats().live, engine.stats().waiting) == (0, 0)

    def test_needs_of_an_unknown_backbone_are_refused(self, tiny):
        with pytest.raises(ValueError, match="needs: there is no backbone 'nowhere'"):
            tiny.backend.engine.run(counting("nowhere"), {"nowhere": (1, 64)})


def test_stats_say_what_was_read(tiny_folder):
    backbone = load(str(tiny_folder))
    engine = Engine({backbone.name: backbone})
    assert engine.stats() == Stats(0, 0, 0, 0, 0, engine.stats().kv_reserved, 0)
    policy = Policy(backbone.name, POLICY_PROMPT)

    def program():
        root = Prefix()
        yield NextLogits(policy, [root])
        children = [root.then(token) for token in range(10, 14)]  # one goes on, three are forks
        yield NextLogits(policy, children)
        yield Emit(engine.stats())
        return children  # which hold the memory

    found = []
    running = engine.run(program(), {backbone.name: (4, 64)}, found.append)
    children = running.result(timeout=30)
    stats = found[0]
    assert (stats.live, stats.waiting) == (1, 0)
    assert stats.prompt_share_from_memory == 3 / 4
    assert stats.tokens_per_second == pytest.approx(stats.rows_per_second * 7 / 5)
    assert stats.kv_used == 4 * 64 * 768  # rows, positions, bytes of one position
    assert stats.kv_reserved >= stats.kv_used
    assert engine.stats().kv_used == stats.kv_used
    del children, running
    until(lambda: engine.stats().kv_used == 0)
    engine.close()


class TestFaultsEndTheirJobOnly:
    def ends_with(self, tiny, program, on_item=lambda item: None, rows=1):
        error = tiny.backend.engine.run(program, {tiny.model: (rows, 64)}, on_item).exception(
            timeout=30
        )
        assert tiny.generate("the sea", max_tokens=2).text is not None  # the engine lives
        return error

    def test_a_receiver_that_fails(self, tiny):
        def program():
            yield Emit("x")

        def fail(item):
            raise RuntimeError("no room")

        assert "no room" in str(self.ends_with(tiny, program(), fail))

    def test_a_program_that_fails_or_asks_for_nonsense(self, tiny):
        def broken():
            yield Emit("x")
            raise KeyError("oh")

        def nonsense():
            yield 3

        def elsewhere():
            yield NextLogits(Policy("nowhere", (1,)), [Prefix()])

        assert isinstance(self.ends_with(tiny, broken()), KeyError)
        assert "it may ask" in str(self.ends_with(tiny, nonsense()))
        assert "it may ask" in str(self.ends_with(tiny, elsewhere()))

    def test_two_rewards_of_which_one_fails(self, tiny):
        def fail(prompts, texts):
            raise RuntimeError("the judge is out")

        def program():
            yield [Score(fail, ["p"], ["t"]), Score(lambda prompts, texts: [1.0], ["p"], ["t"])]

        assert "the judge is out" in str(self.ends_with(tiny, program()))

    def test_a_text_that_breaks_a_shared_reward(self, tiny):
        """Nobody suffers from another's text; a lost connection concerns all, and is not asked for
        again."""
        calls = []

        def pick(prompts, texts):
            calls.append(list(texts))
            if "bad" in texts:
                raise ValueError("no text of mine")
            if "far" in texts:
                raise ConnectionError("gone")
            if "lost" in texts:
                raise FileNotFoundError("no such file")
            return [float(len(text)) for text in texts]

        def ends(*texts):
            started = {}
            calls.clear()

            def program(text):
                yield [Score(pick, ["p"], [text])]
                return (yield Score(pick, ["p"], [text + "!"]))

            def start(text):
                started[text] = tiny.backend.engine.run(program(text), {tiny.model: (1, 64)})

            tiny.backend.engine._send(lambda: [start(text) for text in texts])
            until(lambda: len(started) == len(texts))
            return {
                text: running.exception(timeout=30) or running.result()
                for text, running in started.items()
            }

        assert ends("a", "bc") == {"a": [2.0], "bc": [3.0]}
        assert calls == [["a", "bc"], ["a!", "bc!"]]
        found = ends("a", "bad", "bc")
        assert (found["a"], found["bc"], str(found["bad"])) == ([2.0], [3.0], "no text of mine")
        assert ends("a", "lost")["a"] == [2.0]
        assert [type(error) for error in ends("a", "far").values()] == [
            ConnectionError,
            ConnectionError,
        ]
        assert calls == [["a", "far"]]

    def test_more_rows_than_announced(self, tiny):
        def program():
            root = Prefix()
            keep = [root]
            for width in range(2, 200):
                keep += [root.then(10, token % 300, width) for token in range(width)]
                yield NextLogits(Policy(tiny.model, (7, 8, 9)), keep)

        assert isinstance(self.ends_with(tiny, program()), MemoryError)
        assert tiny.backend.backbones[tiny.model].memory.taken == 0


def test_no_memory_for_a_job_ends_that_job_alone(tiny_folder, monkeypatch):
    with Fader(str(tiny_folder)) as fader:
        memory = fader.backend.backbones[fader.model].memory
        reserve = memory.reserve
        monkeypatch.setattr(
            memory, "reserve", lambda *wanted: (_ for _ in ()).throw(RuntimeError("out of memory"))
        )
        with pytest.raises(RuntimeError, match="out of memory"):
            fader.generate("the sea", max_tokens=2)
        monkeypatch.setattr(memory, "reserve", reserve)
        assert fader.generate("the sea", max_tokens=2).text


def test_a_failed_forward_gives_its_memory_back(tiny_folder, monkeypatch):
    monkeypatch.setattr(
        logging.getLogger("fader"), "disabled", True
    )  # here logged faults are kept, with all that their frames hold
    with Fader(str(tiny_folder)) as fader:
        backbone = fader.backend.backbones[fader.model]
        monkeypatch.setattr(
            backbone,
            "forward",
            lambda segments: (_ for _ in ()).throw(RuntimeError("out of memory")),
        )
        with pytest.raises(RuntimeError, match="out of memory") as held:
            fader.generate("the sea", max_tokens=2, n=4, temperature=1.0)
        until(lambda: backbone.memory.taken == 0, seconds=2)
        assert held.value  # the error is still held, and what its frames held is not


def test_what_others_do_in_the_engines_thread_does_not_end_it(tiny):
    tiny.backend.engine._send(lambda: 1 / 0)
    assert tiny.generate("the sea", max_tokens=1).text
