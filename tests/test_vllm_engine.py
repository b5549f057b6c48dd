"""The engine of the vLLM backend with a reader that behaves as vLLM may: it reads prompts in
pieces, leaves rows out, pushes rows out and reads them again. Every answer is that of our own
engine. (vLLM itself: tests/test_vllm.py.)"""

import random
from dataclasses import replace

import psutil
import pytest
import torch
from conftest import TEXT, random_vector, until
from serving import serve

from fader import Cancelled, Fader, Vector, load
from fader.backends.vllm import VLLM, adapters, keys_and_values, selftest
from fader.backends.vllm.adapters import Adapters, round_strength
from fader.engine.protocols import Segment
from fader.files import SCRATCH
from fader.schema import Invalid
from fader.vectors.peft_folder import WEIGHTS

WORDS = TEXT.split()
MODULES = ("q_proj", "v_proj", "down_proj")


class Unsteady:
    """Reads on the PyTorch backbone; with `dice`, some rows at a time, as they fall."""

    rows, positions, max_length, modules, places, used = 48, 20000, 512, MODULES, 4, 0.5

    def __init__(self, engine, backbone):
        self.engine, self.backbone = engine, backbone
        self.dice = self.failing = None
        self.texts, self.begun, self.read, self.mixtures = {}, {}, {}, {}

    def add(self, row, tokens, adapter, end):
        assert 0 < len(tokens) < self.max_length
        self.texts[row], self.begun[row], self.read[row] = list(tokens), len(tokens), 0
        self.mixtures[row], self.last = adapter or (), end

    def native(self, prompts, count):
        texts = [list(prompt) for prompt in prompts]
        for text in texts:
            for _ in range(count):
                text.append(int(self._logits(text, ()).argmax()))
        return [text[-count:] for text in texts]

    def step(self):
        if self.failing:
            raise self.failing
        counts, whole = {}, []
        for row, text in self.texts.items():
            left = len(text) - self.read[row]
            if self.dice is None or self.dice.random() < 0.7:
                counts[row] = self.dice.randint(1, left) if self.dice else left
                self.read[row] += counts[row]
                whole += [row] if self.read[row] == len(text) else []
            elif self.dice.random() < 0.2:
                self.read[row] = 0  # pushed out: it is read again from its beginning
        self.engine.scheduled(counts, {})
        if not whole:
            return []
        found = torch.stack([self._logits(self.texts[row], self.mixtures[row]) for row in whole])
        written = [len(self.texts[row]) - self.begun[row] for row in whole]
        ended = []
        for row, token in zip(whole, self.engine.decide(whole, written, found), strict=True):
            self.texts[row].append(token)
            if token == self.last or len(self.texts[row]) == self.max_length:
                ended.append(row)
        self.end(ended)
        return ended

    def end(self, rows):
        for row in rows:
            del self.texts[row]

    def _logits(self, text, mixture):
        memory = self.backbone.memory
        memory.reserve((1, len(text)))
        slot = memory.allocate()
        try:
            return self.backbone.forward([Segment(slot, 0, text, 1, mixture)])[0][0]
        finally:
            memory.free(slot)

    def close(self):
        self.texts.clear()


class OnTorch(VLLM):
    """The vLLM backend whose forward passes are made here."""

    def _require(self):
        pass

    def _start(self, engine):
        engine._adapter = lambda mixture: mixture
        with engine.model.files() as folder:
            return Unsteady(engine, load(str(folder)))


@pytest.fixture
def made(tiny_folder, tiny):
    """makes a front on such a backend, with the vectors x and y, as `tiny` has them."""
    fronts = []

    def make(seed=None, **settings):
        front = Fader(OnTorch(str(tiny_folder), **settings))
        fronts.append(front)
        front.backend.engine.reader.dice = None if seed is None else random.Random(seed)
        for place, name in enumerate("xy"):
            vector = random_vector(tiny, name, 60 + place)
            front.add_vector(vector)
            tiny.add_vector(vector)
        return front

    yield make
    for front in fronts:
        front.close()


