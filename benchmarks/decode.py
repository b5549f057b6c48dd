"""Plain greedy decoding against `transformers` generate: same weights, threads, dtype, prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.interleave import DEVICE, DTYPE, chosen, compare, main, prompts
from fader import Fader
from fader.engine import builtin
from fader.methods.prompt import conversation
from fader.request import Message

TARGETS: dict[str, float | None] = {"batch-1": 1.0, "batch-8": 1.2, "batch-16": 1.3}


def run(case: str | None = None, tokens: int = 64, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Answers in batches of 1, 8 and 16, in tokens per second."""
    cases = chosen(case, TARGETS)
    folder = builtin.fetch()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE, attn_implementation="sdpa")
    theirs: Any = model.eval().to(DEVICE)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    with Fader(share_prompts=False) as fader:
        for name, target in cases.items():
            asked = prompts(int(name.removeprefix("batch-")))
            texts = [
                conversation([Message(role="user", content=text)], (), tokenizer) for text in asked
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs = inputs.to(DEVICE)

            def generate(inputs: Any = inputs) -> float:
                with torch.inference_mode():
                    found = theirs.generate(
                        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
                    )
                return float((found.shape[1] - inputs["input_ids"].shape[1]) * found.shape[0])

            def ours(asked: list[str] = asked) -> float:
                return float(
                    sum(
                        len(result.answers[0].token_ids)
                        for result in fader.batch(asked, max_tokens=tokens)
                    )
                )

            yield compare("decode", name, ours, generate, target, rounds)


if __name__ == "__main__":
    main(run)
