"""Blocks: the layers of a network in the groups that the engines work on.

A block is *weights* (a convolution or a dense layer), perhaps a *max pool*, *batch norm*, and *sign*, perhaps with a
*max pool* after it; the last block ends in the *loss* instead. A dense layer is taken as the convolution whose kernel
is its whole input map: one kind of block is enough for every engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bnncore.errors import SpecError
from bnncore.layers import BinaryConv2d, BinaryDense, L1BatchNorm, Layer, MaxPool2d, Sign, SoftmaxCrossEntropy

__all__ = ["Block", "build_blocks"]


@dataclass(frozen=True)
class Block:
    """One block, with the maps at each of its points (height x width x channels).

    Attributes:
      linear: name of the layer with weights.
      norm: name of the batch norm.
      in_height, in_width, in_channels: the map that it reads.
      out_channels: channels of everything after the weights.
      kernel_height, kernel_width, stride: of the convolution.
      pad_height, pad_width: rows above and columns left of the map that count as 0.
      conv_height, conv_width: the map of the products.
      pool: where it pools.
      pool_height, pool_width: the window; 1 x 1 when it does not pool.
      is_conv: whether the weights have the shape of a convolution's.
      is_first: it reads the input, 8-bit numbers taken as 2u - 255.
      is_last: it ends in the loss.
    """

    linear: str
    norm: str
    in_height: int
    in_width: int
    in_channels: int
    out_channels: int
    kernel_height: int
    kernel_width: int
    stride: int
    pad_height: int
    pad_width: int
    conv_height: int
    conv_width: int
    pool: Literal["none", "before_norm", "after_sign"]
    pool_height: int
    pool_width: int
    is_conv: bool
    is_first: bool
    is_last: bool

    @property
    def fan_in(self) -> int:
        """Products that are summed for one output."""
        return self.kernel_height * self.kernel_width * self.in_channels

    @property
    def in_features(self) -> int:
        """Numbers in the map that it reads."""
        return self.in_height * self.in_width * self.in_channels

    @property
    def norm_height(self) -> int:
        """Rows of the map that is normalised."""
        return self.conv_height // self.pool_height if self.pool == "before_norm" else self.conv_height

    @property
    def norm_width(self) -> int:
        """Columns of the map that is normalised."""
        return self.conv_width // self.pool_width if self.pool == "before_norm" else self.conv_width

    @property
    def out_height(self) -> int:
        """Rows of the map that leaves the block."""
        return self.conv_height // self.pool_height

    @property
    def out_width(self) -> int:
        """Columns of the map that leaves the block."""
        return self.conv_width // self.pool_width

    @property
    def out_features(self) -> int:
        """Numbers in the map that leaves the block."""
        return self.out_height * self.out_width * self.out_channels

    @property
    def num_weights(self) -> int:
        """Binary weights."""
        return self.fan_in * self.out_channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weights in a state."""
        if self.is_conv:
            return (self.out_channels, self.kernel_height, self.kernel_width, self.in_channels)
        return (self.out_channels, self.fan_in)


def build_blocks(layers: tuple[Layer, ...], input_features: int) -> tuple[Block, ...]:
    """Group checked layers into blocks.

    Raises:
      SpecError: a layer stands in a place where it cannot, or takes another number of values than the one before it
        gives; the message names both.
    """
    cursor = _Cursor(layers, input_features)
    blocks: list[Block] = []
    while not blocks or not blocks[-1].is_last:
        blocks.append(cursor.take_block())
    if cursor.position != len(layers):
        raise SpecError(f"no layer may follow the loss, got {layers[cursor.position].name!r}")
    return tuple(blocks)


