"""What a trained network is when nothing is left to train: signs, thresholds, and a few real numbers.

A chain of blocks multiplies whole numbers, so its batch norms and signs become comparisons of whole numbers: x >= 0
from a threshold of y on (``bnncore.reference.norm.channel_thresholds``). Only the last norm makes real numbers, the
logits. A residual network adds to a stream of whole numbers; its real-valued layers are in fixed point, and its norms
are a float32 factor and a float32 summand a channel (``bnncore.reference.fixed_point``).

These are the numbers with which the engines compute, so whoever follows them gets the engines' bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.blocks import Block
from bnncore.layers import Conv2d
from bnncore.reference.fixed_point import STREAM_UNITS, FixedPoint, stream_limit
from bnncore.reference.norm import channel_thresholds
from bnncore.residual import ResidualNetwork, Shortcut, Stem, Unit
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, validate_state

__all__ = [
    "INPUT_MAX",
    "STREAM_MAX",
    "FoldedBlock",
    "FoldedChain",
    "FoldedLogits",
    "FoldedNorm",
    "FoldedResidual",
    "FoldedShortcut",
    "FoldedStem",
    "FoldedUnit",
    "RealWeights",
    "fold",
]

INPUT_MAX = 255
"""Largest magnitude of the input, 2 u - 255."""
STREAM_MAX = 32767
"""Of a residual network's stream, in units of 1/512."""
_STREAM_BITS = 9
_STEM_BITS, _SHORTCUT_BITS = 14, 20

Signs = NDArray[np.int8]
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FoldedLogits:
    """The norm of a chain's last block: (y - mean) inverse + beta, in double precision, rounded to float32 at the end.

    Attributes:
      mean, inverse, beta: float64 [N].
    """

    mean: Doubles
    inverse: Doubles
    beta: Doubles


@dataclass(frozen=True)
class FoldedBlock:
    """A block of a chain.

    Attributes:
      block: its sizes.
      signs: +1 and -1, [N, kernel height, kernel width, C].
      end: int32 [N], from where on what leaves the norm is positive; or what makes the logits, in the last block.
    """

    block: Block
    signs: Signs
    end: NDArray[np.int32] | FoldedLogits


@dataclass(frozen=True)
class FoldedChain:
    """A chain of blocks."""

    spec: ModelSpec
    blocks: tuple[FoldedBlock, ...]


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm that gives numbers of the stream: round(clip(gain y + offset, low, limit)), halves to even.

    Attributes:
      gain, offset: float32 [N]; a product and a sum, each rounded to float32.
      low, limit: whole numbers.
    """

    gain: Floats
    offset: Floats
    low: int
    limit: int


@dataclass(frozen=True)
class RealWeights:
    """The weights of a real-valued convolution in fixed point; the sum of products is shifted right, rounding down.

    Attributes:
      values: int32 [N, kernel height, kernel width, C].
      shift: bits.
    """

    values: NDArray[np.int32]
    shift: int


@dataclass(frozen=True)
class FoldedStem:
    """What makes the stream: weights, the largest of each window, then one norm or two."""

    layers: Stem
    weights: RealWeights
    norm: FoldedNorm
    second_norm: FoldedNorm | None


@dataclass(frozen=True)
class FoldedShortcut:
    """What takes the stream's place where the map changes."""

    layers: Shortcut
    weights: RealWeights
    norm: FoldedNorm


@dataclass(frozen=True)
class FoldedUnit:
    """What is added to the stream."""

    layers: Unit
    signs: Signs
    norm: FoldedNorm
    shortcut: FoldedShortcut | None


@dataclass(frozen=True)
class FoldedResidual:
    """A residual network; its logits are the sum of float32 products in the order of the channels, plus the bias.

    Attributes:
      spec: the network.
      stem, units: what makes the stream.
      unit: float32; what a unit of the stream's sum over the map is worth.
      weights, bias: float32 [classes, C] and [classes], of the dense layer.
    """

    spec: ModelSpec
    stem: FoldedStem
    units: tuple[FoldedUnit, ...]
    unit: np.float32
    weights: Floats
    bias: Floats


def fold(spec: ModelSpec, state: State) -> FoldedChain | FoldedResidual:
    """Fold a trained network.

    Args:
      spec: the network.
      state: its tensors, running statistics included.

    Raises:
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
    """
    validate_state(spec, state, statistics=True)
    if spec.residual is not None:
        return _fold_residual(spec, spec.residual, state)
    return FoldedChain(spec, tuple(_fold_block(block, state) for block in spec.blocks))


