"""The engine: programs in, answers out.

The engine gathers what all live programs (`program.py`) ask for. It reads the rows of one backbone
in one forward: single tokens first, longer reads in pieces beside them, under a token budget. It
calls each reward once for all programs; slow ones run beside the forwards, in threads of their own.
It resumes every program that has its answers. Continuous batching, mixed preferences in a batch,
cancellation and the release of memory all follow from this.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fader.answer import Usage
from fader.engine.prefix import (
    WORTH_WAITING,
    CacheSlot,
    Policy,
    Prefix,
    PromptTrie,
    find_or_allocate,
)
from fader.engine.program import (
    Ask,
    Emit,
    NextLogits,
    Program,
    Remember,
    Reward,
    Score,
    SequenceLogits,
    UsageSoFar,
)
from fader.engine.protocols import Backbone, Delta, Need, Segment
from fader.engine.running import Busy, Cancelled, Running
from fader.engine.stats import Meter, Stats
from fader.schema import Invalid

T = TypeVar("T")

Needs = Mapping[str, Need]
"""For each backbone: how many rows a program keeps alive at most, and how many positions the
longest of them takes, prompt included."""

Receiver = Callable[[Any], None]
"""Is called with what a program emits."""

LOOK = 0.1  # seconds after which waiting jobs are tried again: memory may have been freed


@dataclass(eq=False)
class _Job:
    """One program under way."""

    program: Program
    needs: Needs
    on_item: Receiver
    running: Running[Any]
    started: float = 0.0
    cancelled: bool = False
    asks: list[Ask] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    missing: int = 0
    single: bool = False

    @property
    def usage(self) -> Usage:
        return self.running.usage


@dataclass(eq=False)
class _Row:
    """A prefix on its way through a backbone."""

    policy: Policy
    prefix: Prefix
    keep: int
    waiting: list[Callable[[Tensor], None]]
    jobs: list[_Job]
    slot: CacheSlot | None = None
    done: int = 0
    pieces: list[Tensor] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.policy.prompt) + self.prefix.length

    @property
    def start(self) -> int:
        """The first position whose logits are asked for: from here on it is read in any case."""
        return self.total - self.keep

    @cached_property
    def text(self) -> tuple[int, ...]:
        """All its tokens, the prompt's included."""
        return (*self.policy.prompt, *self.prefix.tokens)

    def tokens(self, count: int) -> Sequence[int]:
        """The next `count` tokens to read."""
        left = self.total - self.done
        if left <= self.prefix.length:
            return self.prefix.ending(left)[:count]
        return self.text[self.done : self.done + count]


