"""The stream of a residual network in the native engine's fixed point, so that both say the same of a sample.

The stream's numbers are multiples of 1/512, here in float32, which holds them and their sums exactly. What is added to
it is rounded once, and kept within a part of 16 bits (``stream_limit``), so that the engine's integers cannot overflow.
Real-valued convolutions multiply whole numbers with weights of 14 bits, and cut low bits off the sums: both programs
have the same bits of them whatever the order of the sum. The gradient takes no note of any of this.

In float64 nothing is rounded: there the formulas themselves can be looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bnncore.nn.channels import Channels, normalise

__all__ = ["LARGEST", "UNITS", "Fixed", "add_to_stream", "average_pool", "fix", "sample_units", "stream_limit"]

UNITS = 512
"""Units of the stream in 1."""
LARGEST = 32767
_WEIGHT_BITS = 14
_SAMPLE_UNITS = (256.0, 1.0)
_LARGEST_SAMPLE = 255


def stream_limit(terms: int) -> int:
    """Give the largest magnitude, in units, of each of the numbers whose sum a stream holds."""
    return LARGEST // terms


def add_to_stream(y: Any, channels: Channels, beta: Any, limit: int, *, is_positive: bool = False) -> Any:
    """Normalise y [..., N] into what is added to a stream.

    Args:
      y: products or other numbers, channels last.
      channels: what they are normalised by.
      beta: shift [N].
      limit: of the magnitude, in units.
      is_positive: 0 takes the place of negative numbers.

    Returns:
      float32, multiples of 1/512, by the engine's formula: one product and one sum in float32. float64 for float64 y,
      not rounded.
    """
    if y.dtype == torch.float64:
        out = normalise(y, channels, beta.double(), torch.float64)
        return out.clamp_(min=0) if is_positive else out
    inverse = channels.inverse
    gain = (UNITS * inverse).float()
    offset = (UNITS * (beta.double() - channels.mean * inverse)).float()
    out = y.float().mul(gain).add_(offset)
    return out.clamp_(0 if is_positive else -limit, limit).round_().mul_(1 / UNITS)


def average_pool(s: Any, window: tuple[int, int]) -> Any:
    """Give the mean of each window of s [B, C, H, W]; halves of a unit are rounded up, but for float64."""
    if s.dtype == torch.float64:
        return functional.avg_pool2d(s, window)
    count = window[0] * window[1]
    sums = functional.avg_pool2d(s, window, divisor_override=1) if count > 1 else s
    return sums.double().mul_(2 * UNITS).add_(count).div_(2 * count).floor_().div_(UNITS).float()


@dataclass(frozen=True)
class Fixed:
    """Weights of a real-valued convolution in a fixed point of their own.

    Attributes:
      integers: whole numbers in float64, of the weights' shape: real ones times 2^exponent.
      exponent: see there.
      shift: low bits that are cut off each sum.
    """

    integers: Any
    exponent: int
    shift: int

    def real(self, dtype: Any) -> Any:
        """The weights that products are taken with."""
        return (self.integers * 2.0**-self.exponent).to(dtype)

    def cut(self, sums: Any, units: float) -> Any:
        """Cut sums of products with whole numbers, of which ``units`` are 1, and give them in reals, float32."""
        return sums.mul_(2.0**-self.shift).floor_().mul_(2.0 ** (self.shift - self.exponent) / units).float()


def fix(weight: Any, *, largest_input: int, most: int, bits: int) -> Fixed:
    """Choose the fixed point of weights [N, ...].

    Args:
      weight: real.
      largest_input: magnitude of what they are multiplied with.
      most: how often the largest integer weight must fit 31 bits: terms of a sum times their other factor.
      bits: that any sum must fit after the cut, beside its sign.
    """
    weight_bits = min(_WEIGHT_BITS, 31 - most.bit_length())
    exponent = weight_bits - math.frexp(float(weight.abs().max()))[1]
    integers = (weight.double() * 2.0**exponent).round_()
    bound = largest_input * int(integers.abs().flatten(1).sum(1).max())
    return Fixed(integers, exponent, max(0, bound.bit_length() - bits))


def sample_units(x: Any) -> float | None:
    """Say how many units are 1 in samples ``2 u - 255`` times 1/256 or 1; None where x is anything else."""
    if x.dtype == torch.float64:
        return None
    largest = float(x.abs().max())
    for units in _SAMPLE_UNITS:
        if largest * units <= _LARGEST_SAMPLE and bool((x * units == (x * units).round()).all()):
            return units
    return None
