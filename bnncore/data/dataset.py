"""Dataset: labelled samples whose rows stay on the disk.

Labels (one byte each) are in memory; samples are read row by row with pread into the caller's buffer when a batch is
made, so a data set of any size costs the same memory.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.data.row_keys import row_keys
from bnncore.engine import read_rows
from bnncore.errors import DataError

__all__ = ["Broken", "Dataset", "RowSource"]


@dataclass(frozen=True)
class RowSource:
    """Where rows of equal length lie in a file.

    Attributes:
      path: the file.
      offset: byte at which row 0 starts.
      row_bytes: bytes of one row.
      count: rows.
    """

    path: Path
    offset: int
    row_bytes: int
    count: int


@dataclass(frozen=True)
class Broken:
    """What a data set was left without, since it could not be read.

    Attributes:
      count: samples.
      reasons: why, of the first of them.
    """

    count: int = 0
    reasons: tuple[str, ...] = ()

    MOST_REASONS = 20

    def with_one(self, reason: str) -> Broken:
        """Count one more."""
        return Broken(self.count + 1, (*self.reasons, reason)[: self.MOST_REASONS])


class Dataset:
    """Samples of one split, with their labels and the names of the classes.

    Holds one open file; close it, or use it in a ``with`` block.

    Attributes:
      name: what the data set is called ("mnist").
      rows: where the samples lie.
      labels: uint8 [num_examples], each below ``len(classes)``.
      classes: class names in the order of the label numbers.
      input_shape: shape of one sample; its product is ``rows.row_bytes``.
      groups: which group each sample comes from (the person who wore the sensor), uint8 [num_examples], for splits
        that keep a group together; None: the data set does not say.
      description: what the numbers mean, as its files say; empty: uint8 as they are.
      broken: samples that it was left without.
    """

    def __init__(
        self,
        name: str,
        rows: RowSource,
        labels: NDArray[np.uint8],
        *,
        classes: tuple[str, ...],
        input_shape: tuple[int, ...],
        groups: NDArray[np.uint8] | None = None,
        description: dict[str, Any] | None = None,
        order: NDArray[np.uint32] | None = None,
        keys: NDArray[np.uint64] | None = None,
        broken: Broken = Broken(),
        file: int | None = None,
    ) -> None:
        self.name = name
        self.rows = rows
        self.labels = labels
        self.classes = classes
        self.input_shape = input_shape
        self.groups = groups
        self.description = description or {}
        self.broken = broken
        self._keys = keys  # of each example; None: its content is hashed
        self._order = order  # row of each example; None: example i is row i
        if file is not None:
            self._file = file
            return
        try:
            self._file = os.open(rows.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"the samples cannot be read: {error}") from error

    @property
    def num_examples(self) -> int:
        """Samples in this data set."""
        return len(self.labels)

    def read(self, indices: NDArray[np.uint32], out: NDArray[np.uint8]) -> None:
        """Read samples from the disk into ``out``.

        Args:
          indices: uint32 [n], each below ``num_examples``.
          out: uint8 [n, row_bytes], C-contiguous, overwritten.

        Raises:
          DataError: the file ends before a row does.

        Memory: 4 n bytes for a subset, otherwise nothing.
        """
        rows = indices if self._order is None else self._order[indices]
        read_rows(self._file, self.rows.offset, self.rows.row_bytes, rows, out)

    def keys(self) -> NDArray[np.uint64]:
        """Give what names each sample for good, whatever is added, taken away or put elsewhere: uint64 [num_examples].

        It is a hash of its name where it has one, of its content otherwise: equal samples have equal keys then.

        Raises:
          DataError: the samples cannot be read.
        """
        if self._keys is None:
            rows = self.rows
            keys = row_keys(rows.path, self._file, rows.offset, rows.row_bytes, rows.count)
            self._keys = keys if self._order is None else keys[self._order]
        return self._keys

    def subset(self, indices: NDArray[Any]) -> Dataset:
        """Give a data set of some of the samples, in the given order; the open file is shared, not copied.

        Args:
          indices: integers [n], each below ``num_examples``.
        """
        chosen = indices.astype(np.uint32)
        order = chosen if self._order is None else self._order[chosen]
        return Dataset(
            self.name,
            self.rows,
            self.labels[chosen],
            classes=self.classes,
            input_shape=self.input_shape,
            groups=None if self.groups is None else self.groups[chosen],
            description=self.description,
            order=order,
            keys=None if self._keys is None else self._keys[chosen],
            broken=self.broken,
            file=os.dup(self._file),  # the same samples, whatever has taken the file's name meanwhile
        )

    def shaped(self, input_shape: tuple[int, ...]) -> Dataset:
        """Give each sample another shape of as many numbers; returns this data set."""
        if math.prod(input_shape) != self.rows.row_bytes:
            raise DataError(f"samples of shape {list(self.input_shape)} cannot have shape {list(input_shape)}")
        self.input_shape = input_shape
        return self

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
