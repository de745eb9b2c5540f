"""What names a sample for good where nothing else does: its content, hashed once a file and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnncore.data.cache import cached_set
from bnncore.durable import replace_file
from bnncore.engine import read_rows
from bnncore.errors import DataError

__all__ = ["key_of", "row_keys"]

_BLOCK_BYTES = 1 << 20


def key_of(content: bytes | memoryview) -> int:
    """Hash what a sample is or is called: BLAKE2b (RFC 7693), 8 bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def row_keys(path: Path, file: int, offset: int, row_bytes: int, count: int) -> NDArray[np.uint64]:
    """Hash the rows of a file, or read what was found the last time.

    Args:
      path: its name, which may be gone.
      file: the open file.
      offset: byte of row 0.
      row_bytes: of one row.
      count: rows.

    Returns:
      uint64 [count].

    Raises:
      DataError: a row cannot be read.

    Memory: 8 bytes a row, and a megabyte.
    """
    kept = None
    with contextlib.suppress(DataError):  # where nothing can be kept it is worked out each time
        kept = cached_set(f"{path.name}-keys", [path])
    if kept is not None and kept.is_file() and kept.stat().st_size == 8 * count:
        return np.fromfile(kept, np.uint64)
    keys = np.empty(count, np.uint64)
    at_once = max(1, _BLOCK_BYTES // row_bytes)
    block = np.empty((min(at_once, count), row_bytes), np.uint8)
    for first in range(0, count, at_once):
        rows = np.arange(first, min(first + at_once, count), dtype=np.uint32)
        read_rows(file, offset, row_bytes, rows, block)
        for row in rows:
            keys[row] = key_of(block[row - first].data)
    if kept is not None:
        with contextlib.suppress(OSError), replace_file(kept) as target:
            target.write(keys.data)
    return keys
