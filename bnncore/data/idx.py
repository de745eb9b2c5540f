"""The idx layout: the files that MNIST is published in, and the folders that our own shards are written as.

A folder holds, for each split (``train`` or ``t10k``, the test split), ``<split>-images-idx<d>-ubyte`` with d-1
dimensions a sample and ``<split>-labels-idx1-ubyte``, each as it is or with ``.gz``. An optional ``classes.json``,
a list of names in the order of the label numbers, names the classes; without it they are "0", "1", ... An optional
``<split>-groups-idx1-ubyte`` says which group (a person, a device) a sample comes from, and an optional
``description.json``, an object, what its numbers mean.

A file is 2 zero bytes, the type (8 = uint8), the number of dimensions d, d big-endian uint32 sizes, then the bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnncore.data.cache import inflate_to_cache
from bnncore.data.dataset import Dataset, RowSource
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["Split", "find_images", "open_idx", "read_header", "write_idx", "write_idx_parts"]

Split = Literal["train", "test"]
_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_UINT8 = 8


def find_images(folder: Path, split: Split) -> Path | None:
    """Find the images file of a split; a file that is not compressed is preferred."""
    for suffix in ("", ".gz"):
        for dimensions in range(2, 10):
            path = folder / f"{_PREFIX[split]}-images-idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def open_idx(folder: Path, *, split: Split, name: str = "idx", num_classes: int | None = None) -> Dataset:
    """Open one split of an idx folder.

    Args:
      folder: holds the files named above.
      split: which one.
      name: what the data set is called.
      num_classes: classes when there is no ``classes.json``; None: the highest label of both splits plus one.

    Raises:
      DataError: a file is missing, cut, or no idx file; counts disagree; a label has no class; nothing is in it.
    """
    images = find_images(folder, split)
    if images is None:
        wanted = f"{_PREFIX[split]}-images-idx*-ubyte[.gz]"
        raise DataError(f"no {split} images in {folder}: looked for {wanted}. Check --data")
    raw = inflate_to_cache(images, read_header) if images.suffix == ".gz" else images
    with _reading(images), open(raw, "rb") as file:
        shape = read_header(file, images)
        offset, size = file.tell(), raw.stat().st_size
    if len(shape) < 2:
        raise DataError(f"{images} must hold images (2 dimensions or more), got {len(shape)}")
    if size != offset + math.prod(shape):
        raise DataError(
            f"{images} must have {offset + math.prod(shape)} bytes for samples of {' x '.join(map(str, shape))}, "
            f"got {size}. Is the file complete? Copy or download it again"
        )
    labels = _read_numbers(folder, split, "labels")
    if labels is None:
        wanted = f"{_PREFIX[split]}-labels-idx1-ubyte[.gz]"
        raise DataError(f"no {split} labels in {folder}: looked for {wanted} beside {images.name}")
    if len(labels) != shape[0]:
        raise DataError(f"{folder} must hold one {split} label a sample, got {len(labels)} for {shape[0]} samples")
    classes = _read_classes(folder) or _number_classes(folder, num_classes)
    if int(labels.max()) >= len(classes):
        position = int(np.argmax(labels >= len(classes)))
        raise DataError(
            f"labels in {folder} must be below {len(classes)} (its number of classes), "
            f"got {labels[position]} at position {position} of the {split} labels"
        )
    groups = _read_numbers(folder, split, "groups")
    if groups is not None and len(groups) != shape[0]:
        raise DataError(f"{folder} must hold one {split} group a sample, got {len(groups)} for {shape[0]} samples")
    rows = RowSource(raw, offset, math.prod(shape[1:]), shape[0])
    description = _read_description(folder)
    return Dataset(name, rows, labels, classes=classes, input_shape=shape[1:], groups=groups, description=description)


def read_header(file: BufferedIOBase, path: Path) -> tuple[int, ...]:
    """Read the head of an idx file and leave the file at its first sample.

    Returns:
      The shape: the number of samples, then the shape of one.

    Raises:
      DataError: this is no idx file of uint8, or it has no sample.
    """
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UINT8 or not 1 <= magic[3] <= 9:
        raise DataError(
            f"{path} must be an idx file of uint8 (first bytes 00 00 08 0d), got {magic.hex(' ') or 'nothing'}"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path} ends inside its header. Is the file complete?")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if math.prod(shape) == 0:
        raise DataError(f"{path} holds no sample: its sizes are {' x '.join(map(str, shape))}")
    return shape


def _read_numbers(folder: Path, split: Split, what: Literal["labels", "groups"]) -> NDArray[np.uint8] | None:
    """Read one number a sample: uint8 [n]; None when there is no such file."""
    names = [f"{_PREFIX[split]}-{what}-idx1-ubyte{suffix}" for suffix in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    with _reading(path), gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        shape = read_header(file, path)
        if len(shape) != 1:
            raise DataError(f"{path} must hold {what} (1 dimension), got {len(shape)}")
        data = file.read(shape[0] + 1)
    if len(data) != shape[0]:
        got = "more" if len(data) > shape[0] else str(len(data))
        raise DataError(f"{path} must have {shape[0]} bytes after its header, got {got}. Is the file complete?")
    return np.frombuffer(data, np.uint8)


def _number_classes(folder: Path, count: int | None) -> tuple[str, ...]:
    """Name the classes "0", "1", ...; without a count, up to the highest label of either split."""
    if count is None:
        splits = [_read_numbers(folder, split, "labels") for split in _PREFIX]
        count = 1 + max(int(labels.max()) for labels in splits if labels is not None)
    return tuple(str(number) for number in range(count))


def _read_classes(folder: Path) -> tuple[str, ...] | None:
    path = folder / "classes.json"
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    valid = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not valid or not 1 <= len(set(names)) == len(names) <= 256:
        raise DataError(f"{path} must be a JSON list of 1 to 256 different class names, got {names!r:.200}")
    return tuple(names)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "description.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise DataError(f"{path} must be a JSON object, got {description!r:.200}")
    return description


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Is the file complete?") from error


def write_idx(
    folder: Path,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    split: Split,
    *,
    classes: Sequence[str] | None = None,
) -> None:
    """Write one split as an idx folder.

    Args:
      folder: made when it is missing.
      images: uint8 [n, ...], n >= 1.
      labels: integers in [0, 255], [n].
      split: which one.
      classes: names for ``classes.json``, shared by both splits; None: none is written.

    Raises:
      DataError: the counts differ, nothing is given, or a dtype is not as above.
      OSError: the folder cannot be written.
    """
    if images.dtype != np.uint8 or images.ndim < 2 or not images.size or len(images) != len(labels):
        raise DataError(
            f"images must be uint8 [n, ...] and labels [n] with n >= 1, "
            f"got {images.dtype} {list(images.shape)} and {list(labels.shape)}"
        )
    part = (images, labels.astype(np.uint8))
    write_idx_parts(folder, [part], split, shape=images.shape, classes=classes)


def write_idx_parts(
    folder: Path,
    parts: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    split: Split,
    *,
    shape: tuple[int, ...],
    classes: Sequence[str] | None = None,
    groups: NDArray[np.uint8] | None = None,
    description: dict[str, Any] | None = None,
) -> None:
    """Write one split as an idx folder, part by part, so that it need not fit in memory.

    Args:
      folder: made when it is missing.
      parts: uint8 samples [m, ...] and their labels [m]; the sum of the m is n.
      split: which one.
      shape: of all samples: (n, ...).
      classes: names for ``classes.json``, shared by both splits; None: none is written.
      groups: which group each sample comes from, uint8 [n]; None: none is written.
      description: for ``description.json``, shared by both splits; None: none is written.

    Raises:
      DataError: the parts do not add up to the shape.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("classes", classes and list(classes)), ("description", description)):
        if value is not None:
            with replace_file(folder / f"{name}.json") as file:
                file.write(json.dumps(value, ensure_ascii=False).encode())
    if groups is not None:
        _write_numbers(folder / f"{_PREFIX[split]}-groups-idx1-ubyte", groups)
    all_labels: list[NDArray[np.uint8]] = []
    # The images appear last, so that a reader who finds them finds the rest.
    with replace_file(folder / f"{_PREFIX[split]}-images-idx{len(shape)}-ubyte") as file:
        file.write(_header(shape))
        for images, labels in parts:
            if images.shape != (len(labels), *shape[1:]):
                raise DataError(f"a part must have samples of {list(shape[1:])}, one a label, got {list(images.shape)}")
            file.write(np.ascontiguousarray(images).data)
            all_labels.append(labels)
            del images  # before the next part is made
        if (count := sum(map(len, all_labels))) != shape[0]:
            raise DataError(f"the parts must have {shape[0]} samples together, got {count}")
        _write_numbers(folder / f"{_PREFIX[split]}-labels-idx1-ubyte", np.concatenate(all_labels))


def _write_numbers(path: Path, numbers: NDArray[np.uint8]) -> None:
    with replace_file(path) as file:
        file.write(_header(numbers.shape))
        file.write(np.ascontiguousarray(numbers).data)


def _header(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, _UINT8, len(shape), *shape)