LETTERS = {"kind": "keywords", "words": ["a", "the", "sea", "x", "of"], "match": "form"}
ALIGNMENTS = [
    {},
    {"vectors": {"x": 0.8}},
    {"vectors": {"x": -0.4, "y": 0.6}},
    {"preferences": {"user": "be kind"}},
    {"guides": [{"kind": "contrast", "principle": "be kind", "weight": 1.2}]},
    {
        "guides": [{"kind": "realign", "aligned": {"vectors": {"y": 1}}, "weight": 0.5}],
        "vectors": {"x": 0.2},
    },
    {
        "guides": [
            {"kind": "personalized", "principle": "be kind", "vectors": {"x": 1}, "weight": 2},
            {"kind": "contrast", "principle": "be brief", "when": {"every": 3}},
        ]
    },
    {
        "guides": [
            {
                "kind": "mix",
                "components": [
                    {"policy": {"vectors": {"x": 1}}, "weight": 0.4},
                    {"policy": {"vectors": {"y": 1}}, "weight": 0.6},
                ],
            }
        ]
    },
    {"guides": [{"kind": "ratio", "policy": {"vectors": {"y": 1}}, "weight": 0.7}]},
]
SEARCHES = [
    {"kind": "best-of-n", "n": 5},
    {"kind": "blockwise", "n": 6, "block": 4, "beams": 2},
    {"kind": "segments", "entropy": 3, "longest": 6, "tries": 4},
    {"kind": "lookahead", "top_k": 3, "lookahead": 3},
    {"kind": "lookahead", "top_k": 3, "lookahead": 3, "beams": 2},
]


def same(mine, theirs):
    for one, other in zip(mine.answers, theirs.answers, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        for found, expected in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)
            assert found.guides == pytest.approx(expected.guides, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("seed", [None, 1])
def test_the_answers_are_those_of_our_own_engine(made, tiny, seed):
    requests = [
        {"prompt": " ".join(WORDS[place : place + 9]), "alignment": alignment, "sampling": sampling}
        for place, alignment in enumerate(ALIGNMENTS)
        for sampling in (
            {"max_tokens": 9, "logprobs": 2},
            {"max_tokens": 7, "temperature": 0.9, "top_p": 0.9, "seed": place, "n": 2},
        )
    ]
    for mine, theirs in zip(made(seed).batch(requests), tiny.batch(requests), strict=True):
        same(mine, theirs)


@pytest.mark.long
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["kind"])
def test_searches_are_those_of_our_own_engine(made, tiny, search):
    policy = {"vectors": {"x": 1}}
    for rewards in ([LETTERS], [{"kind": "implicit", "policy": policy}, LETTERS]):
        alignment = {"vectors": {"y": 0.5}, "search": {**search, "rewards": rewards}}
        sampling = {"max_tokens": 8, "temperature": 0.0 if search["kind"] == "lookahead" else 1.5}
        fields = {"alignment": alignment, **sampling}
        mine, theirs = (front.generate("the sea", **fields) for front in (made(2), tiny))
        same(mine, theirs)
        assert mine.answers[0].search.reward == pytest.approx(
            theirs.answers[0].search.reward, abs=1e-3
        )


