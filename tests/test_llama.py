"""The backbone on llama.cpp, with real forwards on tiny models: strict laws on float32 files, the
others within tolerances."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from conftest import TEXT, make_model, random_vector
from test_cli import run

from fader import Fader, load
from fader.engine import measured
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, SequenceLogits
from fader.engine.protocols import Backbone, Segment

WORDS = TEXT.split()


@pytest.mark.skipif(bool(importlib.util.find_spec("llama_cpp")), reason="llama_cpp is installed")
def test_without_it_the_fix_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"engine: llama.cpp needs llama_cpp: pip install"):
        Fader(str(tmp_path / "x.gguf"), engine="llama.cpp")


needs_llama = pytest.mark.skipif(
    not importlib.util.find_spec("llama_cpp"),
    reason="llama_cpp is not installed (make test-llama runs these)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def file(folder):
    from fader.engine.llama.convert import convert

    return convert(str(folder), folder.parent / "model.f32.gguf", "f32")


@pytest.fixture(scope="module")
def ours(file):
    with Fader(str(file), engine="llama.cpp", kv_bytes=2**26) as fader:
        yield fader


@pytest.fixture(scope="module")
def theirs(folder):
    """The same model on PyTorch."""
    with Fader(load(str(folder))) as fader:
        yield fader


def tokens(result):
    return [answer.token_ids for answer in result.answers]


@needs_llama
class TestFloat32:
    """A file of float32 weights gives the tokens of PyTorch's float32."""

    def test_facts_are_those_of_the_folder(self, ours, theirs):
        mine, other = (f.backend.backbones[f.model] for f in (ours, theirs))
        assert isinstance(mine, Backbone)
        assert mine.fingerprint == other.fingerprint
        assert mine.layers == other.layers
        assert mine.end_tokens == other.end_tokens
        assert mine.vocabulary == other.vocabulary
        assert mine.max_length == other.max_length
        assert mine.tokenizer.chat_template == other.tokenizer.chat_template
        for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
            assert torch.equal(mine.weight(name), other.weight(name))
        with pytest.raises(KeyError):
            mine.weight("nothing")

    def test_plain_answers_are_equal_alone_and_together(self, ours, theirs):
        asked = ["the sea", "a cat sat on", " ".join(WORDS[:40]), "ten ?"]
        for fields in ({}, {"repetition_penalty": 1.3}, {"temperature": 0.9, "n": 2, "seed": 3}):
            mine, other = (f.batch(asked, max_tokens=24, **fields) for f in (ours, theirs))
            assert [tokens(one) for one in mine] == [tokens(one) for one in other]
            for question, together in zip(asked, mine, strict=True):
                assert tokens(ours.generate(question, max_tokens=24, **fields)) == tokens(together)

    def test_guides_and_searches_are_equal(self, ours, theirs):
        contrast = {"kind": "contrast", "principle": "be warm", "weight": 1.5}
        words = {"kind": "keywords", "words": ["sea", "green"]}
        lookahead = {"kind": "lookahead", "top_k": 4, "lookahead": 5, "rewards": [words]}
        best = {"kind": "best-of-n", "n": 3, "rewards": [words]}
        for alignment, temperature in (
            ({"guides": [contrast]}, 0),
            ({"search": lookahead}, 0),
            ({"search": best}, 0.9),
            ({"guides": [contrast], "search": lookahead}, 0),
        ):
            fields = {"alignment": alignment, "max_tokens": 16, "temperature": temperature}
            asked = ["the sea", "a cat sat on"]
            mine, other = (f.batch(asked, **fields) for f in (ours, theirs))
            assert [tokens(one) for one in mine] == [tokens(one) for one in other]

    def test_more_mixtures_than_contexts_equal_the_merged_weights(self, ours, theirs):
        """Also of the head alone, with forks, shared prompts and scores."""
        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
        for seed, name in enumerate(("one", "two", "three")):
            vector = random_vector(theirs, name, seed, 2 + seed, targets[2 * seed :])
            ours.add_vector(vector)
            theirs.add_vector(vector)
        mixtures = [
            {},
            {"one": 0.7},
            {"one": -0.5, "two": 0.4},
            {"two": 1.0},
            {"three": 0.6},
            {"one": 0.3, "two": 0.3, "three": -0.3},
        ]
        question = " ".join(WORDS[:30])
        asked = [{"prompt": question, "alignment": {"vectors": mix}} for mix in mixtures]
        for _ in range(2):  # the second time from what is remembered
            fields = {"max_tokens": 12, "n": 2, "temperature": 0.8, "logprobs": 0}
            mine, other = (f.batch(asked, **fields) for f in (ours, theirs))
            assert [tokens(one) for one in mine] == [tokens(one) for one in other]
            for one, two in zip(mine, other, strict=True):
                for found, expected in zip(
                    one.answers[0].logprobs, two.answers[0].logprobs, strict=True
                ):
                    assert found.logprob == pytest.approx(expected.logprob, abs=2e-3)
        assert sum(one.usage.cached_tokens for one in mine) > 0
        pairs = [(request, "rivers bend slowly") for request in asked]
        for one, two in zip(ours.score_batch(pairs), theirs.score_batch(pairs), strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=2e-3)
        assert len({tuple(tokens(one)) for one in mine}) == len(mixtures)
        contexts = ours.backend.backbones[ours.model]._contexts.all
        assert len(contexts) == 4
        ours.remove_vector("one")
        again = ours.batch(asked[3:5], **fields)
        assert [tokens(one) for one in again] == [tokens(one) for one in mine[3:5]]
        backbone = ours.backend.backbones[ours.model]
        assert [vector.name for vector in backbone._adapters._loaded] == ["two", "three"]
        ours.remove_vector("two")
        ours.remove_vector("three")
        assert backbone.memory.taken == 0

    def test_each_row_has_the_logits_of_its_own_text(self, ours, theirs):
        """Read at once, token by token beside a fork that parts ways, and in pieces of any size."""
        said = [9, 30, 41, 7, 100, 55, 300, 12]
        prompts = [ours.backend.backbones[ours.model].encode(" ".join(WORDS[:n])) for n in (1, 20)]

        def ask(fader, program):
            return fader.backend.engine.run(program, {fader.model: (12, 500)}).result(60)

        def at_once(policies):
            prefix = Prefix().then(*said)
            return (yield [SequenceLogits(policy, prefix, len(said)) for policy in policies])

        def stepwise(policies):
            prefix, rows, beside = Prefix(), [], []
            for token in said:
                rows.append((yield [NextLogits(policy, [prefix]) for policy in policies]))
                beside.append(prefix.then(7))
                yield [NextLogits(policy, beside[-1:]) for policy in policies]
                prefix = prefix.then(token)
                beside = beside[-2:]
            return [torch.cat(row) for row in zip(*rows, strict=True)]

        policies = {
            fader: [Policy(fader.model, tuple(prompt)) for prompt in prompts]
            for fader in (ours, theirs)
        }
        expected = ask(theirs, at_once(policies[theirs]))
        for budget in (3, 512):
            ours.backend.engine.token_budget = budget
            for program in (at_once, stepwise):
                for mine, other in zip(ask(ours, program(policies[ours])), expected, strict=True):
                    torch.testing.assert_close(mine, other, atol=2e-3, rtol=1e-3)

    def test_many_logits_come_in_several_calls(self, ours, theirs):
        answer = " ".join(WORDS * 3)
        pairs = [("the sea", answer), ("a cat", answer)]
        for one, two in zip(ours.score_batch(pairs), theirs.score_batch(pairs), strict=True):
            assert len(one.tokens) > 128
            assert one.logprobs == pytest.approx(two.logprobs, abs=2e-3)


