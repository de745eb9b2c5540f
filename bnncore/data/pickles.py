"""Reading the pickles that CIFAR-10 is published as, without running anything that they name.

A pickle can name any function of any module and have it called. This reader knows three names, those in which NumPy
writes an array, and gives stand-ins for them that hold bytes and do nothing; any other name is refused.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import DataError

__all__ = ["read_pickle"]


def read_pickle(file: BinaryIO, source: Path) -> dict[str, Any]:
    """Read a dictionary of integers, byte strings, lists of them, and uint8 arrays.

    Args:
      file: the pickle, protocol 2 or earlier as Python 2 wrote it.
      source: where it comes from, for messages.

    Returns:
      The dictionary; its keys as text, its arrays as uint8 arrays, which cannot be written to.

    Raises:
      DataError: it names anything but what an array is made of, is damaged, or holds no dictionary.
    """
    try:
        content = _Reader(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{source} cannot be read: {error}. Download it again") from error
    if not isinstance(content, dict) or not all(isinstance(key, bytes) for key in content):
        raise DataError(f"{source} must hold a dictionary, got {type(content).__name__}. Download it again")
    return {
        key.decode("latin-1"): value.array if isinstance(value, _Array) else value for key, value in content.items()
    }


class _Type:
    """Stands for ``numpy.dtype``: only uint8 is let through."""

    def __init__(self, code: bytes, *flags: int) -> None:
        if code != b"u1":
            raise DataError(f"an array must be of uint8 ('u1'), got {code!r}")

    def __setstate__(self, state: Any) -> None:  # byte order and the like, of no meaning for bytes
        pass


class _Array:
    """Stands for a ``numpy.ndarray``."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes) or len(data) != math.prod(shape):
            raise DataError(f"an array of shape {shape} must have one byte for each number")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


def _make_array(kind: object, shape: object, code: object) -> _Array:
    return _Array()


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy", "ndarray"): object(),  # only an argument of the above, never called
    ("numpy", "dtype"): _Type,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is None:
            raise DataError(f"it names {module_name}.{global_name}, which a data set has no use for")
        return known
