"""Alignment Vectors of whole checkpoints (arXiv 2410.19206): extract aligned - base, merge base +
sum of λ_i * AV_i, transfer.

Checkpoints are folders of safetensors as transformers writes them, in one file or in shards. They
are read one tensor at a time: extraction holds a pair of tensors and what their decomposition
needs, merging one tensor.

Deviation: the paper keeps the dense difference. Here it is cut to low-rank factors per linear layer
(truncated SVD), so that it can be mixed row by row. The card says what each layer lost, and what
such factors cannot carry: embeddings, norms, biases, heads tied to the embedding.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from fader.files import whole_folder
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import (
    CARD,
    Kept,
    Vector,
    balanced,
    check_cut,
    compress,
    kept_rank,
    mixture,
)
from fader.vectors.weights import RESAVE, Checkpoint, open_checkpoint

Track = Callable[[Sequence[str]], Iterable[str]]
"""Hands on the names that it is given, one by one, and may show how far it is."""

INDEX = "model.safetensors.index.json"
SMALL = 256  # matrices with a side up to this are decomposed in full
FORMATS = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
}  # weights, which `merge` does not copy as they are


def extract(
    aligned: str | Path,
    base: str | Path,
    name: str,
    rank: int | None = None,
    energy: float | None = None,
    track: Track = iter,
) -> Vector:
    """The vector aligned - base: per linear layer the truncated SVD of the difference, layers that
    do not differ left out.

    `rank`: at most this one. `energy`: the least rank that keeps this share of a layer's squared
    norm. With neither, all above rounding. The card has `layers` (a `Kept` each) and `not_carried`
    (tensor -> norm of its difference): what differs and is not in the vector. Raises ValueError
    naming the first thing in which the two are not of one kind, or if no linear layer differs.
    """
    check_cut(rank, energy)
    tuned, plain = open_checkpoint(aligned), open_checkpoint(base)
    _same_kind(tuned, plain)
    tied = tuned.tied() & plain.tied()
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    layers: dict[str, dict[str, Any]] = {}
    not_carried: dict[str, float] = {}
    for weight in track(list(plain.stored)):
        difference = tuned.read(weight).float() - plain.read(weight).float()
        norm = float(difference.norm())
        if not norm:
            continue
        module = weight.removesuffix(".weight")
        if module in plain.layers and module != weight and weight not in tied:
            factors[module], kept = _cut(difference, rank, energy)
            layers[module] = asdict(kept)
        else:
            not_carried[plain.stored[weight].name] = norm  # by its place: tied ones are one tensor
    if not factors:
        raise ValueError(
            f"aligned: no linear layer of {aligned} differs from {base}; there is no vector between"
            " them"
        )
    card = {
        "kind": "extracted",
        "base_model": str(base),
        "aligned_model": str(aligned),
        "cut": {"rank": rank, "energy": energy},
        "layers": layers,
        "not_carried": not_carried,
    }
    return Vector(name, factors, plain.fingerprint(), card)


def adopt(
    adapter: str | Path,
    base: str | Path,
    name: str,
    rank: int | None = None,
    energy: float | None = None,
) -> Vector:
    """A PEFT LoRA folder as a vector of `base`, checked against it and with its fingerprint; cut as
    in `compress` if that is asked for."""
    vector = Vector.load(adapter, name)
    plain = open_checkpoint(base)
    mark = plain.fingerprint()
    vector.check_model(plain.name, mark, plain.layers, plain.read)
    card = {"kind": "LoRA", **vector.card, "base_model": str(base)}
    vector = replace(vector, name=name, base=mark, card=card, base_weights={})
    return compress(vector, rank, energy)[0] if rank or energy else vector


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter rather than a whole model."""
    return (Path(folder) / CONFIG).is_file()


