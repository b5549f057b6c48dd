"""The products inside the linear layers: siblings that read the same input are one product, and few
rows on a CPU take the fastest kernel.

Facts (float32, 2 CPU cores, hidden size 576): the default product x @ W.T slows down sharply
between 4 and 48 rows. There, layers that widen gain 1.2-1.6x from a copy of the weights packed for
oneDNN, and layers that narrow gain 1.1-1.8x from W @ x.T. See docs/decisions/0003.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW, MANY = 4, 48  # rows between which the default product is not the fastest on a CPU
PACK_LIMIT = 2**32  # bytes of weights up to which a packed copy of the widening layers is kept


class FusedLinear:
    """y = x W^T + b for one linear layer, or for several that read the same input, as one
    product."""

    def __init__(self, layers: Sequence[nn.Linear], pack: bool) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight: Tensor
        self.bias: Tensor | None
        if len(layers) == 1:
            self.weight, self.bias = layers[0].weight.detach(), layers[0].bias
        else:  # the layers' weights become views of one matrix: no memory is added
            self.weight = torch.cat([layer.weight.detach() for layer in layers])
            self.bias = (
                None
                if layers[0].bias is None
                else torch.cat([layer.bias.detach() for layer in layers])
            )
            for layer, part in zip(layers, self.weight.split(self.sizes), strict=True):
                layer.weight.data = part
        self._widens = pack and self.weight.shape[0] > self.weight.shape[1]
        self._packed: Tensor | None = None
        self._input: Tensor | None = None
        self._outputs: list[Tensor] = []

    def __call__(self, x: Tensor, member: int = 0) -> Tensor:
        """The output of one of the layers; the others' are kept until the last of them is asked for
        the same input."""
        if len(self.sizes) == 1:
            return self._multiply(x)
        if self._input is not x:
            self._input, self._outputs = x, list(self._multiply(x).split(self.sizes, dim=-1))
        y = self._outputs[member]
        if member == len(self.sizes) - 1:
            self._input, self._outputs = None, []
        return y

    def _multiply(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if not FEW <= rows <= MANY or x.device.type != "cpu" or x.dtype != torch.float32:
            return functional.linear(x, self.weight, self.bias)
        if self._widens:
            if self._packed is None:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 16)
            packed: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, self.bias, "none", [], ""
            )
            return packed
        y = (self.weight @ x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def fused_linears(
    model: nn.Module, read_order: Sequence[tuple[str, Tensor]], head: nn.Module | None
) -> dict[str, tuple[FusedLinear, int]]:
    """For every linear layer the product that computes it, and its place in it.

    `read_order`: the layers as they ran in one forward, each with the tensor it read. Neighbours
    that read the same tensor share a product.
    """
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    pack = (
        sum(weight.numel() * weight.element_size() for weight in model.parameters()) <= PACK_LIMIT
    )
    groups: list[list[str]] = []
    last: Tensor | None = None
    for name, read in read_order:
        layer = layers[name]
        fusible = (
            bool(groups)
            and layer is not head
            and (layer.bias is None) == (layers[groups[-1][0]].bias is None)
        )
        if read is last and fusible and name not in groups[-1]:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = read
    grouped = {name for group in groups for name in group}
    groups += [[name] for name in layers if name not in grouped]
    found: dict[str, tuple[FusedLinear, int]] = {}
    for group in groups:
        if not any(name in found for name in group):
            product = FusedLinear([layers[name] for name in group], pack)
            found.update({name: (product, place) for place, name in enumerate(group)})
    return {
        name: found[name] if name in found else (FusedLinear([layers[name]], pack), 0)
        for name in layers
    }