@needs_llama
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_have_the_tokens_of_pytorch(architecture, tmp_path):
    from fader.engine.llama.convert import convert

    folder = make_model(tmp_path / architecture, architecture)
    file = convert(str(folder), tmp_path / "x.gguf", "f32")
    asked = ["the sea", " ".join(WORDS[:30])]
    with Fader(load(str(folder))) as theirs, Fader(str(file), engine="llama.cpp") as ours:
        vector = random_vector(theirs, "one", 3)
        for fader in (ours, theirs):
            fader.add_vector(vector)
        for alignment in ({}, {"vectors": {"one": 0.5}}):
            mine, other = (
                f.batch(asked, max_tokens=16, alignment=alignment) for f in (ours, theirs)
            )
            assert [tokens(one) for one in mine] == [tokens(one) for one in other]


@needs_llama
class TestQuantised:
    """Products in quantised types round what they read: logits are near, tokens may differ."""

    @pytest.mark.parametrize(("kind", "apart"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.1)])
    def test_logits_are_near_those_of_float32_alone_and_together(
        self, kind, apart, folder, theirs, tmp_path
    ):
        from fader.engine.llama.convert import convert

        file = convert(str(folder), tmp_path / "x.gguf", kind)
        pairs = [(" ".join(WORDS[: 1 + 7 * n]), "rivers bend slowly") for n in range(5)]
        with Fader(str(file), engine="llama.cpp") as ours:
            backbone = ours.backend.backbones[ours.model]
            assert backbone.fingerprint == theirs.backend.backbones[theirs.model].fingerprint
            ids = [backbone.encode(text) for text, _ in pairs]

            def read(backbone, chosen):
                slots = [backbone.memory.allocate() for _ in chosen]
                found = backbone.forward(
                    [Segment(slot, 0, ids[n], 1, ()) for slot, n in zip(slots, chosen, strict=True)]
                )
                for slot in slots:
                    backbone.memory.free(slot)
                return torch.cat(found)

            together = read(backbone, range(5))
            alone = torch.cat([read(backbone, [n]) for n in range(5)])
        other = theirs.backend.backbones[theirs.model]
        other.memory.reserve((5, 64))
        exact = read(other, range(5))
        size = exact.pow(2).mean().sqrt()
        assert (together - exact).pow(2).mean().sqrt() < apart * size
        assert (together - alone).pow(2).mean().sqrt() < apart * size