def _fold_block(block: Block, state: State) -> FoldedBlock:
    shape = (block.out_channels, block.kernel_height, block.kernel_width, block.in_channels)
    signs = _signs(state[f"{block.linear}.weight"]).reshape(shape)
    mean, mean_abs_dev, beta = _moments(block.norm, state)
    if block.is_last:
        return FoldedBlock(block, signs, FoldedLogits(mean, _inverse(mean_abs_dev), beta.astype(np.float64)))
    sign_from, _, _ = channel_thresholds(mean, mean_abs_dev, beta, is_last=False)
    return FoldedBlock(block, signs, sign_from.astype(np.int32))


def _fold_residual(spec: ModelSpec, network: ResidualNetwork, state: State) -> FoldedResidual:
    stem, head = network.stem, network.head
    most = INPUT_MAX * stem.conv.fan_in
    weights, exponent = _real_weights(stem.conv, state, largest=INPUT_MAX, most=most, bits=_STEM_BITS)
    limit = stream_limit(1 + len(network.stages[0]))
    inner = limit if stem.second_norm is None else STREAM_MAX
    low = 0 if stem.relu is not None else -inner
    norm = _fold_norm(stem.norm.name, state, exponent, low, inner)
    second = stem.second_norm
    second_norm = None if second is None else _fold_norm(second.name, state, _STREAM_BITS, -limit, limit)
    units = []
    for stage in network.stages:
        limit = stream_limit(1 + len(stage))
        units += [_fold_unit(unit, state, limit) for unit in stage]
    return FoldedResidual(
        spec,
        FoldedStem(stem, weights, norm, second_norm),
        tuple(units),
        np.float32(1.0 / (STREAM_UNITS * head.pool.in_height * head.pool.in_width)),
        to_float32(state[f"{head.dense.name}.weight"]),
        to_float32(state[f"{head.dense.name}.bias"]),
    )


def _fold_unit(unit: Unit, state: State, limit: int) -> FoldedUnit:
    signs = _signs(state[f"{unit.conv.name}.weight"])
    shortcut = None
    if unit.shortcut is not None:
        conv = unit.shortcut.conv
        most = max(127 * conv.out_channels, 256 * conv.in_channels)
        weights, exponent = _real_weights(conv, state, largest=STREAM_MAX, most=most, bits=_SHORTCUT_BITS)
        norm = _fold_norm(unit.shortcut.norm.name, state, exponent + _STREAM_BITS, -limit, limit)
        shortcut = FoldedShortcut(unit.shortcut, weights, norm)
    return FoldedUnit(unit, signs, _fold_norm(unit.norm.name, state, 0, -limit, limit), shortcut)


def _real_weights(conv: Conv2d, state: State, *, largest: int, most: int, bits: int) -> tuple[RealWeights, int]:
    """Give the weights, and the exponent of what leaves the convolution."""
    real = to_float32(state[f"{conv.name}.weight"])
    fixed = FixedPoint.of(real, largest_input=largest, most=most, bits=bits)
    return RealWeights(fixed.weights.astype(np.int32), fixed.shift), fixed.exponent - fixed.shift


def _fold_norm(name: str, state: State, exponent: int, low: int, limit: int) -> FoldedNorm:
    """Fold a norm of numbers of which 2^exponent are 1; as ``bnncore.reference.fixed_point.scaled`` does."""
    mean, mean_abs_dev, beta = _moments(name, state)
    mean, inverse = np.ldexp(mean, exponent), _inverse(np.ldexp(mean_abs_dev, exponent))
    gain = (STREAM_UNITS * inverse).astype(np.float32)
    offset = (STREAM_UNITS * (beta.astype(np.float64) - mean * inverse)).astype(np.float32)
    return FoldedNorm(gain, offset, low, limit)


def _moments(name: str, state: Mapping[str, NDArray[np.generic]]) -> tuple[Doubles, Doubles, Floats]:
    mean, mean_abs_dev = (state[f"{name}.{part}"].astype(np.float64) for part in ("mean", "mean_abs_dev"))
    return mean, mean_abs_dev, state[f"{name}.beta"].astype(np.float32)


def _inverse(mean_abs_dev: Doubles) -> Doubles:
    return np.divide(1.0, mean_abs_dev, out=np.zeros_like(mean_abs_dev), where=mean_abs_dev > 0)


def _signs(weights: NDArray[np.generic]) -> Signs:
    return np.where(weights.astype(np.float32) < 0, -1, 1).astype(np.int8)
