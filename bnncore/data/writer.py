"""Writing samples as they are measured, for a camera or a sensor that runs for years on a small disk.

Samples are gathered into files of data set ``npz``, each of which appears as a whole under a name that counts up. When
all of them take more than they may, the oldest go. So whoever reads the folder sees whole files alone, and an agent
that watches it tells of what has come.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["SampleWriter"]

logger = logging.getLogger(__name__)

_MOST_FILES_WAITING = 10
"""So many files' samples are kept in memory while none can be written."""

_OWN_FILE = re.compile(r"\d{20}\.npz")


class SampleWriter:
    """Adds labelled samples to a folder; use it in a ``with`` block, at whose end the last ones are written.

    Args:
      folder: made when it is missing. Files in it that are not the writer's own are left alone.
      max_bytes: most that its files may take together; None: as much as there is.
      samples_per_file: so many are gathered in memory before they are written; what is gathered is lost when the power
        is cut. While the disk takes nothing ten times as many are kept, and the oldest go first.

    Attributes:
      num_dropped: samples that went because the disk took nothing for too long; the log tells of them too.

    Raises:
      DataError: a number is below 1.
      OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None, samples_per_file: int = 100) -> None:
        if samples_per_file < 1 or (max_bytes is not None and max_bytes < 1):
            raise DataError(
                f"samples_per_file and max_bytes must be at least 1, got {samples_per_file} and {max_bytes}"
            )
        self._folder = folder
        self._max_bytes = max_bytes
        self._samples_per_file = samples_per_file
        self._samples: list[NDArray[Any]] = []
        self._labels: list[str] = []
        self.num_dropped = 0
        self._num_told = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, sample: NDArray[Any], label: str) -> None:
        """Add one sample; it is copied.

        Args:
          sample: numbers of any shape, the same for all.
          label: its class.

        Raises:
          DataError: the sample has another shape or dtype than those before, or is no array of numbers.
          OSError: a file cannot be written; the newest samples are kept, and the next call tries again.
        """
        first = self._samples[0] if self._samples else sample
        if sample.dtype.kind not in "fiub" or not sample.size or not label:
            raise DataError(
                f"a sample must be numbers with a label, got {sample.dtype} {list(sample.shape)}, {label!r}"
            )
        if (sample.shape, sample.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"a sample must be {first.dtype} {list(first.shape)} as those before it, "
                f"got {sample.dtype} {list(sample.shape)}"
            )
        self._samples.append(sample.copy())
        self._labels.append(label)
        if len(self._samples) >= self._samples_per_file:
            try:
                self.flush()
            except OSError as error:
                self._drop_oldest(error)
                raise

    def flush(self) -> None:
        """Write what is gathered, and remove the oldest files while there is too much.

        Raises:
          OSError: a file cannot be written.
        """
        if not self._samples:
            return
        own = self._own_files()
        number = max(time.time_ns(), 1 + int(own[-1].stem) if own else 0)  # counts up when the clock is set back, too
        path = self._folder / f"{number:020d}.npz"
        shape = self._samples[0].shape or (1,)
        with replace_file(path) as file:
            np.savez(file, x=np.stack([one.reshape(shape) for one in self._samples]), y=np.array(self._labels))
        self._samples, self._labels = [], []
        if self.num_dropped > self._num_told:
            lost, self._num_told = self.num_dropped - self._num_told, self.num_dropped
            logger.warning("%s is written to again; %d samples were dropped meanwhile", self._folder, lost)
        self._make_room([*own, path])

    def _drop_oldest(self, error: OSError) -> None:
        """Let those go that are too many to be kept while the disk takes nothing."""
        excess = len(self._samples) - _MOST_FILES_WAITING * self._samples_per_file
        if excess <= 0:
            return
        if self.num_dropped == self._num_told:
            logger.warning("%s cannot be written to, the oldest samples are dropped: %s", self._folder, error)
        del self._samples[:excess], self._labels[:excess]
        self.num_dropped += excess

    def _own_files(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _OWN_FILE.fullmatch(path.name))

    def _make_room(self, files: list[Path]) -> None:
        if self._max_bytes is None:
            return
        sizes = {path: path.stat().st_size for path in files}
        left = sum(sizes.values())
        for path in files[:-1]:  # what has just been measured stays
            if left <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            left -= sizes[path]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()