def test_likelihoods_are_those_of_our_own_engine(made, tiny):
    pairs = [
        ({"prompt": "the ship", "alignment": alignment}, "rivers bend slowly")
        for alignment in ALIGNMENTS
    ]
    for mine, theirs in zip(made(3).score_batch(pairs), tiny.score_batch(pairs), strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


@pytest.mark.long
def test_many_gangs_with_cancellations(made, tiny):
    """Every survivor equals its lonely run, and nothing is left behind."""
    front, dice = made(4), random.Random(5)
    requests = [
        {
            "prompt": " ".join(dice.choices(WORDS, k=dice.randint(1, 40))),
            "alignment": dice.choice(ALIGNMENTS),
            "sampling": {
                "max_tokens": dice.randint(1, 12),
                "temperature": dice.choice([0, 0.8]),
                "seed": place,
            },
        }
        for place in range(40)
    ]
    submitted = [front.backend.submit(front.request(request)) for request in requests]
    for future in dice.sample(submitted, 8):
        future.cancel()
    survivors = 0
    for request, future in zip(requests, submitted, strict=True):
        try:
            found = future.result(timeout=120)
        except Cancelled:
            continue
        survivors += 1
        same(found, tiny.generate(request))
    assert survivors > 25
    engine = front.backend.engine
    until(lambda: not engine._rides)
    assert not engine._read_by
    assert not engine.reader.texts


def test_a_gang_takes_one_pass_a_token(made):
    """Also where its policies have prompts of different length."""
    alignment = {"guides": [{"kind": "contrast", "principle": "be kind", "plausible": None}]}
    found = made().generate("the sea", max_tokens=8, alignment=alignment, ignore_eos=True)
    assert found.usage.forward_passes == 8
    assert found.usage.rows == 16


def test_what_cannot_be_is_refused_before_anything_runs(made, tiny):
    front = made(max_rank=8)
    front.add_vector(random_vector(tiny, "wide", 5, rank=9))
    front.add_vector(random_vector(tiny, "up", 5, targets=("up_proj",)))
    for alignment, said in (
        ({"vectors": {"wide": 1}}, r"^alignment\.vectors: 1 vectors have the rank 9 .* up to 8"),
        ({"vectors": {"up": 1}}, r"^alignment\.vectors\.up: changes the layer .*up_proj"),
        (
            {"guides": [{"kind": "realign", "aligned": {"vectors": {"x": 1, "y": 1, "up": 1}}}]},
            r"^alignment\.guides\[0\]\.realign\.aligned\.vectors\.up: changes",
        ),
    ):
        with pytest.raises(Invalid, match=said):
            front.generate("the sea", alignment=alignment)
    guide = {"kind": "contrast", "principle": "be kind"}
    many = {"guides": [{**guide, "principle": f"be {one}"} for one in range(8)]}
    front.backend.engine.reader.rows = 8
    with pytest.raises(Invalid, match=r"^alignment\.guides: 9 policies .* reads up to 8 rows"):
        front.generate("the sea", alignment=many)
    front.backend.engine.reader.positions = 300
    with pytest.raises(Invalid, match=r"^alignment: 2 policies .* need .* there are 300"):
        front.generate("the sea", max_tokens=200, alignment={"guides": [guide]})
    with pytest.raises(Invalid, match=r"reads at most 512"):
        front.generate("the sea", max_tokens=600)
    with pytest.raises(Invalid, match=r"^models\.other: vLLM serves one model"):
        front.backend.add_model("other", "somewhere")
    with pytest.raises(Invalid, match=r"^settings\.tensor_parallel_size"):
        made(settings={"tensor_parallel_size": 2})
    with pytest.raises(Invalid, match=r"^max_rank: 9 is none of 8, 16"):
        made(max_rank=9)


def test_strengths_are_rounded_and_reported(made):
    found = made().generate(
        "the sea",
        max_tokens=2,
        alignment={
            "vectors": {"x": 0.333, "y": 0.01},
            "guides": [{"kind": "realign", "aligned": {"vectors": {"y": 0.98}}}],
        },
    )
    assert found.alignment.vectors == {"x": 0.35, "y": 0.0}
    assert found.alignment.guides[0].aligned.vectors == {"y": 1.0}
    assert [round_strength(one) for one in (-0.02, 0.024, 1.5, -0.08)] == [0, 0, 1.5, -0.1]


def test_what_is_merged_is_in_every_answer_and_others_come_on_top(
    made, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("FADER_CACHE", str(tmp_path / "cache"))
    vector = random_vector(tiny, "merged", 62)
    tiny.add_vector(vector)
    plain, front = made(), made(merge={vector: 0.8})
    fields = {"max_tokens": 9, "logprobs": 2}
    for own in ({}, {"y": 0.5}):
        alignment = {"vectors": {"merged": 0.8, **own}}
        expected = tiny.generate("the sea", alignment=alignment, **fields)
        found = front.generate("the sea", alignment={"vectors": own}, **fields)
        same(found, expected)
        unmerged = plain.generate("the sea", alignment={"vectors": own}, **fields)
        assert found.answers != unmerged.answers
    assert front.backend.identity(front.model) != plain.backend.identity(plain.model)
    zero = made(merge={vector: 0.0})
    assert zero.backend.identity(zero.model) == plain.backend.identity(plain.model)
    assert not list((tmp_path / "cache").iterdir())  # nothing is left of the weights


def test_what_cannot_be_merged_is_refused_by_name(made, tiny):
    head = random_vector(tiny, "head", 6, targets=("lm_head",))
    with pytest.raises(ValueError, match=r"^vectors\.head: lm_head shares its weights"):
        made(merge={head: 1.0})
    other = replace(random_vector(tiny, "other", 6), base="of another model")
    with pytest.raises(ValueError, match=r"^vectors\.other: made for a model with fingerprint"):
        made(merge={other: 1.0})


def test_a_row_that_cannot_begin_ends_its_own_job_alone(made, tiny):
    front = made()
    engine = front.backend.engine
    begin = engine._adapter

    def full(mixture):
        if mixture and mixture[0][0].name == "y":
            raise OSError("no space left")
        return begin(mixture)

    engine._adapter = full
    guided = {"guides": [{"kind": "realign", "aligned": {"vectors": {"y": 1}}}]}
    asked = [{"prompt": "the sea", "alignment": guided}, {"prompt": "a cat"}]
    first, second = [front.backend.submit(front.request(one, max_tokens=4)) for one in asked]
    with pytest.raises(OSError, match="no space left"):
        first.result(timeout=60)
    assert second.result(timeout=60).answers == tiny.generate("a cat", max_tokens=4).answers


def test_a_failed_engine_says_so(made):
    front = made()
    front.backend.engine.reader.failing = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        front.generate("the sea", max_tokens=3)
    with pytest.raises(RuntimeError, match=r"^vLLM has failed .*out of memory.*; start anew"):
        front.generate("the sea", max_tokens=3)


def test_other_versions_are_refused(monkeypatch):
    def version(name):
        return "0.31.0"

    monkeypatch.setattr(selftest.importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=r"^engine: vllm 0\.31\.0 is installed; fader runs on 0"):
        selftest.refuse_version()


def test_the_self_test_finds_an_engine_that_decides_nothing(made, monkeypatch):
    monkeypatch.setattr(Unsteady, "native", lambda self, prompts, count: [[1] * count])
    with pytest.raises(ValueError, match=r"vLLM does not run as it must: .* take a version of 0"):
        made()


def test_the_self_test_finds_rows_that_change_one_another(made, monkeypatch):
    """As vLLM 0.32 for CPUs does: a row without an adapter gets that of the last place."""
    alone = Unsteady._logits

    def leaking(self, text, mixture):
        used = [other for other in self.mixtures.values() if other]
        return alone(self, text, mixture or (used[-1] if len(self.texts) > 4 else ()))

    monkeypatch.setattr(Unsteady, "_logits", leaking)
    with pytest.raises(ValueError, match="rows with adapters change the scores of one without"):
        made()


def test_a_mixture_is_one_adapter_exactly(tiny, tmp_path):
    one, two = random_vector(tiny, "one", 1), random_vector(tiny, "two", 2, targets=("q_proj",))
    adapters = Adapters(tmp_path / "kept", 2**20, 64, MODULES)
    mixture = ((one, 0.5), (two, -1.5))
    adapter = adapters.of(mixture)
    found = Vector.load(adapter.folder)
    for module in one.factors:
        expected = 0.5 * one.delta(module)
        if module in two.factors:
            expected -= 1.5 * two.delta(module)
        torch.testing.assert_close(found.delta(module), expected)
    assert adapters.of(((two, -1.5), (one, 0.5))) == adapter
    assert adapters.of(((one, 0.55),)).number == 2
    assert adapters.of(()) is None


def test_adapters_used_least_recently_make_room(tiny, tmp_path):
    import os

    vector = random_vector(tiny, "one", 1)
    first = Adapters(tmp_path, 2**20, 64, MODULES).of(((vector, 1.0),))
    size = (first.folder / "adapter_model.safetensors").stat().st_size
    adapters = Adapters(tmp_path, 3 * size, 64, MODULES)
    for age, strength in enumerate((1.0, 2.0, 3.0)):
        place = adapters.of(((vector, strength),)).folder / "adapter_config.json"
        os.utime(place, (age, age))
    adapters.of(((vector, 1.0),))  # used again
    adapters.of(((vector, 4.0),))
    assert len(list(tmp_path.iterdir())) == 3
    assert first.folder.is_dir()
    small = Adapters(tmp_path, size // 2, 64, MODULES)
    with pytest.raises(Invalid, match=r"^vectors: the vectors take .* give it more room"):
        small.check(((vector, 1.0),), "vectors")


def test_keys_and_values_have_a_part_of_the_free_memory_unless_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert keys_and_values(2**20) == {"kv_cache_memory_bytes": 2**20}
    free = psutil.virtual_memory().available
    assert 0 < keys_and_values(None)["kv_cache_memory_bytes"] < free / 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert keys_and_values(None) == {}


def test_adapters_in_use_make_no_room(tiny, tmp_path):
    """Not for this process, and not for another one that shares the folder."""
    vector = random_vector(tiny, "one", 1)
    size = (
        (Adapters(tmp_path / "x", 2**20, 64, MODULES).of(((vector, 1.0),)).folder / WEIGHTS)
        .stat()
        .st_size
    )
    ours, theirs = (Adapters(tmp_path / "kept", 2 * size, 64, MODULES) for _ in range(2))
    kept = [ours.of(((vector, strength),)) for strength in (1.0, 2.0)]
    assert theirs.of(((vector, 3.0),)).folder.is_dir()
    assert all((one.folder / WEIGHTS).is_file() for one in kept)
    gone = kept.pop(0).folder
    theirs.of(((vector, 4.0),))
    assert not gone.exists()
    assert (kept[0].folder / WEIGHTS).is_file()
    assert not [*(tmp_path / "kept").glob(SCRATCH)]


def test_an_adapter_that_two_processes_write_is_there_once(tiny, tmp_path, monkeypatch):
    vector = random_vector(tiny, "one", 1)
    ours, theirs = (Adapters(tmp_path, 2**20, 64, MODULES) for _ in range(2))
    write = adapters._write

    def beaten(mixture, folder):
        monkeypatch.setattr(adapters, "_write", write)
        theirs.of(mixture)
        write(mixture, folder)

    monkeypatch.setattr(adapters, "_write", beaten)
    found = ours.of(((vector, 1.0),))
    assert Vector.load(found.folder).factors.keys() == vector.factors.keys()
    assert [*tmp_path.iterdir()] == [found.folder]


def test_rows_keep_their_adapters_until_they_end(made, tiny, tmp_path):
    """More mixtures at once than the folder has room for: vLLM finds each when it reads the row."""
    front = made()
    engine, reader = front.backend.engine, front.backend.engine.reader
    kept = Adapters(tmp_path, 2**14, 64, MODULES)
    step, add, folders = reader.step, reader.add, {}

    def begin(row, tokens, adapter, end):
        folders[row] = adapter.folder if adapter else None
        add(row, tokens, (), end)

    def look():
        assert all(folders[row] is None or folders[row].is_dir() for row in reader.texts)
        return step()

    engine._adapter, reader.add, reader.step = kept.of, begin, look
    strengths = [place / 4 for place in range(1, 9)]
    asked = [
        front.request("the sea", alignment={"vectors": {"x": one}}, max_tokens=4)
        for one in strengths
    ]
    for one in [front.backend.submit(request) for request in asked]:
        assert one.result(timeout=60).text
    assert engine.fault() == ""
    until(lambda: not engine._rides)
    kept.of(((random_vector(tiny, "z", 9), 1.0),))
    assert len([*tmp_path.iterdir()]) < len(strengths)


def test_a_broken_engine_is_not_healthy(made):
    front = made()
    with serve(front.backend) as served:
        assert served.http.get("/health").status_code == 200
        front.backend.engine.reader.failing = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            front.generate("the sea", max_tokens=3)
        for path in ("/health", "/ready"):
            assert "started anew" in served.error(path, 503, "GET")["message"]
        assert served.http.get("/metrics").status_code == 200


def test_memory_is_told_in_bytes(made):
    front = made()
    backend, config = front.backend, front.backend.engine.model.checkpoint.config
    width = config.hidden_size // config.num_attention_heads
    each = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * width
    assert backend.stats().kv_reserved == 20000 * each
    front.generate("the sea", max_tokens=3)
    assert backend.stats().kv_used == 10000 * each
