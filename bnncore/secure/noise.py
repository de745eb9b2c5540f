r"""Noise for differential privacy: whole numbers of the discrete Gaussian, from the system's randomness.

``N_Z(0, sigma^2)`` gives x in Z with probability proportional to ``exp(-x^2 / (2 sigma^2))``. It is drawn by inverse
table: a uniform number of 128 bits is compared with the cumulative distribution, worked out in integers. 64 bits decide
but in the rare case that they equal those of a step of the table, when 64 more are drawn.

How near: the table ends where the mass beyond is below 2^-128, and every probability is off by less than 2^-126, so one
number's total variation distance to ``N_Z`` is below ``(table length) * 2^-126``: for 10^4 devices of 10^7 numbers each
and tables of 10^3, below 10^-24, which is left out of the account. Real noise in floating point has no such bound
(Mironov, CCS 2012).

The sum of m independent ``N_Z(0, sigma^2)`` is not quite ``N_Z(0, m sigma^2)``. Theorem 1 of Kairouz, Liu and Steinke,
"The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation" (ICML 2021, arXiv
2102.06387): with ``tau = 10 sum_{k=1}^{m-1} exp(-2 pi^2 sigma^2 k / (k + 1))`` the sum hides a change of L2 norm D in d
numbers with ``eps^2 / 2`` concentrated differential privacy, ``eps <= D / (sqrt(m) sigma) + tau sqrt(d)``;
``closeness`` gives tau. That the discrete Gaussian itself is as private as the continuous one of the same sigma:
Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020), Theorem 4.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import ConfigurationError

__all__ = ["Randomness", "SeededRandomness", "closeness", "draw_noise", "table_bytes", "tail_bound"]

Randomness = Callable[[int], bytes]
"""Gives so many random bytes; that of a device is ``os.urandom``."""

_WORD = 64
_BITS = 2 * _WORD
_GUARD = 64
"""Bits beyond ``_BITS`` that the table is worked out in."""
_UNIT = 1 << (_BITS + _GUARD)
_MAX_SIGMA = 2.0**17
_DRAWN_AT_ONCE = 1 << 16


class SeededRandomness:
    """Bytes that follow from a seed: for simulations, whose results are to be the same again. Hides nothing."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))

    def __call__(self, num_bytes: int) -> bytes:
        """Give the next bytes."""
        return self._generator.bytes(num_bytes)


def draw_noise(sigma: float, size: int, randomness: Randomness = os.urandom) -> NDArray[np.int64]:
    """Draw independent numbers of ``N_Z(0, sigma^2)``.

    Args:
      sigma: above 0, at most 2^17.
      size: how many.
      randomness: where bits come from.

    Returns:
      int64 [size].

    Raises:
      ConfigurationError: sigma is out of range.
    """
    high, first = _table(sigma)
    drawn = np.empty(size, np.int64)
    for start in range(0, size, _DRAWN_AT_ONCE):
        block = drawn[start : start + _DRAWN_AT_ONCE]
        uniform = np.frombuffer(randomness(8 * len(block)), "<u8")
        found = np.searchsorted(high, uniform, side="left")
        block[:] = found
        for place in np.flatnonzero(high[np.minimum(found, len(high) - 1)] == uniform):
            block[place] = _settle(sigma, int(uniform[place]), randomness)
    drawn += first
    return drawn


def _settle(sigma: float, word: int, randomness: Randomness) -> int:
    """Find a number's place by 128 bits, whose upper 64 equal those of a step."""
    value = (word << _WORD) | int.from_bytes(randomness(8), "little")
    return sum(step <= value for _, step in _steps(sigma))


@functools.lru_cache(maxsize=32)
def _table(sigma: float) -> tuple[NDArray[np.uint64], int]:
    """Give the upper 64 bits of the cumulative distribution at each step, and the first number.

    The number drawn is ``first`` and as many more as there are steps that the uniform number reaches.
    """
    last = _last(sigma)
    high = np.empty(2 * last, np.uint64)
    for place, step in _steps(sigma):
        high[place] = step >> _WORD
    return high, -last


def table_bytes(sigma: float) -> int:
    """Say what drawing noise of this sigma keeps in memory; raises ConfigurationError where sigma is out of range."""
    return 2 * _last(sigma) * (_WORD // 8)


def _last(sigma: float) -> int:
    """Give the largest number that is drawn."""
    if not 0 < sigma <= _MAX_SIGMA:
        raise ConfigurationError(f"sigma of discrete noise must lie above 0 and at most {_MAX_SIGMA:g}, got {sigma}")
    return math.ceil(sigma * math.sqrt(2 * (_BITS + 2) * math.log(2))) + 1


def _steps(sigma: float) -> Iterator[tuple[int, int]]:
    """Give the cumulative distribution in 128 bits, from the middle outwards: each step's place, and itself.

    Nothing is kept: of sigma 10^5 there are millions.
    """
    last = _last(sigma)
    total = 2 * sum(_weights(sigma, last)) - _UNIT
    most = (1 << _BITS) - 1
    reached = (total - _UNIT) // 2  # by all numbers below x
    for x, weight in enumerate(_weights(sigma, last)):
        if x:
            yield last - x, min((total - reached << _BITS) // total, most)  # -x and less are as likely as x and more
        reached += weight
        if x < last:
            yield last + x, min((reached << _BITS) // total, most)


def _weights(sigma: float, last: int) -> Iterator[int]:
    """Give ``exp(-x^2 / (2 sigma^2))`` of x from 0 to ``last``, in units of ``1 / _UNIT``."""
    exact = Context(prec=80, Emin=-999_999, Emax=999_999)
    ratio = int(
        exact.multiply(exact.exp(exact.divide(Decimal(-1), exact.multiply(2, Decimal(sigma) ** 2))), Decimal(_UNIT))
    )
    # w(x) = q^(x^2) with q = exp(-1 / (2 sigma^2)), by w(x + 1) = w(x) q^(2x + 1): two products of integers a step.
    square, weight = ratio * ratio // _UNIT, _UNIT
    for _ in range(last + 1):
        yield weight
        weight = weight * ratio // _UNIT
        ratio = ratio * square // _UNIT


def closeness(sigma: float, members: int) -> float:
    """Give tau of the theorem above: how far a sum of so many ``N_Z(0, sigma^2)`` is from one discrete Gaussian."""
    total, k = 0.0, 1
    while k < members:
        term = math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1))
        if k > 1000:  # k / (k + 1) only grows: all further terms are at most this one
            return 10 * (total + (members - k) * term)
        total += term
        k += 1
    return 10 * total


def tail_bound(sigma: float, size: int, failure: float) -> int:
    """Give the magnitude that none of ``size`` numbers of variance ``sigma^2`` passes but with probability ``failure``.

    ``2 size exp(-t^2 / (2 sigma^2)) <= failure``: the discrete Gaussian, and a sum of some, is sub-Gaussian with its
    own sigma (Canonne, Kamath and Steinke, 2020).
    """
    return math.ceil(sigma * math.sqrt(2 * math.log(2 * size / failure)))
