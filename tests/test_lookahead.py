"""DeAL's look-ahead search against the paper's formula, read out plainly."""

import itertools

import pytest
import torch

from fader.request import Request
from fader.rewards.reward import Resources
from fader.rewards.table import weighted_sum
from fader.schema import parse

WORDS = {"kind": "keywords", "words": ["sea", "dog", "at"], "match": "form"}


def reference(fader, prompt, search, max_tokens, stop=()):
    """The paper's pseudo-code: every candidate's look-ahead read anew at every step, one prompt at
    a time, no cache. Returns the tokens."""
    backbone = fader.backend.backbones[fader.model]
    request = parse(Request, {"messages": prompt, "alignment": {"search": search}})
    spec, reward = (
        request.alignment.search,
        weighted_sum(request.alignment.search.rewards, Resources()),
    )
    context = list(fader.backend.plan(fader.request(prompt)).guided.base.prompt)

    def log_probabilities(tokens):
        return backbone.model_reference(context + tokens).log_softmax(-1)

    def ended(tokens):
        text = backbone.decode(tokens)
        return bool(tokens) and (
            tokens[-1] in backbone.end_tokens
            or len(tokens) == max_tokens
            or any(s in text for s in stop)
        )

    def far(tokens, start):
        if spec.lookahead == "sentence":
            return (
                backbone.decode(tokens)[len(backbone.decode(tokens[: start - 1])) :]
                .rstrip()
                .endswith((".", "!", "?"))
            )
        return spec.lookahead != "end" and len(tokens) - start >= spec.lookahead

    def h(tokens):
        text = backbone.decode(tokens)
        cut = min((text.find(s) for s in stop if s in text), default=len(text))
        return reward.score([prompt], [text[:cut]])[0]

    def worth(logprob, tokens):
        ahead = list(tokens)
        while not ended(ahead) and not far(ahead, len(tokens)):
            ahead.append(int(log_probabilities(ahead).argmax()))
        return logprob + spec.weight * h(ahead)

    beams = [([], 0.0)]
    while not all(ended(tokens) for tokens, _ in beams):
        found = []
        for tokens, logprob in beams:
            if ended(tokens):
                found.append((logprob + spec.weight * h(tokens), tokens, logprob))
            else:
                values, ids = log_probabilities(tokens).topk(spec.top_k)
                for value, token in zip(values.tolist(), ids.tolist(), strict=True):
                    longer = [*tokens, token]
                    found.append((worth(logprob + value, longer), longer, logprob + value))
        best = sorted(range(len(found)), key=lambda i: (-found[i][0], i))[: spec.beams]
        beams = [found[i][1:] for i in sorted(best)]
    return max(beams, key=lambda beam: beam[1] + spec.weight * h(beam[0]))[0]


@pytest.fixture(scope="module", autouse=True)
def plain_forward(tiny):
    """The tiny model's own forward over a whole sequence, the reference's only way to read."""
    from transformers import AutoModelForCausalLM

    backbone = tiny.backend.backbones[tiny.model]
    model = AutoModelForCausalLM.from_pretrained(tiny.model, attn_implementation="eager").eval()

    @torch.inference_mode()
    def read(tokens):
        return model(torch.tensor([tokens])).logits[0, -1].float()

    backbone.model_reference = read
    yield
    del backbone.model_reference


OPTIMIZATIONS = [
    tuple(names)
    for count in range(5)
    for names in itertools.combinations(("reuse", "prune", "skip", "speculate"), count)
]
CASES = [
    {"top_k": 4, "lookahead": 5},
    {"top_k": 4, "lookahead": 0, "weight": 3},
    {"top_k": 3, "lookahead": "end", "weight": 40},
    {"top_k": 3, "lookahead": "sentence"},
    {"top_k": 5, "lookahead": 3, "beams": 3, "weight": 5},
    {"top_k": 4, "lookahead": 4, "stop": (" sea", "the s")},
    {"top_k": 6, "lookahead": 6, "width": 1, "weight": 100},
    {
        "top_k": 4,
        "lookahead": 4,
        "rewards": [WORDS, {"kind": "length", "at_most": 4, "weight": 0.5}],
    },
    {
        "top_k": 4,
        "lookahead": 4,
        "rewards": [{**WORDS, "weight": -1}, {"kind": "length", "at_most": 2}],
    },
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.long
def test_every_shortcut_gives_the_tokens_of_the_plain_reference(tiny, case):
    case = dict(case)
    stop = case.pop("stop", ())
    prompts = ["the sea", "a cat sat", "one two three"]
    spec = {"kind": "lookahead", "rewards": [WORDS], "weight": 10, **case}
    expected = [reference(tiny, prompt, spec, 12, stop) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) == 3
    for optimizations in OPTIMIZATIONS:
        results = tiny.batch(
            prompts,
            max_tokens=12,
            stop=stop,
            alignment={"search": {**spec, "optimizations": optimizations}},
        )
        assert [list(result.answers[0].token_ids) for result in results] == expected, optimizations


def test_search_changes_what_is_written(tiny):
    spec = {"kind": "lookahead", "rewards": [WORDS], "weight": 30, "top_k": 8, "lookahead": 6}
    found = tiny.generate("the sea", max_tokens=12, alignment={"search": spec}).answers[0]
    plain = tiny.generate("the sea", max_tokens=12).answers[0]
    reward = weighted_sum(
        [
            parse(
                Request, {"messages": "x", "alignment": {"search": spec}}
            ).alignment.search.rewards[0]
        ],
        Resources(),
    )
    assert (
        found.search.reward
        == reward.score([""], [found.text])[0]
        > reward.score([""], [plain.text])[0]
    )