@needs_llama
@pytest.mark.builtin
@pytest.mark.long
@pytest.mark.parametrize("case", ["f32-plain-1", "over-own-loop"])
def test_the_benchmark_runs_each_side_in_a_process_of_its_own(case):
    from benchmarks import llama

    [row] = llama.run(case, tokens=2, rounds=1)
    assert row["target"] == llama.TARGETS[case]
    assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"], rel=0.05)


@needs_llama
class TestFailures:
    def test_what_cannot_be_loaded_is_one_message(self, folder, file, tmp_path):
        (tmp_path / "broken.gguf").write_bytes(file.read_bytes()[:20000])
        for model, settings, said in (
            (str(folder), {}, "llama.cpp reads GGUF files .*`fader models convert"),
            ("nowhere.gguf", {}, "there is no file nowhere.gguf"),
            (str(tmp_path / "broken.gguf"), {}, "broken.gguf"),
            (str(file), {"dtype": "float32"}, "dtype: 'float32' has no effect on a GGUF file"),
            (str(file), {"device": "cuda"}, "device: 'cuda'"),
            (str(file), {"kv_bytes": 1000}, "kv_bytes: 1000 holds no 256 positions"),
            (str(file), {"kv_bytes": -1}, "kv_bytes: -1 holds no 256 positions"),
            (str(file), {"kv_bytes": 2**60}, "kv_bytes: .* is more than the .* of this machine"),
        ):
            with pytest.raises((ValueError, OSError), match=said):
                Fader(model, engine="llama.cpp", **settings)

    def test_a_version_that_was_not_tried_is_refused(self, monkeypatch):
        import llama_cpp

        from fader.engine.llama import binding

        monkeypatch.setattr(llama_cpp, "__version__", "0.4.0")
        with pytest.raises(
            ValueError, match=r"llama-cpp-python is 0\.4\.0; fader runs on 0\.3\.36"
        ):
            binding.library.__wrapped__()

    def test_full_memory_makes_requests_wait_and_too_much_is_refused(self, file):
        with Fader(str(file), engine="llama.cpp", kv_bytes=4 * 256 * 3 * 2 * 32 * 4) as fader:
            assert fader.backend.backbones[fader.model].memory.budget == 256
            alone = [tokens(fader.generate(word, max_tokens=60)) for word in WORDS[:6]]
            together = fader.batch(WORDS[:6], max_tokens=60)
            assert alone == [tokens(one) for one in together]
            with pytest.raises(ValueError, match=r"sampling\.max_tokens: .*the budget of"):
                fader.generate("the sea", max_tokens=300)
            with pytest.raises(ValueError, match=r"sampling\.n"):
                fader.generate("the sea", max_tokens=1, n=200)

    def test_what_would_end_the_process_is_refused_before(self, ours):
        backbone = ours.backend.backbones[ours.model]
        slot = backbone.memory.allocate()
        assert backbone.max_length < backbone.memory.budget
        for ids in ([], [-1], [10**6], [1] * (backbone.max_length + 1)):
            with pytest.raises(ValueError, match=r"cannot read|has no token"):
                backbone.forward([Segment(slot, 0, ids, 0, ())])
        backbone.memory.free(slot)

    def test_a_file_without_a_vocabulary_is_refused(self, folder, tmp_path, monkeypatch):
        """llama.cpp's tokenizer would end the process."""
        import gguf

        from fader.engine.llama.convert import convert

        def none(writer, _):
            writer.add_string(gguf.Keys.Tokenizer.MODEL, "no_vocab")

        monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_model", none)
        file = convert(str(folder), tmp_path / "x.gguf", "f32")
        with pytest.raises(ValueError, match=r"x\.gguf has no vocabulary; make the file with"):
            Fader(str(file), engine="llama.cpp")

    def test_a_vocabulary_without_an_end_token_writes_to_the_limit(
        self, folder, tmp_path, monkeypatch
    ):
        import gguf

        from fader.engine.llama import convert as module

        monkeypatch.setattr(gguf.GGUFWriter, "add_eos_token_id", lambda *_: None)
        monkeypatch.setattr(module, "ENDS", "fader.not-read")
        file = module.convert(str(folder), tmp_path / "x.gguf", "f32")
        with Fader(str(file), engine="llama.cpp") as fader:
            assert fader.backend.backbones[fader.model].end_tokens == frozenset()
            (answer,) = fader.generate("the sea", max_tokens=9).answers
        assert (len(answer.token_ids), answer.finish_reason) == (9, "length")

    def test_a_context_that_cannot_be_made_is_done_without(self, file, monkeypatch):
        from fader.engine.llama import contexts

        with Fader(str(file), engine="llama.cpp") as fader:
            fader.add_vector(random_vector(fader, "one", 1))

            def fails(*_):
                raise MemoryError("llama.cpp could not make a context: no memory")

            asked = {"prompt": "the sea", "alignment": {"vectors": {"one": 0.5}}}
            with monkeypatch.context() as patched:
                patched.setattr(contexts, "Context", fails)
                mine = fader.batch([asked, "the sea"], max_tokens=8)
            assert len(fader.backend.backbones[fader.model]._contexts.all) == 1
        with Fader(str(file), engine="llama.cpp") as fader:
            fader.add_vector(random_vector(fader, "one", 1))
            other = fader.batch([asked, "the sea"], max_tokens=8)
            assert [tokens(one) for one in mine] == [tokens(one) for one in other]


