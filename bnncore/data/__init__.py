"""Data sets: opened by name, streamed from the disk, split over devices.

``open_dataset`` is the door. A new data set is one file beside this one with an ``open_<name>`` function and one row
in ``DATASETS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bnncore.data.cifar10 import cifar10_files, open_cifar10
from bnncore.data.dataset import Dataset, RowSource
from bnncore.data.digits import FILE_NAME as DIGITS_FILE
from bnncore.data.digits import open_digits
from bnncore.data.har import har_files, open_har
from bnncore.data.idx import Split, find_images, open_idx, write_idx
from bnncore.data.images import DEFAULT_IMAGE_SHAPE, image_files, open_images
from bnncore.data.mnist import mnist_folder, open_mnist
from bnncore.data.partition import dirichlet_shards
from bnncore.errors import DataError

__all__ = ["DATASETS", "Dataset", "RowSource", "Split", "dirichlet_shards", "open_dataset", "write_idx"]


def open_dataset(
    name: str | None, root: Path | None, *, split: Split, image_shape: tuple[int, ...] | None = None
) -> Dataset:
    """Open one split of a data set.

    Args:
      name: a key of ``DATASETS``; None: whatever is found in ``root``.
      root: the data folder; None: the environment variable BITFLEET_DATA (``digits`` does without).
      split: ``train`` or ``test``.
      image_shape: height, width and channels that the pictures of ``images`` are brought to; None: 32, 32, 3.

    Raises:
      DataError: the name is unknown, no folder was given, or the files are missing or damaged; the message says what
        was looked for and what to do.
    """
    if name is not None and name not in DATASETS:
        raise DataError(f"data set must be one of {sorted(DATASETS)}, got {name!r}")
    if root is None and name != "digits":
        root = _default_root(name)
    if root is None:
        return open_digits(None, split=split)
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist (seen from {Path.cwd()}). Check --data")
    name = name or _detect(root)
    if name == "images":
        return open_images(root, split=split, image_shape=image_shape or DEFAULT_IMAGE_SHAPE)
    if image_shape is not None:
        raise DataError(f"--image-shape belongs to data set 'images', got {name!r}. Leave it out")
    return DATASETS[name](root, split)


def _default_root(name: str | None) -> Path:
    root = os.environ.get("BITFLEET_DATA")
    if not root:
        raise DataError(
            f"data set {name!r} needs a data folder: give --data DIR or set the environment variable BITFLEET_DATA"
            if name
            else "a data set is needed: give its name with --dataset, or its folder with --data"
        )
    return Path(root)


def _detect(root: Path) -> str:
    """Tell which data set lies in a folder: a split of either kind is enough."""
    splits: tuple[Split, ...] = ("train", "test")
    if any(find_images(root, split) for split in splits):
        return "idx"
    if any(mnist_folder(root, split) for split in splits):
        return "mnist"
    if any(_has(cifar10_files, root, split) for split in splits):
        return "cifar10"
    if any(_has(har_files, root, split) for split in splits):
        return "har"
    if (root / DIGITS_FILE).is_file():
        return "digits"
    if any(_has(image_files, root, split) for split in splits):
        return "images"
    raise DataError(
        f"no data set in {root}: looked for idx files (train-images-idx3-ubyte[.gz]) there, in mnist/ and in "
        f"MNIST/raw/, for cifar-10-batches-py/ there and in cifar10/, for UCI HAR Dataset/ there and in har/, "
        f"for {DIGITS_FILE}, and for pictures in train/<class>/ or <class>/. "
        "Check --data, or name the data set with --dataset"
    )


def _has(find: Callable[[Path, Split], object], root: Path, split: Split) -> bool:
    try:
        find(root, split)
    except DataError:
        return False
    return True


def _with_root(opener: Callable[..., Dataset]) -> Callable[[Path | None, Split], Dataset]:
    return lambda root, split: opener(root, split=split)


DATASETS: dict[str, Callable[[Path | None, Split], Dataset]] = {
    "cifar10": _with_root(open_cifar10),
    "digits": _with_root(open_digits),
    "har": _with_root(open_har),
    "idx": _with_root(open_idx),
    "images": _with_root(open_images),
    "mnist": _with_root(open_mnist),
}
"""Openers by name."""
