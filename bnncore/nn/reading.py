"""A spec read out of a PyTorch network: which layer follows which, and on what maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bnncore.errors import SpecError
from bnncore.layers import BinaryConv2d, BinaryDense, L1BatchNorm, Layer, MaxPool2d, Sign, SoftmaxCrossEntropy
from bnncore.nn import layers
from bnncore.nn.sequential import pool_window
from bnncore.spec import ModelSpec

__all__ = ["Layers", "find_layers", "map_of", "spec_of"]

_IGNORED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Modules that do nothing once a network is trained."""
_NORMS = (layers.L1BatchNorm1d, layers.L1BatchNorm2d)
_KINDS = "BinaryConv2d, BinaryLinear, L1BatchNorm1d, L1BatchNorm2d, BinarySign, MaxPool2d, Flatten and Sequential"


@dataclass
class Layers:
    """The modules that a spec has a word for.

    Attributes:
      items: path and module, in the order of the forward pass.
      pairs: each module with weights and its norm.
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
    for path, module in _leaves(model, ""):
        found.items.append((path, module))
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
    cursor = _Cursor(shape)
    for path, module in items:
        layer = cursor.read(path, module)
        if layer is not None:
            found.append(layer)
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

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def read(self, path: str, module: Any) -> Layer | None:
        """Give the layer that a module is, if it is one to a spec."""
        name = path.replace(".", "-")
        name = name if name[:1].isalpha() else f"layer{name}"
        height, width, channels = self.shape
        if isinstance(module, layers.BinaryConv2d):
            self._check_conv(path, module)
            conv = BinaryConv2d(
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
            self.shape = (conv.out_height, conv.out_width, module.out_channels)
            return conv
        if isinstance(module, layers.BinaryLinear):
            self.shape = (1, 1, module.out_features)
            return BinaryDense(name, module.in_features, module.out_features)
        if isinstance(module, _NORMS):
            if module.eps or not module.affine or not module.track_running_stats:
                raise SpecError(f"{path} must have eps=0, affine=True and track_running_stats=True, got {module}")
            return L1BatchNorm(name, module.num_features)
        if isinstance(module, layers.BinarySign):
            return Sign(name)
        window = pool_window(module)
        if window is not None:
            self.shape = (height // window[0], width // window[1], channels)
            return MaxPool2d(name, height, width, channels, *window)
        if isinstance(module, nn.MaxPool2d):
            raise SpecError(f"{path}: windows of a max pool must neither overlap nor be padded, got {module}")
        return None

    def _check_conv(self, path: str, module: Any) -> None:
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
    if module.padding == (0, 0):
        return "valid"
    if all(size % 2 and pad == size // 2 for size, pad in zip(module.kernel_size, module.padding, strict=True)):
        return "same"
    raise SpecError(f"{path} must pad with 0 or with (kernel_size - 1) / 2 of an odd kernel, got {module}")


def _leaves(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    elif isinstance(module, _IGNORED):
        return
    elif isinstance(
        module,
        (layers.BinaryConv2d, layers.BinaryLinear, *_NORMS, layers.BinarySign, nn.MaxPool2d, nn.Flatten, nn.Unflatten),
    ):
        yield path, module
    else:
        where = path or "the network itself"
        raise SpecError(
            f"{where} is a {type(module).__name__}, which a spec cannot describe: it knows {_KINDS}. "
            "Build the network as a Sequential of them"
        )
