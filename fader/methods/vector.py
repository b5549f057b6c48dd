"""Alignment Vectors (arXiv 2410.19206): AV = aligned weights - unaligned weights, used as theta + sum of lambda_i * AV_i.

A `Vector` keeps the difference as low-rank factors per linear layer, dW = B A, as LoRA training gives it. It is a value: vectors add,
subtract and scale exactly, by stacking ranks (averaging A and B apart would leave cross terms). PEFT LoRA folders load as they are, and
`save` writes folders that PEFT reads.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fader.engine.backbone import Backbone

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "fader.json"
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


@dataclass(frozen=True, eq=False)
class Vector:
    """A named weight difference. `factors`: linear layer -> (A [rank, in], B [out, rank]) with dW = B A, any scale already in B."""

    name: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    base: str | None = None
    """Fingerprint of the model it belongs to; None when it is not known."""
    card: Mapping[str, Any] = field(default_factory=dict)

    def delta(self, module: str) -> Tensor:
        """The dense difference of one layer [out, in]."""
        down, up = self.factors[module]
        return up.float() @ down.float()

    def norm(self, module: str) -> float:
        """Frobenius norm of one layer's difference, from its factors alone."""
        return math.sqrt(max(0.0, _inner(self.factors[module], self.factors[module])))

    def norms(self) -> dict[str, float]:
        """Frobenius norm of the difference of every layer."""
        return {module: self.norm(module) for module in self.factors}

    def cosine(self, other: Vector) -> float:
        """Cosine between two vectors as points in weight space; 0 where they share no layer."""
        shared = self.factors.keys() & other.factors.keys()
        product = sum(_inner(self.factors[module], other.factors[module]) for module in shared)
        lengths = sum(n * n for n in self.norms().values()) * sum(n * n for n in other.norms().values())
        return product / lengths**0.5 if lengths else 0.0

    @property
    def rank(self) -> int:
        """The largest rank over the layers."""
        return max((down.shape[0] for down, _ in self.factors.values()), default=0)

    def __mul__(self, amount: float) -> Vector:
        return replace(self, name=f"{amount:g}*{self.name}", factors={m: (down, up * amount) for m, (down, up) in self.factors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Vector:
        return replace(self * -1, name=f"-{self.name}")

    def __add__(self, other: Vector) -> Vector:
        if self.base and other.base and self.base != other.base:
            raise ValueError(f"vectors {self.name!r} and {other.name!r} belong to different models ({self.base}, {other.base})")
        factors = dict(self.factors)
        for module, (down, up) in other.factors.items():
            if module in factors:
                mine, yours = factors[module]
                if mine.shape[1] != down.shape[1] or yours.shape[0] != up.shape[0]:
                    raise ValueError(f"vectors {self.name!r} and {other.name!r} have different shapes in layer {module}")
                down, up = torch.cat([mine, down]), torch.cat([yours, up], dim=1)
            factors[module] = (down, up)
        return replace(self, name=f"{self.name}+{other.name}", factors=factors, base=self.base or other.base)

    def __sub__(self, other: Vector) -> Vector:
        return replace(self + -other, name=f"{self.name}-{other.name}")

    def named(self, name: str) -> Vector:
        """The same vector under another name."""
        return replace(self, name=name)

    def save(self, folder: Path | str) -> Path:
        """Write a folder that fader, PEFT and vLLM load. Written beside its place and renamed; an existing folder is replaced."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            tensors = {}
            for module, (down, up) in self.factors.items():
                tensors[f"base_model.model.{module}.lora_A.weight"] = down.contiguous()
                tensors[f"base_model.model.{module}.lora_B.weight"] = up.contiguous()
            save_file(tensors, scratch / WEIGHTS, metadata={"format": "pt"})
            ranks = {module: down.shape[0] for module, (down, _) in self.factors.items()}
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": self.card.get("base_model"),
                "r": self.rank,
                "lora_alpha": self.rank,
                "rank_pattern": {module: rank for module, rank in ranks.items() if rank != self.rank},
                "alpha_pattern": {module: rank for module, rank in ranks.items() if rank != self.rank},
                "target_modules": sorted(ranks),
                "bias": "none",
                "use_rslora": False,
                "inference_mode": True,
            }
            (scratch / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            card = {**self.card, "name": self.name, "base_fingerprint": self.base}
            (scratch / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
            os.chmod(scratch, 0o755)
            if folder.exists():
                shutil.rmtree(folder)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: Path | str, name: str | None = None) -> Vector:
        """A vector from a PEFT LoRA folder. Raises ValueError naming the file and what in it cannot be served."""
        folder = Path(folder)
        config = _read_json(folder / CONFIG)
        if (kind := config.get("peft_type")) != "LORA":
            raise ValueError(f"{folder / CONFIG}: peft_type is {kind!r}; only LORA adapters are weight differences of low rank")
        for key, harmless in (
            ("bias", (None, "none")),
            ("modules_to_save", (None, [])),
            ("use_dora", (None, False)),
            ("fan_in_fan_out", (None, False)),
        ):
            if config.get(key) not in harmless:
                raise ValueError(f"{folder / CONFIG}: {key} is {config[key]!r}, which a low-rank vector cannot express; train without it")
        if str(start := config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
            raise ValueError(f"{folder / CONFIG}: init_lora_weights is {start!r}, which also changes the base; convert it to a plain LoRA with PEFT")
        try:
            tensors = load_file(folder / WEIGHTS)
        except FileNotFoundError:
            raise ValueError(f"{folder}: there is no {WEIGHTS}; pickled adapters are not read, save the adapter as safetensors") from None
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS}: corrupt: {error}") from None
        sides: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            match = _KEY.match(key)
            if match is None:
                why = "changes the embedding or the vocabulary" if "embed" in key else "is no LoRA factor of a linear layer"
                raise ValueError(f"{folder / WEIGHTS}: {key} {why}; such adapters cannot be mixed per row")
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        factors = {module: _scaled(folder, module, pair, config) for module, pair in sides.items()}
        card = _read_json(folder / CARD) if (folder / CARD).is_file() else {}
        base = card.get("base_fingerprint")
        return cls(name or str(card.get("name") or folder.name), factors, base, {"base_model": config.get("base_model_name_or_path"), **card})

    def check(self, backbone: Backbone) -> None:
        """Raises ValueError unless this vector fits `backbone`: its fingerprint, its layers and their shapes."""
        if self.base and self.base != backbone.fingerprint:
            raise ValueError(
                f"vectors.{self.name}: made for a model with fingerprint {self.base}, but {backbone.name} has {backbone.fingerprint}; "
                "use the model it was trained from"
            )
        for module, (down, up) in self.factors.items():
            layer = backbone.desk.layers.get(module)
            if layer is None:
                raise ValueError(f"vectors.{self.name}: {backbone.name} has no linear layer {module}; the adapter is for another architecture")
            if (down.shape[1], up.shape[0]) != (layer.in_features, layer.out_features):
                raise ValueError(
                    f"vectors.{self.name}: layer {module} is {layer.out_features} x {layer.in_features} in {backbone.name}, "
                    f"the vector's is {up.shape[0]} x {down.shape[1]}"
                )


def user_folder() -> Path:
    """The user's own vectors."""
    return Path(user_data_path("fader")) / "vectors"


def folders() -> list[Path]:
    """Where named vectors are looked for: FADER_VECTORS, the project's folder, the user's, and the starter set."""
    given = [Path(part) for part in os.environ.get("FADER_VECTORS", "").split(os.pathsep) if part]
    return [*given, Path(".fader/vectors"), user_folder(), Path(__file__).parent.parent / "starter" / "vectors"]


def available() -> dict[str, Path]:
    """All vectors that can be asked for by name: name to folder."""
    found: dict[str, Path] = {}
    for folder in folders():
        for config in sorted(folder.glob(f"*/{CONFIG}")):
            found.setdefault(config.parent.name, config.parent)
    return found


def find(name: str) -> Vector:
    """The vector of that name, or of that folder. Raises ValueError naming those there are."""
    known = available()
    folder = known.get(name, Path(name))
    if not (folder / CONFIG).is_file():
        raise ValueError(f"alignment.vectors.{name}: no such vector; known: {', '.join(known) or 'none'}; or give a PEFT LoRA folder")
    return Vector.load(folder, name)


def _inner(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """<B1 A1, B2 A2> = trace((A1 A2^T)^T (B1^T B2)), in double, never dense."""
    (down, up), (other_down, other_up) = ((a.double(), b.double()) for a, b in (one, two))
    return float(((down @ other_down.T) * (up.T @ other_up)).sum())


def _scaled(folder: Path, module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(A, scale * B) of one layer, with PEFT's rules for rank and alpha per module and for rsLoRA."""
    if pair.keys() != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
        raise ValueError(f"{folder / WEIGHTS}: layer {module} has no matching pair of factors A [rank, in] and B [out, rank]")
    if not all(torch.isfinite(tensor).all() for tensor in pair.values()):
        raise ValueError(f"{folder / WEIGHTS}: layer {module} holds NaN or infinite numbers")
    rank = _by_module(config.get("rank_pattern"), module, config.get("r"))
    if rank != pair["A"].shape[0]:
        raise ValueError(f"{folder}: layer {module} has rank {pair['A'].shape[0]}, its {CONFIG} says {rank}")
    alpha = _by_module(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return pair["A"], pair["B"] * scale


def _by_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; a vector is a PEFT LoRA folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must hold a JSON object")
    return value


def mixture(amounts: Iterable[tuple[Vector, float]]) -> tuple[tuple[Vector, float], ...]:
    """A policy's mixture: zero amounts left out (zero is off), in one order, so that equal mixtures are equal."""
    return tuple(sorted(((vector, amount) for vector, amount in amounts if amount != 0), key=lambda pair: pair[0].name))
