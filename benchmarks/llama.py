"""llama.cpp against PyTorch, on the same prompts with the same engine: plain greedy decoding, a
contrast guide, three mixtures, look-ahead search, reading prompts. The file is the built-in model's
quantised one; `f32-`: float32 weights, whose tokens must be PyTorch's; `q4_0-`: four bits a weight.
The other side is our own engine in float32; with `-bfloat16` in that type; of `plain-1` it is
transformers' `generate`, and of `over-own-loop` llama.cpp's own greedy loop. What is compared runs
in processes of their own, in turns, as who takes the one or the other would run it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.deal import alignment, task
from benchmarks.guide import GUIDE
from benchmarks.interleave import Apart, Side, chosen, compare, main, prompts, text
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


Tokens = list[list[int]]


class _Sides(ExitStack):
    """A process for each engine, started when a case first needs it."""

    def __init__(self) -> None:
        super().__init__()
        self._started: dict[tuple[Any, ...], Apart] = {}

    def __call__(self, start: Callable[..., Callable[..., Any]], *about: Any) -> Apart:
        """The process of what `start(*about)` makes."""
        key = (start, *about)
        if key not in self._started:
            self._started[key] = self.enter_context(Apart(start, *about))
        return self._started[key]

    def llama(self, kind: str) -> Apart:
        """llama.cpp on the built-in model as a file of that type; "" is the one it comes in."""
        name = builtin.NAME
        if kind:
            folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
            name = str(convert(name, folder / "model.gguf", kind))
        return self(llama_cpp, name)


def run(
    case: str | None = None, tokens: int = 32, rounds: int = 3, words: int = 2
) -> Iterator[dict[str, Any]]:
    """All cases: tokens per second; answers per second where both sides search."""
    cases = chosen(case, TARGETS)
    with _Sides() as sides:
        llamas = {file: sides.llama(file) for file in {*map(_file, cases)}}
        for name, target in cases.items():
            file = _file(name)
            kind, _, rest = name.removeprefix(f"{file}-").partition("-")
            ours = llamas[file]
            unit = "answers/s" if kind == "lookahead" else "tokens/s"
            if name == "plain-1":
                theirs = sides(transformers)
            elif name == "over-own-loop":
                kind, theirs = "plain", sides(own_loop)
            else:
                theirs = sides(pytorch, "bfloat16" if name.endswith("bfloat16") else "float32")
            asked = _asked(kind, rest, words)
            same: list[Tokens] | None = [] if file == "f32" else None
            mine, other = (_side(side, kind, asked, tokens, same) for side in (ours, theirs))
            yield compare("llama", name, mine, other, target, rounds, unit)


def _file(case: str) -> str:
    """The type of the file of a case."""
    return next((kind for kind in ("f32", "q4_0") if case.startswith(f"{kind}-")), "")


def _side(
    engine: Apart,
    kind: str,
    asked: Sequence[Mapping[str, Any]],
    tokens: int,
    same: list[Tokens] | None,
) -> Side:
    """One side of a case; all sides of `same` must write the same tokens."""

    def answer() -> float:
        found = engine.turn(kind, asked, tokens)
        if same is not None:
            same.append(found)
            if found != same[0]:
                raise AssertionError(f"{kind}: the tokens are not those of the other side")
        return float(len(found) if kind == "lookahead" else sum(map(len, found)))

    return answer


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


def llama_cpp(name: str) -> Callable[..., Tokens]:
    """Our engine on llama.cpp."""
    return partial(_answers, Fader(name, engine="llama.cpp", share_prompts=False))


def pytorch(dtype: str) -> Callable[..., Tokens]:
    """Our engine on PyTorch."""
    return partial(_answers, Fader(dtype=dtype, share_prompts=False))


def _answers(fader: Fader, kind: str, asked: Sequence[Mapping[str, Any]], tokens: int) -> Tokens:
    """The answers' tokens, searches one at a time. Of `read` those that were read are what
    counts."""
    if kind == "read":
        backbone = fader.backend.backbones[fader.model]
        long = text(backbone.encode, "Once upon a time", 512)
        return [[0] * fader.generate(long, max_tokens=1).usage.tokens_read]
    groups = [[one] for one in asked] if kind == "lookahead" else [asked]
    results = [one for group in groups for one in fader.batch(group, max_tokens=tokens)]
    return [list(one.answers[0].token_ids) for one in results]


def transformers() -> Callable[..., Tokens]:
    """Greedy `generate` in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = builtin.fetch()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def generate(kind: str, asked: Sequence[Mapping[str, Any]], tokens: int) -> Tokens:
        chat = [{"role": "user", "content": asked[0]["prompt"]}]
        inputs: Any = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            found = model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
        return [found[0, inputs["input_ids"].shape[1] :].tolist()]

    return generate


def own_loop() -> Callable[..., Tokens]:
    """llama.cpp's own calls, the likeliest token each time, with as many threads as we take."""
    L, fader = library(), Fader(engine="llama.cpp")  # which only says how many, and encodes
    backbone: Any = fader.backend.backbones[fader.model]
    options, settings = L.llama_model_default_params(), L.llama_context_default_params()
    options.n_gpu_layers = 0
    model = L.llama_model_load_from_file(str(builtin_file()).encode(), options)
    settings.n_ctx = settings.n_batch = 1024
    settings.n_threads, settings.n_threads_batch = backbone.threads
    context = L.llama_init_from_model(model, settings)
    memory = L.llama_get_memory(context)

    def write(kind: str, asked: Sequence[Mapping[str, Any]], tokens: int) -> Tokens:
        L.llama_memory_seq_rm(memory, -1, -1, -1)
        read = fader.backend.encode(fader.model, fader.request(asked[0]["prompt"]))
        found: list[int] = []
        for _ in range(tokens):
            array = (L.llama_token * len(read))(*read)
            if L.llama_decode(context, L.llama_batch_get_one(array, len(read))):
                raise MemoryError("llama.cpp could not read a token")
            logits = np.ctypeslib.as_array(
                L.llama_get_logits_ith(context, -1), (backbone.vocabulary,)
            )
            found.append(int(logits.argmax()))
            read = found[-1:]
        return [found]

    return write


if __name__ == "__main__":
    main(run)
