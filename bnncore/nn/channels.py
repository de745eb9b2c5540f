"""l1 batch norm, channel by channel: statistics, thresholds and the exact gradient.

``x = (y - mu) / psi + beta`` with mu the mean and psi the mean absolute deviation of a channel over J numbers. A
channel with psi = 0 gives x = beta and no gradient. With v = grad_x / psi, x0 = (y - mu) / psi and s = sgn(y - mu),
``grad_y = v - mean(v) - (s - mean(s)) mean(v x0)``: for given side s it is grad_x / psi less a number of the channel.

All of a channel is float64, in the native engine's formulas: for whole y they are exact, and the comparisons that
stand for sign and mask are decided as the engine decides them. Channels lie last. On a processor, numbers of 16 and
float32 gradients go through ``bnncore.norm_rows``, in one pass each instead of ten. Source: docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bnncore.nn.products import chunk_bytes
from bnncore.norm_rows import ABOVE, BELOW, INSIDE, RowSums, RowThresholds, apply_gradient_rows, row_statistics

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
    if y.device.type == "cpu" and y.dtype == torch.int16 and y.is_contiguous():
        sums, whole = (torch.from_numpy(a).double() for a in row_statistics(y.numpy(), threads=torch.get_num_threads()))
        return Channels(sums / count, whole / (float(count) * count))
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
        self._row_thresholds: RowThresholds | None = None

    def add(self, y: Any, grad: Any, *, is_masked: bool = False) -> Any:
        """Count y [..., N] and grad_x [..., N] in; give a code for each number, uint8 [..., N].

        A code is the sum of ``ABOVE`` or ``BELOW``, or neither at the mean, and, if ``is_masked``, of ``INSIDE`` where
        |x| <= 1: elsewhere there is no gradient then.
        """
        y, flat = y.flatten(0, -2), grad.flatten(0, -2)
        self.count += len(y)
        if _runs_natively(flat) and y.dtype in (torch.int16, torch.float32) and y.is_contiguous():
            return self._add_natively(y, flat, is_masked=is_masked).view(grad.shape)
        if not y.dtype.is_floating_point:
            y = y.to(flat.dtype)
        above, below = self.thresholds.is_above(y), self.thresholds.is_below(y)
        codes = above.view(torch.uint8) * ABOVE + below.view(torch.uint8) * BELOW
        if is_masked:
            inside = self.thresholds.is_inside(y)
            flat = flat * inside
            codes.add_(inside.view(torch.uint8), alpha=INSIDE)
        centred = y.to(flat.dtype) - self.channels.mean.to(flat.dtype)
        self.grad = self.grad + _total(flat)
        self.moment = self.moment + _total(centred.mul_(flat))
        self.above = self.above + above.sum(0)
        self.below = self.below + below.sum(0)
        return codes.view(grad.shape)

    def apply(self, grad: Any, codes: Any, *, is_masked: bool = False, of_batch: bool = True) -> Any:
        """Give grad_y from grad_x and the codes that ``add`` gave. ``grad`` is changed.

        Statistics that are not those of the batch (``of_batch`` false) are constants: then it is grad_x / psi.
        """
        inverse, count = self.channels.inverse, self.count
        offset, slope = torch.zeros_like(inverse), torch.zeros_like(inverse)
        if of_batch:
            mean_side = (self.above - self.below) / count
            slope = self.moment * inverse / count  # mean of grad_x times x0
            offset = self.grad / count - mean_side * slope
        offset, slope, inverse = (number.to(grad.dtype) for number in (offset, slope, inverse))
        flat, codes = grad.flatten(0, -2), codes.flatten(0, -2)
        if _runs_natively(flat) and codes.is_contiguous():
            numbers = {"offset": offset.numpy(), "slope": slope.numpy(), "inverse": inverse.numpy()}
            threads = torch.get_num_threads()
            apply_gradient_rows(flat.numpy(), codes.numpy(), is_masked=is_masked, **numbers, threads=threads)
            return grad
        if is_masked:
            grad.mul_((codes >= INSIDE).view(grad.shape))
        # As a sum and a product in memory's order: choosing among three numbers of a channel takes twice the time.
        side = (codes & ABOVE).sub_((codes & BELOW) >> 1).view(torch.int8).to(grad.dtype).view(grad.shape)
        return grad.sub_(offset).sub_(side.mul_(slope)).mul_(inverse)

    def _add_natively(self, y: Any, grad: Any, *, is_masked: bool) -> Any:
        if self._row_thresholds is None:
            t = self.thresholds
            found = (t.mask_from, t.mask_to, t.mean_low, t.mean_high, self.channels.mean)
            self._row_thresholds = RowThresholds(*(number.float().contiguous().numpy() for number in found))
        sums = RowSums(y.shape[1])
        threads = torch.get_num_threads()
        codes = sums.add(y.numpy(), grad.numpy(), self._row_thresholds, is_masked=is_masked, threads=threads)
        self.grad = self.grad + torch.from_numpy(sums.grad)
        self.moment = self.moment + torch.from_numpy(sums.moment)
        self.above = self.above + torch.from_numpy(sums.above)
        self.below = self.below + torch.from_numpy(sums.below)
        return torch.from_numpy(codes)


def _runs_natively(grad: Any) -> bool:
    return bool(grad.device.type == "cpu" and grad.dtype == torch.float32 and grad.is_contiguous())


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
