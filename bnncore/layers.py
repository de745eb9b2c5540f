"""The layers that a network may have, and the maps that they take and give.

A map is height x width x channels, row by row; a dense layer takes and gives plain numbers, and reads a map flattened
in that order. Every layer says its sizes in full, so that a spec can be checked, and read, without running it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

from bnncore.errors import SpecError

__all__ = [
    "LAYER_KINDS",
    "MAX_FEATURES",
    "PADDINGS",
    "BinaryConv2d",
    "BinaryDense",
    "L1BatchNorm",
    "Layer",
    "MaxPool2d",
    "Sign",
    "SoftmaxCrossEntropy",
    "check_layer",
    "check_name",
    "check_size",
]

MAX_FEATURES = 1 << 20
"""Most numbers in an input or a map. 255 * 2**20 still fits an int32, so no pre-activation can overflow."""
PADDINGS = ("same", "valid")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class BinaryDense:
    """Weights of +1 and -1: ``y = x @ sign(w).T`` with w [out_features, in_features]. No bias."""

    kind: ClassVar[str] = "binary_dense"
    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class BinaryConv2d:
    """Convolution with weights of +1 and -1, w [out_channels, kernel_height, kernel_width, in_channels]. No bias.

    ``same`` pads with zeros, which count as 0 and not as a sign: (kernel - 1) / 2 rows and columns on each side, so
    kernels are odd and the map keeps its size at stride 1. ``valid`` does not pad.
    """

    kind: ClassVar[str] = "binary_conv2d"
    name: str
    in_height: int
    in_width: int
    in_channels: int
    out_channels: int
    kernel_height: int
    kernel_width: int
    stride: int
    padding: str

    @property
    def pad_height(self) -> int:
        """Rows of zeros above the map, and below."""
        return (self.kernel_height - 1) // 2 if self.padding == "same" else 0

    @property
    def pad_width(self) -> int:
        """Columns of zeros left of the map, and right."""
        return (self.kernel_width - 1) // 2 if self.padding == "same" else 0

    @property
    def out_height(self) -> int:
        """Rows of the map that it gives; below 1: the kernel does not fit."""
        return (self.in_height + 2 * self.pad_height - self.kernel_height) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the map that it gives; below 1: the kernel does not fit."""
        return (self.in_width + 2 * self.pad_width - self.kernel_width) // self.stride + 1


@dataclass(frozen=True)
class MaxPool2d:
    """The largest of each window; windows do not overlap, and what is left over at the right and below is dropped."""

    kind: ClassVar[str] = "max_pool2d"
    name: str
    in_height: int
    in_width: int
    channels: int
    pool_height: int
    pool_width: int


@dataclass(frozen=True)
class L1BatchNorm:
    """``(y - mean) / mean_abs_dev + beta`` for each feature or channel; no learnt scale."""

    kind: ClassVar[str] = "l1_batch_norm"
    name: str
    features: int


@dataclass(frozen=True)
class Sign:
    """Activation: +1 where the input is not negative, -1 elsewhere."""

    kind: ClassVar[str] = "sign"
    name: str


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """The loss, in nats; its input is one number a class."""

    kind: ClassVar[str] = "softmax_cross_entropy"
    name: str
    classes: int


Layer = BinaryDense | BinaryConv2d | MaxPool2d | L1BatchNorm | Sign | SoftmaxCrossEntropy
LAYER_KINDS: dict[str, type[Layer]] = {
    layer.kind: layer for layer in (BinaryDense, BinaryConv2d, MaxPool2d, L1BatchNorm, Sign, SoftmaxCrossEntropy)
}


def check_layer(layer: Layer, position: int) -> None:
    """Check a layer by itself: its name, its sizes, and that its kernel or window fits its map.

    Raises:
      SpecError: one of them is not valid.
    """
    check_name(layer.name, f"layers[{position}] ({layer.kind})")
    for field in dataclasses.fields(layer):
        if field.name == "padding":
            padding = getattr(layer, field.name)
            if padding not in PADDINGS:
                raise SpecError(f"padding of layer {layer.name!r} must be one of {list(PADDINGS)}, got {padding!r}")
        elif field.name != "name":
            check_size(getattr(layer, field.name), f"{field.name} of layer {layer.name!r}")
    if isinstance(layer, BinaryConv2d):
        _check_conv(layer)
    if isinstance(layer, MaxPool2d) and (layer.pool_height > layer.in_height or layer.pool_width > layer.in_width):
        raise SpecError(
            f"the window of layer {layer.name!r} has {layer.pool_height} x {layer.pool_width} positions, its map only "
            f"{layer.in_height} x {layer.in_width}. Make the window smaller, or leave the layer out"
        )


def _check_conv(layer: BinaryConv2d) -> None:
    kernel = f"{layer.kernel_height} x {layer.kernel_width}"
    if layer.padding == "same" and not (layer.kernel_height % 2 and layer.kernel_width % 2):
        raise SpecError(f"a kernel with padding 'same' must have odd sides, that of layer {layer.name!r} has {kernel}")
    if layer.out_height < 1 or layer.out_width < 1:
        raise SpecError(
            f"the kernel of layer {layer.name!r} has {kernel} positions, its map only {layer.in_height} x "
            f"{layer.in_width}. Make the kernel smaller, pad with 'same', or pool less before it"
        )
    check_size(layer.in_height * layer.in_width * layer.in_channels, f"the numbers that layer {layer.name!r} takes")
    check_size(layer.out_height * layer.out_width * layer.out_channels, f"the numbers that layer {layer.name!r} gives")
    check_size(layer.kernel_height * layer.kernel_width * layer.in_channels, f"the fan-in of layer {layer.name!r}")


def check_name(name: object, where: str) -> None:
    """Check the name of a model or a layer.

    Raises:
      SpecError: it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(f"the name of {where} must be a letter and up to 63 letters, digits, '_' or '-', got {name!r}")


def check_size(size: object, where: str) -> None:
    """Check a count of something.

    Raises:
      SpecError: it is no integer, or out of range.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_FEATURES:
        raise SpecError(f"{where} must be an integer in [1, {MAX_FEATURES}], got {size!r}")
