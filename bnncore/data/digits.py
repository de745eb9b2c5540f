"""Data set ``digits``: 1797 handwritten digits of 8 x 8 pixels, in the CSV inside every scikit-learn.

The file is found without importing scikit-learn, whose import alone costs over 100 MiB. It is turned once into an idx
folder in the cache. Pixels of 0..16 become 0..255; a fixed shuffle puts the last 20 % into the test split.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import random
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnncore.data.cache import cache_error, cached
from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split, find_images, open_idx, write_idx
from bnncore.data.partition import shuffled
from bnncore.errors import DataError

__all__ = ["open_digits"]

FILE_NAME = "digits.csv.gz"
_PIXELS = 64
_CLASSES = 10


def open_digits(root: Path | None, *, split: Split) -> Dataset:
    """Open one split of the digits.

    Args:
      root: a folder that holds ``digits.csv.gz``; None: the installed scikit-learn's.
      split: ``train`` (1438 examples) or ``test`` (359).

    Raises:
      DataError: scikit-learn is not installed, or the file is not as expected.
    """
    source = _installed_file() if root is None else root / FILE_NAME
    if not source.is_file():
        raise DataError(f"{source} does not exist. Leave --data out to use the copy inside an installed scikit-learn")
    folder = cached(source)
    if find_images(folder, "test") is None:  # written last
        try:
            _prepare(source, folder)
        except OSError as error:
            raise cache_error(source, error) from error
    return open_idx(folder, split=split, name="digits", num_classes=_CLASSES)


def _installed_file() -> Path:
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "data set 'digits' is a file inside scikit-learn, which is not installed here. "
            "Install it with: pip install 'bitfleet[server]'"
        )
    return Path(package.submodule_search_locations[0], "datasets", "data", FILE_NAME)


def _prepare(source: Path, folder: Path) -> None:
    """Write both splits into a folder; ``cached`` named it, so a half-made one is made again under the same name."""
    try:
        with gzip.open(source, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be read: {error}. Is scikit-learn installed completely?") from error
    values, labels = table[:, :-1], table[:, -1]
    if (
        table.shape[1] != _PIXELS + 1
        or values.min() < 0
        or values.max() > 16
        or not set(labels) <= set(range(_CLASSES))
    ):
        raise DataError(f"{source} must have 64 numbers in 0..16 and a label in 0..9 a row. Was it altered?")
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    order = shuffled(len(images), random.Random(0))
    num_test = len(images) // 5
    os.makedirs(folder, exist_ok=True)
    parts: dict[Split, NDArray[np.uint32]] = {"train": order[:-num_test], "test": order[-num_test:]}
    for split, chosen in parts.items():
        write_idx(folder, images[chosen], labels[chosen], split)
