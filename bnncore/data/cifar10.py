"""Data set ``cifar10``: 60 000 colour photographs of 32 x 32 pixels in ten classes (Krizhevsky, 2009).

Read from the publisher's Python files, as they are or with ``.xz``. They are pickles, so each is read only when it has
the publisher's checksum, and then by a reader that runs nothing. A preparation process turns them once into rows of
[32, 32, 3] in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split, open_idx, write_idx_parts
from bnncore.data.preparation import prepared
from bnncore.errors import DataError

__all__ = ["CIFAR10_MD5", "cifar10_files", "open_cifar10", "prepare_cifar10"]

FOLDER_NAME = "cifar-10-batches-py"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""The publisher's files, with the checksum of each."""

_META = "batches.meta"
_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
_BATCH_ROWS = 10_000
_MAX_FILE_BYTES = 1 << 25  # a batch has 31,035,704 bytes or a few less


def cifar10_files(root: Path, split: Split) -> dict[str, Path]:
    """Find the files of one split below a data folder.

    Looks in ``cifar10/cifar-10-batches-py``, in ``cifar-10-batches-py`` (torchvision's place) and in the folder itself,
    for each file as it is and with ``.xz``.

    Returns:
      Their paths by the publisher's names; the class names' file is last.

    Raises:
      DataError: no folder has them all; the message says what was looked for and what is missing.
    """
    wanted = (*_BATCHES[split], _META)
    folders = (root / "cifar10" / FOLDER_NAME, root / FOLDER_NAME, root)
    incomplete = ""
    for folder in folders:
        found = {
            name: path for name in wanted for path in (folder / f"{name}.xz", folder / name) if path.is_file()
        }  # the plain file wins
        if len(found) == len(wanted):
            return found
        if found and not incomplete:
            lacking = ", ".join(name for name in wanted if name not in found)
            incomplete = f" ({folder} has some, but lacks {lacking})"
    raise DataError(
        f"no CIFAR-10 ({split}) in {root}: looked for {', '.join(wanted)}, each as it is or with .xz, "
        f"in {', '.join(map(str, folders))}{incomplete}. Give --data DIR, or fetch it there with --download"
    )


def open_cifar10(root: Path, *, split: Split) -> Dataset:
    """Open one split of CIFAR-10; the first time, a process of its own prepares it.

    Args:
      root: the data folder.
      split: ``train`` (50 000 examples of [32, 32, 3]) or ``test`` (10 000).

    Raises:
      DataError: files are missing, damaged, or not the publisher's; or the cache cannot be written.
    """
    files = cifar10_files(root, split)
    return open_idx(prepared("cifar10", split, root, list(files.values())), split=split, name="cifar10")


def prepare_cifar10(root: Path, split: Split, folder: Path) -> None:
    """Write one split as an idx folder (in the preparation process).

    Raises:
      DataError: files are missing, damaged, or not the publisher's.
      OSError: the folder cannot be written.

    Memory: an xz decoder (65 MiB), then a batch twice (60 MiB), one after the other.
    """
    files = cifar10_files(root, split)
    classes = _read_classes(files.pop(_META))
    shape = (_BATCH_ROWS * len(files), 32, 32, 3)
    write_idx_parts(folder, _parts(files, len(classes)), split, shape=shape, classes=classes)


def _parts(files: dict[str, Path], num_classes: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    for name, path in files.items():
        yield read_batch(path, CIFAR10_MD5[name], num_classes)


def read_batch(path: Path, md5: str, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one batch file.

    Returns:
      Images, uint8 [n, 32, 32, 3], and labels, uint8 [n].

    Raises:
      DataError: the file is damaged, has another checksum, or holds something else.
    """
    # Only the preparation process comes here: the training process does without lzma and pickle.
    from bnncore.data.pickles import read_pickle
    from bnncore.data.unpacking import unpacked

    with unpacked(path, max_bytes=_MAX_FILE_BYTES, md5=md5) as file:
        content = read_pickle(file, path)
    planes, labels = content.get("data"), content.get("labels")
    if not isinstance(planes, np.ndarray) or planes.ndim != 2 or planes.shape[1] != 3 * 32 * 32:
        shape = list(planes.shape) if isinstance(planes, np.ndarray) else type(planes).__name__
        raise DataError(f"{path} must hold images as uint8 [n, 3072] under 'data', got {shape}")
    valid = isinstance(labels, list) and all(isinstance(label, int) and 0 <= label < num_classes for label in labels)
    if not isinstance(labels, list) or not valid or len(labels) != len(planes):
        raise DataError(f"{path} must hold a label below {num_classes} for each of its {len(planes)} images")
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.uint8)


def _read_classes(path: Path) -> list[str]:
    from bnncore.data.pickles import read_pickle
    from bnncore.data.unpacking import unpacked

    with unpacked(path, max_bytes=_MAX_FILE_BYTES, md5=CIFAR10_MD5[_META]) as file:
        names = read_pickle(file, path).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path} must hold a list of class names under 'label_names'")
    return [name.decode() for name in names]