class _Cursor:
    """Goes through the layers and knows the map that the next one is given."""

    def __init__(self, layers: tuple[Layer, ...], input_features: int) -> None:
        self.layers = layers
        self.position = 0
        self.given = input_features
        self.source = "the input"
        self.map: tuple[int, int, int] | None = None  # None: plain numbers

    def take_block(self) -> Block:
        is_first = self.position == 0
        linear = self._take((BinaryConv2d, BinaryDense), "a block starts with binary_conv2d or binary_dense")
        if isinstance(linear, BinaryConv2d):
            height, width, channels = linear.in_height, linear.in_width, linear.in_channels
            kernel = (linear.kernel_height, linear.kernel_width)
            conv, out_channels = (linear.out_height, linear.out_width), linear.out_channels
            self._check_map(linear.name, (height, width, channels))
            stride, pads = linear.stride, (linear.pad_height, linear.pad_width)
        else:
            assert isinstance(linear, BinaryDense)
            self._check_count(linear.name, linear.in_features, "features")
            height, width, channels = self.map or (1, 1, linear.in_features)
            kernel, conv, out_channels = (height, width), (1, 1), linear.out_features
            stride, pads = 1, (0, 0)
        is_conv = isinstance(linear, BinaryConv2d)
        self._give(linear.name, (*conv, out_channels), is_map=is_conv)
        pool = self._take_pool(linear.name) if is_conv else None
        where: Literal["none", "before_norm", "after_sign"] = "none" if pool is None else "before_norm"
        norm = self._take((L1BatchNorm,), f"l1_batch_norm must follow {self.source}")
        assert isinstance(norm, L1BatchNorm)
        if norm.features != out_channels:
            raise SpecError(
                f"layer {norm.name!r} takes {norm.features} features but {self.source} gives {out_channels}"
            )
        end = self._take((Sign, SoftmaxCrossEntropy), f"sign or softmax_cross_entropy must follow layer {norm.name!r}")
        if isinstance(end, SoftmaxCrossEntropy):
            self._check_count(end.name, end.classes, "classes")
            if end.classes != out_channels:
                raise SpecError(
                    f"layer {end.name!r} needs one number a class, but {self.source} gives a map of {_by(self.map)}. "
                    "End the network in a dense layer"
                )
        else:
            assert isinstance(end, Sign)
            if end.gradient != "clip":
                raise SpecError(
                    f"gradient of layer {end.name!r} must be 'clip' in a chain of blocks, got {end.gradient!r}; "
                    "residual networks take others"
                )
            if is_conv and pool is None:
                pool = self._take_pool(end.name)
                where = "none" if pool is None else "after_sign"
        return Block(
            linear.name,
            norm.name,
            height,
            width,
            channels,
            out_channels,
            *kernel,
            stride,
            *pads,
            *conv,
            where,
            1 if pool is None else pool.pool_height,
            1 if pool is None else pool.pool_width,
            is_conv,
            is_first,
            isinstance(end, SoftmaxCrossEntropy),
        )

    def _take(self, kinds: tuple[type[Layer], ...], rule: str) -> Layer:
        if self.position == len(self.layers):
            last = repr(self.layers[-1].name) if self.layers else "nothing"
            raise SpecError(f"the last layer must be softmax_cross_entropy after an l1_batch_norm, got {last}")
        layer = self.layers[self.position]
        if not isinstance(layer, kinds):
            wanted = " or ".join(kind.kind for kind in kinds)
            raise SpecError(
                f"layer {layer.name!r} (layers[{self.position}]) must be {wanted}, got {layer.kind}: {rule}. A block "
                "is binary_conv2d or binary_dense, l1_batch_norm, sign; one max_pool2d may stand before its norm or "
                "after its sign if it is a convolution; the last one ends in softmax_cross_entropy instead of sign"
            )
        self.position += 1
        return layer

    def _take_pool(self, after: str) -> MaxPool2d | None:
        pool = self.layers[self.position] if self.position < len(self.layers) else None
        if not isinstance(pool, MaxPool2d):
            return None
        self.position += 1
        self._check_map(pool.name, pool.in_map)
        if not pool.is_plain:
            raise SpecError(
                f"the windows of layer {pool.name!r} must lie side by side inside the map; only the stem of a residual "
                "network takes another stride, or padding"
            )
        self._give(pool.name, pool.out_map, is_map=True)
        return pool

    def _give(self, name: str, shape: tuple[int, int, int], *, is_map: bool) -> None:
        height, width, channels = shape
        self.map = shape if is_map else None
        self.given = height * width * channels
        self.source = f"layer {name!r}"

    def _check_map(self, name: str, wanted: tuple[int, int, int]) -> None:
        if self.map is None:
            self._check_count(name, wanted[0] * wanted[1] * wanted[2], "numbers")
            if self.position > 1 and wanted[:2] != (1, 1):
                raise SpecError(
                    f"layer {name!r} takes a map of {_by(wanted)} but {self.source} gives plain numbers, which are "
                    f"a map of 1 x 1 x {self.given}. Put convolutions before dense layers"
                )
        elif self.map != wanted:
            raise SpecError(f"layer {name!r} takes a map of {_by(wanted)} but {self.source} gives {_by(self.map)}")

    def _check_count(self, name: str, wanted: int, what: str) -> None:
        if wanted != self.given:
            given = f"a map of {_by(self.map)}, {self.given} numbers" if self.map else str(self.given)
            verb = "tells" if what == "classes" else "takes"
            apart = " apart" if what == "classes" else ""
            raise SpecError(f"layer {name!r} {verb} {wanted} {what}{apart} but {self.source} gives {given}")


def _by(shape: tuple[int, int, int] | None) -> str:
    return " x ".join(map(str, shape or ()))