def merge(
    base: str | Path, strengths: Mapping[Vector, float], out: str | Path, track: Track = iter
) -> Path:
    """Write the checkpoint base + sum of strength * vector to the new folder `out`, in the base's
    dtype and shards, its other files copied.

    Written beside its place and renamed. With no strengths the weights are the base's, bit for bit.
    Raises ValueError for a vector of another model, for a strength that is not finite, and for a
    folder that is there already.
    """
    plain, out = open_checkpoint(base), Path(out)
    if out.exists():
        raise ValueError(f"out: {out} is there already; choose another folder or remove it")
    wanted = mixture(strengths.items())
    _check_mixture(plain, wanted)
    with whole_folder(out) as scratch:
        _copy_all_but_weights(plain.folder, scratch)
        for file in plain.files:
            shutil.copyfile(file, scratch / file.name)
        if plain.files[0].name != "model.safetensors":
            shutil.copyfile(plain.folder / INDEX, scratch / INDEX)
        for module in track(sorted({module for vector, _ in wanted for module in vector.factors})):
            weight = plain.read(f"{module}.weight")
            merged = weight.float()
            for vector, strength in wanted:
                if module in vector.factors:
                    merged = merged + strength * vector.delta(module)
            ((file, key),) = plain.stored[f"{module}.weight"].parts
            _overwrite(scratch / file.name, key, merged.to(weight.dtype))
        parts = [
            {"name": vector.name, "strength": strength, "base_fingerprint": vector.base}
            for vector, strength in wanted
        ]
        card = {"kind": "merged model", "base_model": str(base), "vectors": parts}
        (scratch / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    return out


def transfer(
    vector: Vector, onto: str | Path, base: str | Path | None = None, track: Track = iter
) -> Vector:
    """The vector for another fine-tuning stage of its base model: checked and relabelled with that
    model's fingerprint.

    The numbers stay as they are. With the `base` checkpoint at hand, architecture, all shapes and
    the vocabulary must be equal, and the card entry `transferred_from` gets `moved`: for each of
    the vector's layers `distance` = |onto - base| / |base|, and `cosine` between onto - base and
    the vector. Without it only the vector's layers and their shapes are compared. Raises ValueError
    for what does not fit.
    """
    stage = open_checkpoint(onto)
    mark = stage.fingerprint()
    if mark == vector.base:
        raise ValueError(
            f"onto: {onto} is the model that {vector.name} belongs to; use the vector as it is"
        )
    if vector.base_weights and base is None:
        raise ValueError(
            f"base: {vector.name} was saved with weights of its own model"
            f" ({', '.join(vector.base_weights)}); give that model, so that they can be compared"
        )
    moving = replace(vector, base_weights={})
    moving.check_model(stage.name, vector.base or mark, stage.layers, stage.read)
    moved: dict[str, dict[str, float]] | None = None
    if base is not None:
        origin = open_checkpoint(base)
        vector.check_model(origin.name, origin.fingerprint(), origin.layers, origin.read)
        _same_kind(stage, origin)
        moved = {
            module: _moved(vector, module, stage, origin) for module in track(list(vector.factors))
        }
    before = {
        key: vector.card[key] for key in ("base_model", "transferred_from") if key in vector.card
    }
    note = {"base_fingerprint": vector.base, **before, "moved": moved}
    return replace(
        moving, base=mark, card={**vector.card, "base_model": str(onto), "transferred_from": note}
    )


def _same_kind(one: Checkpoint, two: Checkpoint) -> None:
    """Raises ValueError naming the first thing in which two checkpoints differ: architecture,
    tensors, shapes, vocabulary."""
    if one.config.model_type != two.config.model_type:
        raise ValueError(
            f"model: {one.name} is a {one.config.model_type}, {two.name} a {two.config.model_type};"
            " they share no weights to compare"
        )
    for weight in sorted(one.shapes.keys() | two.shapes.keys()):
        mine, yours = one.shapes.get(weight), two.shapes.get(weight)
        if mine is None or yours is None:
            raise ValueError(
                f"model: the tensor {weight} is in {(two if mine is None else one).name} only; they"
                " are no stages of one model"
            )
        if mine != yours:
            raise ValueError(
                f"model: the tensor {weight} is {list(mine)} in {one.name}, {list(yours)} in"
                f" {two.name}; they are no stages of one model"
            )
    if _has_tokenizer(one.folder) and _has_tokenizer(two.folder):
        here, there = (
            AutoTokenizer.from_pretrained(checkpoint.folder).get_vocab()
            for checkpoint in (one, two)
        )
        if here != there:
            token = next(
                token for token in sorted([*here, *there]) if here.get(token) != there.get(token)
            )
            raise ValueError(
                f"model: {one.name} has another vocabulary than {two.name}: the token {token!r} is"
                f" {here.get(token)} in one, {there.get(token)} in the other; a vector moves"
                " between models of one vocabulary only"
            )


def _has_tokenizer(folder: Path) -> bool:
    return any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    )


