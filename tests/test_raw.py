"""Raw prompts, forced beginnings as token ids, and the settings that only plain decoding knows."""

import pytest

from fader import Request
from fader.schema import Invalid


def test_a_raw_prompt_is_read_as_it_is(tiny):
    backend, name = tiny.backend, tiny.model
    raw = "<|user|>the sea<|end|><|assistant|>"  # what the chat template would write
    chat = tiny.generate("the sea", max_tokens=8)
    assert tiny.generate({"raw": raw}, max_tokens=8).answers == chat.answers
    ids = backend.encode(name, Request.of("the sea"))
    assert ids == backend.encode(name, raw)
    assert tiny.generate({"raw": ids}, max_tokens=8).answers == chat.answers
    assert backend.decode(name, ids, special=True) == raw
    assert "<|" not in backend.decode(name, ids)


def test_preferences_stand_above_a_raw_prompt(tiny):
    told = {"preferences": {"user": "Be brief.", "rendering": "system"}}
    request = Request.of({"raw": "the sea", "alignment": told})
    assert tiny.backend.decode(tiny.model, tiny.backend.encode(tiny.model, request)) == (
        "Be brief.\n\nthe sea"
    )


def test_a_raw_answer_is_scored_as_it_was_written(tiny):
    alignment = {"guides": [{"kind": "contrast", "principle": "be a cat", "plausible": {}}]}
    request = {"raw": "the sea", "alignment": alignment}
    written = tiny.generate(request, max_tokens=6, logprobs=3).answers[0]
    request = Request.of(request, logprobs=3)
    [found] = tiny.backend.score(request, [written.token_ids]).result()
    assert found.logprobs == pytest.approx([one.logprob for one in written.logprobs], abs=1e-4)
    for one, other in zip(found.details, written.logprobs, strict=True):
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert one.base == pytest.approx(other.base, abs=1e-4)


def test_the_base_of_a_report_is_the_answer_without_guides(tiny):
    alignment = {"guides": [{"kind": "contrast", "principle": "be a cat", "plausible": {}}]}
    guided = tiny.generate("the sea", alignment=alignment, max_tokens=1, logprobs=0)
    [report] = guided.answers[0].logprobs
    [plain] = tiny.backend.score(Request.of("the sea"), [[report.id]]).result()
    assert report.base == pytest.approx(plain.logprob, abs=1e-4)
    assert report.guides["0:contrast"] != 0


def test_an_answer_is_continued_from_its_token_ids(tiny):
    whole = tiny.generate("the sea", max_tokens=10).answers[0].token_ids
    rest = tiny.generate({"prompt": "the sea", "prefill": whole[:4]}, max_tokens=6)
    assert rest.answers[0].token_ids == whole[4:]


def test_the_end_can_be_put_off(tiny):
    bias = {1: 100.0}
    assert tiny.generate("the sea", logit_bias=bias).answers[0].token_ids == (1,)
    longer = tiny.generate("the sea", logit_bias=bias, min_tokens=5).answers[0]
    assert (len(longer.token_ids), longer.finish_reason) == (6, "stop")
    on = tiny.generate("the sea", logit_bias=bias, ignore_eos=True, max_tokens=7).answers[0]
    assert (on.token_ids, on.finish_reason, on.text) == ((1,) * 7, "length", "")


def test_guides_that_want_only_the_end_are_put_off_too(tiny):
    guide = {"kind": "contrast", "principle": "be a cat", "plausible": {"top_k": 1}}
    found = tiny.generate(
        "the sea", alignment={"guides": [guide]}, logit_bias={1: 100.0}, min_tokens=3, max_tokens=3
    )
    assert not {1, 2} & {*found.answers[0].token_ids}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give `messages`, or `raw`"),
        ({"raw": "a", "messages": "b"}, "both given"),
        ({"raw": "a", "prefill": "b"}, "put it at the end of `raw`"),
        ({"raw": []}, "raw: "),
        ({"raw": [10**6]}, "raw: "),
        ({"messages": "a", "sampling": {"logit_bias": {10**6: 1}}}, "sampling.logit_bias: "),
        ({"messages": "a", "sampling": {"min_tokens": 9, "max_tokens": 3}}, "min_tokens (9)"),
        (
            {
                "messages": "a",
                "sampling": {"ignore_eos": True, "temperature": 1},
                "alignment": {
                    "search": {
                        "kind": "best-of-n",
                        "rewards": [{"kind": "keywords", "words": ["sea"]}],
                    }
                },
            },
            "sampling.ignore_eos: has no effect on a search",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny, fields, said):
    with pytest.raises(Invalid) as caught:
        tiny.generate(fields)
    assert said in str(caught.value)
