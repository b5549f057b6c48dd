"""16 rows with 16 different mixtures of 3 rank-8 vectors: against the same rows with none,
and against PEFT's mixed-adapter batch with the 16 mixtures merged into adapters beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.interleave import DEVICE, DTYPE, chosen, compare, main, prompts, random_vector
from fader import Fader
from fader.engine import builtin
from fader.methods.prompt import conversation
from fader.request import Message

NAMES, ROWS = ("one", "two", "three"), 16


def mixtures() -> list[dict[str, float]]:
    """16 different mixtures of the three vectors."""
    return [
        {"one": 0.1 + i / 16, "two": 1 - i / 16, "three": (i % 5) / 5 + 0.1} for i in range(ROWS)
    ]


def peft_model(fader: Fader) -> Any:
    """The same model under PEFT with one adapter per mixture, merged exactly (`cat`)."""
    base = AutoModelForCausalLM.from_pretrained(
        builtin.fetch(), dtype=DTYPE, attn_implementation="sdpa"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for seed, name in enumerate(NAMES):
            random_vector(name, fader, seed).save(Path(scratch) / name)
        model: Any = PeftModel.from_pretrained(
            base, str(Path(scratch) / NAMES[0]), adapter_name=NAMES[0]
        )
        for name in NAMES[1:]:
            model.load_adapter(str(Path(scratch) / name), adapter_name=name)
    for row, mixture in enumerate(mixtures()):
        model.add_weighted_adapter(
            list(mixture), list(mixture.values()), f"mix{row}", combination_type="cat"
        )
    return model.eval().to(DEVICE)


TARGETS: dict[str, float | None] = {"against-none": 0.8, "against-peft": 3.0}


def run(case: str | None = None, tokens: int = 64, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Both comparisons, in tokens per second."""
    cases = chosen(case, TARGETS)
    asked = prompts(ROWS)
    with Fader(share_prompts=False) as fader:
        for seed, name in enumerate(NAMES):
            fader.add_vector(random_vector(name, fader, seed))

        def write(mixed: bool) -> float:
            requests = [
                {"prompt": p, "alignment": {"vectors": m} if mixed else {}}
                for p, m in zip(asked, mixtures(), strict=True)
            ]
            return float(
                sum(
                    len(result.answers[0].token_ids)
                    for result in fader.batch(requests, max_tokens=tokens)
                )
            )

        if "against-none" in cases:
            yield compare(
                "vectors",
                "against-none",
                lambda: write(True),
                lambda: write(False),
                cases["against-none"],
                rounds,
            )
        if "against-peft" not in cases:
            return
        tokenizer = AutoTokenizer.from_pretrained(builtin.fetch(), padding_side="left")
        texts = [
            conversation([Message(role="user", content=text)], (), tokenizer) for text in asked
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(DEVICE)
        model = peft_model(fader)

        def generate() -> float:
            with torch.inference_mode():
                names = [f"mix{row}" for row in range(ROWS)]
                found = model.generate(
                    **inputs,
                    adapter_names=names,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )
            return float((found.shape[1] - inputs["input_ids"].shape[1]) * found.shape[0])

        yield compare(
            "vectors",
            "against-peft",
            lambda: write(True),
            generate,
            cases["against-peft"],
            min(rounds, 3),
        )


if __name__ == "__main__":
    main(run)
