"""Alignment vectors as knobs: made here at random for the sake of the example, saved as a PEFT folder, mixed per request."""

import tempfile
from pathlib import Path

import torch

from fader import Fader, Vector

with Fader() as fader, tempfile.TemporaryDirectory() as scratch:
    torch.manual_seed(0)
    layers = {name: layer for name, layer in fader.backbones[fader.model].desk.layers.items() if name.endswith("down_proj")}
    one, two = (
        Vector(name, {m: (torch.randn(4, layer.in_features) * 0.05, torch.randn(layer.out_features, 4) * 0.05) for m, layer in layers.items()})
        for name in ("one", "two")
    )
    folder = (one + 0.5 * two).named("sum").save(Path(scratch) / "sum")
    fader.add_vector(one)
    fader.add_vector(two)
    fader.add_vector(Vector.load(folder))
    mixtures: list[dict[str, float]] = [{}, {"one": 0.5}, {"one": -0.5, "two": 1.0}, {"one": 1.0, "two": 0.5}, {"sum": 1.0}]
    requests = [{"prompt": "Name three fruits.", "alignment": {"vectors": mixture}} for mixture in mixtures]
    for mixture, result in zip(mixtures, fader.batch(requests, max_tokens=12), strict=True):
        print(f"{mixture!s:28} {result.text.strip()!r}")
