"""PEFT's LoRA folders: read exactly as PEFT reads them, or refused by name.

`adapter_config.json` has some forty fields. Listed here are those that are understood, those that
must have the value of a plain LoRA, and those that only training reads. A field that is in none of
the lists is refused. Defaults and the matching of names are PEFT's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fader.engine.loading import FLOATS, check_safetensors
from fader.files import refuse_pointer

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
RANK, ALPHA = 8, 8  # PEFT's, where the config leaves r or lora_alpha out
PREFIX = "base_model.model."
_FACTOR = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

UNDERSTOOD = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "init_lora_weights",
}
# read by training, by hubs, or by nothing that a linear layer does
WITHOUT_EFFECT = {
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",  # PEFT itself turns it off for linear layers
    "megatron_core",
    "eva_config",
    "qalora_group_size",
    "runtime_config",
    "merge_weights",
}
OFF: tuple[Any, ...] = (None, False, [], {})
# field -> what it would do, and the values with which it does not
PLAIN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "task_type": ("is another task than answering", (None, "CAUSAL_LM")),
    "bias": ("changes the biases of layers", ("none",)),
    "lora_bias": ("adds biases", OFF),
    "use_dora": ("scales the rows of the weights anew (DoRA)", OFF),
    "use_qalora": ("pools the inputs (QA-LoRA)", OFF),
    "use_bdlora": ("makes the factors block-diagonal (BD-LoRA)", OFF),
    "velora_config": ("is another kind of layer (VeLoRA)", (None,)),
    "monteclora_config": ("samples the factors (Monte Carlo LoRA)", (None,)),
    "kasa_config": ("changes the base weights (KaSA)", (None,)),
    "arrow_config": ("routes between adapters (Arrow)", (None,)),
    "corda_config": ("changes the base weights (CorDA)", (None,)),
    "lora_ga_config": ("changes the base weights (LoRA-GA)", (None,)),
    "loftq_config": ("changes the base weights (LoftQ)", (None, {})),
    "alora_invocation_tokens": ("acts after these tokens only (aLoRA)", (None,)),
    "layer_replication": ("repeats layers of the base", OFF),
    "trainable_token_indices": ("changes rows of the embedding", (None,)),
    "ensure_weight_tying": ("changes the embedding with the head", OFF),
    "target_parameters": ("changes stacked parameters, which are no linear layers", OFF),
    "megatron_config": ("is for layers of Megatron", (None,)),
    "enable_lora": ("changes parts of a layer", (None,)),
}
INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # those that leave the base alone


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the base model that PEFT saved beside the factors: its file and its name
    there."""

    file: Path
    key: str

    def read(self) -> Tensor:
        """The weight as it is stored."""
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.key)
        return tensor


@dataclass(frozen=True)
class PeftFolder:
    """What is in a LoRA folder."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Linear layer -> (A [rank, in], B [out, rank]), the scale in B."""
    base_weights: Mapping[str, StoredWeight]
    """Weight of the base model -> where it is stored. PEFT puts them into the base; they change
    nothing only where the base has the same."""
    base_model: str | None
    """What the config names as the base model."""
    at_random: Mapping[str, Any] | None
    """The config, if PEFT gives random factors to a layer that it targets and that has none
    here."""


