"""The engine: jobs, faults, memory, figures."""

import asyncio
import hashlib
import logging
import random
import re
import threading
import time
from collections import deque

import pytest
import torch
from conftest import tokenizer, until
from hypothesis import given, settings
from hypothesis import strategies as st

from fader import Busy, Cancelled, Fader, Vector, load
from fader.engine.loop import Engine
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import Emit, NextLogits, Remember, Score, SequenceLogits, UsageSoFar
from fader.engine.stats import Stats

POLICY_PROMPT = (7, 8, 9)


class Slots:
    """The `Memory` of `Remembering`: each slot is the tokens it holds. A slot that is freed is
    cleared by the engine's thread, when it is next asked."""

    def __init__(self, slots: int, budget: int) -> None:
        self.budget, self.slots = budget, slots
        self.holds: dict[int, list] = {}
        self._returned: deque[int] = deque()

    @property
    def used(self):
        return 8 * sum(map(len, list(self.holds.values())))

    @property
    def reserved(self):
        return 8 * self.budget

    def area(self, *needs):
        width = self.budget // self.slots
        return sum(rows * max(length, width) for rows, length in needs)

    def room(self, *needs):
        return self.budget - self.area(*needs)

    def reserve(self, *needs, beside=0):
        pass

    def allocate(self):
        while self._returned:
            del self.holds[self._returned.popleft()]
        if len(self.holds) == self.slots:
            raise MemoryError(f"all {self.slots} slots are taken")
        slot = min(set(range(self.slots)) - self.holds.keys())
        self.holds[slot] = []
        return slot

    def free(self, slot):
        self._returned.append(slot)

    def fork(self, slot, length):
        copy = self.allocate()
        self.holds[copy] = self.holds[slot][:length]
        assert len(self.holds[copy]) == length
        return copy

    def keep(self, slot, start, end):
        kept = KeptTokens(self.holds[slot][start:end])
        assert len(kept) == end - start
        return kept

    def restore(self, slot, start, kept, count):
        assert 0 < count <= len(kept)
        assert len(self.holds[slot]) == start
        self.holds[slot] += kept[:count]


class KeptTokens(list):
    """The `Kept` of `Slots`."""

    @property
    def nbytes(self):
        return 8 * len(self)

    def part(self, start, end):
        return KeptTokens(self[start:end])


class Remembering:
    """A second `Backbone`, which keeps to the Protocol and has nothing else in common with the one
    on PyTorch: its logits are drawn anew for each text and mixture, so that any position that was
    read wrongly, or not at all, shows. Holds callers to the contract of `forward`."""

    def __init__(self, name="remembering", slots=16, budget=4096, max_batch_tokens=512) -> None:
        self.name, self.fingerprint, self.dtype = name, "0123456789abcdef", "none"
        self.identity = self.fingerprint
        self.vocabulary, self.max_length, self.end_tokens = 400, 256, frozenset({1, 2})
        self.max_batch_tokens, self.layers = max_batch_tokens, {"all": (4, 4)}
        self.tokenizer, self.memory = tokenizer(), Slots(slots, budget)
        self.seen: set = set()

    def forward(self, segments):
        assert len({segment.slot for segment in segments}) == len(segments)
        assert sum(len(segment.tokens) for segment in segments) <= self.max_batch_tokens
        return [self._read(segment) for segment in segments]

    def _read(self, segment):
        held = self.memory.holds[segment.slot]
        assert segment.start <= len(held)
        assert 0 <= segment.keep <= len(segment.tokens) > 0
        mixture = tuple((vector.name, strength) for vector, strength in segment.vectors)
        self.seen |= {vector for vector, _ in segment.vectors}
        held[segment.start :] = [(token, mixture) for token in segment.tokens]
        ends = range(len(held) - segment.keep + 1, len(held) + 1)
        return torch.stack([self.logits(held[:end]) for end in ends] or [torch.empty(400)])[
            : segment.keep
        ]

    def logits(self, text):
        """The next-token logits after a text of (token, mixture)."""
        digest = hashlib.sha256(repr(list(text)).encode()).digest()
        noise = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        return torch.randn(self.vocabulary, generator=noise)

    def forget(self, vector):
        self.seen.discard(vector)

    def weight(self, name):
        raise KeyError(name)

    def check_tokens(self, ids):
        assert all(0 <= token < self.vocabulary for token in ids)

    def encode(self, text, special=False):
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def decode(self, tokens):
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


