"""llama.cpp against PyTorch, on the same prompts with the same engine: plain greedy decoding, a
contrast guide, three mixtures, look-ahead search, reading prompts. The file is the built-in model's
quantised one; `f32-`: float32 weights, whose tokens must be PyTorch's; `q4_0-`: four bits a weight.
The other side is our own engine in float32; with `-bfloat16` in that type; of `plain-1` it is
transformers' `generate`, and of `over-own-loop` llama.cpp's own greedy loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.deal import alignment, task
from benchmarks.guide import GUIDE
from benchmarks.interleave import Side, chosen, compare, main, prompts, text
from fader import Fader
from fader.engine import builtin
from fader.engine.llama.binding import library
from fader.engine.llama.convert import builtin_file, convert
from fader.starter.shipped import starter_rows

MIXTURES: tuple[dict[str, float], ...] = (
    {"formal": 1.0},
    {"warm": 0.7, "concise": 0.5},
    {"medical": 1.0},
)
TARGETS: dict[str, float | None] = {
    "plain-1": 4.0,
    "plain-1-float32": None,
    "plain-8": None,
    "plain-16": None,
    "plain-1-bfloat16": None,
    "contrast-1": 2.0,
    "contrast-1-bfloat16": None,
    "mixtures-3": None,
    "lookahead": 1.3,
    "read": None,
    "q4_0-contrast-1": None,
    "q4_0-lookahead": None,
    "f32-plain-1": 1.3,
    "over-own-loop": 0.8,
}


class _Sides(ExitStack):
    """The engines, each made when a case first needs it."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, Fader] = {}

    def llama(self, kind: str) -> Fader:
        """llama.cpp on the built-in model as a file of that type; "" is the one it comes in."""
        if kind not in self._files:
            name = builtin.NAME
            if kind:
                folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
                name = str(convert(name, folder / "model.gguf", kind))
            made = Fader(name, engine="llama.cpp", share_prompts=False)
            self._files[kind] = self.enter_context(made)
        return self._files[kind]

    @cached_property
    def float32(self) -> Fader:
        return self.enter_context(Fader(share_prompts=False))

    @cached_property
    def bfloat16(self) -> Fader:
        return self.enter_context(Fader(dtype="bfloat16", share_prompts=False))


def run(
    case: str | None = None, tokens: int = 32, rounds: int = 3, words: int = 2
) -> Iterator[dict[str, Any]]:
    """All cases: tokens per second; answers per second where both sides search."""
    cases = chosen(case, TARGETS)
    with _Sides() as sides:
        for name, target in cases.items():
            file = next((kind for kind in ("f32", "q4_0") if name.startswith(f"{kind}-")), "")
            kind, _, rest = name.removeprefix(f"{file}-").partition("-")
            ours = sides.llama(file)
            unit = "answers/s" if kind == "lookahead" else "tokens/s"
            theirs = None
            if name == "plain-1":
                theirs = _transformers(tokens)
            elif name == "over-own-loop":
                kind, theirs = "plain", _own_loop(ours, tokens)
            asked = _asked(kind, rest, words)
            answers: list[Any] = [] if file == "f32" else [None]
            if theirs is None:
                other = sides.bfloat16 if name.endswith("bfloat16") else sides.float32
                theirs = _answering(other, asked, tokens, kind, answers)
            mine = _answering(ours, asked, tokens, kind, answers)
            yield compare("llama", name, mine, theirs, target, rounds, unit)


def _asked(kind: str, rest: str, words: int) -> list[dict[str, Any]]:
    """The requests of a case."""
    if kind == "lookahead":
        sets = [row["concepts"] for row in starter_rows("concepts", "dev")[:words]]
        return [{"prompt": task(one), "alignment": alignment(one)} for one in sets]
    if kind == "mixtures":
        asked = zip(prompts(len(MIXTURES)), MIXTURES, strict=True)
        return [{"prompt": one, "alignment": {"vectors": mix}} for one, mix in asked]
    if kind == "contrast":
        return [{"prompt": one, "alignment": {"guides": [GUIDE]}} for one in prompts(1)]
    count = rest.partition("-")[0]
    return [{"prompt": one} for one in prompts(int(count) if count.isdigit() else 1)]


def _answering(
    fader: Fader, asked: Sequence[Mapping[str, Any]], tokens: int, kind: str, answers: list[Any]
) -> Side:
    """Answers the requests, searches one at a time; all sides of `answers` must give the same, if
    it is not [None]."""
    if kind == "read":
        backbone = fader.backend.backbones[fader.model]
        long = text(backbone.encode, "Once upon a time", 512)
        return lambda: float(fader.generate(long, max_tokens=1).usage.tokens_read)

    def answer() -> float:
        groups = [[one] for one in asked] if kind == "lookahead" else [asked]
        found = [
            one.answers[0].token_ids
            for group in groups
            for one in fader.batch(group, max_tokens=tokens)
        ]
        if answers != [None]:
            answers.append(found)
            if found != answers[0]:
                raise AssertionError(f"{kind}: the tokens are not those of the other side")
        return float(len(found) if kind == "lookahead" else sum(map(len, found)))

    return answer


def _transformers(tokens: int) -> Side:
    """Greedy `generate` in float32."""
    folder = builtin.fetch()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": prompts(1)[0]}]
    inputs: Any = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def generate() -> float:
        with torch.inference_mode():
            found = model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
        return float(found.shape[1] - inputs["input_ids"].shape[1])

    return generate


def _own_loop(fader: Fader, tokens: int) -> Callable[[], float]:
    """llama.cpp's own calls, the likeliest token each time, with as many threads as we take."""
    L = library()
    backbone: Any = fader.backend.backbones[fader.model]
    ids = fader.backend.encode(fader.model, fader.request(prompts(1)[0]))
    options, settings = L.llama_model_default_params(), L.llama_context_default_params()
    options.n_gpu_layers = 0
    model = L.llama_model_load_from_file(str(builtin_file()).encode(), options)
    settings.n_ctx = settings.n_batch = 1024
    settings.n_threads, settings.n_threads_batch = backbone.threads
    context = L.llama_init_from_model(model, settings)
    memory = L.llama_get_memory(context)

    def write() -> float:
        L.llama_memory_seq_rm(memory, -1, -1, -1)
        read = ids
        for _ in range(tokens):
            array = (L.llama_token * len(read))(*read)
            if L.llama_decode(context, L.llama_batch_get_one(array, len(read))):
                raise MemoryError("llama.cpp could not read a token")
            logits = np.ctypeslib.as_array(
                L.llama_get_logits_ith(context, -1), (backbone.vocabulary,)
            )
            read = [int(logits.argmax())]
        return float(tokens)

    return write


if __name__ == "__main__":
    main(run)
