"""One sign a weight: how a difference of latent weights is held, made, applied and added up.

``bnncore.reference.signs`` is the same in plain NumPy, with the formulas and their source. Everything is integers, or
rounded to integers once, so the bits are the same on every instruction set. A *fine unit* is 1/256 of a latent step,
which is 1/127. A *row* of a tensor is what feeds one output channel: its first axis.

Letters: R = rows, K = weights of a row, W = ceil(K / 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import isa_selected
from bnncore.errors import PayloadError, ShapeError

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
        values = np.empty((self.rows, self.row_size), np.int32)
        _native.kernels.expand_signs(isa_selected(), self.scales, self.bits, self.mask, values)
        return values.reshape(self.shape)

    def apply_to(self, replica: NDArray[np.int8]) -> None:
        """Move a replica in place: ``clip(replica + sign * ((scale + 128) >> 8), -127, 127)``.

        Args:
          replica: ``int8`` of ``shape``, contiguous and writable.

        Raises:
          ShapeError: it is not.
        """
        rows = self.rows_of(replica, np.int8)
        _native.kernels.apply_signs(isa_selected(), self.scales, self.bits, self.mask, rows)

    def add_to(self, sums: NDArray[np.int64], weight: int) -> None:
        """Add ``weight`` times this difference, in fine units, to ``int64`` sums of ``shape`` in place.

        Raises:
          ShapeError: sums is not contiguous, writable ``int64`` of ``shape``.
          PayloadError: the weight exceeds ``MAX_WEIGHT``.
        """
        fold_many(sums, [self], [weight])

    def rows_of(self, array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
        """View a tensor that is to be changed in place as [R, K].

        Raises:
          ShapeError: it is not a contiguous and writable array of ``shape`` and this dtype.
        """
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
    signs, sent = _empty_signs(latent.shape, density)
    remaining = np.empty((signs.rows, signs.row_size), np.int8)
    _native.kernels.encode_signs(
        isa_selected(),
        _as_rows(latent),
        _as_rows(replica),
        None if error is None else _as_rows(error),
        sent,
        signs.scales,
        signs.bits,
        signs.mask,
        remaining,
    )
    return signs, remaining.reshape(latent.shape)


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
    signs, sent = _empty_signs(master.shape, density)
    _native.kernels.encode_steps(
        isa_selected(), _as_rows(master), _as_rows(replica), sent, signs.scales, signs.bits, signs.mask
    )
    return signs


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
    views = [tensor.rows_of(sums, np.int64) for tensor in tensors]
    if views:
        scales, bits, masks = ([getattr(t, field) for t in tensors] for field in ("scales", "bits", "mask"))
        _native.kernels.fold_signs(views[0], scales, bits, masks, list(weights))


def _empty_signs(shape: tuple[int, ...], density: float | None) -> tuple[SignTensor, int]:
    """Give signs to be filled in, and how many elements they may tell."""
    packed = (shape[0], (math.prod(shape[1:]) + 7) // 8)
    mask = None if density is None else np.zeros(packed, np.uint8)
    signs = SignTensor(shape, np.zeros(shape[0], np.uint16), np.zeros(packed, np.uint8), mask)
    size = math.prod(shape)
    return signs, size if density is None else max(1, int(density * size))


def _as_rows(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(array.shape[0], -1)


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or array.size == 0:
        raise ShapeError(
            f"{name} must be {np.dtype(dtype)} of shape {list(shape)} and not empty, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )


def _check_density(density: float | None) -> None:
    if density is not None and not 0.0 < density <= 1.0:
        raise PayloadError(f"density must lie in (0, 1], got {density}")