class TestAnotherBackbone:
    def truth(self, backbone, policy, prefix, back=0):
        text = [*policy.prompt, *prefix.tokens]
        mixture = tuple((vector.name, strength) for vector, strength in policy.vectors)
        return backbone.logits([(token, mixture) for token in text[: len(text) - back]])

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32), budget=st.sampled_from([3, 16, 512]), jobs=st.integers(1, 4))
    def test_every_answer_is_of_the_text_that_was_asked(self, seed, budget, jobs):
        """Random asks of growing, forking, dying prefixes, several of one prefix at a time, read
        again from farther back while longer ones live, beside jobs that are cancelled."""
        backbone = Remembering(slots=256, budget=2**15, max_batch_tokens=budget)
        engine = Engine({backbone.name: backbone}, token_budget=64)
        vector = Vector("v", {"all": (torch.zeros(1, 4), torch.zeros(4, 1))})

        def program(dice):
            policies = [
                Policy(backbone.name, (5, 6, 7, 8)),
                Policy(backbone.name, (9, 10), ((vector, 0.5),)),
            ]
            alive = [Prefix()]
            for _ in range(12):
                tail = [dice.randrange(10, 400) for _ in range(dice.randint(1, 4))]
                alive.append(dice.choice(alive).then(*tail))
                if len(alive) > 3:
                    alive.pop(dice.randrange(len(alive)))
                asks = []
                for _ in range(dice.randint(1, 4)):
                    policy, prefix = dice.choice(policies), dice.choice(alive)
                    if dice.random() < 0.5:
                        asks.append(NextLogits(policy, dice.choices(alive, k=2)))
                    else:
                        longest = len(policy.prompt) + prefix.length - 1
                        asks.append(SequenceLogits(policy, prefix, dice.randint(0, longest)))
                for ask, found in zip(asks, (yield asks), strict=True):
                    if isinstance(ask, NextLogits):
                        pairs = [(prefix, 0) for prefix in ask.prefixes]
                    else:
                        pairs = [(ask.prefix, back) for back in range(ask.length, 0, -1)]
                    assert len(found) == len(pairs)
                    for (prefix, back), mine in zip(pairs, found, strict=True):
                        assert torch.equal(mine, self.truth(backbone, ask.policy, prefix, back))

        needs = {backbone.name: (64, 60)}
        dice = random.Random(seed)
        running = [
            engine.run(program(random.Random(f"{seed} {job}")), needs) for job in range(jobs)
        ]
        cancelled = [one for one in running[1:] if dice.random() < 0.3 and one.cancel()]
        for one in running:
            error = one.exception(timeout=60)
            assert error is None or (one in cancelled and isinstance(error, Cancelled)), error
        engine.close()
        assert len(backbone.memory.holds) == len(backbone.memory._returned)

    def test_a_row_that_is_read_in_pieces_begins_anew_where_another_one_cut_its_slot(self):
        backbone = Remembering(max_batch_tokens=3)
        engine = Engine({backbone.name: backbone})
        policy, needs = Policy(backbone.name, (5, 6, 7, 8)), {backbone.name: (4, 60)}
        root = Prefix().then(*range(10, 16))
        long = root.then(*range(20, 30))
        forward, forwards, beside = backbone.forward, [], []

        def program(ask):
            return (yield ask)

        def watched(segments):
            forwards.append(segments)
            if len(forwards) == 6:  # 4 for the root: the long one is in its midst
                beside.append(engine.run(program(NextLogits(policy, [root])), needs))
            return forward(segments)

        engine.run(program(NextLogits(policy, [root])), needs).result(timeout=30)
        backbone.forward = watched
        forwards += [None] * 4
        found = engine.run(program(SequenceLogits(policy, long, 12)), needs).result(timeout=30)
        assert len(forwards) > 10
        assert len(found) == 12
        for back in range(1, 13):
            assert torch.equal(found[-back], self.truth(backbone, policy, long, back))
        assert torch.equal(beside[0].result(timeout=30)[0], self.truth(backbone, policy, root))
        engine.close()

    def test_it_serves_requests_with_guides_vectors_and_searches(self):
        backbone = Remembering(slots=64, budget=2**14)
        vector = Vector("v", {"all": (torch.ones(1, 4), torch.ones(4, 1))})
        words = {"kind": "length", "at_most": 3}
        with Fader(backbone) as fader:
            fader.add_vector(vector)
            alignments = [
                {},
                {"vectors": {"v": 0.5}},
                {"guides": [{"kind": "contrast", "principle": "be brief", "weight": 2}]},
                {"search": {"kind": "lookahead", "lookahead": 3, "rewards": [words]}},
                {"search": {"kind": "best-of-n", "n": 3, "rewards": [words]}},
            ]
            requests = [
                {
                    "prompt": "the sea",
                    "alignment": alignment,
                    "sampling": {
                        "max_tokens": 8,
                        "temperature": 1.0 if "best-of-n" in str(alignment) else 0,
                    },
                }
                for alignment in alignments
            ]
            together = fader.batch(requests)
            for request, result in zip(requests, together, strict=True):
                assert fader.generate(request).answers == result.answers
            assert len({result.answers[0].token_ids for result in together}) > 2
            bare = together[0].answers[0].token_ids
            text = [(token, ()) for token in backbone.encode("<|user|>the sea<|end|><|assistant|>")]
            for token in bare:
                assert token == int(backbone.logits(text).argmax())
                text.append((token, ()))
            assert backbone.seen == {vector}
            fader.remove_vector("v")
            until(lambda: not backbone.seen)

    def test_what_it_can_never_hold_is_refused(self):
        backbone = Remembering(slots=4, budget=256)
        engine = Engine({backbone.name: backbone})
        assert engine.fits({backbone.name: (4, 64)})
        for needs in ((5, 10), (4, 65)):
            assert not engine.fits({backbone.name: needs})
            with pytest.raises(ValueError, match=r"the budget of remembering is 256"):
                engine.run(counting(backbone.name), {backbone.name: needs})


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
        with pytest.raises(Busy, match=r"2 jobs wait, and 1 more .* \(max_waiting=2\)"):
            engine.run(counting(backbone.name), needs)
        with pytest.raises(Busy, match=r"2 jobs wait, and 3 more"):
            engine.run_all([(counting(backbone.name), needs, print)] * 3)
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
    position = 768  # bytes
    read = 3 + 1  # the prompt and a token
    row = (read if backbone.memory.paged else 64) * position
    assert 4 * row <= stats.kv_used <= stats.kv_reserved
    assert engine.stats().kv_used == stats.kv_used
    del children, running
    until(lambda: engine.stats().kv_used == 0)
    engine.close()


