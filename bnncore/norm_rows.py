"""l1 batch norm's passes over rows [J, N] whose channels lie last, natively: what ``bnncore.nn`` normalises with.

Sums are made in blocks of rows, in order: any number of threads gives the same bits. What the numbers mean stands in
``bnncore.nn.channels``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore import _native

__all__ = ["ABOVE", "BELOW", "INSIDE", "RowSums", "RowThresholds", "apply_gradient_rows", "row_statistics"]

ABOVE, BELOW, INSIDE = 1, 2, 4
"""Bits of a code: above the mean of its channel, below it, and inside the mask."""


@dataclass(frozen=True)
class RowThresholds:
    """What y is compared with; float32 [N] each."""

    mask_from: NDArray[np.float32]
    mask_to: NDArray[np.float32]
    mean_low: NDArray[np.float32]
    mean_high: NDArray[np.float32]
    mean: NDArray[np.float32]


class RowSums:
    """Sums by channel, of all rows that were added.

    Attributes:
      grad: of the masked gradient, float64 [N].
      moment: of it times y less the mean, float64 [N].
      above: rows above the mean, int64 [N].
      below: rows below it, int64 [N].
    """

    def __init__(self, channels: int) -> None:
        self.grad, self.moment = np.zeros(channels), np.zeros(channels)
        self.above, self.below = np.zeros(channels, np.int64), np.zeros(channels, np.int64)

    def add(
        self,
        y: NDArray[np.int16] | NDArray[np.float32],
        grad: NDArray[np.float32],
        thresholds: RowThresholds,
        *,
        is_masked: bool,
        threads: int,
    ) -> NDArray[np.uint8]:
        """Add rows of y and of the gradient of x, [J, N] each; give a code for each number.

        Numbers outside the mask have no gradient, if ``is_masked``.
        """
        codes = np.empty(grad.shape, np.uint8)
        t = thresholds
        add = _native.kernels.add_gradient_rows16 if y.dtype == np.int16 else _native.kernels.add_gradient_rows_float
        masks = (t.mask_from, t.mask_to) if is_masked else (None, None)
        add(
            y, grad, *masks, t.mean_low, t.mean_high, t.mean, threads,
            codes, self.grad, self.moment, self.above, self.below,
        )  # fmt: skip
        return codes


def row_statistics(y: NDArray[np.int16], *, threads: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the sum of y [J, N] and that of |J y - sum|, [N] each; both are whole."""
    total, deviation = np.empty(y.shape[1], np.int64), np.empty(y.shape[1])
    _native.kernels.row_statistics(y, threads, total, deviation)
    return total, deviation


def apply_gradient_rows(
    grad: NDArray[np.float32],
    codes: NDArray[np.uint8],
    *,
    is_masked: bool,
    offset: NDArray[np.float32],
    slope: NDArray[np.float32],
    inverse: NDArray[np.float32],
    threads: int,
) -> None:
    """Replace the gradient of x [J, N] by that of y: ``(grad - offset - side slope) inverse``."""
    _native.kernels.apply_gradient_rows(grad, codes, is_masked, offset, slope, inverse, threads)
