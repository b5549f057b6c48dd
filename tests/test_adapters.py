"""Mixtures of weight differences inside linear layers."""

import pytest
import torch
from torch import nn

from fader import Vector
from fader.engine.adapters import AdapterMixer

SIZES = {"one": (6, 4), "two": (3, 6)}


class Small(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def vector(name: str, seed: int, rank: int = 2, layers=("one", "two")) -> Vector:
    noise = torch.Generator().manual_seed(seed)
    return Vector(
        name,
        {
            layer: (
                torch.randn(rank, SIZES[layer][1], generator=noise),
                torch.randn(SIZES[layer][0], rank, generator=noise),
            )
            for layer in layers
        },
    )


def merged(mixture) -> Small:
    model = Small()
    with torch.no_grad():
        for one, strength in mixture:
            for layer in one.factors:
                model.get_submodule(layer).weight += strength * one.delta(layer)
    return model


A, B, C = vector("a", 1), vector("b", 2, rank=3, layers=("two",)), vector("c", 3, rank=1)
MIXTURES = [(), ((A, 0.7),), ((A, -1.5), (B, 0.4)), ((C, 2.0), (C, 1.0))]


@pytest.fixture
def mixed():
    model = Small().requires_grad_(False)
    return model, AdapterMixer(model)


def forward(model: Small, mixer: AdapterMixer, x, counts):
    mixer.use(one for mixture in MIXTURES for one, _ in mixture)
    mixer.set_mixtures(MIXTURES, counts, torch.arange(sum(counts)))
    return model(x)


def test_each_row_is_as_with_its_own_merged_weights(mixed):
    counts = [2, 1, 3, 1]
    x = torch.randn(1, sum(counts), 4)
    found = forward(*mixed, x, counts)[0].split(counts)
    for mixture, part, mine in zip(MIXTURES, x[0].split(counts), found, strict=True):
        torch.testing.assert_close(mine, merged(mixture)(part), atol=1e-5, rtol=1e-5)


def test_a_forgotten_vector_comes_back_when_it_is_used(mixed):
    model, mixer = mixed
    assert mixer.shapes == SIZES
    counts, x = [1, 1, 1, 1], torch.randn(1, 4, 4)
    before = forward(model, mixer, x, counts)
    assert mixer.vectors == [A, B, C]
    mixer.drop(A)
    mixer.drop(A)
    assert mixer.vectors == [B, C]
    torch.testing.assert_close(forward(model, mixer, x, counts), before)
    assert mixer.vectors == [B, C, A]


def test_nothing_is_stacked_anew_while_all_are_there(mixed):
    _, mixer = mixed
    mixer.use([A, B])
    factors = mixer.layers["two"]._down
    mixer.use([B])
    assert mixer.layers["two"]._down is factors


def test_without_mixtures_it_is_the_bare_model(mixed):
    model, mixer = mixed
    mixer.use([A])
    x = torch.randn(1, 2, 4)
    mixer.set_mixtures([(), ()], [1, 1], torch.arange(2))
    torch.testing.assert_close(model(x), Small()(x))


def test_factors_that_are_not_finite_are_refused_and_leave_the_others(mixed):
    """A row without them would have them at strength 0, and 0 times infinity is not 0."""
    model, mixer = mixed
    broken = vector("broken", 4)
    broken.factors["two"][0][0, 0] = float("inf")
    mixer.use([A])
    with pytest.raises(ValueError, match=r"vectors\.broken: its factors for two are not finite"):
        mixer.use([A, broken])
    assert mixer.vectors == [A]
    x = torch.randn(1, 4, 4)
    assert forward(model, mixer, x, [1, 1, 1, 1]).isfinite().all()


def test_a_strength_beyond_all_bounds_concerns_its_row_alone(mixed):
    model, mixer = mixed
    mixer.use([A])
    x = torch.randn(1, 2, 4)
    mixer.set_mixtures([((A, 1e39),), ()], [1, 1], torch.arange(2))
    found = model(x)[0]
    assert not found[0].isfinite().all()
    torch.testing.assert_close(found[1], Small()(x[0, 1]))