@needs_llama
class TestMeasuring:
    """How many threads compute and how many tokens one call reads is measured once, and kept."""

    @pytest.fixture
    def calls(self, tmp_path, monkeypatch):
        """The calls that were measured, of which 128 tokens take the least time for each. The
        machine has four cores and nothing else to do."""
        from fader.engine.llama import measure

        monkeypatch.setenv("FADER_CACHE", str(tmp_path))
        monkeypatch.setattr(measured, "_BUSY", 1000.0)
        monkeypatch.setattr(measure, "_thread_counts", lambda: [4, 2])
        made = []
        real = measure._seconds

        def seconds(context, count):
            made.append(count)
            assert real(context, count) > 0
            return count * (0.001 if count == 128 else 0.002)

        monkeypatch.setattr(measure, "_seconds", seconds)
        return made

    def load(self, file, kernels="measured", **settings):
        from fader.engine.llama.loading import load as load_gguf

        return load_gguf(str(file), kernels=kernels, kv_bytes=2**26, **settings)

    def test_the_fastest_batch_is_taken_and_kept(self, file, calls):
        assert self.load(file).max_batch_tokens == 128
        assert {*calls} == {1, 4, 64, 128, 256, 512}
        calls.clear()
        again = self.load(file)
        assert (again.max_batch_tokens, {*again.threads} <= {4, 2}) == (128, True)
        assert not calls
        assert self.load(file, "default").max_batch_tokens == 512

    @pytest.mark.parametrize(
        ("half", "best"), [((0.97, 0.97), (4, 4)), ((0.5, 1.2), (2, 4)), ((1.2, 0.5), (4, 2))]
    )
    def test_fewer_threads_are_taken_where_they_are_faster(
        self, file, calls, monkeypatch, half, best
    ):
        from fader.engine.llama import measure

        times = {(4, 1): 1.0, (4, 4): 1.0, (2, 1): half[0], (2, 4): half[1]}
        monkeypatch.setattr(
            measure, "_call_seconds", lambda _, threads, count: times[threads, count]
        )
        assert self.load(file).threads == best

    def test_a_batch_that_is_kept_and_cannot_be_is_measured_anew(self, file, calls, tmp_path):
        self.load(file)
        (kept,) = tmp_path.glob("kernels/*.json")
        kept.write_text(kept.read_text().replace('"batch": 128', '"batch": 4096'))
        assert self.load(file).max_batch_tokens == 128

    def test_a_busy_machine_says_nothing(self, file, calls, monkeypatch):
        monkeypatch.setattr(measured, "_BUSY", -1.0)
        assert self.load(file).max_batch_tokens == 512
        assert not calls

    def test_what_would_take_long_is_left_out(self, file, calls, monkeypatch):
        from fader.engine.llama import measure

        monkeypatch.setattr(measure, "_SECONDS", 1.0)
        assert self.load(file).max_batch_tokens == 512
        assert {*calls} == {1, 4, 64}

    def test_by_hand(self, file, calls, monkeypatch):
        assert self.load(file, batch=7).max_batch_tokens == 7
        assert {*calls} == {1, 4}
        monkeypatch.setenv("FADER_LLAMA_BATCH", "100")
        assert self.load(file).max_batch_tokens == 100
        for value in ("0", "513", "many"):
            monkeypatch.setenv("FADER_LLAMA_BATCH", value)
            said = rf"^FADER_LLAMA_BATCH: must be a number of tokens from 1 to 512 \(got '{value}'"
            with pytest.raises(ValueError, match=said):
                self.load("nowhere.gguf")
        with pytest.raises(ValueError, match=r"^batch: must be a number .* \(got '-1'\)"):
            self.load("nowhere.gguf", batch=-1)

    def test_no_call_reads_more_and_no_token_changes(self, file, theirs, monkeypatch):
        asked = [" ".join(WORDS), " ".join(WORDS[:20])]
        backbone = self.load(file, batch=9)
        real, counts = backbone._batch.of, []
        monkeypatch.setattr(
            backbone._batch, "of", lambda count: counts.append(count) or real(count)
        )
        with Fader(backbone) as ours:
            mine, other = (f.batch(asked, max_tokens=8) for f in (ours, theirs))
        assert [tokens(one) for one in mine] == [tokens(one) for one in other]
        assert max(counts) == 9


