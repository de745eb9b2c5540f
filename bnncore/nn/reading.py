"""A spec read out of a PyTorch network: which layer follows which, and on what maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.utils import _pair

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
    SoftmaxCrossEntropy,
)
from bnncore.nn import layers
from bnncore.nn.residual import Residual as ResidualModule
from bnncore.nn.residual import average_window, is_plain_conv
from bnncore.nn.sequential import is_usual_pool, pool_window
from bnncore.spec import ModelSpec

__all__ = ["Layers", "find_layers", "map_of", "spec_of"]

_IGNORED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Modules that do nothing once a network is trained."""
_NORMS = (layers.L1BatchNorm1d, layers.L1BatchNorm2d)
_CHAIN = (layers.BinaryConv2d, layers.BinaryLinear, *_NORMS, layers.BinarySign, nn.MaxPool2d, nn.Flatten, nn.Unflatten)
_RESIDUAL = (*_CHAIN, ResidualModule, nn.Conv2d, nn.Linear, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_KINDS = "BinaryConv2d, BinaryLinear, L1BatchNorm1d, L1BatchNorm2d, BinarySign, MaxPool2d, Flatten and Sequential"
_MORE_KINDS = "and, in networks with Residual layers, Conv2d, Linear, ReLU and AvgPool2d"


@dataclass
class Layers:
    """The modules that a spec has a word for.

    Attributes:
      items: path and module, in the order of the forward pass.
      pairs: each module with weights and its norm; of a chain of blocks only.
      flattened: numbers of the pairs whose weights read maps that PyTorch flattened.
    """

    items: list[tuple[str, Any]] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    flattened: set[int] = field(default_factory=set)


def find_layers(model: Any) -> Layers:
    """List the layers of a network.

    Raises:
      SpecError: it has a module that no spec can describe; the message names its path.
    """
    found = Layers()
    is_flat, linear = False, None
    is_residual = _is_residual(model)
    for path, module in _leaves(model, "", _RESIDUAL if is_residual else _CHAIN):
        found.items.append((path, module))
        if is_residual:
            continue
        if isinstance(module, nn.Flatten):
            is_flat = True
        elif isinstance(module, (layers.BinaryConv2d, layers.BinaryLinear)):
            if is_flat:
                found.flattened.add(len(found.pairs))
            is_flat, linear = False, module
        elif isinstance(module, _NORMS):
            if linear is None:
                raise SpecError(f"{path} must follow a BinaryConv2d or BinaryLinear, perhaps with a MaxPool2d between")
            found.pairs.append((linear, module))
            linear = None
    return found


def spec_of(
    model: Any,
    input_shape: Sequence[int],
    *,
    input_map: tuple[int, int, int] | None = None,
    name: str = "model",
    loss: str = "loss",
) -> ModelSpec:
    """Read the spec of a network: a ``torch.nn.Sequential`` of binary layers, perhaps of Sequentials of them.

    Layers are called by their paths; inside a Residual by their own names, where those are names of one layer only.

    Args:
      model: the network. Dropout and Identity are left out.
      input_shape: of one sample as the native engine gets it, uint8; images as (height, width, channels).
      input_map: height, width and channels that the first convolution reads, if that is not the input's shape:
        (1, 128, 6) for 128 readings of 6 sensors.
      name: of the spec.
      loss: name of its last layer.

    Raises:
      SpecError: a module has no counterpart, or an option that a spec cannot express; the message names its path. Or
        the layers do not follow each other as in a spec.
    """
    shape = input_map or map_of(input_shape)
    items = find_layers(model).items
    if items and isinstance(items[0][1], nn.Flatten) and shape != map_of(input_shape):
        raise SpecError(f"{items[0][0]} flattens the input, whose shape then has to be the map's {shape}; leave it out")
    found: list[Layer] = []
    cursor = _Cursor(shape, model)
    for path, module in items:
        found += cursor.read(path, module)
    found.append(SoftmaxCrossEntropy(loss, math.prod(cursor.shape)))
    return ModelSpec(name, tuple(input_shape), tuple(found))


def map_of(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Give height, width and channels of samples: an image's, without channels one; of anything else, 1, 1 and all."""
    if len(input_shape) in (2, 3):
        height, width, channels = (*input_shape, 1)[:3]
        return height, width, channels
    return 1, 1, math.prod(input_shape)


class _Cursor:
    """Knows the map (height, width, channels) that the next layer reads."""

    def __init__(self, shape: tuple[int, ...], model: Any) -> None:
        self.shape = shape
        self.is_residual = _is_residual(model)
        self._counts = Counter(path.rpartition(".")[2] for path, _ in model.named_modules())

    def read(self, path: str, module: Any, *, is_inside: bool = False) -> list[Layer]:
        """Give the layer that a module is, or none."""
        if isinstance(module, ResidualModule):
            return [self._residual(path, module)]
        layer = self._layer(path, self._name(path, is_inside=is_inside), module)
        return [] if layer is None else [layer]

    def _name(self, path: str, *, is_inside: bool) -> str:
        own = path.rpartition(".")[2]
        if is_inside and own[:1].isalpha() and self._counts[own] == 1:
            return own
        name = path.replace(".", "-")
        return name if name[:1].isalpha() else f"layer{name}"

    def _residual(self, path: str, module: Any) -> Residual:
        start, ways = self.shape, []
        for way, part in (("shortcut", module.shortcut), ("body", module.body)):
            self.shape, found = start, []
            for inner, child in _leaves(part, f"{path}.{way}", _RESIDUAL) if part is not None else ():
                if isinstance(child, ResidualModule):
                    raise SpecError(f"{inner} is a Residual inside another one, which a spec cannot describe")
                found += self.read(inner, child, is_inside=True)
            ways.append(tuple(found))
        return Residual(self._name(path, is_inside=False), ways[1], ways[0])

    def _layer(self, path: str, name: str, module: Any) -> Layer | None:
        height, width, channels = self.shape
        if isinstance(module, (layers.BinaryConv2d, nn.Conv2d)):
            self._check_conv(path, module)
            kind = BinaryConv2d if isinstance(module, layers.BinaryConv2d) else Conv2d
            conv = kind(
                name,
                height,
                width,
                channels,
                module.out_channels,
                module.kernel_size[0],
                module.kernel_size[1],
                module.stride[0],
                _padding_of(path, module),
            )
            self.shape = conv.out_map
            return conv
        if isinstance(module, (layers.BinaryLinear, nn.Linear)):
            if isinstance(module, nn.Linear) and module.bias is None:
                raise SpecError(f"{path} must have a bias, as real linear layers of a spec have, got {module}")
            self.shape = (1, 1, module.out_features)
            kind_of = Dense if isinstance(module, nn.Linear) else BinaryDense
            return kind_of(name, module.in_features, module.out_features)
        if isinstance(module, nn.ReLU):
            return ReLU(name)
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            return self._average_pool(path, name, module)
        if isinstance(module, _NORMS):
            if module.eps or not module.affine or not module.track_running_stats:
                raise SpecError(f"{path} must have eps=0, affine=True and track_running_stats=True, got {module}")
            return L1BatchNorm(name, module.num_features)
        if isinstance(module, layers.BinarySign):
            return Sign(name, module.gradient)
        return self._max_pool(path, name, module) if isinstance(module, nn.MaxPool2d) else None

    def _average_pool(self, path: str, name: str, module: Any) -> AvgPool2d:
        window = average_window(module)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            window = (self.shape[0], self.shape[1])
        if window is None:
            raise SpecError(f"{path}: windows of an average pool must neither overlap nor be padded, got {module}")
        pool = AvgPool2d(name, self.shape[0], self.shape[1], self.shape[2], *window)
        self.shape = pool.out_map
        return pool

    def _max_pool(self, path: str, name: str, module: Any) -> MaxPool2d:
        height, width, channels = self.shape
        window = pool_window(module)
        if window is not None:
            self.shape = (height // window[0], width // window[1], channels)
            return MaxPool2d(name, height, width, channels, *window)
        if not self.is_residual:
            raise SpecError(f"{path}: windows of a max pool must neither overlap nor be padded, got {module}")
        window, strides, pads = (_pair(value) for value in (module.kernel_size, module.stride, module.padding))
        if not is_usual_pool(module) or strides[0] != strides[1]:
            raise SpecError(f"{path} must have one stride for both sides, no dilation and no ceil_mode, got {module}")
        padding = _padding_word(path, window, pads)
        pool = MaxPool2d(name, height, width, channels, window[0], window[1], strides[0], padding)
        self.shape = pool.out_map
        return pool

    def _check_conv(self, path: str, module: Any) -> None:
        if isinstance(module, nn.Conv2d) and not is_plain_conv(module):
            raise SpecError(f"{path} must have no bias, one group, no dilation and zeros around it, got {module}")
        if module.groups != 1 or module.dilation != (1, 1) or module.stride[0] != module.stride[1]:
            raise SpecError(f"{path} must have one group, no dilation and one stride for both sides, got {module}")
        if module.in_channels != self.shape[2]:
            raise SpecError(
                f"{path} reads {module.in_channels} channels, but what comes to it are maps of "
                f"{' x '.join(map(str, self.shape))} (height, width, channels). Say the input's with input_map"
            )


def _padding_of(path: str, module: Any) -> str:
    if isinstance(module.padding, str):
        return str(module.padding)
    return _padding_word(path, module.kernel_size, module.padding)


def _padding_word(path: str, kernel: tuple[int, ...], padding: tuple[int, ...]) -> str:
    if not any(padding):
        return "valid"
    if all(size % 2 and pad == size // 2 for size, pad in zip(kernel, padding, strict=True)):
        return "same"
    raise SpecError(
        f"{path} must pad with 0 or with (kernel_size - 1) / 2 of an odd kernel, got {padding} around {kernel}"
    )


def _is_residual(model: Any) -> bool:
    return any(isinstance(module, ResidualModule) for module in model.modules())


def _leaves(module: Any, path: str, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            yield from _leaves(child, f"{path}.{name}" if path else name, kinds)
    elif isinstance(module, _IGNORED):
        return
    elif isinstance(module, kinds):
        yield path, module
    else:
        where = path or "the network itself"
        raise SpecError(
            f"{where} is a {type(module).__name__}, which a spec cannot describe: it knows {_KINDS}, {_MORE_KINDS}. "
            "Build the network as a Sequential of them"
        )
