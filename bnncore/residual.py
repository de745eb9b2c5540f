"""Residual networks: the layers of a spec in the groups that are added to one stream of real numbers.

A *stem* of real weights makes the stream from the 8-bit input: conv2d, l1_batch_norm, perhaps relu, perhaps a
max_pool2d, perhaps a second l1_batch_norm. Every *unit* adds to it what its body gives: sign, binary_conv2d,
l1_batch_norm; and where the map changes, a shortcut takes the stream's own place: perhaps an avg_pool2d, a 1 x 1
conv2d, l1_batch_norm. The *head* makes the logits: perhaps relu, avg_pool2d over the whole map, dense; then the loss.

Source: ResNetE (Bethge et al., "Back to Simplicity", arXiv 1906.08637) and Bi-Real net (Liu et al., ECCV 2018), as Wang
et al., arXiv 2102.04270, train them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from bnncore.errors import SpecError
from bnncore.layers import (
    AvgPool2d,
    BinaryConv2d,
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

__all__ = ["Head", "ResidualNetwork", "Shortcut", "Stem", "Unit", "build_residual", "is_residual"]

Map = tuple[int, int, int]
_RULE = (
    "A residual network is conv2d, l1_batch_norm, perhaps relu, max_pool2d and a second l1_batch_norm; then residual "
    "layers; then perhaps relu, avg_pool2d over the whole map, dense and softmax_cross_entropy. The body of a residual "
    "layer is sign, binary_conv2d, l1_batch_norm; its shortcut is empty, or perhaps avg_pool2d, a 1 x 1 conv2d and "
    "l1_batch_norm"
)


@dataclass(frozen=True)
class Stem:
    """What makes the stream from the input."""

    conv: Conv2d
    norm: L1BatchNorm
    relu: ReLU | None
    pool: MaxPool2d | None
    second_norm: L1BatchNorm | None

    @property
    def out_map(self) -> Map:
        """The map of the stream."""
        return self.pool.out_map if self.pool is not None else self.conv.out_map


@dataclass(frozen=True)
class Shortcut:
    """What becomes of the stream where its map changes."""

    pool: AvgPool2d | None
    conv: Conv2d
    norm: L1BatchNorm


@dataclass(frozen=True)
class Unit:
    """One residual layer; without a shortcut, the stream goes on as it is."""

    name: str
    sign: Sign
    conv: BinaryConv2d
    norm: L1BatchNorm
    shortcut: Shortcut | None


@dataclass(frozen=True)
class Head:
    """What makes the logits from the stream."""

    relu: ReLU | None
    pool: AvgPool2d
    dense: Dense


@dataclass(frozen=True)
class ResidualNetwork:
    """All of a residual network's layers, in order."""

    stem: Stem
    units: tuple[Unit, ...]
    head: Head

    @property
    def norms(self) -> tuple[L1BatchNorm, ...]:
        """Every batch norm, in the order of the spec."""
        found = [self.stem.norm, *((self.stem.second_norm,) if self.stem.second_norm else ())]
        for unit in self.units:
            found += [unit.norm, *((unit.shortcut.norm,) if unit.shortcut else ())]
        return tuple(found)

    @property
    def stages(self) -> tuple[tuple[Unit, ...], ...]:
        """The units in runs that share one stream: a shortcut starts the next; the first run may be empty."""
        runs: list[list[Unit]] = [[]]
        for unit in self.units:
            if unit.shortcut is not None:
                runs.append([])
            runs[-1].append(unit)
        return tuple(tuple(run) for run in runs)


def is_residual(layers: Sequence[Layer]) -> bool:
    """Say whether layers describe a residual network rather than a chain of blocks."""
    return any(isinstance(layer, (Residual, Conv2d)) for layer in layers)


def build_residual(layers: Sequence[Layer], input_features: int) -> ResidualNetwork:
    """Group checked layers into a residual network.

    Raises:
      SpecError: a layer stands in a place where it cannot, or takes another map than the one before it gives; the
        message names both.
    """
    cursor = _Cursor(layers, "layers", None, "the input", input_features)
    stem = _build_stem(cursor)
    units: list[Unit] = []
    while cursor.peek(Residual):
        units.append(_build_unit(cursor.take(Residual), cursor))
    if not units:
        cursor.take(Residual)  # raises: there must be one
    head = _build_head(cursor)
    if cursor.position != len(layers):
        raise SpecError(f"no layer may follow the loss, got {layers[cursor.position].name!r}")
    return ResidualNetwork(stem, tuple(units), head)


_L = TypeVar("_L", bound=Layer)


