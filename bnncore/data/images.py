"""Data set ``images``: your own pictures, one folder a class.

``train/<class>/*.png|jpg|...`` and ``test/<class>/...`` (or ``val`` or ``validation``), as torchvision's ImageFolder
and the Hugging Face image folder have it. Where the class folders lie in the data folder itself, one picture in ten
is the test split, chosen by its name, so that it stays the same one when others are added.

A preparation process turns them once into samples of one shape in the cache: turned upright as the camera noted,
shrunk or enlarged until they just cover it, the middle cut out. It needs Pillow, training does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split, open_idx, write_idx_parts
from bnncore.data.preparation import prepared
from bnncore.errors import DataError

__all__ = ["DEFAULT_IMAGE_SHAPE", "IMAGE_SUFFIXES", "image_files", "open_images", "prepare_images"]

DEFAULT_IMAGE_SHAPE = (32, 32, 3)
"""Height, width and channels, as in CIFAR-10."""
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What counts as a picture, whatever the case; other files are passed over."""

_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val", "validation")}
_MOST_CLASSES = 256
_MAX_SIDE = 4096
_ONE_IN = 10
_PART_BYTES = 1 << 20
_MAX_PIXELS = 1 << 26
"""Of one picture: 64 megapixels take 192 MiB while it is read."""


def image_files(root: Path, split: Split) -> list[tuple[str, list[Path]]]:
    """Find the pictures of one split below a data folder.

    Returns:
      Each class with its pictures, both in the order of their names. Classes of the training split that the test split
      lacks are there, and empty.

    Raises:
      DataError: there are no class folders or no pictures, more than 256 classes, or the test split has a class that
        the training split has not.
    """
    folder = _folder(root, split)
    classes = _class_folders(folder or root)
    if folder is None:
        chosen = [
            (name, [path for path in files if _is_held_out(path) == (split == "test")]) for name, files in classes
        ]
    else:
        chosen = classes
        if split == "test" and (train := _folder(root, "train")) is not None:
            chosen = _in_order_of(_class_folders(train), classes, folder)
    if not any(files for _, files in chosen):
        few = f" of the {sum(len(files) for _, files in classes)} pictures none falls into it;" if classes else ""
        raise DataError(
            f"no pictures for the {split} split in {folder or root}:{few} looked for <class>/* with the suffixes "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}, in {' or '.join(f'{name}/' for name in _FOLDERS[split])} and in the "
            "folder itself. Check --data"
        )
    if len(chosen) > _MOST_CLASSES:
        raise DataError(f"{folder or root} has {len(chosen)} class folders, at most {_MOST_CLASSES} can be told apart")
    return chosen


def open_images(root: Path, *, split: Split, image_shape: tuple[int, ...] = DEFAULT_IMAGE_SHAPE) -> Dataset:
    """Open one split of a folder of pictures; the first time, a process of its own prepares it.

    Args:
      root: the data folder.
      split: ``train`` or ``test``.
      image_shape: height, width, and 3 channels (red, green, blue; also when left out) or 1 (grey) of the samples.

    Raises:
      DataError: there are no pictures, one of them cannot be read, or the cache cannot be written.
    """
    files = [path for _, paths in image_files(root, split) for path in paths]
    folder = prepared("images", split, root, files, options=("x".join(map(str, _checked(image_shape))),))
    return open_idx(folder, split=split, name="images")


def prepare_images(root: Path, split: Split, folder: Path, text: str, *, on_part: Callable[[int, int], None]) -> None:
    """Write one split as an idx folder (in the preparation process).

    Args:
      root: the data folder.
      split: which one.
      folder: to write.
      text: height, width and channels: "32x32x3".
      on_part: called now and then with (pictures done, pictures to do).

    Raises:
      DataError: there are no pictures, or one cannot be read; the message names it.
      OSError: the folder cannot be written.

    Memory: one picture as it is, and a megabyte.
    """
    shape = _checked(tuple(map(int, text.split("x"))))
    classes = image_files(root, split)
    pictures = [(path, label) for label, (_, paths) in enumerate(classes) for path in paths]
    names = [name for name, _ in classes]
    write_idx_parts(folder, _parts(pictures, shape, on_part), split, shape=(len(pictures), *shape), classes=names)


def _parts(
    pictures: list[tuple[Path, int]], shape: tuple[int, int, int], on_part: Callable[[int, int], None]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    at_once = max(1, _PART_BYTES // math.prod(shape))
    for first in range(0, len(pictures), at_once):
        some = pictures[first : first + at_once]
        yield np.stack([_read(path, shape) for path, _ in some]), np.array([label for _, label in some], np.uint8)
        on_part(first + len(some), len(pictures))


def _read(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read a picture: uint8 of the given shape."""
    # Only the preparation process comes here: training and the agent do without Pillow.
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DataError("pictures are read by Pillow, which is missing: pip install 'bitfleet[images]'") from error

    height, width, channels = shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path} has {image.width} x {image.height} pixels, at most {_MAX_PIXELS} can be read")
            image.draft(mode, (width, height))  # a JPEG is decoded no larger than needed
            upright: Image.Image = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(upright.convert(mode), (width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise DataError(
            f"{path} cannot be read as a picture: {error}. Repair it, or take it out of the folder"
        ) from error
    return np.asarray(fitted, np.uint8).reshape(shape)


def _checked(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = (*shape, 3)[:3] if len(shape) in (2, 3) else (0, 0, 0)
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE and channels in (1, 3)):
        raise DataError(
            f"pictures have a height and a width in [1, {_MAX_SIDE}] and 3 channels or 1, got {list(shape)}. "
            "Check --image-shape"
        )
    return height, width, channels


def _folder(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[tuple[str, list[Path]]]:
    if not folder.is_dir():
        return []
    found = []
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not place.is_dir():
            continue
        files = sorted(path for path in place.iterdir() if _is_picture(path))
        if files:
            found.append((place.name, files))
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_held_out(path: Path) -> bool:
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).digest()
    return digest[0] * 256 + digest[1] < (1 << 16) // _ONE_IN


def _in_order_of(
    train: list[tuple[str, list[Path]]], test: list[tuple[str, list[Path]]], folder: Path
) -> list[tuple[str, list[Path]]]:
    """Number the test split's classes as the training split's."""
    names = [name for name, _ in train]
    files: dict[str, Any] = dict(test)
    if unknown := [name for name in files if name not in names]:
        raise DataError(
            f"{folder} has pictures of {', '.join(unknown)}, of which the training split has none. "
            f"Its classes are {', '.join(names) or 'none'}"
        )
    return [(name, files.get(name, [])) for name in names]
