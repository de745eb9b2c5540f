"""Fixed point: how a residual network's real numbers are kept as integers, so that every sum is exact in any order.

The *stream* to which residual units add is int16 in units of 1/512. A unit adds its normalised products, rounded once
and kept within ``stream_limit``, which is so small that the sum cannot overflow: the backward pass computes the same
integers again and takes them off, and has the stream as it was before without having stored it.

Real-valued convolutions multiply integers by float32 weights in a layer's own fixed point, 14 bits and a sign, and drop
low bits of the sum until any of it fits ``bits`` bits: the batch norm that follows makes nothing of the unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.layers import MaxPool2d

__all__ = ["STREAM_UNITS", "FixedPoint", "average_pool", "max_pool", "scaled", "spread", "stream_limit", "unpool"]

Ints = NDArray[np.int64]

STREAM_UNITS = 512
"""Units of the stream in 1."""
_STREAM_MAX = 32767
_WEIGHT_BITS = 14
_F = np.float32


def stream_limit(num_terms: int) -> int:
    """Give the largest magnitude of each of the numbers whose sum a stream holds."""
    return _STREAM_MAX // num_terms


def scaled(
    y: Ints, mean: NDArray[np.float64], mean_abs_dev: NDArray[np.float64], beta: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Give 512 ((y - mean) / mean_abs_dev + beta) of y [J, N] as the engine does: a product and a sum in float32."""
    inverse = np.divide(1.0, mean_abs_dev, out=np.zeros_like(mean_abs_dev), where=mean_abs_dev > 0)
    gain = (STREAM_UNITS * inverse).astype(_F)
    offset = (STREAM_UNITS * (beta.astype(np.float64) - mean * inverse)).astype(_F)
    return y.astype(_F) * gain + offset


def average_pool(s: Ints, window: tuple[int, int]) -> Ints:
    """Give the mean of each window of s [B, H, W, C], halves rounded up: [B, H // height, W // width, C]."""
    (height, width), (batch, rows, columns, channels) = window, s.shape
    rows, columns, count = rows // height, columns // width, height * width
    cut = s[:, : rows * height, : columns * width].reshape(batch, rows, height, columns, width, channels)
    mean: Ints = (2 * cut.sum(axis=(2, 4)) + count) // (2 * count)
    return mean


def spread(grad: NDArray[Any], window: tuple[int, int], shape: tuple[int, int]) -> NDArray[Any]:
    """Give each element of grad [B, P, Q, C] to all of its window of a map [B, H, W, C], ``shape`` = (H, W); else 0."""
    (height, width), (batch, rows, columns, channels) = window, grad.shape
    spread_out = np.zeros((batch, *shape, channels), dtype=grad.dtype)
    spread_out[:, : rows * height, : columns * width] = grad.repeat(height, axis=1).repeat(width, axis=2)
    return spread_out


def max_pool(y: NDArray[Any], pool: MaxPool2d) -> tuple[NDArray[Any], Ints]:
    """Give the largest of each window of y [B, P, Q, N] and which it is, both [B, P', Q', N]; windows may overlap.

    Elements of a window count row by row, those outside the map too, which are never chosen; of equal ones, the first.
    """
    (above, left), (down, across) = pool.pads, pool.strides
    around = ((0, 0), (above, above), (left, left), (0, 0))
    padded = np.pad(y, around, constant_values=np.iinfo(np.int64).min)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (pool.pool_height, pool.pool_width), axis=(1, 2))
    windows = windows[:, ::down, ::across]
    elements = windows.reshape(*windows.shape[:4], -1)
    return elements.max(axis=4), elements.argmax(axis=4)


def unpool(grad: NDArray[Any], choice: Ints, pool: MaxPool2d) -> NDArray[Any]:
    """Add each element of grad [B, P', Q', N] to the element of the map [B, P, Q, N] that ``max_pool`` chose."""
    (above, left), (down, across) = pool.pads, pool.strides
    routed = np.zeros((len(grad), pool.in_height, pool.in_width, grad.shape[3]), dtype=grad.dtype)
    sample, row, column, channel = np.indices(grad.shape)
    in_row = row * down - above + choice // pool.pool_width
    in_column = column * across - left + choice % pool.pool_width
    np.add.at(routed, (sample, in_row, in_column, channel), grad)
    return routed


@dataclass
class FixedPoint:
    """The weights of a real-valued convolution in integers.

    Attributes:
      weights: int64, of the shape of the weights; the real ones times 2^exponent, rounded to even.
      exponent: see there.
      shift: low bits dropped from each sum of products.
    """

    weights: Ints
    exponent: int
    shift: int

    @classmethod
    def of(cls, weights: NDArray[np.float32], *, largest_input: int, most: int, bits: int) -> FixedPoint:
        """Choose the fixed point.

        Args:
          weights: [N, ...].
          largest_input: magnitude of what they are multiplied by.
          most: how often the largest integer weight must fit 31 bits: terms of a sum times their other factor.
          bits: that any sum of products must fit after the shift, beside its sign.
        """
        weight_bits = min(_WEIGHT_BITS, 31 - most.bit_length())
        exponent = weight_bits - int(np.frexp(np.abs(weights).max())[1])
        integers = np.rint(np.ldexp(weights.astype(np.float64), exponent)).astype(np.int64)
        bound = largest_input * int(np.abs(integers).reshape(len(weights), -1).sum(axis=1).max())
        return cls(integers, exponent, max(0, bound.bit_length() - bits))
