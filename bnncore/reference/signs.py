"""One-bit differences in plain NumPy: what ``bnncore.codec.signs`` must compute, bit for bit.

A difference x between two tensors of latent weights becomes one sign a weight and one scale a row, a row being what
feeds one output channel. Scales and everything that is added up are in *fine units*, 1/256 of a latent step of 1/127.
What the sender holds back it adds to its next difference (error feedback).

Letters: R = rows, K = weights of a row, W = ceil(K / 8) bytes that its bits take. Bit 1 means minus; element k of a row
is bit k % 8 of byte k // 8; bits beyond K are zero. A mask has bit 1 where an element is there at all; elsewhere the
difference is 0 and so is the sign bit.

Source: Seide et al., "1-Bit Stochastic Gradient Descent" (2014); Karimireddy et al., "Error Feedback Fixes SignSGD"
(2019). Rows instead of whole tensors share a scale; what is kept is rounded to whole steps, so that it takes a byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "add",
    "apply",
    "dense",
    "encode_signs",
    "encode_steps",
    "pack_rows",
    "unpack_rows",
]

Signs = tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint8] | None]
"""Scales [R], bits [R, W], and the mask [R, W] or None where every element is there."""

_STEPS = 127
_FINE = 256
_LARGEST_SCALE = 65535
_FIXED_BITS = 20
"""``encode_steps`` counts in 2^-20 of a latent step, as integers, so that sums do not depend on their order."""


def pack_rows(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack flags [R, K] into uint8 [R, W]."""
    return np.packbits(flags, axis=1, bitorder="little")


def unpack_rows(bits: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    """Give the flags [R, count] of uint8 [R, W]."""
    return np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(np.bool_)


def dense(signs: Signs, count: int) -> NDArray[np.int32]:
    """Give the difference int32 [R, count] in fine units: -scale, 0 or +scale."""
    scales, bits, mask = signs
    values = np.where(unpack_rows(bits, count), -1, 1) * scales.astype(np.int32)[:, None]
    if mask is not None:
        values *= unpack_rows(mask, count)
    return values.astype(np.int32)


def apply(signs: Signs, replica: NDArray[np.int8]) -> NDArray[np.int8]:
    """Give int8 [R, K]: ``clip(replica + sign * floor((scale + 128) / 256), -127, 127)``."""
    values = dense(signs, replica.shape[1])
    steps = np.sign(values) * ((np.abs(values) + _FINE // 2) // _FINE)
    moved: NDArray[np.int8] = np.clip(replica.astype(np.int32) + steps, -_STEPS, _STEPS).astype(np.int8)
    return moved


def add(signs: Signs, weight: int, sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give int64 [R, K]: ``sums + weight * difference`` in fine units."""
    return sums + weight * dense(signs, sums.shape[1]).astype(np.int64)


def encode_signs(
    latent: NDArray[np.int8], replica: NDArray[np.int8], error: NDArray[np.int8] | None, density: float | None = None
) -> tuple[Signs, NDArray[np.int8]]:
    """Turn ``x = latent - replica + error`` (int8 [R, K] each, whole steps) into signs.

    With s = round_half_up(256 * mean |x|) of a row's elements that are sent, at most 65535, what remains is
    ``clip(round_half_away(x - sign * s / 256), -127, 127)`` of them, and ``clip(x, -127, 127)`` of the others.

    Args:
      latent: what is to be told.
      replica: what the other end holds.
      error: what remained the last time; None for nothing.
      density: the part of the tensor that is sent, the elements of the largest |x|, the first ones where they are
        equal; None for all of it. Elements of 0 are not sent.

    Returns:
      The signs, and what remains: int8 [R, K].
    """
    x = latent.astype(np.int64) - replica
    if error is not None:
        x += error
    sent = np.ones(x.shape, np.bool_) if density is None else _largest(np.abs(x), density)
    total, count = (np.abs(x) * sent).sum(axis=1), sent.sum(axis=1)
    scales = _divide_half_up(_FINE * total, count)
    told = np.where(x < 0, -1, 1) * scales[:, None] * sent
    fine = _FINE * x - told
    remaining = np.sign(fine) * ((np.abs(fine) + _FINE // 2) // _FINE)
    return _signs(x < 0, sent, scales, density), np.clip(remaining, -_STEPS, _STEPS).astype(np.int8)


def encode_steps(master: NDArray[np.float32], replica: NDArray[np.int8], density: float | None = None) -> Signs:
    """Turn ``x = 127 * master - replica`` into signs; what remains is in the next x, since the replica moves on.

    x is rounded to multiples of 2^-20, halves to even, and all else is integers: the scale of a row is
    ``round_half_up(256 * mean |x|)`` of those.

    Args:
      master: float32 [R, K] in [-1, 1].
      replica: int8 [R, K].
      density: as in ``encode_signs``; |x| is compared in whole fine units, rounded down.
    """
    x = np.rint((master.astype(np.float64) * _STEPS - replica) * 2**_FIXED_BITS).astype(np.int64)
    size = np.abs(x)
    sent = np.ones(x.shape, np.bool_) if density is None else _largest(size >> (_FIXED_BITS - 8), density)
    total, count = (size * sent).sum(axis=1), sent.sum(axis=1)
    scales = _divide_half_up(total, count << (_FIXED_BITS - 8))
    return _signs(x < 0, sent, scales, density)


def _largest(size: NDArray[np.int64], density: float) -> NDArray[np.bool_]:
    """Mark the ``max(1, floor(density * size))`` largest elements, the first of equals, and none that is 0."""
    order = np.argsort(-size, axis=None, kind="stable")[: max(1, int(density * size.size))]
    chosen = np.zeros(size.size, np.bool_)
    chosen[order] = True
    return chosen.reshape(size.shape) & (size > 0)


def _divide_half_up(total: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give floor(total / count + 1/2), at most the largest scale; 0 where count is 0."""
    count = np.maximum(count, 1)
    scales: NDArray[np.int64] = np.minimum((2 * total + count) // (2 * count), _LARGEST_SCALE)
    return scales


def _signs(negative: NDArray[np.bool_], sent: NDArray[np.bool_], scales: NDArray[Any], density: float | None) -> Signs:
    mask = None if density is None else pack_rows(sent)
    return scales.astype(np.uint16), pack_rows(negative & sent), mask
