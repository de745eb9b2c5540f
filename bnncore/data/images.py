"""Data set ``images``: your own pictures, one folder a class, laid out as ``image_folder`` says.

A preparation process turns each once into a sample of the wanted shape in the cache: turned upright as the camera
noted, shrunk or enlarged until it just covers the shape, the middle cut out. It needs Pillow, training does not. A
picture that cannot be read is left out and counted (``Dataset.broken``): one broken file among thousands stops nothing.
One that is only half written is such a one, until its size or time changes: it is read again then.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnncore.data.cache import cache_folder
from bnncore.data.dataset import Broken, Dataset
from bnncore.data.idx import Split
from bnncore.data.image_folder import ImageClass, find_image_classes, folder_signature
from bnncore.data.image_reader import check_pillow, read_image
from bnncore.data.image_store import ImageStore, opened_store
from bnncore.data.preparation import prepare
from bnncore.data.row_keys import key_of
from bnncore.data.view import View, is_whole, open_view, tell_broken, write_view
from bnncore.errors import DataError

__all__ = ["DEFAULT_IMAGE_SHAPE", "image_shape_of", "open_images", "prepare_images", "survey_images"]

DEFAULT_IMAGE_SHAPE = (32, 32, 3)
"""Height, width and channels, as in CIFAR-10."""

_MAX_SIDE = 4096
_PART_BYTES = 1 << 20
_VIEWS_KEPT = 4
_SHAPES_KEPT = 8
"""Of one folder: each takes its own part of the disk."""


def open_images(root: Path, *, split: Split, image_shape: tuple[int, ...] = DEFAULT_IMAGE_SHAPE) -> Dataset:
    """Open one split of a folder of pictures; a process of its own prepares those that are new.

    Args:
      root: the data folder.
      split: ``train`` or ``test``.
      image_shape: height, width, and 3 channels (red, green, blue; also when left out) or 1 (grey) of the samples.

    Raises:
      DataError: there are no pictures, none can be read, or the cache cannot be written.
    """
    shape = _checked(image_shape)
    store = _store_folder(root, shape)
    dataset = open_view(store / f"{split}-{folder_signature(root, split)}", name="images")
    if dataset is None:
        options = ("x".join(map(str, shape)),)
        dataset = open_view(Path(prepare("images", split, root, store, options=options)), name="images")
    if dataset is None:
        raise DataError(f"the pictures of {root} were prepared in {store} and have gone from there. Try again")
    return tell_broken(dataset, f"pictures ({split})")


def image_shape_of(input_shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Give height, width and channels of pictures as a network reads them; None: it reads no pictures.

    Args:
      input_shape: of the network: [height, width] (grey), or with 1 or 3 channels as well.
    """
    height, width, channels = (*input_shape, 1)[:3] if len(input_shape) in (2, 3) else (0, 0, 0)
    fits = 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE and channels in (1, 3)
    return (height, width, channels) if fits else None


def survey_images(root: Path, split: Split) -> tuple[tuple[str, ...], int]:
    """Count the pictures of one split without reading any; returns the classes and how many pictures they have.

    Raises:
      DataError: there are no pictures, or nothing that could read them.
    """
    classes = find_image_classes(root, split)
    check_pillow()
    return tuple(one.name for one in classes), sum(len(one.files) for one in classes)


def prepare_images(root: Path, split: Split, folder: Path, text: str, *, on_part: Callable[[int, int], None]) -> Path:
    """Bring one split's pictures to samples (in the preparation process).

    Args:
      root: the data folder.
      split: which one.
      folder: of the store.
      text: height, width and channels: "32x32x3".
      on_part: called now and then with (pictures done, pictures to do).

    Returns:
      The view of the split.

    Raises:
      DataError: there are no pictures, or none can be read; the message names the first one.
      OSError: the folder cannot be written.

    Memory: one picture as it is, a megabyte, and some 300 bytes a picture.
    """
    check_pillow()
    shape = _checked(tuple(map(int, text.split("x"))))
    view = folder / f"{split}-{folder_signature(root, split)}"
    classes = find_image_classes(root, split)
    with opened_store(folder, math.prod(shape)) as store:
        _drop_old_shapes(folder)
        if store.drop_dead(_all_names(root)):
            _drop_views(folder, keep=0)  # of rows that lie elsewhere now
        if is_whole(view):  # whoever asked for it first opens it now
            return view
        found = _read_all(root, classes, store, shape, on_part)
        if not found.labels:
            total = sum(len(one.files) for one in classes)
            first = (*found.broken.reasons, "it is gone")[0]
            raise DataError(f"none of the {total} pictures ({split}) in {root} can be read. The first: {first}")
        store.flush()
        _drop_views(folder, keep=_VIEWS_KEPT)
        write_view(
            view,
            View(
                rows=store.rows,
                labels=np.frombuffer(found.labels, np.uint8),
                keys=np.frombuffer(found.keys, np.uint64),
                classes=tuple(one.name for one in classes),
                input_shape=shape,
                order=np.frombuffer(found.rows, np.uint32),
                broken=found.broken,
            ),
        )
    return view


