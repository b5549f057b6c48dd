"""Adapters made with PEFT over its options, and files changed by hand: each is served as PEFT
serves it, or refused.

By hand for an hour, and from another seed:
FADER_FUZZ_SECONDS=3600 FADER_FUZZ_SEED=1000000 pytest --long tests/test_adapters_fuzz.py -s
"""

import copy
import json
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fader import Fader, Vector, load
from fader.vectors.peft_folder import CONFIG, WEIGHTS

SECONDS = float(os.environ.get("FADER_FUZZ_SECONDS", 30))
FIRST = int(os.environ.get("FADER_FUZZ_SEED", 0))
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ANSWER = " is wide and small"


def served(chance: random.Random) -> dict[str, Any]:
    """Options of an adapter that must be served."""
    some = chance.sample(LAYERS, chance.randint(1, 4))
    options: dict[str, Any] = {
        "target_modules": chance.choice(
            [
                some,
                "all-linear",
                rf".*\.[01]\..*({'|'.join(some)})",
                [f"self_attn.{chance.choice(LAYERS[:4])}", "lm_head"],
                [f"model.layers.{chance.randint(0, 2)}.mlp.{chance.choice(LAYERS[4:])}"],
            ]
        ),
        "init_lora_weights": chance.choice([True, False, "gaussian", "Gaussian", "orthogonal"]),
        "use_rslora": chance.random() < 0.3,
        "lora_dropout": chance.choice([0.0, 0.1]),
        "task_type": chance.choice([None, "CAUSAL_LM"]),
    }
    if chance.random() < 0.7:
        options["r"] = chance.choice([2, 4, 6])
    if chance.random() < 0.7:
        options["lora_alpha"] = chance.choice([1, 8, 16, 2.5, -4])
    if chance.random() < 0.3:
        options["rank_pattern"] = chance.choice(
            [{"q_proj": 2}, {r"layers\.1\..*": 4}, {"^model.layers.0.mlp.up_proj": 2}]
        )
    if chance.random() < 0.3:
        options["alpha_pattern"] = chance.choice(
            [{"v_proj": 3}, {"layers.2.mlp.down_proj": 1.5, "down_proj": 5}, {".*": 7}]
        )
    if chance.random() < 0.2:
        options["exclude_modules"] = chance.choice([[chance.choice(LAYERS)], r".*\.2\..*"])
    if isinstance(options["target_modules"], list) and chance.random() < 0.3:
        options["layers_to_transform"] = chance.choice([0, [1, 2], [], [0]])
        if chance.random() < 0.5:
            options["layers_pattern"] = chance.choice(["layers", ["h", "layers"]])
    return options