@needs_llama
def test_files_are_converted(folder, file, tmp_path):
    from fader.engine.llama.convert import convert

    small = convert(str(file), tmp_path / "small.gguf", "q4_0")
    assert small.stat().st_size < file.stat().st_size / 2
    with Fader(str(small), engine="llama.cpp") as fader, Fader(load(str(folder))) as theirs:
        mine, other = (f.backend.backbones[f.model] for f in (fader, theirs))
        assert mine.fingerprint == other.fingerprint
        assert mine.dtype == "llama.cpp Q4_0"
        assert fader.generate("the sea", max_tokens=4).text
    for model, out, to, said in (
        (str(folder), small, "f32", "is there already"),
        (str(folder), tmp_path / "x.bin", "f32", "must end with .gguf"),
        (str(folder), tmp_path / "x.gguf", "q9", "'q9' is not one of"),
        (
            str(make_model(tmp_path / "opt", "opt")),
            tmp_path / "x.gguf",
            "f32",
            "not converted here",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            convert(model, out, to)
    assert not list(tmp_path.glob("*.part"))


@needs_llama
@pytest.mark.long
def test_the_benchmark_has_its_rows(builtin, tmp_path):
    from benchmarks import llama

    rows = list(llama.run(tokens=2, rounds=1, words=1))
    assert [row["case"] for row in rows] == list(llama.TARGETS)
    assert all(row["ratio"] > 0 and row["target"] == llama.TARGETS[row["case"]] for row in rows)


@needs_llama
def test_vectors_of_the_model_it_is_said_to_be_are_taken(folder, file, tmp_path):
    from fader.engine.llama.loading import load as load_gguf

    other = make_model(tmp_path / "other", seed=7)
    mark = load(str(other)).fingerprint
    assert load_gguf(str(file), same_as=str(other)).fingerprint == mark
    with pytest.raises(ValueError, match=r"^same_as: model: there is no file nowhere.gguf"):
        load_gguf(str(file), same_as="nowhere.gguf")
    with Fader(load(str(folder))) as theirs:
        vector = replace(random_vector(theirs, "of-another", 1), base=mark)
    alignment = json.dumps({"vectors": {str(vector.save(tmp_path / "of-another")): 0.5}})
    asked = ["generate", "the sea", "--model", str(file), "--engine", "llama.cpp"]
    asked += ["--max-tokens", "4", "--align", alignment]
    assert f"made for a model with fingerprint {mark}" in run(*asked).stderr
    taken = run(*asked, "--same-as", str(other))
    assert (taken.returncode, taken.stderr) == (0, "")
