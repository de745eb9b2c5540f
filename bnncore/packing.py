"""Signs held as bits, 64 to a word.

Bit 1 means -1 and bit 0 means +1; element i of a row is bit ``i % 64`` of word ``i // 64``; unused bits of a row's
last word are zero. sign(0) = sign(-0.0) = +1. NaN has no sign and is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import isa_selected
from bnncore.errors import PayloadError, ShapeError

__all__ = ["pack_signs", "unpack_signs", "words_for"]


def words_for(count: int) -> int:
    """Give the number of 64-bit words that ``count`` signs take."""
    return (count + 63) // 64


def pack_signs(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Pack the signs of ``values`` (int8 or float32 [rows, count]) into uint64 [rows, words_for(count)].

    Raises:
      ShapeError: values is not a matrix.
      PayloadError: values is neither int8 nor float32, or holds NaN.
    """
    if values.ndim != 2:
        raise ShapeError(f"values must have shape [rows, count], got {list(values.shape)}")
    if values.dtype == np.float32 and np.isnan(values).any():
        raise PayloadError("values must not hold NaN: it has no sign")
    if values.dtype not in (np.int8, np.float32):
        raise PayloadError(f"values must be int8 or float32, got {values.dtype}")
    pack = _native.kernels.pack_int8 if values.dtype == np.int8 else _native.kernels.pack_float
    words = np.empty((values.shape[0], words_for(values.shape[1])), np.uint64)
    isa = isa_selected()
    for row, packed in zip(np.ascontiguousarray(values), words, strict=True):
        pack(isa, row, packed)
    return words


def unpack_signs(words: NDArray[np.uint64], count: int) -> NDArray[np.int8]:
    """Give the ``count`` signs of each row, int8 [rows, count] of +1 and -1, of uint64 [rows, words_for(count)].

    Raises:
      ShapeError: the rows do not hold words_for(count) words.
    """
    if words.ndim != 2 or words.shape[1] != words_for(count):
        raise ShapeError(f"words must have shape [rows, {words_for(count)}] for {count} signs, got {list(words.shape)}")
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=count, bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)
