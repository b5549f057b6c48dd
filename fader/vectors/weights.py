"""The weights of a checkpoint folder, read one at a time by their names in the model.

Files name and divide weights differently than models do: transformers renames, splits and joins
them when it loads. The same is done here for one weight at a time, so that a model need not fit
into memory. What `load` refuses is refused here too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from fader.engine import builtin
from fader.engine.identity import fingerprint_of
from fader.engine.loading import FLOATS, one_message, quiet, refuse_by_report, weight_files

RESAVE = "if transformers can load the model, save it anew with its save_pretrained"


@dataclass(frozen=True)
class Stored:
    """Where a weight is stored: as one tensor, or as several that transformers makes it from when
    it loads the model, such as one for each expert."""

    weight: str
    parts: tuple[tuple[Path, str], ...]
    """Files and the tensors' names there."""
    make: Callable[[Sequence[Tensor]], Mapping[str, Tensor]] | None = field(
        default=None, compare=False
    )
    """The parts -> the weights that they make; None where the one part is the weight."""

    @property
    def name(self) -> str:
        """What a person may look for: the name in the file, of what is one tensor there."""
        return self.parts[0][1] if self.make is None else self.weight


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model folder whose weights are read one at a time. Weights go by their names in the model,
    not in the files."""

    name: str
    folder: Path
    config: PreTrainedConfig
    files: tuple[Path, ...]
    stored: Mapping[str, Stored]
    """Weight, in the order of names -> where it is stored; tied weights have one place."""
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, tuple[int, int]]
    """Linear layer -> (out, in)."""

    def read(self, weight: str) -> Tensor:
        """One weight, as it is stored. Raises ValueError for one that is not in a plain
        floating-point type, or is not finite."""
        stored = self.stored[weight]
        parts = [self._read_part(*part) for part in stored.parts]
        return parts[0] if stored.make is None else stored.make(parts)[stored.weight]

    def _read_part(self, file: Path, key: str) -> Tensor:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(key)
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"{file}: {key} is stored as {tensor.dtype}; give a checkpoint in float32, bfloat16"
                " or float16"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{file}: {key} holds NaN or infinite numbers")
        return tensor

    def fingerprint(self) -> str:
        """The fingerprint that `load` would give the model."""
        return fingerprint_of((weight, self.read(weight)) for weight in self.stored)

    def tied(self) -> set[str]:
        """The weights that share their place with another one."""
        sharers = Counter(self.stored.values())
        return {weight for weight, place in self.stored.items() if sharers[place] > 1}


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A checkpoint folder, or the built-in model by its name, its headers read and checked against
    its config.json.

    Raises ValueError naming what is wrong, for the same files that `load` refuses.
    """
    folder = Path(builtin.source(str(source)))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model: {source} is no folder with a config.json; give a folder of safetensors, or"
            f" {builtin.NAME!r}"
        )
    with one_message(str(source)), quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model: {source} is quantised; give the checkpoint in float32, bfloat16 or float16"
        )
    try:
        with torch.device("meta"), quiet():
            model: Any = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"model: {source} ({config.model_type}) is no causal language model: {error}"
        ) from error
    weights: dict[str, Tensor] = model.state_dict(keep_vars=True)
    files = weight_files(folder)
    if not files:
        raise ValueError(
            f"{folder}: there is no model.safetensors and no index of shards; checkpoints are read"
            f" from safetensors only: {RESAVE}"
        )
    found, surplus = _stored(files, model, weights)
    stored: dict[str, Stored] = {}
    missing: list[str] = []
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for weight, tensor in sorted(weights.items(), key=lambda item: item[0]):
        place = found.get(weight) or next(
            (found[other] for other, mate in weights.items() if mate is tensor and other in found),
            None,
        )
        if place is None:
            missing.append(weight)
            continue
        stored[weight], shape = place
        if shape != tuple(tensor.shape):
            mismatched.append((stored[weight].name, shape, tuple(tensor.shape)))
    refuse_by_report(
        str(source),
        {"missing_keys": missing, "unexpected_keys": surplus, "mismatched_keys": mismatched},
    )
    layers = {
        name: (part.out_features, part.in_features)
        for name, part in model.named_modules()
        if type(part) is nn.Linear
    }
    shapes = {weight: tuple(weights[weight].shape) for weight in stored}
    return Checkpoint(str(source), folder, config, files, stored, shapes, layers)


def _stored(
    files: Sequence[Path], model: Any, weights: dict[str, Tensor]
) -> tuple[dict[str, tuple[Stored, tuple[int, ...]]], list[str]]:
    """Weight -> where it is stored and its shape, and the names of tensors that are no weight's;
    with the renaming, splitting and joining that transformers does when it loads."""
    mapping = get_model_conversion_mapping(model)
    renamings = [change for change in mapping if isinstance(change, WeightRenaming)]
    converters = [change for change in mapping if isinstance(change, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    ignored = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or ()]
    tensors: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                tensors[key] = file, tuple(opened.get_slice(key).get_shape())
    found: dict[str, tuple[Stored, tuple[int, ...]]] = {}
    surplus: list[str] = []
    groups: dict[str, list[tuple[str, str]]] = {}  # first weight made -> (pattern, name in a file)
    for key in sorted(tensors, key=dot_natural_key):
        prefix = model.base_model_prefix
        weight, pattern = rename_source_key(key, renamings, converters, prefix, weights)
        if weight not in weights and key in weights:
            weight, pattern = key, None
        if weight not in weights:
            surplus += [] if any(one.search(weight) for one in ignored) else [key]
        elif pattern is not None:
            groups.setdefault(weight, []).append((pattern, key))
        else:
            file, shape = tensors[key]
            found[weight] = Stored(weight, ((file, key),)), shape
    for first, sources in groups.items():
        make = _maker(by_pattern[sources[0][0]], first, sources, model)
        shapes = [torch.empty(tensors[key][1], device="meta") for _, key in sources]
        parts = tuple((tensors[key][0], key) for _, key in sources)
        with one_message(f"{model.config.name_or_path}: {first}"):
            made = make(shapes)
        for weight, tensor in made.items():
            found[weight] = Stored(weight, parts, make), tuple(tensor.shape)
    return found, surplus


def _maker(
    converter: WeightConverter, first: str, sources: Sequence[tuple[str, str]], model: Any
) -> Callable[[Sequence[Tensor]], Mapping[str, Tensor]]:
    """What transformers does to the tensors of these (pattern, name) to make the weight `first`,
    and others beside it."""

    def make(parts: Sequence[Tensor]) -> dict[str, Tensor]:
        change = deepcopy(converter)
        for (pattern, key), part in zip(sources, parts, strict=True):
            change.add_tensor(first, key, pattern, part)  # type: ignore[arg-type]
        made = change.convert(first, model=model, config=model.config)
        return {
            weight: value[0] if isinstance(value, list) else value for weight, value in made.items()
        }

    return make
