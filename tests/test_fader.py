"""The door: streaming, asyncio, errors."""

import asyncio

import pytest

from fader import Cancelled, Fader, Request


def test_asyncio_gives_the_same_answers(tiny):
    async def run():
        one, many = await asyncio.gather(tiny.agenerate("the sea", max_tokens=8), tiny.abatch(["a cat", "the dog"], max_tokens=8))
        chunks = [chunk.text async for chunk in tiny.astream("the sea", max_tokens=8)]
        return one, many, "".join(chunks)

    one, many, streamed = asyncio.run(run())
    assert one.answers == tiny.generate("the sea", max_tokens=8).answers
    assert [r.answers for r in many] == [r.answers for r in tiny.batch(["a cat", "the dog"], max_tokens=8)]
    assert streamed == one.text


def test_cancelling_a_task_cancels_the_request(tiny):
    async def run():
        task = asyncio.create_task(tiny.agenerate("the sea", max_tokens=400, temperature=1.0))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    tiny.generate("a", max_tokens=1)
    assert tiny.backbones[tiny.model].pool.taken == 0


def test_closing_cancels_what_runs(tiny_folder):
    fader = Fader(str(tiny_folder))
    stream = fader.stream("the sea", max_tokens=400, temperature=1.0)
    next(stream)
    fader.close()
    with pytest.raises((Cancelled, RuntimeError)):
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
    with pytest.raises(ValueError, match="max_tokens: give these inside the Request"):
        tiny.generate(forms[2], max_tokens=3)
    with pytest.raises(ValueError, match=r"request 2: messages.0.content"):
        tiny.batch(["fine", " "])
    with pytest.raises(ValueError, match="no such field"):
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
    with pytest.raises(ValueError, match="answer: has no tokens"):
        tiny.score("the sea", "")


def test_a_failing_reward_ends_its_job_only(tiny, monkeypatch):
    def broken(prompts, texts):
        raise RuntimeError("the judge is out")

    monkeypatch.setattr("fader.fader.weighted_sum", lambda specs: broken)
    search = {"kind": "best-of-n", "n": 2, "rewards": [{"kind": "keywords", "words": ["a"]}]}
    with pytest.raises(RuntimeError, match="the judge is out"):
        tiny.generate("the sea", max_tokens=3, temperature=1.0, alignment={"search": search})
    assert tiny.generate("the sea", max_tokens=3).text
