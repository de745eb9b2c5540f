"""The layers that a network may have, and the maps that they take and give.

A map is height x width x channels, row by row; a dense layer takes and gives plain numbers, and reads a map flattened
in that order. Every layer says its sizes in full, so that a spec can be checked, and read, without running it.

In JSON a layer is an object with its ``kind`` and its fields; a field with a default is there only where it differs
from it, and a residual layer holds the layers of its body and of its shortcut as lists.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from typing import ClassVar

from bnncore.errors import SpecError

__all__ = [
    "LAYER_KINDS",
    "MAX_FEATURES",
    "PADDINGS",
    "SIGN_GRADIENTS",
    "AvgPool2d",
    "BinaryConv2d",
    "BinaryDense",
    "Conv2d",
    "Dense",
    "L1BatchNorm",
    "Layer",
    "MaxPool2d",
    "ReLU",
    "Residual",
    "Sign",
    "SoftmaxCrossEntropy",
    "check_layer",
    "check_name",
    "check_size",
]

MAX_FEATURES = 1 << 20
"""Most numbers in an input or a map. 255 * 2**20 still fits an int32, so no pre-activation can overflow."""
PADDINGS = ("same", "valid")
SIGN_GRADIENTS = ("clip", "approx")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class BinaryDense:
    """Weights of +1 and -1: ``y = x @ sign(w).T`` with w [out_features, in_features]. No bias."""

    kind: ClassVar[str] = "binary_dense"
    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class _Convolution:
    """The sizes of a convolution; weights are [out_channels, kernel_height, kernel_width, in_channels], no bias.

    ``same`` pads with zeros, which count as 0 and not as a sign: (kernel - 1) / 2 rows and columns on each side, so
    kernels are odd and the map keeps its size at stride 1. ``valid`` does not pad.
    """

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
    def in_map(self) -> tuple[int, int, int]:
        """The map that it takes."""
        return self.in_height, self.in_width, self.in_channels

    @property
    def out_map(self) -> tuple[int, int, int]:
        """The map that it gives."""
        return self.out_height, self.out_width, self.out_channels

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

    @property
    def fan_in(self) -> int:
        """Products that are summed for one output."""
        return self.kernel_height * self.kernel_width * self.in_channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weights in a state."""
        return self.out_channels, self.kernel_height, self.kernel_width, self.in_channels


@dataclass(frozen=True)
class BinaryConv2d(_Convolution):
    """Convolution with weights of +1 and -1.

    A scale for each output channel, as Bi-Real networks have, is not part of it: the batch norm that follows divides
    by its channel's deviation, so a positive factor changes neither what leaves the norm nor any gradient.
    """

    kind: ClassVar[str] = "binary_conv2d"


@dataclass(frozen=True)
class Conv2d(_Convolution):
    """Convolution with real weights, for the stem and the shortcuts of a residual network."""

    kind: ClassVar[str] = "conv2d"


