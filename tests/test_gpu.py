"""The laws and the benchmarks on a GPU: `make test-gpu`. Skipped, with the reason, where there is
none. The laws on logits, in both types, are in `test_laws.py`, which the target runs too.
"""

import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, make_model, random_vector
from transformers import AutoModelForCausalLM

from fader import Fader, load
from fader.methods.prompt import conversation

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="torch finds no CUDA device on this machine; run `make test-gpu` where it does",
    ),
]
ROWS = Path("runs/gpu.jsonl")
BENCHMARKS = ["decode", "guide", "pad", "vectors", "knob", "prompts", "shape", "deal"]
ASKED = ["the sea", "one two three four five six seven", "rivers bend slowly through green"]
GUIDE = {"guides": [{"kind": "contrast", "principle": "be kind"}]}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def on_gpu(request, tiny_folder):
    with Fader(load(str(tiny_folder), device="cuda", dtype=request.param)) as fader:
        fader.add_vector(random_vector(fader, "one", 31))
        yield fader


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_generate(architecture, tmp_path):
    folder = make_model(tmp_path / architecture, architecture)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to("cuda")
    with Fader(load(str(folder), device="cuda", dtype="float32")) as fader:
        backbone = fader.backend.backbones[fader.model]
        for question, result in zip(ASKED, fader.batch(ASKED, max_tokens=24), strict=True):
            text = conversation(fader.request(question).messages, (), backbone.tokenizer)
            prompt = torch.tensor([backbone.encode(text, special=False)], device="cuda")
            found = theirs.generate(
                prompt, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompt)
            )
            assert result.answers[0].token_ids == tuple(found[0, prompt.shape[1] :].tolist())


def test_zero_is_off(on_gpu):
    plain = on_gpu.generate("the sea", max_tokens=24)
    for off in ({"vectors": {"one": 0}}, {"guides": [{**GUIDE["guides"][0], "weight": 0}]}):
        found = on_gpu.generate("the sea", max_tokens=24, alignment=off)
        assert found.answers[0].token_ids == plain.answers[0].token_ids


def test_the_same_seed_gives_the_same_text(on_gpu):
    fields = {"max_tokens": 24, "temperature": 1, "seed": 5}
    for alignment in ({}, {"vectors": {"one": 0.7}}, GUIDE):
        texts = {on_gpu.generate("a cat", alignment=alignment, **fields).text for _ in range(3)}
        assert len(texts) == 1


def test_a_row_in_company_is_the_row_alone(tiny_folder):
    """In float32: in bfloat16 a batch of another size rounds otherwise (`test_laws.py` bounds by
    how much)."""
    with Fader(load(str(tiny_folder), device="cuda", dtype="float32")) as fader:
        fader.add_vector(random_vector(fader, "one", 31))
        asked = [
            {"prompt": question, "alignment": alignment}
            for question in ASKED
            for alignment in ({}, {"vectors": {"one": 0.7}}, GUIDE)
        ]
        together = fader.batch(asked, max_tokens=24)
        for one, found in zip(asked, together, strict=True):
            assert found.text == fader.generate(one, max_tokens=24).text


def test_memory_comes_back(on_gpu):
    for _ in range(3):
        for _chunk in on_gpu.stream("the sea", max_tokens=200, ignore_eos=True):
            break
    assert on_gpu.backend.stats().live <= 1
    on_gpu.generate("the sea", max_tokens=4)
    assert on_gpu.backend.stats().waiting == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_run(name):
    """Each row is kept in `runs/gpu.jsonl`: what CPUs were promised says nothing of a GPU."""
    ROWS.parent.mkdir(exist_ok=True)
    rows = list(importlib.import_module(f"benchmarks.{name}").run())
    with ROWS.open("a") as file:
        file.writelines(
            json.dumps({**row, "device": torch.cuda.get_device_name()}) + "\n" for row in rows
        )
    assert all(row["ratio"] > 0 for row in rows)
