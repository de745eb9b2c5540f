"""Data set ``mnist``: 70 000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges, 1998)."""

from __future__ import annotations

from pathlib import Path

from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split, find_images, open_idx
from bnncore.errors import DataError

__all__ = ["mnist_folder", "open_mnist"]

_SHAPE = (28, 28)
_CLASSES = 10


def mnist_folder(root: Path, split: Split) -> Path | None:
    """Find the files below a data folder: in ``mnist/``, in torchvision's ``MNIST/raw/``, or in the folder itself."""
    folders = (root / "mnist", root / "MNIST" / "raw", root)
    return next((folder for folder in folders if find_images(folder, split)), None)


def open_mnist(root: Path, *, split: Split) -> Dataset:
    """Open one split of MNIST.

    Args:
      root: the data folder.
      split: ``train`` (60 000 examples) or ``test`` (10 000); a device's shard may have fewer.

    Raises:
      DataError: the files are not there, are damaged, or do not hold 28 x 28 images.
    """
    folder = mnist_folder(root, split)
    if folder is None:
        prefix = "train" if split == "train" else "t10k"
        raise DataError(
            f"no MNIST ({split}) in {root}: looked for {prefix}-images-idx3-ubyte[.gz] in {root / 'mnist'}, "
            f"{root / 'MNIST' / 'raw'} and {root}. Give --data DIR, or fetch it there with --download"
        )
    dataset = open_idx(folder, split=split, name="mnist", num_classes=_CLASSES)
    if dataset.input_shape != _SHAPE:
        dataset.close()
        raise DataError(
            f"MNIST has images of 28 x 28, those in {folder} are {list(dataset.input_shape)}; try --dataset idx"
        )
    return dataset
