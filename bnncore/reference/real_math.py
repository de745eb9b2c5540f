"""exp and log from additions and multiplications in one order, without libm (native/include/bnncore/real_math.h)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["exp", "log"]


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x for x <= 700."""
    rounder = 6755399441055744.0  # 1.5 * 2^52
    n = (x * 1.4426950408889634 + rounder) - rounder
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    total = np.full_like(x, 1.0 / math.factorial(14))
    for i in range(13, -1, -1):
        total = total * r + 1.0 / math.factorial(i)
    scale = ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return np.where(x < -700.0, 0.0, total * scale)


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of positive normal numbers."""
    bits = x.view(np.int64)
    exponent = (bits >> 52) - 1023
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    big = mantissa > 1.4142135623730951
    mantissa = np.where(big, mantissa * 0.5, mantissa)
    exponent = exponent + big
    s = (mantissa - 1.0) / (mantissa + 1.0)
    total = np.zeros_like(x)
    for i in range(23, 0, -2):
        total = total * (s * s) + 1.0 / i
    return exponent * 0.6931471805599453 + 2.0 * s * total
