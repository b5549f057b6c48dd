"""Our backend on vLLM against vLLM itself. What a plain vLLM writes comes from the same engine,
which our plug-ins then leave alone.

`plain`: 8 rows without alignment (`plain-1`: one). `vectors`: 8 rows with a mixture each, against 8
with one plain adapter each, or with none (`vectors-over-plain`). `gang-N`: a guide of N policies,
against N rows with an adapter each. `matrix-ROWS-PERCENT-TOKENS`: so many rows, of which that share
has a mixture, against rows without. `idle`: that engine, of which nothing is asked but vLLM's own
work, against one without plug-ins and adapters. `admission`: milliseconds that a request of one
token takes beside its forward passes, against our own engine. `wrong`: answers of all kinds that
differ from those of our own engine.

Runs in the environment of `make test-vllm`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.interleave import (
    RANK,
    Side,
    chosen,
    compare,
    main,
    prompts,
    random_vector,
    row,
)
from fader import Fader
from fader.answer import Answer
from fader.backends.vllm import VLLM
from fader.backends.vllm.adapters import Adapter
from fader.engine import builtin

TIE = 2e-3
GANGS = (2, 3, 5, 8)
"""Policies of a guide."""
MATRIX = [
    (rows, percent, length)
    for rows, percent, length in product((1, 8, 32), (0, 50, 100), (16, 64))
    if rows > 1 or percent != 50
]
"""Rows, the share of them that is aligned, and tokens of an answer."""
TARGETS: dict[str, float | None] = {
    "plain": 0.95,
    "plain-1": None,
    "vectors": 0.8,
    "vectors-over-plain": 0.9,
    **{f"gang-{count}": 0.7 if count == 3 else None for count in GANGS},
    **{"matrix-{}-{}-{}".format(*cell): None for cell in MATRIX},
    "idle": 1.0,
    "admission": None,
    "wrong": 1.0,
}
MIXTURES = [{"one": 0.1 * (1 + row), "two": 1 - 0.1 * row} for row in range(8)]
RATIO = {
    "guides": [
        {"kind": "ratio", "policy": {"vectors": {"one": 1}}, "reference": {"vectors": {"two": 1}}}
    ],
    "vectors": {"three": 1},
}
"""Three policies, each with an adapter."""
SETTINGS = {"max_model_len": 1024}
KV_BYTES, BUDGET = 2**30, 1024


def policies(count: int) -> list[dict[str, float]]:
    """Mixtures of one adapter each."""
    return [{"three": 1.0}, *({"one": 0.1 * place} for place in range(1, count))]


def gang(count: int) -> dict[str, Any]:
    """A request of so many policies, each with an adapter."""
    own, *others = policies(count)
    guides = [{"kind": "realign", "aligned": {"vectors": one}, "weight": 0.1} for one in others]
    return {"vectors": own, "guides": guides}


def aligned(rows: int, percent: int) -> list[dict[str, Any]]:
    """The alignments of so many rows, a share of which has any, evenly spread."""
    return [
        {"vectors": MIXTURES[row % len(MIXTURES)]}
        if row * percent // 100 < (row + 1) * percent // 100
        else {}
        for row in range(rows)
    ]


def engine(**more: Any) -> VLLM:
    """The built-in model on vLLM."""
    return VLLM(
        builtin.NAME,
        dtype="float32",
        kv_bytes=KV_BYTES,
        max_rank=2 * RANK,
        settings=SETTINGS,
        **more,
    )


def plain_engine() -> Callable[[Sequence[Sequence[int]], int], float]:
    """The built-in model on a vLLM without plug-ins: writes so many tokens after each prompt, and
    tells how many these are together."""
    from vllm import LLM, SamplingParams

    on_cpu: dict[str, Any] = {} if torch.cuda.is_available() else {"block_size": 32}
    model = LLM(
        builtin.source(builtin.NAME),
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=KV_BYTES,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=64,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **SETTINGS,
        **on_cpu,
    )

    def write(texts: Sequence[Sequence[int]], count: int) -> float:
        params = SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        asked: Any = [{"prompt_token_ids": list(tokens)} for tokens in texts]
        found = model.generate(asked, params, use_tqdm=False)
        return float(sum(len(one.outputs[0].token_ids) for one in found))

    return write


def run(
    case: str | None = None, tokens: int = 48, rounds: int = 3, answers: int = 64
) -> Iterator[dict[str, Any]]:
    """Each case in tokens per second; `wrong` in answers that are the same. A run for a quick look
    has few tokens, rounds and answers."""
    cases = chosen(case, TARGETS)
    with Fader(engine(token_budget=BUDGET, share_prompts=False)) as fader:
        backend = fader.backend
        assert isinstance(backend, VLLM)
        _add_vectors(fader)

        def ours(alignments: Sequence[dict[str, Any]], count: int = tokens) -> float:
            requests = [
                {"prompt": prompt, "alignment": alignment}
                for prompt, alignment in zip(prompts(len(alignments)), alignments, strict=True)
            ]
            results = fader.batch(requests, max_tokens=count, ignore_eos=True)
            return float(sum(len(result.answers[0].token_ids) for result in results))

        def read(texts: Sequence[str]) -> list[list[int]]:
            return [backend.encode(fader.model, fader.request(text)) for text in texts]

        def native(
            texts: Sequence[str], mixtures: Sequence[dict[str, float]] = (), count: int = tokens
        ) -> float:
            asked = read(texts)
            adapters: list[Adapter | None] = [
                backend.adapter(mixtures[row % len(mixtures)]) if mixtures else None
                for row in range(len(asked))
            ]
            found = backend.engine.call(
                lambda: backend.engine.reader.native(asked, count, adapters)
            )
            return float(sum(map(len, found)))

        def guided(count: int) -> float:
            return count * ours([gang(count)])

        single = [{"one": 0.1 * (1 + row)} for row in range(8)]
        sides: dict[str, tuple[Side, Side]] = {
            "plain": (partial(ours, [{}] * 8), partial(native, prompts(8))),
            "plain-1": (partial(ours, [{}]), partial(native, prompts(1))),
            "vectors": (partial(ours, aligned(8, 100)), partial(native, prompts(8), single)),
            "vectors-over-plain": (partial(ours, aligned(8, 100)), partial(native, prompts(8))),
        }
        for count in GANGS:
            rows = partial(native, prompts(1) * count, policies(count))
            sides[f"gang-{count}"] = partial(guided, count), rows
        for size, percent, length in MATRIX:
            most = min(length, tokens)
            sides[f"matrix-{size}-{percent}-{length}"] = (
                partial(ours, aligned(size, percent), most),
                partial(native, prompts(size), count=most),
            )
        for name, (one, other) in sides.items():
            if name in cases:
                yield compare("vllm", name, one, other, cases[name], rounds)
        if "idle" in cases:
            write, asked = plain_engine(), read(prompts(8))
            yield compare(
                "vllm",
                "idle",
                partial(native, prompts(8)),
                partial(write, asked, tokens),
                cases["idle"],
                rounds,
            )
        if {"admission", "wrong"} & cases.keys():
            with Fader(dtype="float32", share_prompts=False) as reference:
                _add_vectors(reference)
                if "admission" in cases:
                    yield _admission(fader, reference, rounds)
                if "wrong" in cases:
                    yield _wrong(fader, reference, answers, min(tokens, 16), cases["wrong"])


def _add_vectors(fader: Fader) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        fader.add_vector(random_vector(name, fader, seed))


def _admission(fader: Fader, reference: Fader, rounds: int) -> dict[str, Any]:
    """One request at a time, each of one token, under alignments of all kinds in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn, alignment in product(range(rounds + 1), ({}, aligned(1, 100)[0], RATIO, gang(8))):
        asked = {"prompt": f"Name a river, {turn}.", "alignment": alignment}
        for front, found in zip((fader, reference), times, strict=True):
            start = time.perf_counter()
            result = front.generate(asked, max_tokens=1)
            seconds = time.perf_counter() - start - result.usage.seconds
            if turn:  # the first loads the vectors
                found.append(1000 * seconds)
    return row("vllm", "admission", *times, TARGETS["admission"], "ms")


def _wrong(
    fader: Fader, reference: Fader, count: int, tokens: int, target: float | None
) -> dict[str, Any]:
    """How many of `count` answers of all kinds are those of our own engine, up to ties."""
    contrast = {"guides": [{"kind": "contrast", "principle": "Be brief."}]}
    alignments = [{}, {"preferences": {"user": "Be brief."}}, {"vectors": MIXTURES[2]}]
    alignments += [RATIO, contrast]
    requests = [
        {"prompt": f"{prompt} ({row})", "alignment": alignments[row % len(alignments)]}
        for row, prompt in enumerate(prompts(count))
    ]
    fields: dict[str, Any] = {"max_tokens": tokens, "logprobs": 5}
    mine = fader.batch(requests, **fields)
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
