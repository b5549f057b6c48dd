"""All that touches vLLM: a scheduler and a logits processor that plug into it, and the engine that
runs them. Nothing else imports vllm.

vLLM reads; what is written is decided by programs. A `Row` is one of vLLM's requests whose text a
program makes: after every forward pass the logits processor (`Tap`) hands the logits of all rows
that were read to their end to `Link.decide`, and each row goes on with the token that it gets back.
The scheduler (`GangScheduler`) tells which rows were read to their end, since vLLM also samples
from rows that it has read in part, and holds back rows whose gang is not together, since a row that
is read must go on at once. So a gang decodes in lockstep; where it cannot, the row that leads is
ended and read again from vLLM's memory of prefixes. Logits always belong to the whole text of one
row, so no two positions ever mix.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # programs must be where the logits are
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the second one has no processors of logits
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
import vllm
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from fader.backends.vllm.adapters import Adapter

VERSION: str = vllm.__version__
KEY = "fader"


@dataclass
class Link:
    """What the scheduler, the logits processor and the engine of one process tell one another."""

    decide: Callable[[Sequence[int], Sequence[int], Tensor], Sequence[int]]
    """decide(rows, lengths, logits): the next token of each row that was read to its end, from how
    many tokens it has written and its logits [rows, vocabulary]."""
    scheduled: Callable[[Mapping[int, int], Mapping[int, int]], None]
    """scheduled(tokens, cached): what the next forward pass reads of each row, and how much of
    those that begin it need not read."""
    gangs: Mapping[int, Hashable] = field(default_factory=dict)
    """The gang of each row that has one."""
    whole: set[int] = field(default_factory=set)
    """Rows that the forward pass reads to their end."""


LINKS: dict[str, Link] = {}
_numbers = itertools.count()


def _link(config: VllmConfig) -> Link:
    return LINKS[config.additional_config[KEY]]


def _row(params: SamplingParams | None) -> int | None:
    """The number of a row; None for a request that is none."""
    return (params.extra_args or {}).get(KEY) if params is not None else None


def _lora(adapter: Adapter | None) -> LoRARequest | None:
    """How vLLM is told which adapter to read with."""
    if adapter is None:
        return None
    return LoRARequest(adapter.name, adapter.number, str(adapter.folder))


class GangScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, which keeps the rows of a gang together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._link = _link(self.vllm_config)
        self.pushed_out = 0  # rows that had to make room, and were read again

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """What the next forward pass reads."""
        self._hold()
        output = super().schedule(*args, **kwargs)
        self.pushed_out += len(output.preempted_req_ids or ())
        tokens: dict[int, int] = {}
        self._link.whole = set()
        for name, count in output.num_scheduled_tokens.items():
            request = self.requests[name]
            row = _row(request.sampling_params)
            if row is not None:
                tokens[row] = count
                if request.num_computed_tokens >= request.num_tokens:  # counted already
                    self._link.whole.add(row)
        cached = {
            row: new.num_computed_tokens
            for new in output.scheduled_new_reqs
            if (row := _row(new.sampling_params)) is not None
        }
        self._link.scheduled(tokens, cached)
        return output

    def _hold(self) -> None:
        """Let rows wait that would come to their end in this pass while another running row of
        their gang does not. Those that it waits for are read, so there is no standstill."""
        gangs = self._link.gangs
        if not gangs:
            return
        budget = self.max_num_scheduled_tokens
        most = self.scheduler_config.long_prefill_token_threshold or budget
        late, ending = set(), []
        for request in self.running:
            left = request.num_tokens - request.num_computed_tokens
            taken = min(left, budget, most)
            budget -= taken
            gang = gangs.get(_row(request.sampling_params) or 0)
            if gang is None:
                continue
            if taken < left:
                late.add(gang)
            else:
                ending.append((gang, request))
        for gang, request in ending:
            if gang in late:
                request.next_decode_eligible_step = self.current_step + 2


class Tap(LogitsProcessor):  # type: ignore[misc]
    """Hands out the logits of rows, and makes each row go on with what was decided."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._link = _link(vllm_config)
        self._rows: dict[int, tuple[int, list[int]]] = {}  # place -> row, what it has written

    def is_argmax_invariant(self) -> bool:
        """No: it decides the token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the rows through the places of the batch."""

        def new(
            params: SamplingParams, prompt: list[int] | None, written: list[int]
        ) -> tuple[int, list[int]] | None:
            row = _row(params)
            return None if row is None else (row, written)

        process_dict_updates(self._rows, batch_update, new)

    def apply(self, logits: Tensor) -> Tensor:
        """The logits [batch, vocabulary], which leave each decided row one token."""
        ready = [
            (place, row, len(written))
            for place, (row, written) in sorted(self._rows.items())
            if row in self._link.whole
        ]
        if ready:
            places = [place for place, _, _ in ready]
            chosen = self._link.decide(
                [row for _, row, _ in ready],
                [length for _, _, length in ready],
                logits[places],  # a copy: programs keep what they are given
            )
            logits[places] = float("-inf")
            logits[places, list(chosen)] = 0.0
        return logits


