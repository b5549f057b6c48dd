"""Our backend on vLLM against vLLM itself, in one engine: without alignment, with a mixture of
vectors in each row, with a guide of three policies; and how many answers differ from those of our
own engine. What a plain vLLM writes comes from the same engine, which our plug-ins then leave
alone; `idle` is that engine against one without plug-ins.

Runs in the environment of `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.interleave import RANK, chosen, compare, main, prompts, random_vector
from fader import Fader
from fader.answer import Answer
from fader.backends.vllm import VLLM
from fader.backends.vllm.adapters import Adapter
from fader.engine import builtin

TIE = 2e-3
TARGETS: dict[str, float | None] = {
    "plain": 0.95,
    "plain-1": None,
    "vectors": 0.8,
    "vectors-over-plain": 0.9,
    "gang-3": 0.7,
    "wrong": 1.0,
}
MIXTURES = [{"one": 0.1 * (1 + row), "two": 1 - 0.1 * row} for row in range(8)]
GANG = {
    "guides": [
        {"kind": "ratio", "policy": {"vectors": {"one": 1}}, "reference": {"vectors": {"two": 1}}}
    ],
    "vectors": {"three": 1},
}
"""Three policies, each with an adapter."""


def engine(**more: Any) -> VLLM:
    """The built-in model on vLLM."""
    settings = {"max_model_len": 1024}
    return VLLM(
        builtin.NAME, dtype="float32", kv_bytes=2**30, max_rank=2 * RANK, settings=settings, **more
    )


def run(
    case: str | None = None, tokens: int = 48, rounds: int = 3, answers: int = 64
) -> Iterator[dict[str, Any]]:
    """Each case in tokens per second; `wrong` in answers that are the same."""
    cases = chosen(case, TARGETS)
    with Fader(engine(token_budget=1024, share_prompts=False)) as fader:
        backend = fader.backend
        assert isinstance(backend, VLLM)
        for seed, name in enumerate(("one", "two", "three")):
            fader.add_vector(random_vector(name, fader, seed))

        def ours(count: int, alignments: Sequence[dict[str, Any]]) -> float:
            requests = [
                {"prompt": prompt, "alignment": alignments[row % len(alignments)]}
                for row, prompt in enumerate(prompts(count))
            ]
            results = fader.batch(requests, max_tokens=tokens, ignore_eos=True)
            return float(sum(len(result.answers[0].token_ids) for result in results))

        def native(texts: Sequence[str], mixtures: Sequence[dict[str, float]] = ()) -> float:
            asked = [backend.encode(fader.model, fader.request(text)) for text in texts]
            adapters: list[Adapter | None] = [
                backend.adapter(mixtures[row % len(mixtures)]) if mixtures else None
                for row in range(len(asked))
            ]
            found = backend.engine.call(
                lambda: backend.engine.reader.native(asked, tokens, adapters)
            )
            return float(sum(map(len, found)))

        mixed = [{"vectors": mixture} for mixture in MIXTURES]
        single = [{"one": 0.1 * (1 + row)} for row in range(8)]
        sides = {
            "plain": (lambda: ours(8, [{}]), lambda: native(prompts(8))),
            "plain-1": (lambda: ours(1, [{}]), lambda: native(prompts(1))),
            "vectors": (lambda: ours(8, mixed), lambda: native(prompts(8), single)),
            "vectors-over-plain": (lambda: ours(8, mixed), lambda: native(prompts(8))),
            "gang-3": (
                lambda: 3 * ours(1, [GANG]),
                lambda: native(prompts(1) * 3, [{"one": 1}, {"two": 1}, {"three": 1}]),
            ),
        }
        for name, (one, other) in sides.items():
            if name in cases:
                yield compare("vllm", name, one, other, cases[name], rounds)
        if "wrong" in cases:
            yield _wrong(fader, answers, min(tokens, 16), cases["wrong"])


def _wrong(fader: Fader, count: int, tokens: int, target: float | None) -> dict[str, Any]:
    """How many of `count` answers of all kinds are those of our own engine, up to ties."""
    contrast = {"guides": [{"kind": "contrast", "principle": "Be brief."}]}
    alignments = [{}, {"preferences": {"user": "Be brief."}}, {"vectors": MIXTURES[2]}]
    alignments += [GANG, contrast]
    requests = [
        {"prompt": f"{prompt} ({row})", "alignment": alignments[row % len(alignments)]}
        for row, prompt in enumerate(prompts(count))
    ]
    fields: dict[str, Any] = {"max_tokens": tokens, "logprobs": 5}
    mine = fader.batch(requests, **fields)
    with Fader(dtype="float32") as reference:
        for seed, name in enumerate(("one", "two", "three")):
            reference.add_vector(random_vector(name, reference, seed))
        theirs = reference.batch(requests, **fields)
    wrong = sum(
        not same(one.answers[0], other.answers[0]) for one, other in zip(mine, theirs, strict=True)
    )
    return {
        "name": "vllm",
        "case": "wrong",
        "ratio": round(1 - wrong / count, 3),
        "ours": wrong,
        "theirs": 0,
        "unit": "answers",
        "n": count,
        "low": round(1 - wrong / count, 3),
        "high": round(1 - wrong / count, 3),
        "target": target,
    }


def same(mine: Answer, theirs: Answer) -> bool:
    """Whether two answers have the same tokens up to their first tie."""
    for found, expected in zip(mine.logprobs or (), theirs.logprobs or (), strict=False):
        if found.id != expected.id:
            top = dict(expected.top)
            return found.id in top and top[expected.id] - top[found.id] < TIE
    return len(mine.token_ids) == len(theirs.token_ids)


if __name__ == "__main__":
    main(run)
