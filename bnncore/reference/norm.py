"""l1 batch norm: its definition in reals, and what the engine makes of it with integer sums and thresholds.

Letters: J = numbers that a channel is normalised over (samples x positions of the map), N = channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Channels",
    "centred_gradient",
    "channel_thresholds",
    "channels_of",
    "l1_batch_norm",
    "l1_batch_norm_gradient",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOWEST, HIGHEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def l1_batch_norm(y: Floats, beta: Floats) -> tuple[Floats, Floats, Floats]:
    """Normalise ``y`` [J, N] by its mean and mean absolute deviation: x = (y - mu) / psi + beta.

    Returns:
      x [J, N], mu [N], psi [N]. A channel with psi = 0 gives x = beta.
    """
    mu = y.mean(axis=0)
    psi = np.abs(y - mu).mean(axis=0)
    x = np.divide(y - mu, psi, out=np.zeros_like(y), where=psi > 0) + beta
    return x, mu, psi


def l1_batch_norm_gradient(y: Floats, grad_x: Floats) -> Floats:
    """Give dL/dy [J, N] from dL/dx [J, N]: the exact derivative of ``l1_batch_norm``.

    With v = grad_x / psi, x0 = (y - mu) / psi and s = sgn(y - mu):
    grad_y = v - mean(v) - (s - mean(s)) * mean(v * x0).
    """
    x0, mu, psi = l1_batch_norm(y, np.zeros(y.shape[1]))
    v = np.divide(grad_x, psi, out=np.zeros_like(grad_x), where=psi > 0)
    s = np.sign(y - mu)
    gradient: Floats = v - v.mean(axis=0) - (s - s.mean(axis=0)) * (v * x0).mean(axis=0)
    return gradient


@dataclass
class Channels:
    """Integer statistics of y [J, N], each [N]."""

    total: Ints
    """S = sum of y."""
    deviation: Ints
    """D = sum |J y - S|, so that psi = D / J^2."""
    mean: Floats
    mean_abs_dev: Floats


def channels_of(y: Ints) -> Channels:
    """Take the statistics of y [J, N]."""
    count = y.shape[0]
    total = y.sum(axis=0)
    deviation = np.abs(count * y - total).sum(axis=0)
    return Channels(total, deviation, total / count, deviation / (float(count) * count))


def channel_thresholds(
    mean: Floats, mean_abs_dev: Floats, beta: NDArray[np.float32], *, is_last: bool
) -> tuple[Ints, Ints, Ints]:
    """Turn x = (y - mean) / mean_abs_dev + beta into comparisons of the integer y.

    A channel without deviation gives x = beta whatever y is, so its thresholds pass all y or none.

    Returns:
      sign_from, mask_from and mask_to, each [N]: x >= 0 where y >= sign_from, and |x| <= 1 where mask_from <= y <=
      mask_to. The last block has softmax behind it, not a sign: its mask passes everything.
    """
    b = beta.astype(np.float64)
    dead = ~(mean_abs_dev > 0)
    inside = np.abs(b) <= 1
    sign_from = np.where(dead, np.where(b >= 0, LOWEST, HIGHEST), np.ceil(mean - b * mean_abs_dev))
    mask_from = np.where(dead, np.where(inside, LOWEST, HIGHEST), np.ceil(mean - (1.0 + b) * mean_abs_dev))
    mask_to = np.where(dead, np.where(inside, HIGHEST, LOWEST), np.floor(mean + (1.0 - b) * mean_abs_dev))
    if is_last:
        mask_from, mask_to = np.full_like(mean, LOWEST), np.full_like(mean, HIGHEST)
    first, second, third = (
        np.clip(threshold, LOWEST, HIGHEST).astype(np.int64) for threshold in (sign_from, mask_from, mask_to)
    )
    return first, second, third


def centred_gradient(y: Ints, q: Ints, c: Channels) -> NDArray[np.float32]:
    """Give psi times ``l1_batch_norm_gradient`` of y [J, N] and integers q [J, N], rounded where the engine rounds.

    It is q less an offset that depends on the side of the mean only, so an element costs one subtraction in float32.
    A channel without deviation gives 0.
    """
    count = y.shape[0]
    alive = c.deviation > 0
    side = np.sign(count * y - c.total)  # [J, N]
    mean_q = q.sum(axis=0) / count
    moment = (count * (q * y).sum(axis=0) - c.total * q.sum(axis=0)).astype(np.float64)
    mean_qx = moment / (float(count) * count * np.where(alive, c.mean_abs_dev, 1.0))
    mean_side = ((side > 0).sum(axis=0).astype(np.float64) - (side < 0).sum(axis=0)) / count
    offset = np.where(
        side > 0,
        mean_q + (1.0 - mean_side) * mean_qx,
        np.where(side < 0, mean_q + (-1.0 - mean_side) * mean_qx, mean_q - mean_side * mean_qx),
    ).astype(np.float32)
    return np.where(alive, q.astype(np.float32) - offset, np.float32(0))