class Engine:
    """Runs many programs at once on some backbones, in a thread of its own that starts with the
    first job.

    `token_budget`: how many tokens a forward pass reads at most; `max_waiting`: how many jobs may
    wait at most; `share_prompts`: whether a job gets from memory what others have read.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        token_budget: int = 512,
        max_waiting: int | None = None,
        share_prompts: bool = True,
    ) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget: must be at least 1 (got {token_budget})")
        self.backbones = dict(backbones)
        self.token_budget = token_budget
        self.max_waiting = max_waiting
        self.share_prompts = share_prompts
        self._unstarted = 0  # jobs that were taken up and have neither started nor ended
        self._meter = Meter()
        self._inbox: deque[_Job | Callable[[], None]] = deque()
        self._waiting: deque[_Job] = deque()
        self._live: list[_Job] = []
        self._rows: dict[str, dict[tuple[Policy, Prefix, int], _Row]] = {
            name: {} for name in self.backbones
        }
        self._prompts = {name: PromptTrie(one.memory) for name, one in self.backbones.items()}
        self._away: dict[
            Score, Reward
        ] = {}  # what slow rewards are being asked; one call of each at a time
        self._answered: deque[
            tuple[Sequence[tuple[_Job, int, Score]], Sequence[list[float] | Exception]]
        ] = deque()
        self._wake = threading.Condition(threading.RLock())
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, name: str, backbone: Backbone) -> None:
        """Serve another model too, under that name, from now on. Raises ValueError for a name that
        is taken."""
        with self._wake:
            if name in self.backbones:
                raise ValueError(f"models: there is one of the name {name!r} already; give another")
            backbone.name = name
            self._rows = {**self._rows, name: {}}  # anew: the engine's thread may read the old
            self._prompts = {**self._prompts, name: PromptTrie(backbone.memory)}
            self.backbones = {**self.backbones, name: backbone}

    def fits(self, needs: Needs) -> bool:
        """Whether a job of these needs could ever run."""
        try:
            self.check(needs)
        except ValueError:
            return False
        return True

    def check(self, needs: Needs) -> None:
        """Raises ValueError if a job of these needs could never run."""
        for name, (rows, length) in needs.items():
            if name not in self.backbones:
                raise ValueError(
                    f"needs: there is no backbone {name!r}; there are {', '.join(self.backbones)}"
                )
            memory, longest = self.backbones[name].memory, self.backbones[name].max_length
            if length > longest:
                raise Invalid(
                    f"prompt and answer may take {length} tokens, {name} reads at most {longest};"
                    " shorten the prompt or lower max_tokens",
                    "messages",
                )
            if (area := memory.area((rows, length))) > memory.budget:
                raise Invalid(
                    f"{rows} rows of up to {length} tokens need"
                    f" {area} positions of KV memory, the budget of {name} is"
                    f" {memory.budget}; lower max_tokens, n or the number of policies, or give a"
                    " larger kv_bytes",
                    "alignment",
                )

    def run(
        self,
        program: Generator[Ask | list[Ask], Any, T],
        needs: Needs,
        on_item: Receiver = lambda _: None,
    ) -> Running[T]:
        """Run `program` as soon as there is memory for it; its result to come.

        `on_item` receives what the program emits, in the engine's thread: it must be quick, and its
        exception ends the job. Raises ValueError if there can never be memory, `Busy` if as many
        jobs wait as may wait, RuntimeError if the engine is closed; then nothing was queued.
        """
        [running] = self.run_all([(program, needs, on_item)])
        return running

    def run_all(
        self, given: Sequence[tuple[Generator[Ask | list[Ask], Any, T], Needs, Receiver]]
    ) -> list[Running[T]]:
        """`run` for several programs, each with its needs and its receiver, that begin together;
        or for none, where one of them cannot."""
        for _, needs, _ in given:
            self.check(needs)
        jobs = [self._job(*each) for each in given]
        with self._wake:
            if self.max_waiting is not None and self._unstarted + len(jobs) > self.max_waiting:
                raise Busy(
                    f"the engine is busy: {self._unstarted} jobs wait, and {len(jobs)} more would"
                    f" be too many (max_waiting={self.max_waiting}); try again later"
                )
            for job in jobs:
                self._send(job)
            self._unstarted += len(jobs)
        return [job.running for job in jobs]

    def _job(self, program: Program, needs: Needs, on_item: Receiver) -> _Job:
        def stop() -> None:
            if (job := known()) is not None:
                job.cancelled = True
                with suppress(RuntimeError):  # closed: everything has ended
                    self._send(lambda: None)

        job = _Job(program, needs, on_item, Running(stop))
        known = weakref.ref(job)  # a cycle would keep the result, and the memory of its prefixes
        return job

    def forget(self, vector: Delta) -> None:
        """Let every backbone drop what it holds for `vector`, between two forwards. Rows that still
        use it bring it back."""
        for name, backbone in self.backbones.items():
            self._send(partial(self._prompts[name].forget, vector))
            self._send(partial(backbone.forget, vector))

    def stats(self) -> Stats:
        """How busy the engine is at this moment. From any thread."""
        rows, tokens, share = self._meter.rates()
        memories = [backbone.memory for backbone in self.backbones.values()]
        return Stats(
            len(self._live),
            self._unstarted,
            rows,
            tokens,
            sum(memory.used for memory in memories),
            sum(memory.reserved for memory in memories),
            share,
            sum(prompts.nbytes for prompts in self._prompts.values()),
        )

    def close(self) -> None:
        """Cancel what runs and stop the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _send(self, item: _Job | Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="fader-engine", daemon=True)
                thread.start()
                self._thread = thread
            self._inbox.append(item)
            self._wake.notify()

    def _run(self) -> None:
        busy = False
        with torch.inference_mode():
            while True:
                closed = self._receive(busy)
                self._drop_cancelled(all_of_them=closed)
                if closed:
                    for prompts in self._prompts.values():
                        prompts.shrink(0)
                    return
                try:
                    busy = any(
                        [
                            self._admit(),
                            self._score(),
                            *(self._forward(name) for name in self.backbones),
                        ]
                    )
                except (
                    BaseException
                ) as error:  # a fault of ours: it ends all jobs, and the engine goes on
                    busy = True
                    logging.getLogger("fader").exception("the engine failed")
                    self._end_all(_fault("the engine", error.with_traceback(None)))

    def _receive(self, busy: bool) -> bool:
        """Take in new jobs and actions, and wait for them if there is no other work. Returns
        whether the engine was closed. (This is a method of its own since a local variable of the
        loop above would keep a job's memory after its end.)"""
        with self._wake:
            while not (self._inbox or busy or self._closed):
                busy = not self._wake.wait(LOOK if self._waiting else None)
            items = list(self._inbox)
            self._inbox.clear()
            closed = self._closed
        for item in items:
            if isinstance(item, _Job):
                self._waiting.append(item)
            else:
                _guarded("an action between steps", item)
        return closed

    def _drop_cancelled(self, all_of_them: bool) -> None:
        for job in [job for job in self._live if job.cancelled or all_of_them]:
            self._end(job, None, Cancelled("the job was cancelled"))
        for job in [job for job in self._waiting if job.cancelled or all_of_them]:
            self._waiting.remove(job)
            self._tell(job, None, Cancelled("the job was cancelled"))

    def _end_all(self, error: Exception) -> None:
        for job in list(self._live):
            self._end(job, None, error)

    def _admit(self) -> bool:
        """Start waiting jobs in their order while the memory they announced fits. Returns whether
        there was anything to do, as `_score` and `_forward` do."""
        admitted = False
        while self._waiting:
            try:
                if not self._fits(self._waiting[0]):
                    break
            except Exception as error:  # such as out of memory: this job ends, the others go on
                logging.getLogger("fader").exception("no memory could be had for a job")
                self._tell(self._waiting.popleft(), None, error.with_traceback(None))
                continue
            job = self._waiting.popleft()
            self._live.append(job)
            job.started = time.perf_counter()
            with self._wake:
                self._unstarted -= 1
            self._resume(job, None)
            admitted = True
        return admitted

    def _fits(self, job: _Job) -> bool:
        running = {
            name: [other.needs[name] for other in (*self._live, job) if name in other.needs]
            for name in job.needs
        }
        if any(self.backbones[name].memory.room(*needs) < 0 for name, needs in running.items()):
            return False
        for name, needs in running.items():
            memory, prompts = self.backbones[name].memory, self._prompts[name]
            prompts.shrink(memory.room(*needs))  # what is remembered makes room for what runs
            memory.reserve(*needs, beside=prompts.positions)
        return True

    def _resume(self, job: _Job, answer: Any) -> None:
        """Send `answer` to the job's program and put what it asks next into the queues."""
        while True:
            try:
                asked = job.program.send(answer)
            except StopIteration as stop:
                return self._end(job, stop.value, None)
            except BaseException as error:  # whatever it is: it ends this job, not the engine
                traceback.clear_frames(error.__traceback__)  # they would keep prefixes alive too
                job.asks = []  # and so would what it asked, while somebody holds the error
                return self._end(job, None, _fault("a program", error))
            job.single = not isinstance(asked, list)
            job.asks = asked if isinstance(asked, list) else [asked]
            job.answers = [None] * len(job.asks)
            job.missing = 0
            try:
                for index, ask in enumerate(job.asks):
                    self._take_up(job, index, ask)
            except BaseException as error:
                return self._end(job, None, _fault("the receiver of a job's items", error))
            if job.missing:
                return None
            answer = job.answers[0] if job.single else job.answers

    def _take_up(self, job: _Job, index: int, ask: Ask) -> None:
        if isinstance(ask, Emit):
            job.on_item(ask.item)
        elif isinstance(ask, UsageSoFar):
            job.usage.seconds = time.perf_counter() - job.started
            job.answers[index] = replace(job.usage)
        elif isinstance(ask, Remember):
            for policy in ask.policies:
                self._remember_answer(policy, ask.prefix)
        elif isinstance(ask, Score):
            job.missing += 1
        elif isinstance(ask, (NextLogits, SequenceLogits)) and ask.policy.backbone in job.needs:
            self._queue_rows(job, index, ask)
        else:
            raise ValueError(
                f"a program asked for {ask!r}; it may ask NextLogits or SequenceLogits of the"
                " backbones in its needs, Score, Emit, UsageSoFar, or Remember"
            )

    def _queue_rows(self, job: _Job, index: int, ask: NextLogits | SequenceLogits) -> None:
        prefixes = ask.prefixes if isinstance(ask, NextLogits) else [ask.prefix]
        keep = 1 if isinstance(ask, NextLogits) else ask.length + 1
        _, longest = job.needs[ask.policy.backbone]
        for prefix in prefixes:
            total = len(ask.policy.prompt) + prefix.length
            if not 1 <= keep <= total <= longest:
                raise ValueError(
                    f"a program asked for the logits at {keep} of the {total} positions of a row;"
                    f" it may ask for 1 to {total}, and announced rows of at most {longest}"
                )
        found: list[Tensor | None] = [None] * len(prefixes)
        left = len(prefixes)
        if not left:
            job.answers[index] = torch.empty(0, self.backbones[ask.policy.backbone].vocabulary)
            return
        job.missing += 1

        def deliver(place: int) -> Callable[[Tensor], None]:
            def put(logits: Tensor) -> None:
                nonlocal left
                found[place] = logits
                left -= 1
                if not left:
                    whole = [piece for piece in found if piece is not None]
                    job.answers[index] = (
                        torch.cat(whole) if isinstance(ask, NextLogits) else whole[0][:-1]
                    )
                    job.missing -= 1

            return put

        queue = self._rows[ask.policy.backbone]
        for place, prefix in enumerate(prefixes):
            row = queue.setdefault(
                (ask.policy, prefix, keep), _Row(ask.policy, prefix, keep, [], [])
            )
            row.waiting.append(deliver(place))
            row.jobs.append(job)

    def _score(self) -> bool:
        """Call each reward that live programs ask for once. A slow one is not called again until it
        has answered."""
        answered = bool(self._answered)
        while self._answered:
            self._scored(*self._answered.popleft())
        asked = [
            (job, i, ask)
            for job in self._live
            for i, ask in enumerate(job.asks)
            if isinstance(ask, Score) and job.answers[i] is None
        ]
        away = {id(reward) for reward in self._away.values()}
        rewards = {id(ask.reward): ask.reward for _, _, ask in asked if id(ask.reward) not in away}
        for reward in rewards.values():
            mine = [entry for entry in asked if entry[2].reward is reward]
            asks = [ask for _, _, ask in mine]
            if any(ask.slow for ask in asks):
                thread = threading.Thread(
                    target=self._score_beside, args=(reward, mine), name="fader-reward", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:  # as many threads as the system allows
                    ended = RuntimeError(f"reward {reward}: its thread could not start ({error})")
                    self._scored(mine, [ended] * len(mine))
                else:
                    self._away |= dict.fromkeys(asks, reward)
            else:
                self._scored(mine, _scores(reward, asks))
        return answered or bool(rewards)

    def _score_beside(self, reward: Reward, asked: Sequence[tuple[_Job, int, Score]]) -> None:
        with torch.inference_mode():
            found = _scores(reward, [ask for _, _, ask in asked])
        with suppress(RuntimeError):  # the engine was closed meanwhile
            self._send(lambda: self._answered.append((asked, found)))

    def _scored(
        self, asked: Sequence[tuple[_Job, int, Score]], found: Sequence[list[float] | Exception]
    ) -> None:
        """Hand out scores, except to jobs that have ended meanwhile."""
        for (job, index, ask), scores in zip(asked, found, strict=True):
            self._away.pop(ask, None)
            if job not in self._live:
                continue
            if isinstance(scores, Exception):
                self._end(job, None, scores)
                continue
            job.answers[index] = scores
            job.usage.reward_calls += len(ask.texts)
            job.missing -= 1
        for job in dict.fromkeys(job for job, _, _ in asked):
            self._resume_if_ready(job)

    def _forward(self, name: str) -> bool:
        """One forward of one backbone: single tokens first, then longer reads in pieces, as far as
        the token budget goes."""
        queue, backbone = self._rows[name], self.backbones[name]
        if not queue:
            return False
        picked = self._pick(queue, backbone)
        logits = self._read(picked, backbone)
        self._end_unsound(picked, logits)
        for job in self._deliver(queue, picked, logits):
            self._resume_if_ready(job)
        return True

    def _pick(
        self, queue: dict[tuple[Policy, Prefix, int], _Row], backbone: Backbone
    ) -> list[tuple[_Row, Segment]]:
        """The rows to read next, and how much of each, within the token budget."""
        for row in list(queue.values()):
            if row.jobs:  # the jobs of a row may end on the way
                self._place(row, queue, backbone)
        picked: list[tuple[_Row, Segment]] = []
        slots: set[int] = set()
        budget = min(self.token_budget, backbone.max_batch_tokens)
        for row in sorted(
            queue.values(), key=lambda row: row.total - row.done > 1
        ):  # stable: first come, first served
            if budget <= 0:
                break
            if not row.jobs or row.slot is None or row.slot.index in slots:
                continue  # of the rows of one slot, each is read in a forward of its own
            tokens = row.tokens(budget)
            if wrong := [token for token in tokens if not _is_token(token, backbone.vocabulary)]:
                error = ValueError(
                    f"messages: token {wrong[0]!r} is none of the {backbone.vocabulary} that"
                    f" {backbone.name} reads; take the tokenizer that belongs to the model"
                )
                self._end_row(row, error)
                continue
            end = row.done + len(tokens)
            keep = max(0, min(len(tokens), end - (row.total - row.keep)))
            segment = Segment(row.slot.index, row.done, tokens, keep, row.policy.vectors)
            picked.append((row, segment))
            slots.add(row.slot.index)
            budget -= len(tokens)
        return picked

    def _place(
        self,
        row: _Row,
        queue: Mapping[tuple[Policy, Prefix, int], _Row],
        backbone: Backbone,
    ) -> None:
        """Give a row its slot, unless it is worth waiting for what another row is reading. It
        begins after the positions that the slot holds already."""
        if row.slot is None:
            if self._waits(row, queue, backbone):
                return None
            try:
                row.slot, held, is_new = find_or_allocate(backbone.memory, row.policy, row.prefix)
            except MemoryError as error:
                return self._end_row(row, error.with_traceback(None))
            if is_new and not held and self.share_prompts:
                prompts, mixture = self._prompts[row.policy.backbone], row.policy.vectors
                held = prompts.restore(mixture, row.text[: row.start], row.slot)
                for job in dict.fromkeys(row.jobs):
                    job.usage.cached_tokens += held
            row.done = min(held, row.start)
            if is_new:
                prompt = len(row.policy.prompt)
                self._meter.count_prompt(prompt, min(row.done, prompt))
        elif row.slot.held < row.done:  # meanwhile a row of this slot began farther back
            row.done = min(row.slot.held, row.start)
            row.pieces.clear()
        return None

    def _waits(
        self,
        row: _Row,
        queue: Mapping[tuple[Policy, Prefix, int], _Row],
        backbone: Backbone,
    ) -> bool:
        """Whether another row is about to read much of the prompt that this one begins with."""
        if not self.share_prompts or any(row.policy in node.memo for node in row.prefix.line()):
            return False
        mixture = row.policy.vectors
        known = self._prompts[row.policy.backbone].known(mixture, row.text[: row.start])
        end = known + WORTH_WAITING
        if end > min(row.start, backbone.memory.room()):  # or it could not be remembered
            return False
        return any(
            other.slot is not None
            and other.done < end
            and other.policy.vectors == mixture
            and other.policy.prompt[known:end] == row.text[known:end]
            and other.policy.prompt[:known] == row.text[:known]
            for other in queue.values()
        )

    def _remember(self, policy: Policy, tokens: tuple[int, ...], slot: CacheSlot) -> None:
        """Keep what a slot holds of `tokens`, which policy has read, for later rows."""
        if not self.share_prompts:
            return
        prompts = self._prompts[policy.backbone]
        try:
            prompts.add(policy.vectors, tokens, slot.index)
        except (MemoryError, RuntimeError) as error:  # as torch says it: no job needs this
            logging.getLogger("fader").warning("no memory to remember prompts in: %s", error)
            prompts.shrink(0)

    def _remember_answer(self, policy: Policy, prefix: Prefix) -> None:
        """Keep what a policy has read of a prefix."""
        node = next((node for node in prefix.line() if policy in node.memo), None)
        if node is not None:
            slot = node.memo[policy]
            self._remember(policy, (*policy.prompt, *node.tokens)[: slot.held], slot)

    def _read(
        self, picked: Sequence[tuple[_Row, Segment]], backbone: Backbone
    ) -> list[Tensor | None]:
        """The logits of each row, from one forward. If it fails, each row is read by itself, so
        that only the jobs of the row at fault end; that row gets None."""
        if not picked:
            return []
        try:
            found = backbone.forward([segment for _, segment in picked])
        except Exception as error:
            for row, segment in picked:
                assert row.slot is not None
                row.slot.held = min(row.slot.held, segment.start)
            if len(picked) == 1:
                logging.getLogger("fader").exception("a forward pass of %s failed", backbone.name)
                # its frames would keep rows, and so their memory, alive
                self._end_row(picked[0][0], error.with_traceback(None))
                return [None]
            logging.getLogger("fader").warning(
                "a forward pass of %s with %d rows failed (%s): each is read by itself",
                backbone.name,
                len(picked),
                error,
            )
        else:
            for row, segment in picked:
                assert row.slot is not None
                row.slot.held = segment.start + len(segment.tokens)
            self._count(picked)
            return list(found)
        return [
            self._read([(row, segment)], backbone)[0] if row.jobs else None
            for row, segment in picked
        ]

    def _end_unsound(
        self, picked: Sequence[tuple[_Row, Segment]], logits: Sequence[Tensor | None]
    ) -> None:
        """End the jobs of rows whose logits are not finite; the others go on. (Single logits of
        -inf are allowed: some models have them for tokens that they never write.)"""
        peaks = [found.amax(-1) for found in logits if found is not None]  # NaN wins a maximum
        if not peaks or bool(torch.cat(peaks).isfinite().all()):
            return
        for (row, _), found in zip(picked, logits, strict=True):
            if found is not None and not bool(found.amax(-1).isfinite().all()):
                self._prompts[row.policy.backbone].forget_mixture(row.policy.vectors)
                self._end_row(row, _not_finite(row.policy))

    def _end_row(self, row: _Row, error: Exception) -> None:
        for job in list(row.jobs):
            self._end(job, None, error)

    def _deliver(
        self,
        queue: dict[tuple[Policy, Prefix, int], _Row],
        picked: list[tuple[_Row, Segment]],
        logits: list[Tensor | None],
    ) -> list[_Job]:
        """Hand the logits of one forward to the asks that wait for them. Returns the jobs that got
        some."""
        ready: dict[_Job, None] = {}
        while picked:  # emptied on the way: a row that lingers would keep its memory
            row, segment = picked.pop(0)
            found = logits.pop(0)
            if found is None or not row.jobs:
                continue
            row.done += len(segment.tokens)
            if segment.start < len(row.policy.prompt):
                assert row.slot is not None
                self._remember(row.policy, row.policy.prompt[: row.done], row.slot)
            if segment.keep:
                row.pieces.append(found)
            if row.done == row.total:
                assert row.slot is not None
                row.prefix.memo[row.policy] = row.slot
                del queue[row.policy, row.prefix, row.keep]
                whole = torch.cat(row.pieces) if len(row.pieces) > 1 else row.pieces[0]
                for put in row.waiting:
                    put(whole)
                ready.update(dict.fromkeys(row.jobs))
        return list(ready)

    def _count(self, picked: Sequence[tuple[_Row, Segment]]) -> None:
        """Add one forward to the usage of the jobs that had rows in it; a row that several jobs
        share counts for each."""
        self._meter.count(len(picked), sum(len(segment.tokens) for _, segment in picked))
        now = time.perf_counter()
        for job in {job for row, _ in picked for job in row.jobs}:
            job.usage.forward_passes += 1
            job.usage.seconds = now - job.started
        for row, segment in picked:
            for job in dict.fromkeys(row.jobs):
                job.usage.rows += 1
                job.usage.tokens_read += len(segment.tokens)

    def _resume_if_ready(self, job: _Job) -> None:
        if job in self._live and not job.missing:
            answer = job.answers[0] if job.single else job.answers
            job.asks, job.answers = [], []
            self._resume(job, answer)

    def _end(self, job: _Job, result: Any, error: Exception | None) -> None:
        """Close the program, forget its rows, and set the job's result or error."""
        if job not in self._live:
            return
        self._live.remove(job)
        _guarded("the end of a program", lambda: job.program.close())
        job.asks, job.answers = [], []
        self._forget_rows(job)
        self._tell(job, result, error)

    def _tell(self, job: _Job, result: Any, error: Exception | None) -> None:
        """Set the job's result or error, once."""
        if job.started:
            job.usage.seconds = time.perf_counter() - job.started
        else:
            with self._wake:
                self._unstarted -= 1
        running = job.running
        if error is None:
            _guarded("a receiver of a job's end", lambda: running.set_result(result))
        else:
            _guarded("a receiver of a job's end", lambda: running.set_exception(error))

    def _forget_rows(self, job: _Job) -> None:
        for queue in self._rows.values():
            for key, row in list(queue.items()):
                kept = [
                    (put, other)
                    for put, other in zip(row.waiting, row.jobs, strict=True)
                    if other is not job
                ]
                row.waiting, row.jobs = [put for put, _ in kept], [other for _, other in kept]
                if not kept:
                    del queue[key]


def _guarded(what: str, action: Callable[[], None]) -> None:
    """Call code that the engine was given; its errors do not end the engine."""
    try:
        action()
    except BaseException:
        logging.getLogger("fader").exception("%s failed", what)


def _fault(whose: str, error: BaseException) -> Exception:
    """The error that a job's `Running` raises: without the engine's frames, which would keep
    prefixes and so their memory, and a RuntimeError in place of one that would end a thread
    (SystemExit)."""
    if not isinstance(error, Exception):
        return RuntimeError(f"{whose} ended with {error!r}")
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def _is_token(token: Any, vocabulary: int) -> bool:
    return isinstance(token, int) and 0 <= token < vocabulary


def _not_finite(policy: Policy) -> ValueError:
    """The error for a policy whose logits are NaN or infinite, with the likely cause."""
    if not policy.vectors:
        return ValueError(
            f"model: the scores of {policy.backbone} for this text are not finite; its weights may"
            " be damaged, or too large for its dtype"
        )
    strengths = ", ".join(f"{vector.name}: {strength:g}" for vector, strength in policy.vectors)
    return ValueError(
        f"alignment.vectors: the scores of {policy.backbone} are not finite with {{{strengths}}};"
        " give smaller strengths"
    )


def _scores(reward: Reward, asks: Sequence[Score]) -> list[list[float] | Exception]:
    """The scores of each ask, from one call. If the call fails, each ask is made by itself, so that
    only the one at fault gets the error. A lost connection is the error of all."""
    try:
        prompts = [prompt for ask in asks for prompt in ask.prompts]
        texts = [text for ask in asks for text in ask.texts]
        scores = deque(reward(prompts, texts))
        if len(scores) != len(texts):
            raise ValueError(f"reward {reward}: gave {len(scores)} scores for {len(texts)} texts")
        for score, text in zip(scores, texts, strict=True):
            if math.isnan(score):
                raise ValueError(f"reward {reward}: gave {score!r} for {text!r}, which is no score")
    except BaseException as error:  # also one that would end a thread, such as SystemExit
        if len(asks) == 1 or isinstance(error, ConnectionError | TimeoutError):
            return [_fault(f"reward {reward}", error)] * len(asks)
        return [found for ask in asks for found in _scores(reward, [ask])]
    return [[scores.popleft() for _ in ask.texts] for ask in asks]
