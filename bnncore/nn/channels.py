"""l1 batch norm, channel by channel: statistics, thresholds and the exact gradient.

``x = (y - mu) / psi + beta`` with mu the mean and psi the mean absolute deviation of a channel over J numbers. A
channel with psi = 0 gives x = beta and no gradient. With v = grad_x / psi, x0 = (y - mu) / psi and s = sgn(y - mu),
``grad_y = v - mean(v) - (s - mean(s)) mean(v x0)``: for given side s it is grad_x / psi less a number of the channel.

All of a channel is float64, in the native engine's formulas: for whole y they are exact, and the comparisons that
stand for sign and mask are decided as the engine decides them. Channels lie last. Source: docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bnncore.nn.products import chunk_bytes

__all__ = ["Channels", "GradientSums", "Thresholds", "measure", "normalise", "thresholds_of"]


@dataclass(frozen=True)
class Channels:
    """Mean and mean absolute deviation, float64 [N] each."""

    mean: Any
    mean_abs_dev: Any

    @property
    def inverse(self) -> Any:
        """1 / psi, and 0 for a channel without deviation; float64 [N]."""
        alive = self.mean_abs_dev > 0
        return torch.where(alive, 1 / torch.where(alive, self.mean_abs_dev, 1), 0)


def measure(y: Any) -> Channels:
    """Take the statistics of y [..., N] over all but its last dimension. Memory: a few chunks in float64."""
    y = y.flatten(0, -2)
    count = len(y)
    total = _total(y)
    deviation: Any = sum((part.double() * count - total).abs_().sum(0) for part in _rows(y))
    return Channels(total / count, deviation / (float(count) * count))


def normalise(y: Any, channels: Channels, beta: Any, dtype: Any) -> Any:
    """Give x of ``dtype``, computed in float64 and rounded once."""
    flat = y.flatten(0, -2)
    out = torch.empty(flat.shape, dtype=dtype, device=y.device)
    inverse = channels.inverse
    for part, target in zip(_rows(flat), _rows(out), strict=True):
        target.copy_((part.double() - channels.mean).mul_(inverse).add_(beta))
    return out.view(y.shape)


@dataclass(frozen=True)
class Thresholds:
    """What sign, mask and side are, as comparisons of y; [N] each, in y's type, which is why they are exact."""

    sign_from: Any
    mask_from: Any
    mask_to: Any
    mean_low: Any
    mean_high: Any

    def is_negative(self, y: Any) -> Any:
        """Whether x < 0."""
        return y < self.sign_from

    def is_inside(self, y: Any) -> Any:
        """Whether |x| <= 1."""
        return (y >= self.mask_from).logical_and_(y <= self.mask_to)

    def is_above(self, y: Any) -> Any:
        """Whether y > mu."""
        return y > self.mean_low

    def is_below(self, y: Any) -> Any:
        """Whether y < mu."""
        return y < self.mean_high


def thresholds_of(channels: Channels, beta: Any, dtype: Any) -> Thresholds:
    """Turn x into comparisons of y, numbers of ``dtype`` (float32 or float64).

    A channel without deviation gives x = beta whatever y is, so its thresholds pass all y or none.
    """
    mean, psi, b = channels.mean, channels.mean_abs_dev, beta.double()
    dead, infinity = ~(psi > 0), torch.full_like(mean, torch.inf)
    always, never = -infinity, infinity
    inside = b.abs() <= 1
    sign_from = torch.where(dead, torch.where(b >= 0, always, never), mean - b * psi)
    mask_from = torch.where(dead, torch.where(inside, always, never), mean - (1 + b) * psi)
    mask_to = torch.where(dead, torch.where(inside, infinity, -infinity), mean + (1 - b) * psi)
    return Thresholds(
        _round_up(sign_from, dtype),
        _round_up(mask_from, dtype),
        -_round_up(-mask_to, dtype),
        -_round_up(-mean, dtype),
        _round_up(mean, dtype),
    )


class GradientSums:
    """Gathers, chunk by chunk, what the gradient of y needs of all J numbers of a channel."""

    def __init__(self, channels: Channels, thresholds: Thresholds) -> None:
        self.channels, self.thresholds = channels, thresholds
        zero = torch.zeros_like(channels.mean)
        self.count = 0
        self.grad, self.moment, self.above, self.below = zero, zero, zero, zero

    def add(self, y: Any, grad: Any) -> Any:
        """Count y [..., N] and grad_x [..., N] in, the mask already applied; give the sides, uint8 [..., N].

        A side is 0 at the mean, 1 above it and 2 below.
        """
        y, flat = y.flatten(0, -2), grad.flatten(0, -2)
        above, below = self.thresholds.is_above(y), self.thresholds.is_below(y)
        centred = y.to(grad.dtype) - self.channels.mean.to(grad.dtype)
        self.count += len(y)
        self.grad = self.grad + _total(flat)
        self.moment = self.moment + _total(centred.mul_(flat))
        self.above = self.above + above.sum(0)
        self.below = self.below + below.sum(0)
        return (above.view(torch.uint8) + below.view(torch.uint8).mul_(2)).view(grad.shape)

    def apply(self, grad: Any, sides: Any, *, of_batch: bool = True) -> Any:
        """Give grad_y from grad_x, the mask already applied, and the sides that ``add`` gave. ``grad`` is changed.

        Statistics that are not those of the batch (``of_batch`` false) are constants: then it is grad_x / psi.
        """
        inverse, count = self.channels.inverse, self.count
        if not of_batch:
            return grad.mul_(inverse.to(grad.dtype))
        mean_grad, mean_side = self.grad / count, (self.above - self.below) / count
        slope = self.moment * inverse / count  # mean of grad_x times x0
        # As a sum and a product in memory's order: choosing among three numbers of a channel takes twice the time.
        side = (sides & 1).sub_(sides >> 1).view(torch.int8).to(grad.dtype)
        grad.sub_((mean_grad - mean_side * slope).to(grad.dtype)).sub_(side.mul_(slope.to(grad.dtype)))
        return grad.mul_(inverse.to(grad.dtype))


def _round_up(value: Any, dtype: Any) -> Any:
    """Give the smallest number of ``dtype`` that is not below float64 ``value``."""
    rounded = value.to(dtype)
    return torch.where(rounded < value, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)


def _total(y: Any) -> Any:
    """Add y [J, N] up in float64, a chunk at a time, since PyTorch copies all of what it adds in another type."""
    return sum(part.sum(0, dtype=torch.float64) for part in _rows(y))


def _rows(y: Any) -> Iterator[Any]:
    """Cut [J, N] into rows of which float64 copies stay small."""
    rows = max(1, chunk_bytes(y.device.type) // (8 * max(1, y.shape[1])))
    for first in range(0, len(y), rows):
        yield y[first : first + rows]