def greedy(model, steps=12, prompt=POLICY_PROMPT, vectors=()):
    """The likeliest tokens, one after the other."""
    policy, prefix = Policy(model, prompt, vectors), Prefix()
    for _ in range(steps):
        logits = yield NextLogits(policy, [prefix])
        prefix = prefix.then(int(logits[0].argmax()))
    return prefix.tokens


def once(ask):
    """A program that asks one thing."""
    return (yield ask)


class Stubborn:
    """An iterator that will not be closed."""

    def send(self, _):
        raise SystemExit("leave")

    def close(self):
        raise SystemError("no")


def vector_for(fader, name="huge", size=1.0):
    torch.manual_seed(3)
    return Vector(
        name,
        {
            layer: (torch.randn(2, inner) * size, torch.randn(out, 2) * size)
            for layer, (out, inner) in fader.backend.backbones[fader.model].layers.items()
            if layer.endswith(("v_proj", "down_proj"))
        },
    )


def bad_jobs(fader):
    """Programs that cannot go on, by what their error says."""
    model = fader.model
    huge, prompt = vector_for(fader), Policy(model, POLICY_PROMPT)

    def asks(**changes):
        return once(NextLogits(**{"policy": prompt, "prefixes": [Prefix()], **changes}))

    def score(reward, prompts=("p",), texts=("t",)):
        return once(Score(reward, prompts, texts))

    def leave(prompts, texts):
        raise SystemExit("leave")

    def raising():
        yield NextLogits(prompt, [Prefix()])
        raise SystemExit("leave")

    def stubborn():
        try:
            yield NextLogits(prompt, [Prefix()])
            yield 3
        finally:
            yield 4

    infinite = vector_for(fader, "infinite", size=float("inf"))
    return {
        r"not finite with \{huge: 1e\+38\}": greedy(model, vectors=((huge, 1e38),)),
        r"not finite with \{huge: -inf\}": greedy(model, vectors=((huge, float("-inf")),)),
        r"vectors.infinite: its factors for .* are not finite": greedy(
            model, vectors=((infinite, 1.0),)
        ),
        "float|str|sequence": greedy(model, vectors=((huge, "much"),)),
        "token 400 is none of the 400": asks(prefixes=[Prefix().then(400)]),
        "token -1 is none": asks(prefixes=[Prefix().then(10, -1)]),
        "token 'sea' is none": asks(policy=Policy(model, ("sea", 3))),
        "no attribute 'length'": asks(prefixes=[None]),
        "not iterable": asks(prefixes=3),
        "no attribute 'backbone'": asks(policy=None),
        "1 of the 0 positions": asks(policy=Policy(model, ())),
        "announced rows of at most 64": asks(prefixes=[Prefix().then(*range(10, 80))]),
        "5 of the 4 positions": once(SequenceLogits(prompt, Prefix().then(9), 4)),
        "it may ask": once(None),
        "a program ended with SystemExit": raising(),
        "it may ask NextLogits": stubborn(),
        r"a program ended with SystemExit\('leave'": Stubborn(),
        "no attribute 'send'": [1, 2],
        r"reward .* ended with SystemExit": score(leave),
        "'int' object is not callable": score(3),
        "object is not iterable": score(lambda prompts, texts: None),
        "real number": score(lambda prompts, texts: ["good"]),
        "gave nan for 't'": score(lambda prompts, texts: [float("nan")]),
        "gave 2 scores for 1 texts": score(lambda prompts, texts: [1.0, 2.0]),
        "'NoneType' object is not iterable": score(len, texts=None),
    }


