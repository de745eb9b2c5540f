"""Shamir's secret sharing of 32 bytes: any ``threshold`` shares give the secret, fewer say nothing about it.

The secret is the value at 0 of a random polynomial of degree ``threshold - 1`` modulo the prime p = 2^256 + 297, the
smallest one above 2^256; the share at position x, a whole number from 1, is its value there: 33 bytes, little-endian.

Source: Shamir, "How to share a secret", Communications of the ACM 22(11), 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from bnncore.errors import PayloadError

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "join", "split", "value_at"]

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_DRAWN_BYTES = 48
"""A coefficient is so many random bytes modulo p: uniform but for 2^-127."""


def split(
    secret: bytes, threshold: int, positions: Sequence[int], draw: Callable[[int], bytes] = secrets.token_bytes
) -> list[bytes]:
    """Give the share of each position.

    Args:
      secret: 32 bytes.
      threshold: shares that open it, from 1 to the number of positions.
      positions: different whole numbers from 1.
      draw: gives so many random bytes.

    Raises:
      ValueError: an argument is none of these.
    """
    _check_positions(positions)
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(positions):
        raise ValueError(
            f"a secret of {SECRET_BYTES} bytes needs a threshold from 1 to {len(positions)}, the number of shares, "
            f"got {len(secret)} bytes and {threshold}"
        )
    coefficients = [int.from_bytes(draw(_DRAWN_BYTES), "little") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "little"))  # the highest power first
    shares = []
    for x in positions:
        value = 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "little"))
    return shares


def join(shares: Mapping[int, bytes]) -> bytes:
    """Give the secret back from the shares by position, as many as the threshold or more.

    Raises:
      PayloadError: a share is malformed, or they are shares of no secret.
    """
    value = int.from_bytes(value_at(0, shares), "little")
    if value >> 8 * SECRET_BYTES:
        raise PayloadError("the shares do not belong together")
    return value.to_bytes(SECRET_BYTES, "little")


def value_at(x: int, shares: Mapping[int, bytes]) -> bytes:
    """Give the share at another position, or at 0 what the secret is, from as many shares as the threshold or more.

    Raises:
      PayloadError: a share is malformed.
    """
    positions = tuple(sorted(shares))
    _check_positions(positions)
    total = sum(
        weight * share_value(shares[position])
        for position, weight in zip(positions, _weights(x, positions), strict=True)
    )
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


def share_value(share: bytes) -> int:
    """Give a share as a number.

    Raises:
      PayloadError: it is malformed.
    """
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise PayloadError(f"a share is {SHARE_BYTES} bytes, a number below 2^256 + 297")
    return value


def _check_positions(positions: Sequence[int]) -> None:
    if not positions or min(positions) < 1 or len(set(positions)) != len(positions):
        raise ValueError(f"shares have different positions from 1, got {list(positions)}")


@lru_cache(maxsize=64)
def _weights(x: int, positions: tuple[int, ...]) -> tuple[int, ...]:
    """Give Lagrange's weights for the value at x. The secrets of one exchange mostly have the same holders."""
    weights = []
    for i in positions:
        over = under = 1
        for j in positions:
            if j != i:
                over = over * (x - j) % PRIME
                under = under * (i - j) % PRIME
        weights.append(over * pow(under, -1, PRIME) % PRIME)
    return tuple(weights)