@dataclass
class _Found:
    """The samples of one split."""

    labels: bytearray = field(default_factory=bytearray)
    rows: array[int] = field(default_factory=lambda: array("I"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    broken: Broken = field(default_factory=Broken)


def _read_all(
    root: Path,
    classes: list[ImageClass],
    store: ImageStore,
    shape: tuple[int, int, int],
    on_part: Callable[[int, int], None],
) -> _Found:
    """Find all pictures' rows, reading those that the store does not know."""
    found, real_root = _Found(), root.resolve()
    unknown = store.unknown(
        (_name(root, one, file), _stamp(one.folder / file)) for one in classes for file in one.files
    )
    _check_space(root, store, unknown * math.prod(shape))
    at_once = max(1, _PART_BYTES // math.prod(shape))
    num_read = 0
    for label, one in enumerate(classes):
        for file in one.files:
            path = one.folder / file
            stamp = _stamp(path)
            if stamp is None:  # it went meanwhile
                continue
            row = store.find(_name(root, one, file), stamp)
            if row is None:
                row = store.add(_name(root, one, file), stamp, _sample(path, real_root, shape))
                num_read += 1
                if num_read % at_once == 0:
                    store.flush()
                    on_part(min(num_read, unknown), unknown)
            if isinstance(row, str):
                found.broken = found.broken.with_one(f"{path}: {row}")
                continue
            found.labels.append(label)
            found.rows.append(row)
            found.keys.append(key_of(one.key(file)))
    return found


def _sample(path: Path, root: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8] | str:
    """Read a picture; what keeps it from being read otherwise."""
    if not path.resolve().is_relative_to(root):
        return "it is a link that leads out of the data folder; copy it there"
    try:
        return read_image(path, shape)
    except DataError as error:
        return str(error)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _name(root: Path, one: ImageClass, file: str) -> str:
    return f"{one.folder.relative_to(root)}/{file}"


def _all_names(root: Path) -> set[str]:
    """Name the pictures of both splits."""
    names: set[str] = set()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        with contextlib.suppress(DataError):
            names.update(_name(root, one, file) for one in find_image_classes(root, split) for file in one.files)
    return names


def _check_space(root: Path, store: ImageStore, needed: int) -> None:
    free = shutil.disk_usage(store.rows).free
    if needed > free // 2:
        raise DataError(
            f"the pictures of {root} take {needed >> 20} MiB in this shape, more than half of the "
            f"{free >> 20} MiB that are left in {store.rows.parent}. Free space there, or choose another folder with "
            "the environment variable BITFLEET_CACHE"
        )


def _store_folder(root: Path, shape: tuple[int, int, int]) -> Path:
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_folder() / f"images-{'x'.join(map(str, shape))}-{place}"


def _drop_views(folder: Path, *, keep: int) -> None:
    """Remove views of what the pictures once were, but for the newest."""
    views = sorted(
        (path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns, reverse=True
    )
    for path in views[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _drop_old_shapes(folder: Path) -> None:
    """Remove the stores of the shapes that were not wanted for longest, where jobs have asked for many."""
    place = folder.name.rpartition("-")[2]
    stores = sorted(folder.parent.glob(f"images-*-{place}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in stores[_SHAPES_KEPT:]:
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)


def _checked(shape: tuple[int, ...]) -> tuple[int, int, int]:
    checked = image_shape_of((*shape, 3) if len(shape) == 2 else shape)
    if checked is None:
        raise DataError(
            f"pictures have a height and a width in [1, {_MAX_SIDE}] and 3 channels or 1, got {list(shape)}. "
            "Check --image-shape"
        )
    return checked
