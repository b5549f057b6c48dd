"""The products inside the linear layers: siblings that read the same input are one product, and
each product is computed by the kernel that was measured to be the fastest (`kernels.py`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from fader.engine import kernels


class FusedLinear:
    """y = x W^T + b for one linear layer, or for several that read the same input, as one
    product.

    `choice`: the kernel by rows (`kernels.Choice`); empty for the default product.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
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
        self.choice: Mapping[int, kernels.Name] = {}
        self._prepared: dict[kernels.Name, Tensor] = {}
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
        name = kernels.kernel_for(self.choice, x.numel() // x.shape[-1])
        kernel = kernels.KERNELS[name]
        if name not in self._prepared:  # not before it is needed: it may be a copy
            self._prepared[name] = kernel.prepare(self.weight)
        return kernel.multiply(x, self._prepared[name], self.bias)


def choose_kernels(products: Sequence[FusedLinear], asked: str | None = None) -> int | None:
    """Give each product of a model the kernels that are the fastest on this machine; returns the
    number of threads that is, which this thread has from now on, or None if nothing is measured.

    `asked`: "measured" or "default", else FADER_KERNELS says it. On another device than a CPU all
    keep the default product. Raises ValueError for another word.
    """
    measured = kernels.measuring(asked)
    if not (measured and products) or products[0].weight.device.type != "cpu":
        return None
    shapes = Counter((product.weight.shape[0], product.weight.shape[1]) for product in products)
    dtype = products[0].weight.dtype
    threads = kernels.choose_threads(shapes, dtype)
    torch.set_num_threads(threads)
    choice = kernels.choose(shapes, dtype)
    for product in products:
        product.choice = choice.of((product.weight.shape[0], product.weight.shape[1]))
    return threads


def choose_dtype(config: PreTrainedConfig, asked: str | None = None) -> torch.dtype:
    """The type in which a CPU multiplies the layers of such a model faster, float32 or bfloat16;
    says on standard error what it took and why. Float32 where nothing is to be measured."""
    if not kernels.measuring(asked):
        sys.stderr.write("dtype: float32 (nothing is measured with kernels 'default')\n")
        return torch.float32
    with torch.device("meta"):  # shapes alone, no weights
        model = AutoModelForCausalLM.from_config(config)
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    pace = kernels.pace(Counter((layer.out_features, layer.in_features) for layer in layers))
    sys.stderr.write(f"{pace}\n")
    return pace.dtype


def fused_linears(
    model: nn.Module, read_order: Sequence[tuple[str, Tensor]], head: nn.Module | None
) -> dict[str, tuple[FusedLinear, int]]:
    """For every linear layer the product that computes it, and its place in it.

    `read_order`: the layers as they ran in one forward, each with the tensor it read. Neighbours
    that read the same tensor share a product.
    """
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
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
            product = FusedLinear([layers[name] for name in group])
            found.update({name: (product, place) for place, name in enumerate(group)})
    return {
        name: found[name] if name in found else (FusedLinear([layers[name]]), 0) for name in layers
    }
