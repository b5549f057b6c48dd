"""A personalised reward model that guides decoding (PAD): three policies against plain decoding on
the same engine, one preference or three at once, and against the loop of the paper's released code.

The vector is a random one of the size of a trained one, and its strength small: what is measured
does not depend on what it was taught.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.interleave import DEVICE, DTYPE, chosen, compare, main, prompts, random_vector
from fader import Fader
from fader.engine import builtin

PRINCIPLES = ("Be helpful.", "Be harmless.", "Be humorous.")
PERSONAL = {"kind": "personalized", "vectors": {"personal": 1.0}}
ONE = {"guides": [{**PERSONAL, "principle": PRINCIPLES[0]}]}
THREE = {"guides": [{**PERSONAL, "principles": dict.fromkeys(PRINCIPLES, 1 / 3)}]}
RELEASED = {
    "guides": [{**PERSONAL, "principle": PRINCIPLES[0], "reference": "base", "tell_base": True}]
}
CANDIDATES = 10

TARGETS: dict[str, float | None] = {
    "batch-1": 0.75,
    "batch-8": None,
    "batch-32": None,
    "three": None,
    "against-released": 8.0,
}

Read = Callable[[torch.Tensor], torch.Tensor]


def released(base: Read, personal: Read, ids: Sequence[int], tokens: int) -> list[int]:
    """The tokens that the released algorithm writes after the prompt `ids`: at each of them both
    models read the whole text anew, and the candidate of the highest log base + log personal - log
    base is taken, each renormalised over the base's top 10. Its code goes on after the end of an
    answer; so does this."""
    text = list(ids)
    for _ in range(tokens):
        whole = torch.tensor([text], device=DEVICE)
        kept = base(whole).topk(CANDIDATES)
        own = kept.values.log_softmax(-1)
        reward = personal(whole)[kept.indices].log_softmax(-1) - own
        text.append(int(kept.indices[(own + reward).argmax()]))
    return text[len(ids) :]


def run(
    case: str | None = None, tokens: int = 64, rounds: int = 5, longest: int = 128
) -> Iterator[dict[str, Any]]:
    """Answers in tokens per second. `longest`: tokens of the prompt and of the answer where both
    models read the whole text at each token; that case has at most two rounds."""
    cases = chosen(case, TARGETS)
    with Fader(share_prompts=False) as fader:
        fader.add_vector(random_vector("personal", fader, 0))

        def write(asked: list[str], count: int, alignment: dict[str, Any]) -> float:
            results = fader.batch(asked, max_tokens=count, alignment=alignment)
            return float(sum(len(result.answers[0].token_ids) for result in results))

        for name, target in cases.items():
            if name == "against-released":
                yield _against_released(fader, target, longest, min(rounds, 2))
                continue
            rows = 1 if name == "three" else int(name.removeprefix("batch-"))
            guided = THREE if name == "three" else ONE
            ours, theirs = (partial(write, prompts(rows), tokens, kind) for kind in (guided, {}))
            yield compare("pad", name, ours, theirs, target, rounds)


def _against_released(
    fader: Fader, target: float | None, length: int, rounds: int
) -> dict[str, Any]:
    """One answer to one question; up to its end, its tokens must be those of the other side."""
    request = fader.request(_question(fader, length), max_tokens=length, alignment=RELEASED)
    plan = fader.backend.plan(request)
    expected: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        fader.backend.vector("personal").save(Path(scratch) / "personal")
        base = AutoModelForCausalLM.from_pretrained(builtin.fetch(), dtype=DTYPE)
        personal: Any = PeftModel.from_pretrained(base, str(Path(scratch) / "personal"))
        personal.eval().to(DEVICE)

    def read(whole: torch.Tensor, told: bool) -> torch.Tensor:
        with torch.inference_mode(), nullcontext() if told else personal.disable_adapter():
            logits: torch.Tensor = personal(whole, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1]

    def theirs() -> float:
        readers = (partial(read, told=False), partial(read, told=True))
        expected[:] = released(*readers, plan.guided.base.prompt, length)
        return float(length)

    def ours() -> float:
        found = list(fader.generate(request).answers[0].token_ids)
        if expected and found != expected[: len(found)]:
            raise AssertionError("pad: the tokens are not those of the released algorithm")
        return float(len(found))

    return compare("pad", "against-released", ours, theirs, target, rounds)


def _question(fader: Fader, length: int) -> str:
    """A question that makes a prompt of about `length` tokens, told the principle."""
    question = prompts(1)[0]
    while True:
        plan = fader.backend.plan(fader.request(question, alignment=RELEASED))
        if len(plan.guided.base.prompt) >= length:
            return question
        question += " Leave nothing out."


if __name__ == "__main__":
    main(run)