def _cut(
    difference: Tensor, rank: int | None, energy: float | None
) -> tuple[tuple[Tensor, Tensor], Kept]:
    """The factors (A, B) of a difference [out, in] cut to a rank or a share of its squared norm,
    and what they keep."""
    norm = float(difference.norm())
    u, singular, v = _decomposed(difference, norm * norm, rank, energy)
    singular = singular[: kept_rank(singular, norm * norm, rank, energy)]
    down, up = balanced(u, singular, v, torch.float32)
    found = up @ down
    return (down, up), Kept(
        len(singular), float((difference - found).norm()) / norm, float(found.norm()), norm
    )


def _decomposed(
    difference: Tensor, square: float, rank: int | None, energy: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """u [out, ranks], singular values [ranks], v [ranks, in] of as many ranks as the cut needs;
    drawn with a fixed seed where not in full."""
    shortest = min(difference.shape)
    guess = rank or 32
    while shortest > SMALL and 4 * guess < shortest and (rank is not None or energy is not None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, singular, v = torch.svd_lowrank(difference, q=guess + 8, niter=4)
        if rank is not None or kept_rank(singular[:guess], square, None, energy) <= guess:
            return u[:, :guess], singular[:guess], v.T[:guess]
        guess *= 2
    u, singular, v = torch.linalg.svd(difference, full_matrices=False)
    rounding = torch.finfo(singular.dtype).eps * max(difference.shape) * singular[0]
    return u, singular[singular > rounding], v


def _check_mixture(plain: Checkpoint, wanted: Sequence[tuple[Vector, float]]) -> None:
    """Raises ValueError unless each vector can be merged into the weights of `plain`, with a finite
    strength."""
    mark, tied = plain.fingerprint(), plain.tied()
    for vector, strength in wanted:
        if not math.isfinite(strength):
            raise ValueError(f"vectors.{vector.name}: the strength {strength} is not finite")
        vector.check_model(plain.name, mark, plain.layers, plain.read)
        if joined := next(
            (
                module
                for module in vector.factors
                if plain.stored[f"{module}.weight"].make is not None
            ),
            None,
        ):
            raise ValueError(
                f"vectors.{vector.name}: {joined} is stored in {plain.name} together with other"
                f" layers; serve the vector unmerged, or {RESAVE}"
            )
        if shared := next(
            (module for module in vector.factors if f"{module}.weight" in tied), None
        ):
            raise ValueError(
                f"vectors.{vector.name}: {shared} shares its weights with the embedding in"
                f" {plain.name}, which merging would change too; serve the vector unmerged, or"
                " untie the base"
            )


def _copy_all_but_weights(folder: Path, out: Path) -> None:
    """Copy what belongs to a model beside its weights: settings, tokenizer files, chat templates in
    folders of their own. Weights, folders that hold any, and an adapter that lies there are left
    out."""
    for file in folder.iterdir():
        if file.is_dir():
            parts = list(file.rglob("*"))
            if not file.name.startswith(".") and not any(part.suffix in FORMATS for part in parts):
                shutil.copytree(file, out / file.name)
        elif (
            file.suffix not in FORMATS
            and not file.name.endswith(".index.json")
            and file.name not in (CONFIG, CARD)
        ):
            shutil.copyfile(file, out / file.name)


def _overwrite(file: Path, key: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the one of that name, dtype and shape in a safetensors file: 8
    bytes of header size, header, data."""
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{key}: the merged weights do not fit into {tensor.dtype}; use smaller strengths"
        )
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        start, end = json.loads(stream.read(size))[key]["data_offsets"]
        assert end - start == len(data)
        stream.seek(8 + size + start)
        stream.write(data)


def _moved(vector: Vector, module: str, stage: Checkpoint, origin: Checkpoint) -> dict[str, float]:
    """How far one layer of `stage` is from `origin`, and the cosine of that with the vector; 0
    where a length is 0."""
    before = origin.read(f"{module}.weight").float()
    difference = stage.read(f"{module}.weight").float() - before
    down, up = (factor.float() for factor in vector.factors[module])
    product = float(((up.T @ difference) * down).sum())
    distance, lengths = float(difference.norm()), float(difference.norm()) * vector.norm(module)
    return {
        "distance": distance / (float(before.norm()) or 1.0),
        "cosine": product / lengths if lengths else 0.0,
    }