STRANGE: list[dict[str, Any]] = [
    {"use_dora": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"lora_bias": True, "init_lora_weights": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["norm"]},
    {"modules_to_save": ["embed_tokens"]},
    {"trainable_token_indices": [3, 5]},
    {"fan_in_fan_out": True},
    {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
    {"layer_replication": [[0, 2], [1, 3]]},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa_niter_2"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "OLoRA"},
    {"init_lora_weights": "mica"},
    {"init_lora_weights": "eva"},
    {"ensure_weight_tying": True, "target_modules": ["lm_head"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"task_type": "SEQ_2_SEQ_LM"},
]

Tensors = dict[str, torch.Tensor]


def _without(name: str) -> Any:
    return lambda config, tensors: config.pop(name, None)


def _set(**fields: Any) -> Any:
    return lambda config, tensors: config.update(fields)


def _stored_as(kind: torch.dtype) -> Any:
    return lambda config, tensors: tensors.update(
        {k: v.to(kind) for k, v in tensors.items() if "lora_" in k}
    )


def _first(change: Any) -> Any:
    def changed(config: dict[str, Any], tensors: Tensors) -> None:
        key = sorted(key for key in tensors if "lora_" in key)[0]
        change(tensors, key)

    return changed


HARMLESS = [
    _without("lora_dropout"),
    _without("revision"),
    _set(runtime_config={"ephemeral_gpu_offload": False}),
    _set(use_dora=None, inference_mode=False),
    _stored_as(torch.bfloat16),
    _stored_as(torch.float16),
    _stored_as(torch.float64),
]
HARM = [
    _without("lora_alpha"),
    _without("r"),
    _without("use_rslora"),
    _without("alpha_pattern"),
    _without("rank_pattern"),
    _without("target_modules"),
    _without("peft_type"),
    _without("exclude_modules"),
    _set(target_modules=["q_proj"]),
    _set(target_modules=["v_proj", "lm_head"], layers_to_transform=[1]),
    _set(exclude_modules=["down_proj", "q_proj"]),
    _set(exclude_modules=r".*\.0\..*"),
    _set(target_modules=[]),
    _set(lora_alpha=None),
    _set(lora_alpha="16"),
    _set(lora_alpha=float("nan")),
    _set(lora_alpha=True),
    _set(r=3),
    _set(r=0),
    _set(rank_pattern=["q_proj"]),
    _set(alpha_pattern={"*.q_proj": 4}),
    _set(alpha_pattern={"layers.1": 4, ".*proj": 2}),
    _set(peft_type="lora"),
    _set(bias="None"),
    _set(modules_to_save=["lm_head"]),
    _set(a_field_of_tomorrow=1),
    _set(layers_to_transform="1"),
    _stored_as(torch.int8),
    _stored_as(torch.float8_e4m3fn),
    lambda config, tensors: tensors.clear(),
    _first(lambda tensors, key: tensors.pop(key)),
    _first(lambda tensors, key: tensors[key].fill_(float("nan"))),
    _first(lambda tensors, key: tensors[key].fill_(float("inf"))),
    _first(lambda tensors, key: tensors.update({key: tensors[key][:0]})),
    _first(lambda tensors, key: tensors.update({key: tensors[key].T.contiguous()})),
    _first(lambda tensors, key: tensors.update({key.replace("model.layers", "m"): tensors[key]})),
    _first(
        lambda tensors, key: tensors.update(
            {key.replace(".weight", ".default.weight"): tensors.pop(key)}
        )
    ),
]


class Bench:
    """One base model, in fader and for PEFT."""

    def __init__(self, folder: Path) -> None:
        self.fader = Fader(load(str(folder)))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        prompt = list(self.fader.backend.plan(self.fader.request("the sea")).guided.base.prompt)
        answer = self.fader.backend.backbones[self.fader.model].encode(ANSWER)
        self.ids, self.written = torch.tensor([prompt + answer]), torch.tensor(answer)

    def make(self, chance: random.Random, options: dict[str, Any], folder: Path) -> None:
        """An adapter that PEFT saves. Raises whatever PEFT raises for options it does not take."""
        torch.manual_seed(chance.randrange(2**31))
        model = get_peft_model(copy.deepcopy(self.model), LoraConfig(**options))
        trained = chance.random() < 0.7
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad and ("lora_" in name or trained):
                    weight.add_(0.05 * torch.randn_like(weight))
        model.save_pretrained(folder)

    @torch.no_grad()
    def theirs(self, folder: Path) -> torch.Tensor:
        """log-probabilities [answer] by PEFT, from the folder."""
        model = PeftModel.from_pretrained(copy.deepcopy(self.model), str(folder)).eval()
        log = model(input_ids=self.ids).logits[0].log_softmax(-1)
        return log[-len(self.written) - 1 : -1].gather(1, self.written[:, None])[:, 0]

    def ours(self, folder: Path) -> torch.Tensor:
        """The same by fader, reading through the vector's own save besides."""
        vector = Vector.load(folder, "mine")
        self.fader.add_vector(vector)
        try:
            found = self.fader.score("the sea", ANSWER, alignment={"vectors": {"mine": 1}})
            again = Vector.load(vector.save(folder.parent / "again"), "mine")
            assert again.digest == vector.digest
        finally:
            self.fader.remove_vector("mine")
        return torch.tensor(found.logprobs)


def one(bench: Bench, number: int, folder: Path) -> str:
    """Make, change and compare one adapter; what came of it."""
    chance = random.Random(number)
    options, must = served(chance), True
    if chance.random() < 0.35:
        options, must = {**options, **chance.choice(STRANGE)}, False
    try:
        bench.make(chance, options, folder)
    except (ValueError, TypeError, RuntimeError, ImportError, IndexError, KeyError):
        return "not made"
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    if chance.random() < 0.4:
        chance.choice(HARMLESS)(config, tensors)
    if chance.random() < 0.35:
        chance.choice(HARM)(config, tensors)
        must = False
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    refusal = None
    try:
        found = bench.ours(folder)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert not must, f"case {number}: refused: {refusal}; options {options}"
        assert "\n" not in refusal, f"case {number}: {refusal}"
        return "refused"
    expected = bench.theirs(folder)
    apart = float((found - expected).abs().max())
    assert apart < 2e-3, f"case {number}: {apart} nats from PEFT; options {options}, {config}"
    return "equal"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_adapters_are_served_as_peft_serves_them_or_refused(tmp_path):
    benches = [Bench(make_model(tmp_path / kind, kind)) for kind in ("llama", "qwen2")]
    counts: Counter[str] = Counter()
    end, number = time.monotonic() + SECONDS, FIRST
    try:
        while time.monotonic() < end:
            folder = tmp_path / "adapter"
            counts[one(benches[number % 2], number, folder)] += 1
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            number += 1
    finally:
        for bench in benches:
            bench.fader.close()
    print(dict(counts))
    assert counts["equal"] > 5
    assert counts["refused"] > 5