class _Cursor:
    """Goes through a list of layers and knows the map that the next one is given."""

    def __init__(self, layers: Sequence[Layer], where: str, given: Map | None, source: str, count: int) -> None:
        self.layers = layers
        self.where = where
        self.position = 0
        self.given = given  # None: plain numbers, as many as `count`
        self.count = count
        self.source = source

    def peek(self, kind: type[_L]) -> bool:
        return self.position < len(self.layers) and isinstance(self.layers[self.position], kind)

    def take(self, kind: type[_L]) -> _L:
        """Take the next layer, which must be of this kind and fit what it is given."""
        if self.position == len(self.layers):
            raise SpecError(f"{self.where} must go on with {kind.kind} after {self.source}, but end there. {_RULE}")
        layer = self.layers[self.position]
        if not isinstance(layer, kind):
            raise SpecError(
                f"layer {layer.name!r} ({self.where}[{self.position}]) must be {kind.kind}, got {layer.kind}. {_RULE}"
            )
        self.position += 1
        self._check(layer)
        if isinstance(layer, (BinaryConv2d, Conv2d, MaxPool2d, AvgPool2d)):
            self.give(layer.name, layer.out_map)
        elif isinstance(layer, Dense):
            self.give(layer.name, (1, 1, layer.out_features))
        return layer

    def take_if(self, kind: type[_L]) -> _L | None:
        return self.take(kind) if self.peek(kind) else None

    def give(self, name: str, shape: Map) -> None:
        self.given, self.source = shape, f"layer {name!r}"
        self.count = shape[0] * shape[1] * shape[2]

    def end(self) -> None:
        """Check that no layer follows."""
        if self.position != len(self.layers):
            layer = self.layers[self.position]
            raise SpecError(f"no layer may follow {self.source} in {self.where}, got {layer.name!r}. {_RULE}")

    def _check(self, layer: Layer) -> None:
        if isinstance(layer, (BinaryConv2d, Conv2d, MaxPool2d, AvgPool2d)):
            height, width, channels = layer.in_map
            fits = layer.in_map == self.given if self.given else height * width * channels == self.count
            if not fits:
                raise SpecError(f"layer {layer.name!r} takes a map of {_by(layer.in_map)} but {self.gives()}")
        elif isinstance(layer, L1BatchNorm) and self.given and layer.features != self.given[2]:
            raise SpecError(f"layer {layer.name!r} takes {layer.features} features but {self.gives()}")
        elif isinstance(layer, Dense) and layer.in_features != self.count:
            raise SpecError(f"layer {layer.name!r} takes {layer.in_features} features but {self.gives()}")
        elif isinstance(layer, SoftmaxCrossEntropy) and layer.classes != self.count:
            raise SpecError(f"layer {layer.name!r} tells {layer.classes} classes apart but {self.gives()}")

    def gives(self) -> str:
        return f"{self.source} gives {f'a map of {_by(self.given)}' if self.given else self.count}"


def _build_stem(cursor: _Cursor) -> Stem:
    conv, norm = cursor.take(Conv2d), cursor.take(L1BatchNorm)
    relu, pool = cursor.take_if(ReLU), cursor.take_if(MaxPool2d)
    return Stem(conv, norm, relu, pool, cursor.take_if(L1BatchNorm))


def _build_unit(layer: Residual, cursor: _Cursor) -> Unit:
    given = cursor.given
    assert given is not None  # a stem has been taken
    body = _Cursor(layer.body, f"the body of layer {layer.name!r}", given, cursor.source, cursor.count)
    sign, conv, norm = body.take(Sign), body.take(BinaryConv2d), body.take(L1BatchNorm)
    body.end()
    shortcut = None
    way = _Cursor(layer.shortcut, f"the shortcut of layer {layer.name!r}", given, cursor.source, cursor.count)
    if layer.shortcut:
        pool, real, real_norm = way.take_if(AvgPool2d), way.take(Conv2d), way.take(L1BatchNorm)
        way.end()
        if (real.kernel_height, real.kernel_width, real.stride) != (1, 1, 1):
            raise SpecError(
                f"layer {real.name!r} of a shortcut must have a kernel of 1 x 1 and stride 1, got {real.kernel_height} "
                f"x {real.kernel_width} and {real.stride}. Put an avg_pool2d before it to make the map smaller"
            )
        shortcut = Shortcut(pool, real, real_norm)
    if body.given != way.given:
        other = f"its shortcut a map of {_by(way.given)}" if layer.shortcut else f"it takes a map of {_by(given)}"
        raise SpecError(
            f"the body of layer {layer.name!r} gives a map of {_by(body.given)} but {other}. Give both the same "
            "stride and channels"
        )
    cursor.give(layer.name, conv.out_map)
    return Unit(layer.name, sign, conv, norm, shortcut)


def _build_head(cursor: _Cursor) -> Head:
    relu = cursor.take_if(ReLU)
    pool = cursor.take(AvgPool2d)
    if (pool.pool_height, pool.pool_width) != (pool.in_height, pool.in_width):
        raise SpecError(
            f"the window of layer {pool.name!r} must be its whole map, {pool.in_height} x {pool.in_width}, got "
            f"{pool.pool_height} x {pool.pool_width}"
        )
    dense = cursor.take(Dense)
    cursor.take(SoftmaxCrossEntropy)
    return Head(relu, pool, dense)


def _by(shape: Map | None) -> str:
    return " x ".join(map(str, shape or ()))
