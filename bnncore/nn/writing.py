"""The modules of a spec, by name, in the order of the forward pass."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from bnncore.errors import SpecError
from bnncore.layers import BinaryConv2d, BinaryDense, L1BatchNorm, MaxPool2d, Sign, SoftmaxCrossEntropy
from bnncore.nn import layers
from bnncore.spec import ModelSpec

__all__ = ["modules_of"]


def modules_of(spec: ModelSpec) -> OrderedDict[str, Any]:
    """Build the modules of a spec; the loss has none. Between maps and plain numbers stands a Flatten or Unflatten.

    Raises:
      SpecError: PyTorch cannot call a module what the spec calls a layer, or has none for it.
    """
    modules: OrderedDict[str, Any] = OrderedDict()
    taken = {layer.name for layer in spec.layers}

    def add_between(name: str, module: Any) -> None:
        while name in taken:
            name += "_"
        taken.add(name)
        modules[name] = module

    is_map = False
    for position, layer in enumerate(spec.layers):
        if hasattr(nn.Sequential(), layer.name):
            raise SpecError(f"PyTorch cannot call a module {layer.name!r}; give layers[{position}] another name")
        if isinstance(layer, BinaryConv2d):
            if not is_map and position:
                add_between(f"unflatten_{layer.name}", nn.Unflatten(1, (layer.in_channels, 1, 1)))
            kernel = (layer.kernel_height, layer.kernel_width)
            modules[layer.name] = layers.BinaryConv2d(
                layer.in_channels, layer.out_channels, kernel, layer.stride, layer.padding
            )
            is_map = True
        elif isinstance(layer, BinaryDense):
            if is_map:
                add_between(f"flatten_{layer.name}", nn.Flatten())
            modules[layer.name] = layers.BinaryLinear(layer.in_features, layer.out_features)
            is_map = False
        elif isinstance(layer, L1BatchNorm):
            modules[layer.name] = (layers.L1BatchNorm2d if is_map else layers.L1BatchNorm1d)(layer.features)
        elif isinstance(layer, MaxPool2d):
            modules[layer.name] = nn.MaxPool2d((layer.pool_height, layer.pool_width))
        elif isinstance(layer, Sign):
            modules[layer.name] = layers.BinarySign()
        elif not isinstance(layer, SoftmaxCrossEntropy):
            raise SpecError(f"layer {layer.name!r} is {layer.kind}, for which bnncore.nn has no module")
    if is_map:  # one place, and a channel a class
        add_between("flatten", nn.Flatten())
    return modules
