"""Replicas and workers on Ray, in a cluster of this machine: the same answers as of one process,
and nothing lost or said twice when one of them is killed. `make test-ray` installs what it needs.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
import threading
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import random_vector, until
from typer.testing import CliRunner

from fader import Fader, Request
from fader.answer import Chunk
from fader.backends.local import Local
from fader.cli import app
from fader.data.records import LEVELS
from fader.engine.running import Busy, Cancelled, Lost
from fader.evaluation.cache import Query, ResultCache, measure
from fader.files import write_rows
from fader.schema import Invalid
from fader.shards import Output, answers, shards
from fader.starter.shipped import DOMAINS

pytest.importorskip("ray", reason="ray is not installed; `make test-ray` installs and tests it")

import ray
from ray.cloudpickle import register_pickle_by_value
from serving import serve

from fader.backends import ray as ray_backend
from fader.backends.ray import (
    SPARE,
    ByPrefix,
    Replica,
    Replicas,
    Workers,
    _Told,
    beginning,
    connect,
    share,
    spread,
    takes_of,
)

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
register_pickle_by_value(sys.modules[__name__])  # the processes of the cluster cannot import it
PIRATE = {"guides": [{"kind": "contrast", "principle": "Answer like a pirate."}]}
LENGTH = {"kind": "length", "at_least": 3}
SEARCH = {"search": {"kind": "best-of-n", "n": 3, "rewards": [LENGTH]}}
ASKED = [
    Request.of(prompt, **{"max_tokens": 16, **fields})
    for prompt, fields in [
        ("the sea", {}),
        ("a cat", {"temperature": 1, "seed": 3, "n": 2}),
        ("one two", {"alignment": PIRATE, "logprobs": 2}),
        ("rivers", {"alignment": SEARCH, "temperature": 0.9}),
        ("bend", {"alignment": {"preferences": {"user": "be brief"}}, "ignore_eos": True}),
        ("slowly", {"prefill": "old stone", "stop": ["e"]}),
    ]
]


class Mortal(Local):
    """A backend that kills its process when it is asked for it."""

    def submit_all(self, requests, *more):
        if any(request.messages[-1].content == "die" for request in requests):
            os._exit(1)
        return super().submit_all(requests, *more)


def mortal(folder, pids):
    """Makes one, and says which process it is in."""
    (Path(pids) / str(os.getpid())).touch()
    return Mortal(folder)


def alive(pids):
    """The processes of a folder that run."""
    found = [int(file.name) for file in pids.iterdir()]
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests' memory is no matter
        assert connect(4)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def pids(tmp_path_factory):
    return tmp_path_factory.mktemp("pids")


@pytest.fixture(scope="module")
def replicas(cluster, tiny_folder, pids):
    made = Replicas(partial(mortal, str(tiny_folder), str(pids)), 2)
    yield made
    made.close()


def test_replicas_answer_as_one_process(replicas, tiny):
    said = [[] for _ in ASKED]
    running = [replicas.submit(one, put.append) for one, put in zip(ASKED, said, strict=True)]
    for one, put, ended in zip(ASKED, said, running, strict=True):
        found, alone = ended.result(), tiny.generate(one)
        assert [a.token_ids for a in found.answers] == [a.token_ids for a in alone.answers]
        assert [a.text for a in found.answers] == [a.text for a in alone.answers]
        for index, answer in enumerate(found.answers):
            assert "".join(c.text for c in put if c.index == index) == answer.text
        assert ended.usage.tokens_read > 0
    [likelihood] = replicas.score(ASKED[0], [" wide"]).result()
    assert likelihood.logprob == pytest.approx(tiny.score(ASKED[0], " wide").logprob, abs=1e-4)
    assert replicas.models == [tiny.model]
    assert replicas.about(tiny.model) == tiny.backend.about(tiny.model)
    assert replicas.identity(tiny.model) == tiny.backend.identity(tiny.model)
    assert replicas.encode(tiny.model, "the sea") == tiny.backend.encode(tiny.model, "the sea")
    assert replicas.decode(tiny.model, [300, 301]) == tiny.backend.decode(tiny.model, [300, 301])
    assert replicas.needs(ASKED[2]) == tiny.backend.needs(ASKED[2])
    assert replicas.stats().kv_reserved > 0


def test_refusals_are_those_of_one_process(replicas, tiny):
    bad = Request.of("the sea", alignment={"vectors": {"nothing": 1}}, max_tokens=100_000)
    faults = [str(fault) for fault in tiny.backend.check(bad)]
    assert [str(fault) for fault in replicas.check(bad)] == faults
    with pytest.raises(Invalid) as refused:
        replicas.submit(bad)
    assert [str(fault) for fault in refused.value.faults] == faults
    with pytest.raises(Invalid, match="not loaded"):
        replicas.about("another")


def test_a_cancelled_request_ends_and_frees_its_rows(replicas):
    long = Request.of("the sea", max_tokens=400, ignore_eos=True)
    first = threading.Event()
    running = replicas.submit(long, lambda chunk: first.set())
    assert first.wait(60)
    assert running.cancel()
    with pytest.raises(Cancelled):
        running.result(timeout=60)
    until(lambda: replicas.stats().live == 0, 60)


def test_what_begins_alike_is_read_once(replicas):
    for seed in range(6):
        system = f"{seed} " + "people say what they want from a model " * 4
        for place, question in enumerate(["one", "two", "three"]):
            turns = [("system", system), ("user", question)]
            turns = [{"role": role, "content": content} for role, content in turns]
            usage = replicas.submit(Request.of(turns, max_tokens=2)).result().usage
            assert place == 0 or usage.cached_tokens > 30


def test_over_http(replicas, tiny):
    with serve(replicas) as served:
        answer = served.chat("the sea", max_tokens=12).json()
        alone = tiny.generate("the sea", max_tokens=12).text
        assert answer["choices"][0]["message"]["content"] == alone
        path = "/v1/chat/completions"
        turns = [{"role": "user", "content": "a"}]
        body = {"messages": turns, "alignment": {"vectors": {"no": 1}}}
        assert served.error(path, json=body)["param"] == "alignment.vectors.no"


def test_a_killed_replica_loses_nothing_and_says_nothing_twice(replicas, tiny, pids):
    asked = [
        Request.of(f"{word} sea", max_tokens=120, ignore_eos=True, seed=place, temperature=1)
        for place, word in enumerate(["the", "one", "two", "three", "four", "five", "six", "ten"])
    ]
    alone = [one.text for one in tiny.batch(asked)]
    until(lambda: len(alive(pids)) == 2, 120)
    said = [[] for _ in asked]
    running = [replicas.submit(one, put.append) for one, put in zip(asked, said, strict=True)]
    until(lambda: all(len(put) > 5 for put in said), 120)
    victim = alive(pids)[0]
    os.kill(victim, signal.SIGKILL)
    assert not all(one.done() for one in running)
    found = [one.result(timeout=300) for one in running]
    assert [one.text for one in found] == alone
    assert ["".join(chunk.text for chunk in put) for put in said] == alone
    until(lambda: len(alive(pids)) == 2, 300)  # started anew


def test_a_request_that_kills_its_replicas_ends_with_an_error(replicas):
    with serve(replicas) as served:
        error = served.error(
            "/v1/chat/completions",
            503,
            json={"messages": [{"role": "user", "content": "die"}]},
            timeout=600,
        )
        assert error["code"] == "replica_lost"
        served.http.timeout = 600  # they are started anew
        assert served.chat("the sea").status_code == 200


def test_what_cannot_be_made_is_said_at_the_start(cluster, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Replicas(partial(Local, str(tmp_path / "nowhere")), 1)


def second_fails(folder, pids):
    """Makes a backend in one process alone."""
    (Path(pids) / str(os.getpid())).touch()
    if len(list(Path(pids).iterdir())) > 1:
        raise OSError("no model on this machine")
    return Local(folder)


def test_what_one_of_them_cannot_make_is_said_at_the_start(cluster, tiny_folder, tmp_path):
    with pytest.raises(OSError, match="no model on this machine"):
        Replicas(partial(second_fails, str(tiny_folder), str(tmp_path)), 2)


def test_a_replica_that_has_failed_is_not_healthy(tiny_folder, tmp_path, monkeypatch):
    unmade = Replica(partial(Local, str(tmp_path / "nowhere")))
    unmade.check_health()  # the server that waits for it is to say why
    monkeypatch.setattr(ray_backend, "GRACE_SECONDS", 0.0)
    with pytest.raises(OSError, match="nowhere"):
        unmade.check_health()
    broken = Replica(partial(Local, str(tiny_folder)))
    broken.check_health()
    monkeypatch.setattr(broken._backend, "fault", lambda: "vLLM has failed")
    with pytest.raises(RuntimeError, match="vLLM has failed"):
        broken.check_health()
    broken._backend.close()


class Nobody:
    """A handle to replicas of which there are none: what is asked is never answered."""

    def options(self, **_):
        return self

    @property
    def answer(self):
        return self

    ask = answer

    def remote(self, *_):
        return self

    def __await__(self):
        return asyncio.sleep(3600).__await__()

    async def __aiter__(self):
        await asyncio.sleep(3600)
        yield None

    def cancel(self):
        pass


def test_a_request_does_not_wait_for_replicas_without_end(replicas, monkeypatch):
    monkeypatch.setattr(ray_backend, "ACCEPT_SECONDS", 0.2)
    monkeypatch.setattr(replicas, "_handle", Nobody())
    with pytest.raises(Busy, match="no replica took the request"):
        replicas.submit(ASKED[0])
    with pytest.raises(Busy, match="no replica answered"):
        replicas.check(ASKED[0])


def test_takes_are_filled_up(cluster):
    assert takes_of({"num_cpus": 7, "num_gpus": 3}, 99) == {"num_cpus": 7, "num_gpus": 3}
    assert takes_of({"num_gpus": 0}, 2) == {**share(2), "num_gpus": 0}
    assert takes_of(None, 2) == share(2)


def lines(count):
    rows = [{"prompt": f"the sea {place}", "sampling": {"seed": place}} for place in range(count)]
    asked = [Request.of(row, max_tokens=24, temperature=1, ignore_eos=True) for row in rows]
    return [(f"in:{place}", one.model_dump_json()) for place, one in enumerate(asked)]


def test_a_killed_worker_loses_no_line_and_doubles_none(cluster, tiny, tiny_folder, tmp_path):
    folder, output, told = tmp_path / "pids", Output(tmp_path / "out.jsonl"), []
    folder.mkdir()
    some = list(shards(lines(64), {}, 4))

    def tell(count):
        told.append(count)
        if len(told) == 3:
            os.kill(alive(folder)[0], signal.SIGKILL)

    with output.held():
        output.write(some, spread(partial(mortal, str(tiny_folder), str(folder)), 2), tell)
    assert len(list(folder.iterdir())) >= 3  # one was started anew
    assert sum(told) == 64
    found = [json.loads(line)["text"] for line in output.file.read_text().splitlines()]
    alone = [json.loads(line)["text"] for one in some for line in answers(tiny.backend, one)]
    assert found == alone


def test_a_shard_that_kills_its_workers_ends_with_an_error(cluster, tiny_folder, tmp_path):
    asked = [("in:0", Request.of("die", max_tokens=2).model_dump_json())]
    answering = spread(partial(mortal, str(tiny_folder), str(tmp_path)), 1)
    with pytest.raises(Lost, match="run it again, it goes on"):
        list(answering(list(shards(asked, {}, 4))))
    assert 2 <= len(list(tmp_path.iterdir())) <= 6


def test_generate_with_ray_goes_on_where_it_was(cluster, tiny_folder, tmp_path):
    source = tmp_path / "big.jsonl"
    write_rows(source, [{"prompt": f"the sea {place}"} for place in range(70)])
    command = ["generate", "--input", str(source), "--ray", "--workers", "1"]
    command += ["--model", str(tiny_folder), "--max-tokens", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    rows = (tmp_path / "big.answers.jsonl").read_text().splitlines()
    assert len(rows) == 70
    assert all(json.loads(row)["text"] for row in rows)


def queries(count):
    """Likelihoods and drawn answers in turn."""
    draw = {"max_tokens": 12, "temperature": 1, "ignore_eos": True}
    return [
        Query("t", "m", "c", str(place), Request.of(f"the sea {place}", **draw), answer)
        for place, answer in zip(range(count), itertools.cycle((" wide", None)), strict=False)
    ]


def measuring(folder, pids):
    """Makes what measures, and says which process it is in."""
    (Path(pids) / str(os.getpid())).touch()
    return partial(measure, Fader(folder, dtype="float32"))


class Killing:
    """Workers of which one is killed when the third batch is there."""

    count = 8  # small batches

    def __init__(self, workers, pids):
        self.workers, self.pids = workers, pids

    def each(self, batches):
        for done, found in enumerate(self.workers.each(batches)):
            if done == 2:
                os.kill(alive(self.pids)[0], signal.SIGKILL)
            yield found


def test_a_killed_worker_loses_no_measurement_and_doubles_none(
    cluster, tiny, tiny_folder, tmp_path
):
    folder, file, asked = tmp_path / "pids", tmp_path / "cache.jsonl", queries(48)
    folder.mkdir()
    alone = ResultCache(tiny, quiet=True).ask(asked)
    with Workers(partial(measuring, str(tiny_folder), str(folder)), 2) as workers:
        cache = ResultCache(tiny, file, quiet=True, workers=Killing(workers, folder))
        found = cache.ask(asked)
        assert len(list(folder.iterdir())) == 3  # one was started anew
    assert [one.text for one in found] == [one.text for one in alone]
    assert [one.mean for one in found] == pytest.approx([one.mean for one in alone], rel=1e-5)
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert len(set(keys)) == len(keys) == 48
    assert ResultCache(tiny, file, quiet=True).ask(asked) == found  # a run without them goes on


def test_what_workers_cannot_do_is_said(cluster, tiny, tmp_path):
    with (
        Workers(partial(measuring, str(tmp_path / "nowhere"), str(tmp_path)), 1) as workers,
        pytest.raises(OSError, match="nowhere"),
    ):
        ResultCache(tiny, quiet=True, workers=workers).ask(queries(1))


def die(given):
    os._exit(1)


def test_a_batch_that_kills_its_workers_ends_with_an_error(cluster):
    with (
        Workers(lambda: die, 1) as workers,
        pytest.raises(Lost, match="run it again, it goes on"),
    ):
        list(workers.each([1]))


@pytest.fixture
def evaluated(cluster, tiny, tiny_folder, tmp_path, monkeypatch):
    """Runs a command that measures, and gives what it prints."""
    monkeypatch.setenv("FADER_VECTORS", str(tmp_path / "vectors"))
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(DOMAINS):
        random_vector(tiny, name, 40 + place).save(tmp_path / "vectors" / name)
    file = tmp_path / "levels.jsonl"
    levels = ("the sea is wide", "the sea is deep and rivers bend", "i say nothing of it")
    rows = [
        {"query": f"the sea {place}?", **dict(zip(LEVELS, levels, strict=True)), "split": part}
        for place, part in enumerate(("dev", "test") * 3)
    ]
    write_rows(file, rows)
    data = [part for domain in DOMAINS for part in ("--data", f"{domain}={file}")]
    given = ["--model", str(tiny_folder), "--dtype", "float32", *data, "--limit", "2", "--json"]

    def run(out, *command):
        done = CliRunner().invoke(app, [*command, *given, "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.exception
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.parametrize("command", [("eval", "levels"), ("vectors", "tune", "medical=expert")])
def test_measuring_with_ray_gives_what_one_process_gives(evaluated, tmp_path, command):
    """The same queries, with the same answers up to the last digits of float32."""
    alone, spread = evaluated("alone", *command), evaluated("spread", *command, "--ray")
    measured = [
        {row["key"]: row["said"]["mean"] for row in map(json.loads, (tmp_path / name).open())}
        for name in ("alone", "spread")
    ]
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)
    assert spread[0].get("strengths") == alone[0].get("strengths")
    assert len(spread) == len(alone)
    assert evaluated("spread", *command) == spread  # from the cache


def test_beginnings():
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}]
    other = [turns[0], {"role": "user", "content": "two"}]
    same = beginning(Request.of(turns)), beginning(Request.of(other, max_tokens=3))
    assert same[0] == same[1]
    vectors = [beginning(Request.of(turns, alignment={"vectors": {"a": s}})) for s in (1, 0.5)]
    assert len({*same, *vectors}) == 3


def test_a_beginning_keeps_its_replica_unless_that_has_too_much_to_do():
    named = namedtuple("named", "unique_id")
    replicas = [SimpleNamespace(replica_id=named(one)) for one in "abcd"]

    def chosen(key, some=replicas, **busy):
        router = SimpleNamespace(
            replica_queue_len_cache=SimpleNamespace(get=lambda one: busy.get(one.unique_id))
        )
        asked = SimpleNamespace(args=[key])
        ranks = asyncio.run(ByPrefix.choose_replicas(router, some, asked))
        assert len(ranks) == len(some)
        return ranks[0][0].replica_id.unique_id

    keys = [f"key {place}" for place in range(400)]
    first = [chosen(key) for key in keys]
    assert first == [chosen(key) for key in keys]
    assert all(70 < first.count(one) < 130 for one in "abcd")
    fewer = [chosen(key, replicas[:3]) for key in keys]
    assert all(new == old for old, new in zip(first, fewer, strict=True) if old != "d")
    [busy] = {chosen("key 0")}
    assert chosen("key 0", **{busy: SPARE}) == busy
    assert chosen("key 0", **{busy: 2 * SPARE}) != busy
    ranks = asyncio.run(ByPrefix.choose_replicas(None, replicas, SimpleNamespace(args=[""])))
    assert ranks == [replicas]


def test_what_was_said_is_not_said_again_and_nothing_else_is_said():
    said = []
    told = _Told(said.append)
    chunks = [Chunk(0, "the", (1,)), Chunk(1, "a", (2,)), Chunk(0, " sea", (3,))]
    told.again()
    for chunk in chunks[:2]:
        told.put(chunk)
    told.again()
    for chunk in chunks:
        told.put(chunk)
    assert said == chunks
    told.again()
    with pytest.raises(Lost, match="would go on otherwise"):
        told.put(Chunk(0, "the", (9,)))
    assert said == chunks