class TestIsolation:
    @pytest.mark.parametrize("budget", [5, 512])
    def test_what_cannot_go_on_ends_alone(self, tiny, monkeypatch, budget):
        """Every kind of fault, all at once, between good jobs: each ends with its own error, and
        the good ones are as if they were alone."""
        monkeypatch.setattr(logging.getLogger("fader"), "disabled", True)
        monkeypatch.setattr(tiny.backend.engine, "token_budget", budget)
        needs = {tiny.model: (2, 64)}
        prompts = [tuple(range(10, 12 + place)) for place in range(8)]
        mild = ((vector_for(tiny, "mild", 0.2), 0.5),)
        good = [(prompt, mild if len(prompt) % 2 else ()) for prompt in prompts]

        def start(prompt, vectors):
            return tiny.backend.engine.run(greedy(tiny.model, 12, prompt, vectors), needs)

        alone = [start(*one).result(timeout=60) for one in good]
        bad = bad_jobs(tiny)
        running = {}
        for place, (said, program) in enumerate(bad.items()):
            running[said] = tiny.backend.engine.run(program, needs)
            if place % 3 == 0:
                running[place] = start(*good[place // 3 % len(good)])
        for said, one in running.items():
            if isinstance(said, int):
                assert one.result(timeout=60) == alone[said // 3 % len(good)]
            else:
                error = one.exception(timeout=60)
                assert isinstance(error, Exception)
                assert re.search(said, str(error)), (said, error)
        assert [start(*one).result(timeout=60) for one in good] == alone  # in the same slots
        del running, one, error
        until(lambda: tiny.backend.engine.stats().kv_used == 0)

    def test_no_prefixes_are_no_rows(self, tiny):
        found = tiny.backend.engine.run(
            once(NextLogits(Policy(tiny.model, (7,)), [])), {tiny.model: (1, 64)}
        ).result(timeout=30)
        assert found.shape == (0, 400)

    def test_a_row_that_was_not_finite_leaves_nothing_behind(self, tiny_folder):
        """Attention gives positions beyond a row's end the weight 0, and 0 times NaN is NaN: so a
        short row beside a longer one, in a slot that a broken row had, tells."""
        with Fader(load(str(tiny_folder))) as fader:
            needs = {fader.model: (2, 64)}
            huge = ((vector_for(fader), 1e38),)
            long, short = tuple(range(10, 50)), (7, 8)
            broken = [
                fader.backend.engine.run(greedy(fader.model, 9, long, huge), needs)
                for _ in range(2)
            ]
            for one in broken:
                with pytest.raises(ValueError, match="not finite"):
                    one.result(timeout=30)
            del broken, one
            both = [
                fader.backend.engine.run(greedy(fader.model, 9, it), needs) for it in (short, long)
            ]
            found = [one.result(timeout=30) for one in both]
        with Fader(load(str(tiny_folder))) as fader:
            for prompt, tokens in zip((short, long), found, strict=True):
                running = fader.backend.engine.run(greedy(fader.model, 9, prompt), needs)
                assert running.result(timeout=30) == tokens

    def test_a_forward_without_memory_is_made_in_parts(self, tiny, monkeypatch):
        backbone = tiny.backend.backbones[tiny.model]
        forward = backbone.forward

        def small(segments):
            if len(segments) > 1:
                raise RuntimeError("out of memory")
            return forward(segments)

        needs = {tiny.model: (1, 64)}
        expected = tiny.backend.engine.run(greedy(tiny.model), needs).result(timeout=30)
        monkeypatch.setattr(backbone, "forward", small)
        both = [tiny.backend.engine.run(greedy(tiny.model), needs) for _ in range(3)]
        assert [one.result(timeout=30) for one in both] == [expected] * 3

    def test_memory_that_another_thread_lets_go_of_lets_a_job_begin(self, tiny_folder):
        with Fader(load(str(tiny_folder), kv_bytes=128 * 768)) as fader:

            def keep():
                prefixes = [Prefix().then(token) for token in (10, 11)]
                yield NextLogits(Policy(fader.model, (7,)), prefixes)
                return prefixes

            held = fader.backend.engine.run(keep(), {fader.model: (2, 64)}).result(timeout=30)
            later = fader.backend.engine.run(greedy(fader.model, 100), {fader.model: (1, 128)})
            time.sleep(0.05)
            assert fader.backend.engine.stats().waiting == len(held) - 1
            held.clear()
            assert len(later.result(timeout=30)) == 100


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

    def test_a_reward_whose_thread_cannot_start(self, tiny, monkeypatch):
        def waiting():
            return (yield Score(lambda prompts, texts: [1.0], ["p"], ["t"], slow=True))

        def neighbour():
            yield NextLogits(Policy(tiny.model, (7, 8)), [Prefix().then(9)])
            return "well"

        def fail(_):
            raise RuntimeError("can't start new thread")

        tiny.generate("the sea", max_tokens=1)  # the engine's own thread runs
        started, needs = [], {tiny.model: (1, 64)}
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            engine = tiny.backend.engine
            engine._send(
                lambda: started.extend(engine.run(one(), needs) for one in (waiting, neighbour))
            )
            until(lambda: len(started) == 2)
            error = started[0].exception(timeout=30)
            assert started[1].result(timeout=30) == "well"
        assert re.fullmatch(r"reward .*: its thread could not start \(can't start .*\)", str(error))
        assert engine.run(waiting(), needs).result(timeout=30) == [1.0]

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
            memory, "reserve", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory"))
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


def test_a_budget_of_no_tokens_is_refused():
    """Nothing would ever be read."""
    with pytest.raises(ValueError, match=r"^token_budget: must be at least 1 \(got 0\)$"):
        Engine({}, token_budget=0)


def test_a_model_keeps_its_name_where_another_is_refused(tiny_folder):
    with Fader(load(str(tiny_folder))) as fader:
        (backbone,) = fader.backend.backbones.values()
        fader.backend.add_model("twin", str(tiny_folder))
        with pytest.raises(ValueError, match="there is one of the name 'twin' already"):
            fader.backend.add_model("twin", backbone)
        assert backbone.name == fader.model
        with pytest.raises(ValueError, match="there is one of the name"):
            Fader(backbone, models={backbone.name: str(tiny_folder)})


def test_an_engine_goes_on_where_its_thread_could_not_start(tiny_folder, monkeypatch):
    with Fader(load(str(tiny_folder))) as fader:
        with monkeypatch.context() as patch:

            def fail(_):
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="can't start"):
                fader.generate("the sea", max_tokens=2)
        assert (
            fader.backend.submit(fader.request("the sea", max_tokens=2)).result(timeout=10).answers
        )


class TestSharedPrompts:
    """What one job has read, others do not read again."""

    COMMON = tuple(range(10, 140))

    def together(self, engine, asks, needs):
        """Jobs of one ask each that come at the same time; those that run."""
        started = []

        def start():
            started.extend(engine.run(once(ask), needs) for ask in asks)

        engine._send(start)
        until(lambda: len(started) == len(asks))
        return started

    @pytest.mark.parametrize("piece", [16, 512])
    def test_jobs_that_begin_alike_at_the_same_time_read_it_once(self, piece):
        backbone = Remembering(max_batch_tokens=piece)
        engine, needs = Engine({backbone.name: backbone}), {backbone.name: (1, 150)}
        policies = [Policy(backbone.name, (*self.COMMON, place, 5)) for place in range(200, 206)]
        asks = [NextLogits(policy, [Prefix()]) for policy in policies]
        found = self.together(engine, asks, needs)
        for policy, running in zip(policies, found, strict=True):
            logits = running.result(timeout=30)[0]
            assert torch.equal(logits, TestAnotherBackbone().truth(backbone, policy, Prefix()))
        read, cached = (
            [getattr(running.usage, name) for running in found]
            for name in ("tokens_read", "cached_tokens")
        )
        assert [one + other for one, other in zip(read, cached, strict=True)] == [132] * 6
        assert cached[0] == 0
        # of what is left of the beginning, less than is worth waiting for is read by each
        assert all(count == 130 if piece == 512 else count > 130 - 64 for count in cached[1:])
        engine.close()

    def test_who_waits_for_another_goes_on_when_that_one_is_cancelled(self):
        backbone = Remembering(max_batch_tokens=16)
        engine, needs = Engine({backbone.name: backbone}), {backbone.name: (1, 150)}
        policies = [Policy(backbone.name, (*self.COMMON, place)) for place in (200, 201)]
        forward, forwards, running = backbone.forward, [], []

        def watched(segments):
            forwards.append([segment.slot for segment in segments])
            if len(forwards) == 2:
                running[0].cancel()
            return forward(segments)

        backbone.forward = watched
        asks = [NextLogits(policy, [Prefix()]) for policy in policies]
        engine._send(lambda: running.extend(engine.run(once(ask), needs) for ask in asks))
        until(lambda: len(running) == 2)
        logits = running[1].result(timeout=30)[0]
        assert torch.equal(logits, TestAnotherBackbone().truth(backbone, policies[1], Prefix()))
        assert isinstance(running[0].exception(timeout=30), Cancelled)
        assert [len(slots) for slots in forwards[:2]] == [1, 1]
        assert running[1].usage.cached_tokens == 32
        engine.close()

    def test_an_answer_is_remembered_where_its_program_says_so(self):
        backbone = Remembering()
        engine, needs = Engine({backbone.name: backbone}), {backbone.name: (2, 60)}
        policy = Policy(backbone.name, (5, 6, 7))

        def program(says):
            prefix = Prefix()
            for token in (11, 12, 13):
                yield NextLogits(policy, [prefix])
                prefix = prefix.then(token)
            if says:
                assert (yield Remember([policy, Policy(backbone.name, (9,))], prefix)) is None

        turn = Policy(backbone.name, (5, 6, 7, 11, 12, 13, 14))
        for says, cached in ((False, 3), (True, 5)):  # the last token was never read
            engine._prompts[backbone.name].shrink(0)
            engine.run(program(says), needs).result(timeout=30)
            running = engine.run(once(NextLogits(turn, [Prefix()])), needs)
            truth = TestAnotherBackbone().truth(backbone, turn, Prefix())
            assert torch.equal(running.result(timeout=30)[0], truth)
            assert (running.usage.cached_tokens, running.usage.tokens_read) == (cached, 7 - cached)
        engine.close()

    def test_what_is_remembered_makes_room_for_what_runs(self, tiny_folder):
        """No job waits for it, and together they stay within the budget."""
        whole = 8 * 64 * 768  # eight rows of 64 positions, in bytes
        backbone = load(str(tiny_folder), kv_bytes=whole)
        engine, name = Engine({backbone.name: backbone}), backbone.name
        for place in range(10):
            prompt = tuple(range(10 + place, 70 + place))
            engine.run(once(NextLogits(Policy(name, prompt), [Prefix()])), {name: (1, 64)}).result(
                timeout=30
            )
        stats = engine.stats()
        assert whole - 60 * 768 < stats.kv_remembered + stats.kv_reserved <= whole
        begun, done = [], threading.Event()

        def wait(prompts, texts):
            assert done.wait(30)
            return [0.0]

        def program(prompt):
            yield NextLogits(Policy(name, prompt), [Prefix()])
            yield Emit(prompt)
            yield Score(wait, ["p"], ["t"], slow=True)

        needs = [(1, 64), (3, 64), (4, 64)]
        running = [
            engine.run(program((5, 6, 7, place)), {name: rows}, begun.append)
            for place, rows in enumerate(needs)
        ]
        until(lambda: len(begun) == 3)
        stats = engine.stats()
        assert (stats.live, stats.waiting) == (3, 0)
        assert stats.kv_remembered == 0
        assert 0 < stats.kv_reserved <= whole
        done.set()
        for one in running:
            one.result(timeout=30)
        engine.close()

    def test_what_cannot_be_remembered_ends_no_job(self, tiny_folder, monkeypatch):
        backbone = load(str(tiny_folder))
        engine, needs = Engine({backbone.name: backbone}), {backbone.name: (1, 64)}

        def fail(*_):
            raise RuntimeError("out of memory")

        ask = NextLogits(Policy(backbone.name, POLICY_PROMPT), [Prefix()])
        first = engine.run(once(ask), needs).result(timeout=30)
        monkeypatch.setattr(backbone.memory, "keep", fail)
        other = NextLogits(Policy(backbone.name, (7, 9, 9)), [Prefix()])
        assert len(engine.run(once(other), needs).result(timeout=30)) == 1
        assert engine.stats().kv_remembered == 0
        torch.testing.assert_close(engine.run(once(ask), needs).result(timeout=30), first)
        engine.close()

    def test_what_was_not_finite_is_not_remembered(self, tiny_folder, monkeypatch):
        """A fault that passes spoils no later request."""
        backbone = load(str(tiny_folder))
        engine = Engine({backbone.name: backbone}, token_budget=4)
        needs = {backbone.name: (1, 64)}
        ask = NextLogits(Policy(backbone.name, (7, 8, 9, 10, 11, 12)), [Prefix()])
        forward = backbone.forward

        def spoiled(segments):
            found = forward(segments)
            backbone.memory.keys[:, segments[0].slot] = float("nan")
            return [logits * float("nan") for logits in found]

        with monkeypatch.context() as patch:
            patch.setattr(backbone, "forward", spoiled)
            error = engine.run(once(ask), needs).exception(timeout=30)
        assert "not finite" in str(error)
        assert engine.stats().kv_remembered == 0
        assert engine.run(once(ask), needs).result(timeout=30).isfinite().all()
        engine.close()

    def test_it_goes_with_its_vector_and_with_the_engine(self, tiny_folder):
        with Fader(load(str(tiny_folder))) as fader:
            vector = Vector("v", {})
            fader.add_vector(vector)
            fader.generate("the sea", max_tokens=2)
            bare = fader.backend.stats().kv_remembered
            fader.generate("the sea", max_tokens=2, alignment={"vectors": {"v": 1.0}})
            assert fader.backend.stats().kv_remembered == 2 * bare > 0
            fader.remove_vector("v")
            until(lambda: fader.backend.stats().kv_remembered == bare)
        assert fader.backend.stats().kv_remembered == 0

    def test_it_can_be_switched_off(self, tiny_folder):
        with Fader(load(str(tiny_folder)), share_prompts=False) as fader:
            costs = [fader.generate("the sea", max_tokens=2).usage for _ in range(2)]
            assert costs[0].tokens_read == costs[1].tokens_read
            assert costs[0].cached_tokens == fader.backend.stats().kv_remembered == 0
