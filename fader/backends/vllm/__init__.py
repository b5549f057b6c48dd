"""The vLLM backend: the same requests, answered by the same programs, while vLLM reads.

Planning, refusals and methods are those of `backends.local`; in place of our engine there is one
whose forward passes are vLLM's (`engine.py`), with a scheduler and a logits processor that plug
into an unmodified vLLM (`plugin.py`). Mixtures of vectors are LoRA adapters (`adapters.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from fader.backends.local import Local, Plan
from fader.backends.vllm.adapters import Adapter, Adapters, round_strength, rounded
from fader.backends.vllm.engine import Reader, VLLMEngine
from fader.backends.vllm.model import ServedModel, default_dtype
from fader.backends.vllm.selftest import VERSIONS, refuse_version, self_test
from fader.engine import builtin
from fader.engine.protocols import Backbone
from fader.engine.stats import Stats
from fader.request import Request
from fader.rewards.reward import NOTHING, Resources
from fader.schema import Faults, Invalid
from fader.vectors.vector import Vector

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM takes as the greatest rank."""


def keys_and_values(kv_bytes: int | None) -> dict[str, int]:
    """vLLM's setting of the memory for keys and values. On CPUs it would take nine tenths of all
    memory, and would not start where something else has taken a part of it."""
    if kv_bytes is None:
        if torch.cuda.is_available():
            return {}
        kv_bytes = psutil.virtual_memory().available // 4
    return {"kv_cache_memory_bytes": kv_bytes}


class VLLM(Local):
    """A model that vLLM holds, behind the same programs (see `backends.Backend`).

    `model`: the built-in model's name, or a folder of safetensors. `name`: what requests call it.
    `vectors`: folders of vectors by name, beside those found in the usual places. `merge`: vectors
    with strengths that are merged into the weights at the start; all requests have them, at no
    cost, and those that they name come on top. `kv_bytes`: memory for keys and values; left out, on
    a GPU what vLLM takes, else a quarter of the free memory. `token_budget`: how many tokens a
    forward pass reads at most. `max_rows`: rows that are read at the same time; `max_mixtures`:
    mixtures of vectors among them; `max_rank`: the greatest rank of a mixture; `adapter_bytes`:
    room on disk for mixtures. `settings`: others of vLLM's `EngineArgs`, such as `quantization`.
    """

    def __init__(
        self,
        model: str | Backbone,
        vectors: Mapping[str, str | Path] | None = None,
        dtype: str | None = None,
        kv_bytes: int | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
        resources: Resources = NOTHING,
        max_waiting: int | None = None,
        name: str | None = None,
        merge: Mapping[Vector, float] | None = None,
        max_rows: int = 64,
        max_mixtures: int = 8,
        max_rank: int = 32,
        adapter_bytes: int = 4 * 2**30,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, str):
            raise Invalid("vLLM reads a model from files; give its folder", "model")
        if max_rank not in RANKS:
            raise Invalid(f"{max_rank} is none of {', '.join(map(str, RANKS))}", "max_rank")
        self._require()
        dtype = dtype or default_dtype()
        self.model = name or model
        served = ServedModel(self.model, model, dtype, merge or {})
        given: dict[str, Any] = {
            "dtype": dtype,
            "enable_prefix_caching": share_prompts,
            "max_num_seqs": max_rows,
            "max_loras": max_mixtures,
            "max_cpu_loras": 4 * max_mixtures,
            "max_lora_rank": max_rank,
        }
        given |= {} if torch.cuda.is_available() else {"block_size": 32}
        given |= keys_and_values(kv_bytes)
        given |= {} if token_budget is None else {"max_num_batched_tokens": token_budget}
        given |= settings or {}
        if given.get("tensor_parallel_size", 1) > 1 or given.get("pipeline_parallel_size", 1) > 1:
            raise Invalid(
                "programs run where the logits are, in one process, and a model over several cards"
                " is in several; start one engine a card, or take vLLM's own server",
                "settings.tensor_parallel_size",
            )
        self._settings = given
        self.engine: VLLMEngine = VLLMEngine(
            served, self._start, lambda mixture: self._adapters.of(mixture), max_waiting
        )
        self._adapters = Adapters(
            builtin.cache_folder() / "adapters" / served.fingerprint,
            adapter_bytes,
            max_rank,
            self.engine.reader.modules,
        )
        self.resources = resources
        self._vectors: dict[str, Vector] = {}
        try:
            self_test(self)
            for one, folder in (vectors or {}).items():
                self.add_vector(Vector.load(folder, one))
        except BaseException:
            self.close()
            raise

    def fault(self) -> str:
        """What vLLM failed with, if it has."""
        return self.engine.fault()

    def stats(self) -> Stats:
        """How busy the engine is. vLLM's memory is counted in positions; here it is bytes."""
        found, bytes_each = super().stats(), self.engine.model.position_bytes
        used, reserved = found.kv_used * bytes_each, self.engine.reader.positions * bytes_each
        return replace(found, kv_used=used, kv_reserved=reserved)

    def _require(self) -> None:
        """Raises ValueError where vLLM is not there, or of another version."""
        refuse_version()

    def _start(self, engine: VLLMEngine) -> Reader:
        """vLLM with the model; made in the engine's thread."""
        from fader.backends.vllm import plugin

        link = plugin.Link(engine.decide, engine.scheduled, engine.gangs)
        with engine.model.files() as folder:
            return plugin.Runner(folder, link, self._settings)

    def add_model(self, name: str, source: str | Path | Backbone) -> None:
        """Raises `Invalid`: vLLM serves one model."""
        raise Invalid(
            "vLLM serves one model; take the engine `torch` for guides of another",
            f"models.{name}",
        )

    def plan(self, request: Request, writes: bool = True) -> Plan:
        """Find the request's vectors, of rounded strengths, and policies. Raises `Invalid` also
        where its policies can never be read together."""
        plan = super().plan(rounded(request), writes)
        policies, reader = plan.guided.policies, self.engine.reader
        longest = max(len(policy.prompt) for policy in policies) + request.sampling.max_tokens
        if len(policies) > reader.rows:
            raise Invalid(
                f"{len(policies)} policies are to be read together, vLLM reads up to {reader.rows}"
                " rows; name fewer",
                "alignment.guides",
            )
        if len(policies) * longest > reader.positions:
            raise Invalid(
                f"{len(policies)} policies of up to {longest} tokens need"
                f" {len(policies) * longest} positions of KV memory, there are {reader.positions};"
                " lower max_tokens or the number of policies, or give a larger kv_bytes",
                "alignment" if len(policies) > 1 else "sampling.max_tokens",
            )
        return plan

    def adapter(self, strengths: Mapping[str, float]) -> Adapter | None:
        """The LoRA adapter as which a mixture is served; None for none. Raises `Invalid` for
        vectors that cannot be had."""
        faults = Faults()
        steps = {name: round_strength(strength) for name, strength in strengths.items()}
        found = self.mixture_of(steps, self.engine.model, faults)
        faults.raise_any()
        return self._adapters.of(found)

    def mixture_of(
        self, strengths: Mapping[str, float], backbone: Backbone, faults: Faults
    ) -> tuple[tuple[Vector, float], ...]:
        """Vectors by name with their strengths; those that cannot be had are `faults`."""
        found = super().mixture_of(strengths, backbone, faults)
        with faults.at():
            self._adapters.check(found, "vectors")
        return found


__all__ = ["VERSIONS", "VLLM"]
