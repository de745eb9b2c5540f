"""The modules of a spec, by name, in the order of the forward pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from bnncore.errors import SpecError
from bnncore.layers import (
    AvgPool2d,
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    Dense,
    L1BatchNorm,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sign,
)
from bnncore.nn import layers
from bnncore.nn.residual import Residual as ResidualModule
from bnncore.spec import ModelSpec

__all__ = ["modules_of"]


def modules_of(spec: ModelSpec) -> OrderedDict[str, Any]:
    """Build the modules of a spec; the loss has none. Between maps and plain numbers stands a Flatten or Unflatten.

    Raises:
      SpecError: PyTorch cannot call a module what the spec calls a layer.
    """
    return _Writer(spec.layers).write(spec.layers, "layers", is_map=None)


class _Writer:
    """Knows the names that are taken."""

    def __init__(self, all_layers: Sequence[Layer]) -> None:
        self.taken = {layer.name for layer in all_layers}

    def write(self, chain: Sequence[Layer], where: str, *, is_map: bool | None) -> OrderedDict[str, Any]:
        """Build modules in order; ``is_map``: what comes to the first; None: the input, of which it makes no matter."""
        modules: OrderedDict[str, Any] = OrderedDict()
        for position, layer in enumerate(chain):
            if hasattr(nn.Sequential(), layer.name):
                raise SpecError(f"PyTorch cannot call a module {layer.name!r}; give {where}[{position}] another name")
            if isinstance(layer, BinaryConv2d) and is_map is False:
                modules[self._free(f"unflatten_{layer.name}")] = nn.Unflatten(1, (layer.in_channels, 1, 1))
            elif isinstance(layer, (BinaryDense, Dense)) and is_map:
                modules[self._free(f"flatten_{layer.name}")] = nn.Flatten()
            if isinstance(layer, Residual):
                body = self.write(layer.body, f"{where}[{position}].body", is_map=True)
                shortcut = self.write(layer.shortcut, f"{where}[{position}].shortcut", is_map=True)
                modules[layer.name] = ResidualModule(body, shortcut or None)
            else:
                module = _module_of(layer, is_map=bool(is_map))
                if module is not None:
                    modules[layer.name] = module
            if isinstance(layer, (BinaryConv2d, Conv2d)):
                is_map = True
            elif isinstance(layer, (BinaryDense, Dense)):
                is_map = False
        if is_map and where == "layers":  # one place, and a channel a class
            modules[self._free("flatten")] = nn.Flatten()
        return modules

    def _free(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def _module_of(layer: Layer, *, is_map: bool) -> Any:
    """Give the module of a layer; None for the loss."""
    if isinstance(layer, BinaryConv2d):
        kernel = (layer.kernel_height, layer.kernel_width)
        return layers.BinaryConv2d(layer.in_channels, layer.out_channels, kernel, layer.stride, layer.padding)
    if isinstance(layer, BinaryDense):
        return layers.BinaryLinear(layer.in_features, layer.out_features)
    if isinstance(layer, L1BatchNorm):
        return (layers.L1BatchNorm2d if is_map else layers.L1BatchNorm1d)(layer.features)
    if isinstance(layer, MaxPool2d):
        return nn.MaxPool2d((layer.pool_height, layer.pool_width), layer.strides, layer.pads)
    if isinstance(layer, AvgPool2d):
        return nn.AvgPool2d((layer.pool_height, layer.pool_width))
    if isinstance(layer, Sign):
        return layers.BinarySign(layer.gradient)
    if isinstance(layer, ReLU):
        return nn.ReLU()
    if isinstance(layer, Conv2d):
        kernel = (layer.kernel_height, layer.kernel_width)
        # PyTorch takes the word at stride 1 only, and then keeps it.
        padding: Any = layer.padding if layer.stride == 1 else (layer.pad_height, layer.pad_width)
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, layer.stride, padding, bias=False)
        _draw(conv.weight, layer.fan_in)
        return conv
    if isinstance(layer, Dense):
        dense = nn.Linear(layer.in_features, layer.out_features)
        _draw(dense.weight, layer.in_features)
        nn.init.zeros_(dense.bias)
        return dense
    return None


def _draw(weight: Any, fan_in: int) -> None:
    """Draw real weights uniformly, of the variance 1 / fan-in, as the native engine does."""
    limit = (3 / fan_in) ** 0.5
    nn.init.uniform_(weight, -limit, limit)
