"""Alignment Vectors (arXiv 2410.19206): AV = aligned weights - unaligned weights, used as theta +
sum of λ_i * AV_i.

A `Vector` keeps the difference as low-rank factors per linear layer, dW = B A, as LoRA training
gives it. It is a value: vectors add, subtract and scale exactly, by stacking ranks (averaging A and
B apart would leave cross terms). Norms, cosines, projections and the singular values of B A come
from the factors alone, in double, never from a dense matrix. PEFT LoRA folders load as they are,
and `save` writes folders that PEFT reads. Their reading is in
`fader/vectors/peft_folder.py`, whole checkpoints in `fader/vectors/checkpoint.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fader.engine.apart import apart
from fader.engine.protocols import Backbone
from fader.files import whole_folder
from fader.schema import at
from fader.vectors.peft_folder import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    StoredWeight,
    plain_config,
    read_folder,
    read_json,
    save_tensors,
    targeted,
)

CARD = "fader.json"
FILES = {CONFIG, WEIGHTS, CARD}
"""What a vector's folder holds."""


@dataclass(frozen=True, eq=False)
class Vector:
    """A named weight difference. `factors`: linear layer -> (A [rank, in], B [out, rank]) with dW =
    B A, any scale already in B."""

    name: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    base: str | None = None
    """Fingerprint of the model it belongs to; None when it is not known."""
    card: Mapping[str, Any] = field(default_factory=dict)
    base_weights: Mapping[str, StoredWeight] = field(default_factory=dict)
    """Weights of the base model that PEFT saved beside the factors: no part of the difference. A
    model must have the same ones."""
    at_random: Mapping[str, Any] | None = None
    """The config of the adapter that it was read from, if PEFT gives random factors to a layer that
    it targets and that has none in the file. A model must have no such layer."""
    _fitting: set[str] = field(default_factory=set, init=False, repr=False)
    """Fingerprints of the models that were found to be such."""

    def delta(self, module: str) -> Tensor:
        """The dense difference of one layer [out, in]."""
        down, up = self.factors[module]
        return up.float() @ down.float()

    @cached_property
    def digest(self) -> str:
        """A short hash of the numbers inside: two vectors of one digest are the same difference."""
        found = hashlib.sha256()
        for module, pair in sorted(self.factors.items()):
            found.update(module.encode())
            for factor in pair:
                found.update(factor.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def norm(self, module: str | None = None) -> float:
        """Frobenius norm of one layer's difference, or of all together."""
        if module is None:
            return math.hypot(*self.norms().values())
        return math.sqrt(max(0.0, _inner(self.factors[module], self.factors[module])))

    def norms(self) -> dict[str, float]:
        """Frobenius norm of the difference of every layer."""
        return {module: self.norm(module) for module in self.factors}

    def cosine(self, other: Vector) -> float:
        """Cosine between two vectors as points in weight space; 0 where they share no layer."""
        _same_shapes(self, other)
        shared = self.factors.keys() & other.factors.keys()
        product = sum(_inner(self.factors[module], other.factors[module]) for module in shared)
        lengths = self.norm() * other.norm()
        return product / lengths if lengths else 0.0

    @property
    def rank(self) -> int:
        """The largest rank over the layers."""
        return max((down.shape[0] for down, _ in self.factors.values()), default=0)

    def __mul__(self, strength: float) -> Vector:
        return replace(
            self,
            name=f"{strength:g}*{self.name}",
            factors={m: (down, up * strength) for m, (down, up) in self.factors.items()},
        )

    __rmul__ = __mul__

    def __neg__(self) -> Vector:
        return replace(self * -1, name=f"-{self.name}")

    def __add__(self, other: Vector) -> Vector:
        _same_base(self, other)
        _same_shapes(self, other)
        factors = dict(self.factors)
        for module, pair in other.factors.items():
            factors[module] = _stacked([factors[module], pair]) if module in factors else pair
        return replace(
            self,
            name=f"{self.name}+{other.name}",
            factors=factors,
            base=self.base or other.base,
            base_weights=_joined(self, other),
        )

    def __sub__(self, other: Vector) -> Vector:
        return replace(self + -other, name=f"{self.name}-{other.name}")

    def named(self, name: str) -> Vector:
        """The same vector under another name."""
        return replace(self, name=name)

    def scaled_to(self, norm: float) -> Vector:
        """The vector in the same direction with this Frobenius norm over all layers. Raises
        ValueError for a zero vector."""
        if not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"norm: {norm} is not a length; give a finite number of at least 0")
        if not (present := self.norm()):
            raise ValueError(
                f"vector {self.name!r} is zero and has no direction; it cannot be scaled to a norm"
            )
        return (self * (norm / present)).named(self.name)

    def save(self, folder: Path | str) -> Path:
        """Write a folder that fader, PEFT and vLLM load. Written beside its place and renamed; a
        vector that is there is replaced.

        Raises ValueError for a vector that changes no layer, and where there is something else than
        a vector.
        """
        folder = Path(folder)
        check_place(folder)
        if not self.factors:
            raise ValueError(
                f"vector {self.name!r} changes no layer; there is nothing to write to {folder}"
            )
        with whole_folder(folder, replace=True) as scratch:
            tensors = {stored.key: stored.read() for stored in self.base_weights.values()}
            for module, (down, up) in self.factors.items():
                tensors[f"{PREFIX}{module}.lora_A.weight"] = down.contiguous()
                tensors[f"{PREFIX}{module}.lora_B.weight"] = up.contiguous()
            save_tensors(tensors, scratch / WEIGHTS)
            ranks = {module: down.shape[0] for module, (down, _) in self.factors.items()}
            config = plain_config(ranks, self.card.get("base_model"))
            (scratch / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            card = {**self.card, "name": self.name, "base_fingerprint": self.base}
            (scratch / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
        return folder

    @classmethod
    @apart
    def load(cls, folder: Path | str, name: str | None = None) -> Vector:
        """A vector from a PEFT LoRA folder. Raises ValueError naming the file and what in it cannot
        be served."""
        folder = Path(folder)
        found = read_folder(folder)
        card = read_json(folder / CARD) if (folder / CARD).is_file() else {}
        return cls(
            name or str(card.get("name") or folder.name),
            found.factors,
            card.get("base_fingerprint"),
            {"base_model": found.base_model, **card},
            found.base_weights,
            found.at_random,
        )

    def check(self, backbone: Backbone) -> None:
        """Raises ValueError unless this vector fits `backbone`: its fingerprint, its layers and
        their shapes."""
        self.check_model(backbone.name, backbone.fingerprint, backbone.layers, backbone.weight)

    def check_model(
        self,
        model: str,
        fingerprint: str,
        layers: Mapping[str, tuple[int, int]],
        read: Callable[[str], Tensor],
    ) -> None:
        """Raises ValueError unless this vector fits the model with this fingerprint, these linear
        layers, each (out, in), and the weights that `read` gives by name (KeyError for none)."""
        with at("vectors", self.name):
            if self.base and self.base != fingerprint:
                raise ValueError(
                    f"made for a model with fingerprint {self.base}, but {model} has {fingerprint};"
                    " use the model it was trained from"
                )
            for module, (down, up) in self.factors.items():
                if module not in layers:
                    raise ValueError(
                        f"{model} has no linear layer {module}; the adapter is for another"
                        " architecture"
                    )
                if layers[module] != (up.shape[0], down.shape[1]):
                    out, inner = layers[module]
                    raise ValueError(
                        f"layer {module} is {out} x {inner} in {model}, the vector's is"
                        f" {up.shape[0]} x {down.shape[1]}"
                    )
            if fingerprint not in self._fitting:
                self._refuse_random(layers)
                for name, stored in self.base_weights.items():
                    _same_weight(f"{stored.file}: {stored.key}", stored, read, model, name)
                self._fitting.add(fingerprint)

    def _refuse_random(self, layers: Iterable[str]) -> None:
        """Raises ValueError for a layer of a model that PEFT would fill at random."""
        if self.at_random is None:
            return
        for module in layers:
            if module not in self.factors and targeted(module, self.at_random):
                raise ValueError(
                    f"its file has no factors for {module}, which {CONFIG} targets and PEFT fills"
                    " at random (init_lora_weights is false); save the adapter whole, or take the"
                    " layer out of target_modules"
                )


@dataclass(frozen=True)
class Kept:
    """What a cut to a lower rank kept of one layer."""

    rank: int
    error: float
    """Norm of what is gone, over the norm before; measured on the factors as they are stored."""
    norm: float
    """Frobenius norm of what is kept."""
    before: float
    """Frobenius norm before the cut."""


def compress(
    vector: Vector, rank: int | None = None, energy: float | None = None
) -> tuple[Vector, dict[str, Kept]]:
    """The nearest vector of lower rank (truncated SVD of B A per layer), and what it kept of each
    layer.

    `rank`: at most this one. `energy`: the least rank that keeps this share of the layer's squared
    norm. With neither, only ranks that are empty are dropped, as after a + b - b. Layers that are
    zero are left out. The factors keep their dtype, whose rounding is in `Kept.error`.
    """
    check_cut(rank, energy)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kept: dict[str, Kept] = {}
    for module, (down, up) in vector.factors.items():
        left, up_left = torch.linalg.qr(up.double())  # [out, r], [r, rank]
        right, down_right = torch.linalg.qr(down.double().T)  # [in, r], [r, rank]
        u, singular, v = torch.linalg.svd(up_left @ down_right.T, full_matrices=False)
        rounding = 8 * torch.finfo(torch.float64).eps * up_left.norm() * down_right.norm()
        singular = singular[singular > rounding]
        if not len(singular):
            continue
        keep = kept_rank(singular, float(singular.square().sum()), rank, energy)
        pair = (down, up)
        if keep < down.shape[0]:
            pair = balanced(left @ u, singular[:keep], v @ right.T, down.dtype)
        before = vector.norm(module)
        gone = _stacked([(down, up), (pair[0], -pair[1])])
        error = math.sqrt(max(0.0, _inner(gone, gone))) / before if pair[0] is not down else 0.0
        factors[module], kept[module] = (
            pair,
            Kept(pair[0].shape[0], error, math.sqrt(_inner(pair, pair)), before),
        )
    card = {
        **vector.card,
        "cut": {"rank": rank, "energy": energy},
        "layers": {module: asdict(row) for module, row in kept.items()},
    }
    return replace(vector, factors=factors, card=card), kept


def sparsify(vector: Vector, share: float) -> Vector:
    """The vector with its largest layers only: as few as hold this share of the squared norm.

    Whole layers are dropped. A difference with single elements set to zero has no low rank any
    more, so it would be no vector.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} must be above 0 and at most 1")
    norms = sorted(vector.norms().items(), key=lambda item: -item[1])
    wanted, held, kept = share * vector.norm() ** 2 * (1 - 1e-12), 0.0, set()
    for module, norm in norms:
        if held >= wanted or not norm:
            break
        held += norm * norm
        kept.add(module)
    return replace(
        vector, factors={module: pair for module, pair in vector.factors.items() if module in kept}
    )


def project_out(vector: Vector, others: Sequence[Vector]) -> Vector:
    """The vector minus its projection, layer by layer, onto the span of the others' differences:
    what is left is orthogonal to each of them.

    Exact, by stacking ranks; `compress` brings the rank down again. Others that are zero or, up to
    about 1e-6, dependent are harmless.
    """
    for other in others:
        _same_base(vector, other)
        _same_shapes(vector, other)
    factors = dict(vector.factors)
    for module, pair in vector.factors.items():
        present = [
            (other.factors[module], norm)
            for other in others
            if module in other.factors and (norm := other.norm(module))
        ]
        if not present:
            continue
        units = [(down, up.double() / norm) for (down, up), norm in present]
        gram = torch.tensor(
            [[_inner(one, two) for two in units] for one in units], dtype=torch.float64
        )
        onto = torch.tensor([[_inner(unit, pair)] for unit in units], dtype=torch.float64)
        strengths = (
            torch.linalg.lstsq(gram, onto, rcond=1e-12, driver="gelsd").solution[:, 0].tolist()
        )
        spans = [
            (down, (up * -strength).float())
            for (down, up), strength in zip(units, strengths, strict=True)
        ]
        factors[module] = _stacked([pair, *spans])
    return replace(vector, factors=factors)


def check_cut(rank: int | None, energy: float | None) -> None:
    """Raises ValueError unless `rank` is at least 1 and `energy` a share, where they are given."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank: {rank} must be at least 1; leave it out to keep all")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(
            f"energy: {energy} must be above 0 and at most 1, such as 0.95; leave it out to"
            " keep all"
        )


def kept_rank(singular: Tensor, square: float, rank: int | None, energy: float | None) -> int:
    """How many of the singular values [values], largest first, to keep: the least that hold the
    share `energy` of `square`, at most `rank`.

    One more than there are where they do not hold it.
    """
    count = len(singular)
    if energy is not None and energy < 1:
        count = (
            int((singular.double().square().cumsum(0) < energy * square * (1 - 1e-12)).sum()) + 1
        )
    return count if rank is None else min(rank, count)


def balanced(u: Tensor, singular: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(A [rank, in], B [out, rank]) of u diag(singular) v, each with the root of the singular
    values; u and v may have more ranks."""
    root = singular.sqrt()
    return (root[:, None] * v[: len(root)]).to(dtype), (u[:, : len(root)] * root).to(dtype)


def check_place(folder: Path) -> None:
    """Raises ValueError for a place where a vector cannot be written without deleting something
    that is no vector."""
    if (
        folder.exists()
        and not (folder / CONFIG).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise ValueError(
            f"out: {folder} is there already and is no vector; choose another folder, or remove it"
        )
    others = (file.name for file in folder.iterdir()) if folder.exists() else ()
    if beside := next((name for name in sorted(others) if name not in FILES), None):
        raise ValueError(
            f"out: {folder} holds {beside} beside a vector, and would be replaced as a whole;"
            " choose another folder, or remove it"
        )


def _inner(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """<B1 A1, B2 A2> = trace((A1 A2^T)^T (B1^T B2)), in double, never dense."""
    (down, up), (other_down, other_up) = ((a.double(), b.double()) for a, b in (one, two))
    return float(((down @ other_down.T) * (up.T @ other_up)).sum())


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of a sum of products."""
    return torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1)


def _same_base(one: Vector, two: Vector) -> None:
    if one.base and two.base and one.base != two.base:
        raise ValueError(
            f"vectors {one.name!r} and {two.name!r} belong to different models ({one.base},"
            f" {two.base})"
        )


def _same_shapes(one: Vector, two: Vector) -> None:
    for module in one.factors.keys() & two.factors.keys():
        (down, up), (other_down, other_up) = one.factors[module], two.factors[module]
        if down.shape[1] != other_down.shape[1] or up.shape[0] != other_up.shape[0]:
            raise ValueError(
                f"vectors {one.name!r} and {two.name!r} have different shapes in layer {module}"
            )


def _joined(one: Vector, two: Vector) -> dict[str, StoredWeight]:
    """The base weights of both. Raises ValueError where they are not the same."""
    for name in one.base_weights.keys() & two.base_weights.keys():
        mine, yours = one.base_weights[name], two.base_weights[name]
        if mine != yours and not torch.equal(mine.read(), yours.read()):
            raise ValueError(
                f"vectors {one.name!r} and {two.name!r} were saved with a different {name}; one of"
                " them changes it, which no low-rank vector can"
            )
    return {**one.base_weights, **two.base_weights}


def _same_weight(
    where: str, stored: StoredWeight, read: Callable[[str], Tensor], model: str, name: str
) -> None:
    """Raises ValueError unless the model's weight of that name is the stored one, in the model's
    type."""
    try:
        theirs = read(name).detach().cpu()
    except KeyError:
        raise ValueError(f"{where} is no weight of {model}, nor a LoRA factor") from None
    mine = stored.read()
    if mine.shape != theirs.shape:
        raise ValueError(
            f"{where} is {list(mine.shape)}, {model} has {list(theirs.shape)}; an adapter with a"
            " changed vocabulary cannot be mixed per row"
        )
    if not torch.equal(mine.to(theirs.dtype), theirs):
        raise ValueError(
            f"{where} differs from {model}'s (trained, or rounded when it was saved), which a"
            " low-rank vector cannot express; train without modules_to_save"
        )


def mixture(strengths: Iterable[tuple[Vector, float]]) -> tuple[tuple[Vector, float], ...]:
    """A policy's mixture: zero strengths left out (zero is off), in one order, so that equal
    mixtures are equal."""
    return tuple(
        sorted(
            ((vector, strength) for vector, strength in strengths if strength != 0),
            key=lambda pair: pair[0].name,
        )
    )