class Runner:
    """vLLM's engine with a model, in this process. One thread makes and uses it."""

    def __init__(self, folder: Path, link: Link, settings: Mapping[str, Any]) -> None:
        self._key = str(next(_numbers))
        LINKS[self._key] = link
        self.places: int = settings["max_loras"]
        on_cpu = not torch.cuda.is_available()
        settings = {**settings, "max_loras": self.places + on_cpu}
        arguments = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            enable_lora=True,
            scheduler_cls=GangScheduler,
            logits_processors=[Tap],
            async_scheduling=False,
            additional_config={KEY: self._key},
            disable_log_stats=True,
            generation_config="vllm",
            **settings,
        )
        try:
            self._engine = LLMEngine.from_engine_args(arguments)
        except BaseException:
            del LINKS[self._key]
            raise
        config = self._engine.vllm_config
        self.max_length: int = config.model_config.max_model_len
        self.rows: int = config.scheduler_config.max_num_seqs
        runner = self._engine.model_executor.driver_worker.worker.model_runner
        manager = runner.lora_manager._adapter_manager
        packed = manager.packed_modules_mapping
        self.modules: Collection[str] = {
            part for name in manager.supported_lora_modules for part in packed.get(name, [name])
        }
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        if (
            on_cpu
        ):  # rows without an adapter are read with the one in the last place: it stays empty
            fewer = copy(manager.lora_config)
            fewer.max_loras = self.places
            manager.lora_config = self._scheduler.lora_config = fewer
            manager.lora_index_to_id.pop()
        self.positions: int = (
            self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks * self._scheduler.block_size
        )

    def add(self, row: int, tokens: Sequence[int], adapter: Adapter | None, end: int) -> None:
        """Begin a row with these tokens; it ends when it is given the token `end`."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self.max_length - len(tokens),
            ignore_eos=True,
            stop_token_ids=[end],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={KEY: row},
        )
        prompt: Any = {"prompt_token_ids": list(tokens)}
        self._engine.add_request(str(row), prompt, params, lora_request=_lora(adapter))

    def native(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[list[int]]:
        """What vLLM itself writes after each of these prompts, greedily, `count` tokens; for
        comparison. While nothing else runs."""
        params = SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        for place, tokens in enumerate(prompts):
            prompt: Any = {"prompt_token_ids": list(tokens)}
            lora = _lora(adapters[place]) if adapters else None
            self._engine.add_request(f"native-{place}", prompt, params, lora_request=lora)
        found: dict[str, list[int]] = {}
        while len(found) < len(prompts):
            for output in self._engine.step():
                if output.finished:
                    found[output.request_id] = list(output.outputs[0].token_ids)
        return [found[f"native-{place}"] for place in range(len(prompts))]

    def step(self) -> list[int]:
        """One forward pass; the rows that have ended."""
        return [int(output.request_id) for output in self._engine.step() if output.finished]

    def end(self, rows: Sequence[int]) -> None:
        """End rows between two passes."""
        self._engine.abort_request([str(row) for row in rows])

    @property
    def used(self) -> float:
        """The share of the memory for keys and values that rows take."""
        return float(self._scheduler.kv_cache_manager.usage)

    @property
    def pushed_out(self) -> int:
        """How many times a row had to make room, and was read again later."""
        return int(self._scheduler.pushed_out)

    def close(self) -> None:
        """Free what it holds."""
        self._engine.engine_core.shutdown()
        LINKS.pop(self._key, None)
