"""The door: streaming, asyncio, errors."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from conftest import make_model, random_vector, until

from fader import Cancelled, Fader, Request, Resources, Sampling, load
from fader.backends.local import Local
from fader.engine.prefix import _alike
from fader.methods.prompt import conversation
from fader.schema import Invalid


def test_asyncio_gives_the_same_answers(tiny):
    async def run():
        one, many = await asyncio.gather(
            tiny.agenerate("the sea", max_tokens=8), tiny.abatch(["a cat", "the dog"], max_tokens=8)
        )
        chunks = [chunk.text async for chunk in tiny.astream("the sea", max_tokens=8)]
        return one, many, "".join(chunks)

    one, many, streamed = asyncio.run(run())
    assert one.answers == tiny.generate("the sea", max_tokens=8).answers
    assert [r.answers for r in many] == [
        r.answers for r in tiny.batch(["a cat", "the dog"], max_tokens=8)
    ]
    assert streamed == one.text


def test_cancelling_a_task_cancels_the_request(tiny):
    async def run():
        task = asyncio.create_task(tiny.agenerate("the sea", max_tokens=400, temperature=1.0))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    tiny.generate("a", max_tokens=1)
    assert tiny.backend.backbones[tiny.model].memory.taken == 0


def test_closing_cancels_what_runs(tiny_folder):
    fader = Fader(str(tiny_folder))
    stream = fader.stream("the sea", max_tokens=400, temperature=1.0)
    next(stream)
    fader.close()
    with pytest.raises(Cancelled):
        list(stream)
    with pytest.raises(RuntimeError, match="closed"):
        fader.generate("x")


def test_requests_in_every_form(tiny):
    expected = tiny.generate("the sea", max_tokens=4).answers
    forms = [
        {"prompt": "the sea", "sampling": {"max_tokens": 4}},
        {"messages": [{"role": "user", "content": "the sea"}], "sampling": {"max_tokens": 4}},
        Request.model_validate({"messages": "the sea", "sampling": {"max_tokens": 4}}),
    ]
    assert [result.answers for result in tiny.batch(forms)] == [expected] * 3
    with pytest.raises(ValueError, match=r"^max_tokens: give these inside the Request"):
        tiny.generate(forms[2], max_tokens=3)
    with pytest.raises(ValueError, match=r"^request 2: messages\[0\]\.content: must not be empty"):
        tiny.batch(["fine", " "])
    with pytest.raises(ValueError, match=r"^max_token: no such field \(got 3\)$"):
        tiny.generate("x", max_token=3)


def test_results_are_handed_over_as_they_come(tiny):
    seen = []
    results = tiny.batch(["the sea", "a cat"], seen.append, max_tokens=3)
    assert seen == results


def test_score_is_the_sum_of_its_tokens(tiny):
    found = tiny.score("the sea", " is wide")
    assert found.logprob == pytest.approx(sum(found.logprobs))
    assert "".join(found.tokens) == " is wide"
    assert found.mean == pytest.approx(found.logprob / len(found.tokens))
    hard = {"guides": [{"kind": "contrast", "principle": "x", "plausible": {"top_k": 1}}]}
    assert tiny.score("the sea", "zzz qqq xxx", alignment=hard).as_dict()["logprob"] is None
    with pytest.raises(ValueError, match=r"^answer: has no tokens"):
        tiny.score("the sea", "")


@pytest.mark.long
def test_of_a_long_history_the_oldest_choices_are_dropped_and_counted(tiny):
    """Ten thousand choices answer as the newest of them do, and what was left out is said."""
    history = [
        {"prompt": f"q{number}", "chosen": f"the sea {number}", "rejected": "a mat"}
        for number in range(10_000)
    ]

    def told(choices, rendering="tiers"):
        return {"preferences": {"history": choices, "rendering": rendering}}

    seen = []
    result = tiny.generate("the sea", max_tokens=8, alignment=told(history))
    kept = 10_000 - result.dropped_choices
    assert 2 <= kept < 20
    newest = tiny.generate("the sea", max_tokens=8, alignment=told(history[-kept:]))
    assert (newest.answers, newest.dropped_choices) == (result.answers, 0)
    assert result.prompt_tokens == newest.prompt_tokens <= 512 - 8
    one_more = tiny.generate("the sea", max_tokens=8, alignment=told(history[-kept - 1 :]))
    assert one_more.dropped_choices == 1
    assert result.as_dict()["usage"]["dropped_choices"] == 10_000 - kept
    fewer = tiny.generate("the sea", max_tokens=200, alignment=told(history))
    assert fewer.dropped_choices > result.dropped_choices  # the answer has its room first
    "".join(
        chunk.text
        for chunk in tiny.stream("the sea", seen.append, max_tokens=8, alignment=told(history))
    )
    assert [one.dropped_choices for one in seen] == [result.dropped_choices]
    scored = tiny.score("the sea", " is wide", max_tokens=8, alignment=told(history))
    assert scored.as_dict()["dropped_choices"] == result.dropped_choices


def test_a_history_that_fits_is_told_as_it_is(tiny):
    choices = [{"chosen": "a", "rejected": "b"}] * 3
    alignment = {"preferences": {"history": choices}}
    plan = tiny.backend.plan(tiny.request("the sea", alignment=alignment, max_tokens=4))
    backbone = tiny.backend.backbones[tiny.model]
    whole = conversation(
        plan.request.messages, (plan.request.alignment.preferences,), backbone.tokenizer
    )
    assert whole.count("Earlier") == 3
    assert len(plan.guided.base.prompt) == len(backbone.encode(whole))
    assert plan.dropped == 0


def test_a_failing_reward_ends_its_job_only(tiny, monkeypatch):
    def broken(prompts, texts):
        raise RuntimeError("the judge is out")

    monkeypatch.setattr(tiny.backend, "resources", Resources(callables={"broken": broken}))
    search = {"kind": "best-of-n", "n": 2, "rewards": [{"kind": "python", "name": "broken"}]}
    with pytest.raises(RuntimeError, match="the judge is out"):
        tiny.generate("the sea", max_tokens=3, temperature=1.0, alignment={"search": search})
    assert tiny.generate("the sea", max_tokens=3).text


def test_sampling_as_a_keyword_and_models_by_alias(tiny, tiny_folder, tmp_path):
    assert len(tiny.generate("the sea", sampling={"max_tokens": 3}).answers[0].token_ids) == 3
    other = make_model(tmp_path / "other", seed=5)
    with Fader(str(tiny_folder), models={"alias": str(other)}) as fader:
        guided = fader.generate(
            "the sea",
            max_tokens=4,
            alignment={"guides": [{"kind": "realign", "aligned": {"model": "alias"}}]},
        )
        assert (
            guided.answers[0].token_ids
            == fader.generate({"prompt": "the sea", "model": "alias"}, max_tokens=4)
            .answers[0]
            .token_ids
        )


def test_the_resolved_alignment_can_be_asked_again(tiny):
    alignment = {"guides": [{"kind": "contrast", "principle": "be kind", "plausible": None}]}
    result = tiny.generate("the sea", max_tokens=4, alignment=alignment)
    assert (
        tiny.generate("the sea", max_tokens=4, alignment=result.as_dict()["alignment"]).answers
        == result.answers
    )


def test_a_principle_is_told_beside_the_requests_own_tiers(tiny):
    request = tiny.request(
        "the sea",
        alignment={
            "preferences": {"user": "be brief"},
            "guides": [{"kind": "contrast", "principle": "be kind"}],
        },
    )
    guided = tiny.backend.plan(request).guided
    told = tiny.backend.backbones[tiny.model].tokenizer.decode(guided.terms[0].policy.prompt)
    assert "be brief" in told
    assert "be kind" in told
    assert guided.terms[0].reference == guided.base


def test_a_batch_that_is_refused_starts_nothing(tiny, monkeypatch):
    monkeypatch.setattr(tiny.backend.engine, "run", lambda *_: pytest.fail("nothing may start"))
    with pytest.raises(ValueError, match=r"^request 2: sampling\.max_tokens: prompt and"):
        tiny.batch(
            [
                {"prompt": "the sea", "sampling": {"max_tokens": 2}},
                {"prompt": "the sea", "sampling": {"max_tokens": 600}},
            ]
        )


def test_a_slow_reward_does_not_hold_up_the_others(tiny, monkeypatch):
    """While a judge thinks, other requests are answered; those that ask it meanwhile wait for one
    call together."""
    asked, answered, calls = threading.Event(), threading.Event(), []

    def think(prompts, texts):
        calls.append(len(texts))
        asked.set()
        assert answered.wait(timeout=30), "the engine waited for the reward"
        return [0.0] * len(texts)

    monkeypatch.setattr(tiny.backend, "resources", Resources(callables={"think": think}))
    search = {"kind": "best-of-n", "n": 2, "rewards": [{"kind": "python", "name": "think"}]}
    ask = partial(
        tiny.generate,
        "the sea",
        max_tokens=2,
        sampling={"temperature": 1},
        alignment={"search": search},
    )
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask)
        assert asked.wait(timeout=30)
        later = [pool.submit(ask) for _ in range(3)]
        assert [tiny.generate("the sea", max_tokens=2).text for _ in range(20)]
        assert not first.done()
        answered.set()
        texts = {one.result(timeout=30).text for one in (first, *later)}
    assert texts == {ask().text}
    assert calls[:2] == [2, 6]


def test_a_stream_closed_before_its_first_chunk_is_cancelled(tiny):
    tiny.stream("the sea", max_tokens=400, temperature=1.0).close()
    until(lambda: not tiny.backend.engine.stats().live)
    assert tiny.generate("the sea", max_tokens=1).usage.tokens_read < 100


def test_a_vector_that_could_not_be_stacked_is_stacked_anew(fader, monkeypatch):
    mixer = fader.backend.backbones[fader.model]._mixer
    wish = {"alignment": {"vectors": {"medical": 1.0}}}
    expected, medical = fader.score("the sea", " wide", **wish).mean, fader.vector("medical")
    fader.remove_vector("medical")
    fader.add_vector(medical)
    assert fader.generate("the sea", max_tokens=1).text  # by then its factors are gone
    assert not mixer.vectors
    last = mixer.layers[
        [name for name in mixer.layers if name in fader.vector("medical").factors][-1]
    ]
    stack = last.stack
    monkeypatch.setattr(
        last, "stack", lambda factors: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        fader.score("the sea", " wide", **wish)
    monkeypatch.setattr(last, "stack", stack)
    assert fader.score("the sea", " wide", **wish).mean == expected


def test_a_reward_that_exits_ends_its_request_alone(tiny_folder):
    def leave(prompts, texts):
        raise SystemExit

    wish = {
        "search": {"kind": "best-of-n", "n": 2, "rewards": [{"kind": "python", "name": "leave"}]}
    }
    with Fader(str(tiny_folder), resources=Resources(callables={"leave": leave})) as fader:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="SystemExit"):
                fader.generate("the sea", alignment=wish, temperature=1.0, max_tokens=2)
        assert fader.generate("the sea", max_tokens=1).text


def test_sampling_is_given_field_by_field(tiny):
    def asked(prompt, **fields):
        return tiny.request(prompt, **fields).sampling

    assert asked("x", sampling=Sampling(seed=1), max_tokens=5) == Sampling(seed=1, max_tokens=5)
    assert asked(
        {"prompt": "x", "sampling": {"seed": 1}}, sampling={"max_tokens": 5, "seed": 2}
    ) == Sampling(seed=1, max_tokens=5)
    with pytest.raises(ValueError, match=r"^sampling: must be a mapping of its fields"):
        asked("x", sampling=3)
    with pytest.raises(ValueError, match=r"^prompt: stands for messages, which are given too"):
        tiny.request({"prompt": "a", "messages": "b"})


def test_more_answers_than_fit_are_scored_in_parts(tiny_folder):
    answers = [
        f" {word}"
        for word in ("sea", "wide", "ship", "small", "cat", "mat", "dog", "home", "one", "two")
    ]
    with (
        Fader(load(str(tiny_folder), kv_bytes=3 * 64 * 3 * 2 * 2 * 16 * 4)) as little,
        Fader(str(tiny_folder)) as much,
    ):
        assert little.backend.backbones[little.model].memory.budget == 3 * 64
        pairs = [("the", answer) for answer in answers]
        found = [one.mean for one in little.score_batch(pairs)]
        assert found == pytest.approx([one.mean for one in much.score_batch(pairs)], abs=1e-4)


def test_what_cannot_be_scored_starts_nothing(tiny, monkeypatch):
    monkeypatch.setattr(tiny.backend.engine, "run", lambda *_: pytest.fail("nothing may start"))
    with pytest.raises(ValueError, match=r"^request 2: answer: has no tokens"):
        tiny.score_batch([("the sea", " wide"), ("a cat", "")])
    with pytest.raises(ValueError, match=r"^answer: must be a text to score"):
        tiny.score("the sea", None)
    with pytest.raises(ValueError, match=r"^alignment\.search: chooses what is written"):
        tiny.score(
            "the sea",
            " wide",
            alignment={
                "search": {"kind": "lookahead", "rewards": [{"kind": "length", "at_most": 3}]}
            },
        )


def test_what_is_given_by_place_is_loaded_and_named(tiny_folder, tmp_path):
    """A request names things; the front finds names for folders, in every part of a request."""
    with Fader(str(tiny_folder)) as fader:
        random_vector(fader, "mine", 3).save(tmp_path / "mine")
        random_vector(fader, "mine", 4).save(tmp_path / "other" / "mine")
        first, second = str(tmp_path / "mine"), str(tmp_path / "other" / "mine")
        guide = {"kind": "realign", "aligned": {"vectors": {second: 1}, "model": str(tiny_folder)}}
        request = fader.request("the sea", alignment={"vectors": {first: 0.5}, "guides": [guide]})
        (again,) = request.alignment.guides[0].aligned.vectors
        assert [*request.alignment.vectors] == ["mine"]
        assert again.startswith("mine-")
        assert {"mine", again} <= {*fader.vectors}
        assert request.alignment.guides[0].aligned.model == fader.model  # as it was loaded
        assert not fader.check(request)
        assert fader.request("a", alignment={"vectors": {second: 1}}).alignment.vectors == {
            again: 1
        }
        before = fader.vector("mine").digest
        time.sleep(0.01)  # so that the files have another time
        random_vector(fader, "mine", 5).save(tmp_path / "mine")
        assert fader.request("a", alignment={"vectors": {first: 1}}).alignment.vectors == {
            "mine": 1
        }
        assert fader.vector("mine").digest != before
        shutil.copytree(tiny_folder, tmp_path / "twin")
        assert fader.request("the sea", alignment={"vectors": {first: 1}}) == fader.request(
            "the sea", alignment={"vectors": {"mine": 1}}
        )
        twin = fader.request("the sea", model=str(tmp_path / "twin"), max_tokens=3)
        assert (twin.model, fader.backend.models) == ("twin", [str(tiny_folder), "twin"])
        assert fader.generate(twin).text == fader.generate("the sea", max_tokens=3).text
        with pytest.raises(ValueError, match="there is one of the name 'twin' already"):
            fader.backend.add_model("twin", str(tiny_folder))


def test_a_name_keeps_its_place_between_calls(tiny_folder, tmp_path):
    """A folder of the same name as one that was given earlier is another vector, or model."""
    with Fader(str(tiny_folder)) as fader:
        for place, seed in (("one", 3), ("two", 4)):
            random_vector(fader, "own", seed).save(tmp_path / place / "own")
            make_model(tmp_path / place / "judge", seed=seed)
        given = [
            fader.request(
                "the sea",
                model=str(tmp_path / place / "judge"),
                alignment={"vectors": {str(tmp_path / place / "own"): 1}},
            )
            for place in ("one", "two", "one")
        ]
        assert given[0] == given[2]
        assert (given[0].model, *given[0].alignment.vectors) == ("judge", "own")
        assert given[1].model != "judge"
        assert [*given[1].alignment.vectors] != ["own"]
        (other,) = given[1].alignment.vectors
        (own, _), (others, _) = (
            next(iter(fader.vector(name).factors.values())) for name in ("own", other)
        )
        assert not own.equal(others)


def test_threads_may_give_one_place_at_once(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "twin")
    with Fader(str(tiny_folder)) as fader, ThreadPoolExecutor(4) as pool:
        asked = partial(fader.request, "the sea", model=str(tmp_path / "twin"))
        assert {request.model for request in pool.map(lambda _: asked(), range(4))} == {"twin"}


def test_a_vector_given_by_two_places_is_refused(tiny, tmp_path):
    random_vector(tiny, "double", 3).save(tmp_path / "double")
    vectors = {str(tmp_path / "double"): 1, str(tmp_path / "x" / ".." / "double"): 0.5}
    (tmp_path / "x").mkdir()
    with pytest.raises(Invalid) as refused:
        tiny.request(
            "the sea", alignment={"guides": [{"kind": "realign", "aligned": {"vectors": vectors}}]}
        )
    assert refused.value.path == "alignment.guides[0].aligned.vectors.double"


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_no_name(tiny, name):
    for field, asked in (
        ("model", {"model": name}),
        (f"alignment.vectors.{name}", {"alignment": {"vectors": {name: 1}}}),
    ):
        with pytest.raises(Invalid) as refused:
            tiny.generate("the sea", **asked)
        assert refused.value.path == field


@pytest.mark.parametrize("prompts", [None, 5])
def test_no_prompts_are_refused_with_the_field(tiny, prompts):
    with pytest.raises(Invalid) as refused:
        tiny.batch(prompts)
    assert refused.value.path == "prompts"


def test_what_is_nested_without_an_end_is_refused(tiny):
    inside: dict[str, object] = {}
    inside["guides"] = [inside]
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for asked, field in (({"alignment": inside}, "alignment"), ({"messages": deep}, "")):
        with pytest.raises(Invalid, match="nested too deeply") as refused:
            tiny.generate({"messages": "the sea", **asked})
        assert refused.value.path == field
    with pytest.raises(Invalid, match=r"^prompt: .* \(got a list, nested too deeply\)"):
        tiny.generate(deep)


def test_an_alignment_that_is_none_names_its_request(tiny):
    with pytest.raises(Invalid) as refused:
        tiny.batch(["the sea", {"prompt": "a cat", "alignment": "nope"}])
    assert refused.value.path == "request 2: alignment"


@pytest.mark.parametrize("pair", ["ab", ("ab",), 5, None])
def test_what_is_no_pair_is_not_scored(tiny, pair):
    with pytest.raises(Invalid) as refused:
        tiny.score_batch([("the sea", " wide"), pair])
    assert refused.value.path == "pairs[1]"


@pytest.mark.parametrize("kind", [None, "best-of-n", "lookahead"])
def test_the_next_turn_of_a_conversation_reads_only_what_is_new(tiny_folder, kind):
    """Whichever of several answers it goes on from, and also where a search wrote it."""
    search = {"kind": kind, "rewards": [{"kind": "length", "at_most": 10**6}]}
    if kind == "lookahead":
        search |= {"rollout": "sampled", "lookahead": 2}
    settings = {"n": 3, "max_tokens": 8, "temperature": 1.0}
    first = [{"role": "user", "content": "the sea is wide and the ship is small . " * 8}]
    with Fader(load(str(tiny_folder))) as fader:

        def prompt(turns):
            return fader.backend.plan(fader.request(turns)).guided.base.prompt

        found = fader.generate(first, alignment={"search": search} if kind else {}, **settings)
        begun = prompt(first)
        # the last token of an answer was written, and not read
        read = [(*begun, *answer.token_ids[:-1]) for answer in found.answers]
        further = 0
        for place, answer in enumerate(found.answers):
            said = {"role": "assistant", "content": answer.text}
            turns = [*first, said, {"role": "user", "content": f"{place} and then ?"}]
            whole = prompt(turns)  # in which the answer may be other tokens than were written
            known = max(_alike(text, whole) for text in read)
            usage = fader.generate(turns, max_tokens=1).usage
            assert (usage.cached_tokens, usage.tokens_read) == (known, len(whole) - known)
            further = max(further, known - len(begun))
            read.append(whole)
        assert further > 0
        assert fader.backend.backbones[fader.model].memory.taken == 0


MISTAKES = (
    (lambda fader: fader.score("a", ["b"]), "answer: must be a text to score"),
    (lambda fader: fader.score_batch(None), "pairs: must be a list"),
    (lambda fader: fader.score_batch("ab"), "pairs: must be a list"),
    (lambda fader: fader.generate({"role": "user", "content": "a"}), "prompt: is one message"),
    (lambda fader: fader.batch([{"role": "user", "content": "a"}]), "prompt: is one message"),
    (lambda fader: fader.generate({"prompt": "a", "seed": 1}), "seed: stands under `sampling`"),
    (lambda fader: fader.add_vector("warm"), "must be a Vector"),
)


@pytest.mark.parametrize(("call", "said"), MISTAKES)
def test_what_is_given_wrongly_is_refused_with_the_right_call(tiny, call, said):
    with pytest.raises(Invalid, match=f"^{said}"):
        call(tiny)


def test_what_fails_while_it_runs_is_named_too(tiny):
    huge = random_vector(tiny, "huge", 3)
    tiny.add_vector(huge)
    asked = ["a", {"prompt": "b", "alignment": {"vectors": {"huge": 1e200}}}]
    said = "^request 2: .*not finite"
    with pytest.raises(Invalid, match=said):
        tiny.batch(asked, max_tokens=2)
    with pytest.raises(Invalid, match=said):
        list(tiny.stream_batch(asked, max_tokens=2))
    with pytest.raises(Invalid, match=said):
        asyncio.run(tiny.abatch(asked, max_tokens=2))
    with pytest.raises(Invalid, match=said):
        tiny.score_batch([(one, "c") for one in asked])
    tiny.remove_vector("huge")


def test_an_alignment_may_be_a_path(tiny, tmp_path):
    file = tmp_path / "told.yaml"
    file.write_text("preferences: {user: be brief}")
    told = {"preferences": {"user": "be brief"}}
    assert tiny.request("a", alignment=file) == tiny.request("a", alignment=told)


def test_a_folder_that_is_refused_is_not_met_again(tiny_folder, tmp_path):
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    (bad / "adapter_config.json").write_text("{}")
    with Fader(load(str(tiny_folder))) as fader:
        random_vector(fader, "one", 0).save(good)
        alone = fader.generate("the sea", max_tokens=4).answers
        for _ in range(2):
            with pytest.raises(ValueError, match="peft_type is None"):
                fader.generate("the sea", max_tokens=4, alignment={"vectors": {str(bad): 1}})
        assert fader.generate("the sea", max_tokens=4).answers == alone
        fader.generate("the sea", max_tokens=1, alignment={"vectors": {str(good): 1}})
        shutil.rmtree(good)
        assert fader.generate("the sea", max_tokens=4).answers == alone
        broken = tmp_path / "model"
        broken.mkdir()
        (broken / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="model"):
            fader.generate("the sea", model=str(broken), max_tokens=1)
        assert fader.generate("the sea", max_tokens=4).answers == alone


def test_requests_of_a_batch_are_read_together(tiny_folder, monkeypatch):
    """From the first forward pass on, however long it takes to plan them."""
    backbone = load(str(tiny_folder))
    forward, rows = backbone.forward, []
    plan = Local.plan

    def slowly(self, *given):
        time.sleep(0.02)
        return plan(self, *given)

    monkeypatch.setattr(Local, "plan", slowly)

    def counting(segments):
        rows.append(len(segments))
        return forward(segments)

    backbone.forward = counting
    with Fader(backbone) as fader:
        fader.batch(["the sea", "a cat", "one two", "rivers"], max_tokens=3, ignore_eos=True)
    assert rows == [4, 4, 4]