def read_folder(folder: Path) -> PeftFolder:
    """The factors in a LoRA folder. Raises ValueError naming the file, the field or tensor and what
    cannot be served."""
    config = read_json(folder / CONFIG)
    _check_config(folder / CONFIG, config)
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"{folder}: there is no {WEIGHTS}; pickled adapters are not read, save the adapter as"
            " safetensors"
        )
    check_safetensors(file)
    sides: dict[str, dict[str, Tensor]] = {}
    base_weights: dict[str, StoredWeight] = {}
    for key, tensor in load_file(file).items():
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"{file}: {key} is stored as {tensor.dtype}; save the adapter in float32, bfloat16"
                " or float16"
            )
        if match := _FACTOR.match(key):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif key.startswith(PREFIX) and "lora_" not in key:
            weight = key.removeprefix(PREFIX).replace(".base_layer.", ".")
            base_weights[weight] = StoredWeight(file, key)
        else:
            why = (
                "changes the embedding"
                if "embed" in key
                else "is no LoRA factor of a linear layer under a name that PEFT reads"
            )
            raise ValueError(f"{file}: {key} {why}; such adapters cannot be mixed per row")
    if not sides:
        raise ValueError(
            f"{file}: holds no factors (training that shards the model saves such files); save the"
            " adapter with its weights gathered"
        )
    for saved in config.get("modules_to_save") or ():
        if not any(re.match(rf"(.*\.)?{re.escape(saved)}\.", name) for name in base_weights):
            raise ValueError(
                f"{folder / CONFIG}: modules_to_save names {saved!r}, which is not in {WEIGHTS}"
            )
    factors = {module: _scaled(folder, module, pair, config) for module, pair in sides.items()}
    base_model = config.get("base_model_name_or_path")
    return PeftFolder(
        factors,
        base_weights,
        None if base_model is None else str(base_model),
        config if config.get("init_lora_weights") is False else None,
    )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError for anything else."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a vector is a PEFT LoRA folder")
    refuse_pointer(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must hold a JSON object")
    return value


def plain_config(ranks: Mapping[str, int], base_model: Any) -> dict[str, Any]:
    """The config of a folder with factors of these ranks by layer, whose scales are all 1."""
    most = max(ranks.values())
    fewer = {module: rank for module, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "target_modules": sorted(ranks),
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first field whose value is not that of a plain LoRA, or is no value
    of its kind."""
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(
            f"{file}: peft_type is {kind!r}; only LORA adapters are weight differences of low rank"
        )
    for name, value in config.items():
        if name in PLAIN:
            what, harmless = PLAIN[name]
            if value not in harmless:
                raise ValueError(
                    f"{file}: {name} is {value!r}, which {what}; a low-rank vector cannot express"
                    " it, train without it"
                )
        elif name not in UNDERSTOOD and name not in WITHOUT_EFFECT:
            raise ValueError(
                f"{file}: {name} is {value!r}, a field that is not known here and might change the"
                " result; take it out if it does not"
            )
    start = config.get("init_lora_weights", True)
    if (start.lower() if str(start).lower() == "gaussian" else start) not in INITS:
        raise ValueError(
            f"{file}: init_lora_weights is {start!r}, which may have changed the base too; convert"
            " the adapter to a plain LoRA with PEFT"
        )
    _check_number(file, "r", config.get("r", RANK), whole=True)
    _check_number(file, "lora_alpha", config.get("lora_alpha", ALPHA))
    if type(stable := config.get("use_rslora") or False) is not bool:
        raise ValueError(f"{file}: use_rslora is {stable!r}; give true or false")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{file}: {name} is {patterns!r}; it must map layers to numbers")
        for pattern, number in patterns.items():
            _check_pattern(file, f"{name}.{pattern}", rf"(.*\.)?({pattern})$")
            _check_number(file, f"{name}.{pattern}", number, whole=name == "rank_pattern")
    targets = config.get("target_modules")
    if targets is None:
        raise ValueError(f"{file}: target_modules is left out; name the layers that it changes")
    _check_names(file, "target_modules", targets)
    _check_names(file, "exclude_modules", config.get("exclude_modules") or [])
    _check_names(file, "layers_pattern", config.get("layers_pattern") or [])
    if isinstance(config.get("modules_to_save") or [], str):
        raise ValueError(f"{file}: modules_to_save is {config['modules_to_save']!r}; give a list")
    _check_names(file, "modules_to_save", config.get("modules_to_save") or [])
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if any(type(number) is not int for number in numbers):
        raise ValueError(f"{file}: layers_to_transform is {layers!r}; give numbers of layers")
    if isinstance(targets, str) and layers is not None:
        raise ValueError(
            f"{file}: layers_to_transform is {layers!r}, which PEFT takes only with a list of"
            " target_modules"
        )
    for pattern in _listed(config.get("layers_pattern")):
        _check_pattern(file, "layers_pattern", pattern)
    for name in ("target_modules", "exclude_modules"):
        if isinstance(pattern := config.get(name), str):
            _check_pattern(file, name, pattern)


def _check_number(file: Path, name: str, value: Any, whole: bool = False) -> None:
    good = (
        type(value) is int and value >= 1
        if whole
        else type(value) in (int, float) and math.isfinite(value)
    )
    if not good:
        wanted = "whole number of at least 1" if whole else "finite number"
        raise ValueError(f"{file}: {name} is {value!r}; give a {wanted}")


def _check_pattern(file: Path, name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{file}: {name} is no regular expression: {error}") from None


def _check_names(file: Path, name: str, value: Any) -> None:
    if not (
        isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    ):
        raise ValueError(f"{file}: {name} is {value!r}; give names of layers")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def targeted(module: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT gives this layer an adapter when it loads the config (its
    `check_target_module_exists`)."""

    def named(names: list[str]) -> bool:
        return any(module == name or module.endswith(f".{name}") for name in names)

    excluded = config.get("exclude_modules")
    if isinstance(excluded, str) and excluded:
        if re.fullmatch(excluded, module):
            return False
    elif named(excluded or []):
        return False
    if any(
        re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module)
        for name in config.get("modules_to_save") or ()
    ):
        return False
    targets = config["target_modules"]
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return re.search(r"\.\d+\.", module) is not None  # all but the head
        return re.fullmatch(targets, module) is not None
    layers = config.get("layers_to_transform")
    if module in targets or not named(targets) or layers is None or layers == []:
        return named(targets)
    patterns = [
        rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\."
        for pattern in _listed(config.get("layers_pattern"))
    ]
    matches = (
        re.match(pattern, module) for pattern in patterns or [r".*?\.[^.]*\.(?P<layer>\d+)\."]
    )
    first = next((match for match in matches if match), None)
    return first is not None and int(first["layer"]) in (
        layers if isinstance(layers, list) else [layers]
    )


def _scaled(
    folder: Path, module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """(A, scale * B) of one layer, with PEFT's rules for rank and alpha per module and for rsLoRA.
    A scale other than 1 is multiplied in float32, whatever the file's type."""
    file = folder / WEIGHTS
    if (
        pair.keys() != {"A", "B"}
        or pair["A"].ndim != 2
        or pair["B"].ndim != 2
        or pair["A"].shape[0] != pair["B"].shape[1]
        or not all(tensor.numel() for tensor in pair.values())
    ):
        raise ValueError(
            f"{file}: layer {module} has no matching pair of factors A [rank, in] and B [out, rank]"
        )
    if not targeted(module, config):
        raise ValueError(
            f"{file}: layer {module} is not among those that {CONFIG} applies the adapter to"
            " (target_modules, exclude_modules, layers_to_transform), so PEFT would ignore it; make"
            " the two agree"
        )
    rank = _by_module(config.get("rank_pattern"), module, config.get("r", RANK))
    if rank != pair["A"].shape[0]:
        raise ValueError(
            f"{folder}: layer {module} has rank {pair['A'].shape[0]}, its {CONFIG} says {rank}"
        )
    alpha = _by_module(config.get("alpha_pattern"), module, config.get("lora_alpha", ALPHA))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    down, up = (pair["A"], pair["B"])
    if scale != 1:
        down, up = down.float(), up.float() * scale
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError(f"{file}: layer {module} holds NaN or infinite numbers")
    return down, up


def _by_module(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of safetensors. Raises OSError naming it, as on a disk that is full."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(file)) from None