@dataclass(frozen=True)
class Dense:
    """Real weights: ``y = x @ w.T + bias`` with w [out_features, in_features]; for the head of a residual network."""

    kind: ClassVar[str] = "dense"
    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class _Pool:
    """The sizes of a map and of the windows over it."""

    name: str
    in_height: int
    in_width: int
    channels: int
    pool_height: int
    pool_width: int

    @property
    def in_map(self) -> tuple[int, int, int]:
        """The map that it takes."""
        return self.in_height, self.in_width, self.channels


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    """The largest of each window.

    Without ``stride`` windows do not overlap. What does not fill a window at the right and below is dropped, unless
    ``same`` adds (window - 1) / 2 rows and columns on each side, which are never the largest.
    """

    kind: ClassVar[str] = "max_pool2d"
    stride: int | None = None
    padding: str = "valid"

    @property
    def strides(self) -> tuple[int, int]:
        """Rows and columns from one window to the next."""
        return (self.pool_height, self.pool_width) if self.stride is None else (self.stride, self.stride)

    @property
    def pads(self) -> tuple[int, int]:
        """Rows above the map and columns left of it that windows may reach over."""
        return ((self.pool_height - 1) // 2, (self.pool_width - 1) // 2) if self.padding == "same" else (0, 0)

    @property
    def is_plain(self) -> bool:
        """Windows lie side by side and inside the map."""
        return self.strides == (self.pool_height, self.pool_width) and self.pads == (0, 0)

    @property
    def out_map(self) -> tuple[int, int, int]:
        """The map that it gives."""
        (down, across), (above, left) = self.strides, self.pads
        height = (self.in_height + 2 * above - self.pool_height) // down + 1
        return height, (self.in_width + 2 * left - self.pool_width) // across + 1, self.channels


@dataclass(frozen=True)
class AvgPool2d(_Pool):
    """The mean of each window; windows lie side by side, and what is left over at the right and below is dropped."""

    kind: ClassVar[str] = "avg_pool2d"

    @property
    def out_map(self) -> tuple[int, int, int]:
        """The map that it gives."""
        return self.in_height // self.pool_height, self.in_width // self.pool_width, self.channels


@dataclass(frozen=True)
class L1BatchNorm:
    """``(y - mean) / mean_abs_dev + beta`` for each feature or channel; no learnt scale."""

    kind: ClassVar[str] = "l1_batch_norm"
    name: str
    features: int


@dataclass(frozen=True)
class Sign:
    """Activation: +1 where the input is not negative, -1 elsewhere.

    ``gradient`` is the derivative that training takes it to have: ``clip``, 1 where |x| <= 1 and 0 elsewhere, or
    ``approx``, ApproxSign of Bi-Real networks: 2 - 2 |x| where |x| < 1 and 0 elsewhere.
    """

    kind: ClassVar[str] = "sign"
    name: str
    gradient: str = "clip"


@dataclass(frozen=True)
class ReLU:
    """Activation: the input where it is positive, 0 elsewhere."""

    kind: ClassVar[str] = "relu"
    name: str


@dataclass(frozen=True)
class Residual:
    """The sum of two ways through the same input: the layers of ``body``, and those of ``shortcut`` or none."""

    kind: ClassVar[str] = "residual"
    name: str
    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """The loss, in nats; its input is one number a class."""

    kind: ClassVar[str] = "softmax_cross_entropy"
    name: str
    classes: int


Layer = (
    BinaryDense
    | BinaryConv2d
    | Conv2d
    | Dense
    | MaxPool2d
    | AvgPool2d
    | L1BatchNorm
    | Sign
    | ReLU
    | Residual
    | SoftmaxCrossEntropy
)
LAYER_KINDS: dict[str, type[Layer]] = {layer.kind: layer for layer in typing.get_args(Layer)}
_CHOICES = {"padding": PADDINGS, "gradient": SIGN_GRADIENTS}


def check_layer(layer: Layer, where: str) -> None:
    """Check a layer by itself: its name, its sizes, and that its kernel or window fits its map.

    Args:
      layer: what is checked; the layers inside a residual one are not.
      where: where it stands, e.g. ``layers[3]``.

    Raises:
      SpecError: one of them is not valid.
    """
    check_name(layer.name, f"{where} ({layer.kind})")
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name in _CHOICES:
            if value not in _CHOICES[field.name]:
                choices = list(_CHOICES[field.name])
                raise SpecError(f"{field.name} of layer {layer.name!r} must be one of {choices}, got {value!r}")
        elif field.name not in ("name", "body", "shortcut") and not (value is None and field.default is None):
            check_size(value, f"{field.name} of layer {layer.name!r}")
    if isinstance(layer, _Convolution):
        _check_conv(layer)
    if isinstance(layer, (MaxPool2d, AvgPool2d)):
        _check_pool(layer)


def _check_pool(layer: MaxPool2d | AvgPool2d) -> None:
    window = f"{layer.pool_height} x {layer.pool_width}"
    if layer.pool_height > layer.in_height or layer.pool_width > layer.in_width:
        raise SpecError(
            f"the window of layer {layer.name!r} has {window} positions, its map only "
            f"{layer.in_height} x {layer.in_width}. Make the window smaller, or leave the layer out"
        )
    if (
        isinstance(layer, MaxPool2d)
        and layer.padding == "same"
        and not (layer.pool_height % 2 and layer.pool_width % 2)
    ):
        raise SpecError(f"a window with padding 'same' must have odd sides, that of layer {layer.name!r} has {window}")


def _check_conv(layer: _Convolution) -> None:
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
