"""Multi-adapter batching: per-row mixtures of weight differences inside the linear layers.

For each adapted layer all vectors in use are stacked once, A [ranks, in] and B [out, ranks]. A
forward whose tokens have the strengths Λ [tokens, vectors] computes y = W x + B ((A x) * Λ expanded
to ranks). These are two small products, whatever the number of different mixtures, exact for any
strength. They are computed from the first token that has a mixture to the last. Nothing is merged
and nothing reloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fader.engine.linear import FusedLinear, fused_linears
from fader.engine.protocols import Delta, Mixture


class AdapterMixer:
    """All linear layers of one model, and what is mixed into them at present."""

    def __init__(self, model: nn.Module, read_order: Sequence[tuple[str, Tensor]] = ()) -> None:
        self.vectors: list[Delta] = []
        self.layers: dict[str, MixedLinear] = {}
        self._mixture: _Mixed | None = None
        self._head_mixture: _Mixed | None = None  # the same for the tokens whose logits are wanted
        self._expanded: dict[tuple[tuple[int, ...], bool], Tensor] = {}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        fused = fused_linears(model, read_order, head)
        self.products = list(dict.fromkeys(product for product, _ in fused.values()))
        for name, (product, place) in fused.items():
            parent, _, leaf = name.rpartition(".")
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            layer = MixedLinear(self, linear, product, place, is_head=linear is head)
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        self.shapes = {
            name: (layer.out_features, layer.in_features) for name, layer in self.layers.items()
        }

    def use(self, wanted: Iterable[Delta]) -> None:
        """Stack the factors of `wanted` beside those already stacked. Nothing is copied if all of
        them are there."""
        if missing := [vector for vector in dict.fromkeys(wanted) if vector not in self.vectors]:
            for vector in missing:
                self._refuse_unless_finite(vector)
            self._stack([*self.vectors, *missing])

    def _refuse_unless_finite(self, vector: Delta) -> None:
        """Raises ValueError for a factor that is not finite in the layer's type: rows without the
        vector would have it at strength 0, and 0 times infinity is not 0."""
        for name, pair in vector.factors.items():
            dtype = self.layers[name].weight.dtype
            if not all(bool(factor.to(dtype).isfinite().all()) for factor in pair):
                raise ValueError(
                    f"vectors.{vector.name}: its factors for {name} are not finite in {dtype};"
                    " give a vector whose values are numbers of a sensible size"
                )

    def drop(self, vector: Delta) -> None:
        """Take a vector's factors out of the stack; a row that still uses it brings them back."""
        if vector in self.vectors:
            self._stack([kept for kept in self.vectors if kept is not vector])

    def _stack(self, vectors: list[Delta]) -> None:
        self.vectors = []  # none, should a layer fail: the next forward stacks anew what it needs
        for name, layer in self.layers.items():
            layer.stack([vector.factors.get(name) for vector in vectors])
        self.vectors = vectors

    def set_mixtures(
        self, mixtures: Sequence[Mixture], counts: Sequence[int], kept: Tensor
    ) -> None:
        """The mixture of each row, its number of tokens, and the indices of the tokens whose logits
        are wanted."""
        self._expanded = {}
        self._mixture = self._head_mixture = None
        if not any(mixtures):
            return
        column = {vector: index for index, vector in enumerate(self.vectors)}
        rows = torch.zeros(len(mixtures), len(self.vectors))
        for row, mixture in enumerate(mixtures):
            for vector, strength in mixture:
                rows[row, column[vector]] += strength
        tokens = rows.repeat_interleave(torch.tensor(counts), dim=0)
        self._mixture, self._head_mixture = _mixed(tokens), _mixed(tokens[kept.cpu()])

    def strengths(
        self, owners: tuple[int, ...], is_head: bool, like: Tensor
    ) -> tuple[slice, Tensor] | None:
        """Which tokens have a mixture, and the strength for each of them and each stacked rank
        [tokens, ranks]; `owners` gives the vector of each rank. None if no token has one."""
        mixed = self._head_mixture if is_head else self._mixture
        if mixed is None:
            return None
        if (owners, is_head) not in self._expanded:
            self._expanded[owners, is_head] = mixed.strengths[:, list(owners)].to(like)
        return mixed.tokens, self._expanded[owners, is_head]


class _Mixed(NamedTuple):
    """The tokens from the first that has a mixture to the last."""

    tokens: slice
    strengths: Tensor  # [tokens, vectors]


def _mixed(strengths: Tensor) -> _Mixed | None:
    """Of the strengths of all tokens [tokens, vectors]; None if all are 0."""
    found = strengths.any(dim=1).nonzero().flatten().tolist()
    if not found:
        return None
    tokens = slice(found[0], found[-1] + 1)
    return _Mixed(tokens, strengths[tokens])


class MixedLinear(nn.Module):
    """A linear layer y = W x + b + sum over vectors of λ * B A x, with strengths λ of its own for
    each token."""

    def __init__(
        self,
        mixer: AdapterMixer,
        linear: nn.Linear,
        product: FusedLinear,
        place: int,
        is_head: bool,
    ) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.is_head = is_head
        self._mixer = [mixer]  # in a list: the mixer is not a submodule
        self._product, self._place = product, place
        self._owners: tuple[int, ...] = ()
        self._down: Tensor | None = None  # A [ranks, in]
        self._up: Tensor | None = None  # B [out, ranks]

    def stack(self, factors: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        """Put the factors of several vectors side by side; None for a vector that leaves this layer
        alone."""
        present = [(index, pair) for index, pair in enumerate(factors) if pair is not None]
        self._owners = tuple(index for index, (down, _) in present for _ in range(down.shape[0]))
        if not present:
            self._down = self._up = None
            return
        self._down = torch.cat([down for _, (down, _) in present]).to(self.weight)
        self._up = torch.cat([up for _, (_, up) in present], dim=1).to(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., tokens, in] -> y [..., tokens, out]."""
        y = self._product(x, self._place)
        if self._down is not None and self._up is not None:
            mixed = self._mixer[0].strengths(self._owners, self.is_head, x)
            if mixed is not None:
                tokens, strengths = mixed
                down = functional.linear(x[..., tokens, :], self._down) * strengths
                y[..., tokens, :] += functional.linear(down, self._up)
        return y
