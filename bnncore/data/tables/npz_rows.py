"""Reading NPZ as ``numpy.savez`` writes it: ``x`` [n, ...], ``y`` [n] and, if there are names, ``classes``.

The arrays are streamed out of the file block by block; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bnncore.data.tables.rows import Rows, Table, rows_at_once
from bnncore.errors import DataError

__all__ = ["read_npz"]

_MOST_CLASSES = 256
_MAX_LABEL_BYTES = 1 << 10
_READ_ERRORS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def read_npz(path: Path) -> Table:
    """Read an NPZ file.

    Raises:
      DataError: it cannot be read, or does not hold numbers ``x`` and as many labels ``y``.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        missing = [name for name in ("x", "y") if f"{name}.npy" not in archive.namelist()]
        if missing:
            have = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise DataError(f"{path} must hold x [n, ...] and y [n], got {have or 'nothing':.200}")
        with archive.open("x.npy") as x, archive.open("y.npy") as y:
            shape, dtype = _head(x, path, "x", "fiub")
            num_labels, _ = _head(y, path, "y", "iubUS")
        names = _names(archive, path)
    if len(shape) < 2 or not math.prod(shape) or num_labels != shape[:1]:
        raise DataError(
            f"{path} must hold x [n, ...] and y [n] with n >= 1, got x {list(shape)} and y {list(num_labels)}"
        )
    return Table((), shape[1:], _blocks(path, shape, dtype, names))


def _blocks(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], names: list[str]) -> Iterator[Rows]:
    num_columns = math.prod(shape[1:])
    at_once = rows_at_once(num_columns)
    with (
        _reading(path),
        zipfile.ZipFile(path) as archive,
        archive.open("x.npy") as x,
        archive.open("y.npy") as y,
    ):
        _head(x, path, "x", "fiub")
        _, label_dtype = _head(y, path, "y", "iubUS")
        for first in range(0, shape[0], at_once):
            count = min(at_once, shape[0] - first)
            values = _read(x, dtype, count * num_columns, path).astype(np.float64).reshape(count, num_columns)
            labels = [_name(label, names, path) for label in _read(y, label_dtype, count, path).tolist()]
            yield Rows(values, labels, [f"row {first + row} of x" for row in range(count)])


def _head(file: IO[bytes], path: Path, name: str, kinds: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Read an array's head; its bytes follow."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{path}: {name} is of format {version[0]}.{version[1]}, where 1.0 and 2.0 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_column_major, dtype = read(file)
    if dtype.kind not in kinds or dtype.hasobject or dtype.itemsize > _MAX_LABEL_BYTES:
        wanted = "numbers" if name == "x" else "whole numbers or short texts"
        raise DataError(f"{path}: {name} must hold {wanted}, got dtype {dtype}")
    if is_column_major and len(shape) > 1:
        raise DataError(f"{path}: {name} lies in columns; save numpy.ascontiguousarray({name})")
    return shape, dtype


def _read(file: IO[bytes], dtype: np.dtype[np.generic], count: int, path: Path) -> NDArray[np.generic]:
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise DataError(f"{path} is cut: an array ends before its last row. Is the file complete?")
    return np.frombuffer(data, dtype)


def _names(archive: zipfile.ZipFile, path: Path) -> list[str]:
    if "classes.npy" not in archive.namelist():
        return []
    with archive.open("classes.npy") as file:
        shape, dtype = _head(file, path, "classes", "US")
        if len(shape) != 1 or not 1 <= shape[0] <= _MOST_CLASSES:
            raise DataError(f"{path}: classes must be 1 to {_MOST_CLASSES} names, got {list(shape)}")
        return [_name(name, [], path) for name in _read(file, dtype, shape[0], path).tolist()]


def _name(label: object, names: list[str], path: Path) -> str:
    if isinstance(label, bytes):
        return label.decode(errors="replace")
    if names and isinstance(label, int):
        if not 0 <= label < len(names):
            raise DataError(f"{path}: y must be in [0, {len(names) - 1}], as classes has {len(names)}, got {label}")
        return names[label]
    return str(label)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {error}. Is it an NPZ file, and complete?") from error
