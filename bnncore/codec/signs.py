"""One sign a weight: how a difference of latent weights is held, made, applied and added up.

``bnncore.reference.signs`` is the same in plain NumPy, with the formulas and their source. Everything is integers, or
rounded to integers once, so the bits are the same on every machine. A *fine unit* is 1/256 of a latent step, which is
1/127. A *row* of a tensor is what feeds one output channel: its first axis.

Letters: R = rows, K = weights of a row, W = ceil(K / 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import PayloadError, ShapeError
from bnncore.reference import signs as reference

__all__ = ["FINE_UNITS", "MAX_WEIGHT", "SignTensor", "encode_signs", "encode_steps", "fold_many"]

FINE_UNITS = 256
"""Fine units of a latent step."""
MAX_WEIGHT = 1 << 40
"""The largest weight that a difference is added with: 2^16 * 2^40, and eight of them, fit 64 bits."""


@dataclass(frozen=True, eq=False)
class SignTensor:
    """A difference of one weight tensor: -scale, 0 or +scale for each element.

    Attributes:
      shape: of the weights.
      scales: ``uint16[R]``, magnitude in fine units.
      bits: ``uint8[R, W]``: 1 means minus; element k of a row is bit k % 8 of byte k // 8; unused bits are zero.
      mask: ``uint8[R, W]``: 1 where an element is there, where it is not its sign bit is 0 too; None: all are.

    Raises:
      ShapeError: an array has another shape or dtype.
      PayloadError: an unused bit is set.
    """

    shape: tuple[int, ...]
    scales: NDArray[np.uint16]
    bits: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        packed = (self.rows, (self.row_size + 7) // 8)
        _check_array("scales", self.scales, np.uint16, (self.rows,))
        _check_array("bits", self.bits, np.uint8, packed)
        unused = -1 << (self.row_size % 8 or 8) & 0xFF
        held = self.bits
        if self.mask is not None:
            _check_array("mask", self.mask, np.uint8, packed)
            if (self.bits & ~self.mask).any():
                raise PayloadError("a sign bit must be 0 where the mask says that there is no element")
            held = self.mask
        if (held[:, -1] & unused).any():
            raise PayloadError(f"bits beyond the {self.row_size} elements of a row must be 0")

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.shape[0]

    @property
    def row_size(self) -> int:
        """Weights of a row."""
        return math.prod(self.shape[1:])

    def dense(self) -> NDArray[np.int32]:
        """Give every element in fine units: ``int32`` of ``shape``."""
        return reference.dense((self.scales, self.bits, self.mask), self.row_size).reshape(self.shape)

    def apply_to(self, replica: NDArray[np.int8]) -> None:
        """Move a replica in place: ``clip(replica + sign * ((scale + 128) >> 8), -127, 127)``.

        Args:
          replica: ``int8`` of ``shape``, contiguous and writable.

        Raises:
          ShapeError: it is not.
        """
        rows = self._rows_of(replica, np.int8)
        rows[...] = reference.apply((self.scales, self.bits, self.mask), rows)

    def add_to(self, sums: NDArray[np.int64], weight: int) -> None:
        """Add ``weight`` times this difference, in fine units, to ``int64`` sums of ``shape`` in place.

        Raises:
          ShapeError: sums is not contiguous, writable ``int64`` of ``shape``.
          PayloadError: the weight exceeds ``MAX_WEIGHT``.
        """
        fold_many(sums, [self], [weight])

    def _rows_of(self, array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
        """View a tensor of ``shape`` as [R, K]."""
        _check_array("the tensor", array, dtype, self.shape)
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ShapeError("the tensor must be contiguous and writable, since it is changed in place")
        return array.reshape(self.rows, self.row_size)


def encode_signs(
    latent: NDArray[np.int8],
    replica: NDArray[np.int8],
    error: NDArray[np.int8] | None = None,
    *,
    density: float | None = None,
) -> tuple[SignTensor, NDArray[np.int8]]:
    """Tell what latent weights are, to one who holds a replica: the device's way up, with error feedback.

    ``x = latent - replica + error``; a row's scale is the mean of its |x|.

    Args:
      latent: ``int8`` of any shape with at least one axis, in units of 1/127.
      replica: ``int8`` of the same shape.
      error: what remained the last time, ``int8`` of the same shape; None for nothing.
      density: for the codec ``flips``: the part of the tensor that is sent, in (0, 1], the elements of the largest |x|
        and the first of equals; the scale is the mean of those of a row. None for ``sign``: all of it.

    Returns:
      The signs, and what remains for the next time: ``clip(x - told, -127, 127)`` rounded to whole steps.

    Raises:
      ShapeError: shapes or dtypes differ from that.
      PayloadError: density is out of range.
    """
    _check_array("latent", latent, np.int8, latent.shape)
    _check_array("replica", replica, np.int8, latent.shape)
    if error is not None:
        _check_array("error", error, np.int8, latent.shape)
    _check_density(density)
    rows = (latent.shape[0], math.prod(latent.shape[1:]))
    signs, remaining = reference.encode_signs(
        latent.reshape(rows), replica.reshape(rows), None if error is None else error.reshape(rows), density
    )
    return SignTensor(latent.shape, *signs), remaining.reshape(latent.shape)


def encode_steps(master: NDArray[np.float32], replica: NDArray[np.int8], *, density: float | None = None) -> SignTensor:
    """Tell where a float32 master is, to those who hold a replica: the server's way down.

    ``x = 127 * master - replica``; a row's scale is the mean of its |x|. The sender then applies the signs to its own
    replica, so what remains is in the next x by itself.

    Args:
      master: ``float32`` of any shape with at least one axis, in [-1, 1] and without NaN.
      replica: ``int8`` of the same shape.
      density: as in ``encode_signs``.

    Raises:
      ShapeError: shapes or dtypes differ from that.
      PayloadError: density is out of range.
    """
    _check_array("master", master, np.float32, master.shape)
    _check_array("replica", replica, np.int8, master.shape)
    _check_density(density)
    rows = (master.shape[0], math.prod(master.shape[1:]))
    return SignTensor(master.shape, *reference.encode_steps(master.reshape(rows), replica.reshape(rows), density))


def fold_many(sums: NDArray[np.int64], tensors: Sequence[SignTensor], weights: Sequence[int]) -> None:
    """Add several differences, each times its weight, to sums in place; exact, so their order does not matter.

    Eight at a time cost little more than one.

    Args:
      sums: ``int64`` of the tensors' shape, contiguous and writable, in fine units.
      tensors: any number of differences of one shape.
      weights: one for each.

    Raises:
      ShapeError: shapes or dtypes differ from that, or there are more weights than tensors or the reverse.
      PayloadError: a weight exceeds ``MAX_WEIGHT`` in magnitude. The sums are unchanged.
    """
    if len(tensors) != len(weights):
        raise ShapeError(f"each difference needs one weight, got {len(tensors)} differences and {len(weights)} weights")
    too_large = [weight for weight in weights if abs(weight) > MAX_WEIGHT]
    if too_large:
        raise PayloadError(f"a weight must lie within +-{MAX_WEIGHT}, got {too_large[0]}")
    views = [tensor._rows_of(sums, np.int64) for tensor in tensors]
    for view, tensor, weight in zip(views, tensors, weights, strict=True):
        view[...] = reference.add((tensor.scales, tensor.bits, tensor.mask), weight, view)


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or array.size == 0:
        raise ShapeError(
            f"{name} must be {np.dtype(dtype)} of shape {list(shape)} and not empty, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )


def _check_density(density: float | None) -> None:
    if density is not None and not 0.0 < density <= 1.0:
        raise PayloadError(f"density must lie in (0, 1], got {density}")
