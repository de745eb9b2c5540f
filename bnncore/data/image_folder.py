"""Finding pictures in folders, one folder a class: which there are, and to which split each belongs.

``train/<class>/*`` and ``test/<class>/*`` (or ``val`` or ``validation``), or ``<class>/*``: one picture in ten is in
the test split then, chosen by its class and name, so that it stays there when others are added.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from bnncore.data.idx import Split
from bnncore.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "ImageClass", "find_image_classes", "folder_signature"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What counts as a picture, whatever the case; other files are passed over."""

_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val", "validation")}
_MOST_CLASSES = 256
_ONE_IN = 10


@dataclass(frozen=True)
class ImageClass:
    """The pictures of one class.

    Attributes:
      name: of the class: its folder's, in Unicode's composed form (NFC), however the file system writes it.
      folder: where they lie.
      files: their names, in order.
    """

    name: str
    folder: Path
    files: list[str]

    def key(self, file: str) -> bytes:
        """Give what names a picture for good, whatever is added beside it."""
        return f"{self.name}/{unicodedata.normalize('NFC', file)}".encode(errors="surrogateescape")


def find_image_classes(root: Path, split: Split) -> list[ImageClass]:
    """Find the pictures of one split below a data folder.

    Returns:
      The classes in the order of their names. Classes of the training split that the test split lacks are there, and
      empty.

    Raises:
      DataError: there are no class folders or no pictures, more than 256 classes, or the test split has a class that
        the training split has not.
    """
    folder = _folder(root, split)
    found = chosen = _class_folders(folder or root)
    if folder is None:
        chosen = [
            ImageClass(one.name, one.folder, [n for n in one.files if _is_held_out(one.key(n)) == (split == "test")])
            for one in found
        ]
    elif split == "test" and (train := _folder(root, "train")) is not None:
        chosen = _in_order_of(_class_folders(train), found, folder)
    if not any(one.files for one in chosen):
        few = f" of the {sum(len(one.files) for one in found)} pictures none falls into it;" if found else ""
        raise DataError(
            f"no pictures for the {split} split in {folder or root}:{few} looked for <class>/* with the suffixes "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}, in {' or '.join(f'{name}/' for name in _FOLDERS[split])} and in the "
            "folder itself. Check --data"
        )
    if len(chosen) > _MOST_CLASSES:
        raise DataError(f"{folder or root} has {len(chosen)} class folders, at most {_MOST_CLASSES} can be told apart")
    return chosen


def folder_signature(root: Path, split: Split) -> str:
    """Give a name to what a split's pictures are now: it changes when one comes, goes or is written anew.

    Raises:
      DataError: as ``find_image_classes``.
    """
    digest = hashlib.sha256()
    for one in find_image_classes(root, split):
        digest.update(b"\0" + os.fsencode(one.name))
        folder = os.fspath(one.folder)
        for name in one.files:
            try:
                status = os.stat(f"{folder}/{name}")
            except OSError:  # it went meanwhile, or nobody may look at it
                continue
            digest.update(f"/{status.st_size}:{status.st_mtime_ns}:".encode() + os.fsencode(name))
    return digest.hexdigest()[:16]


def _folder(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[ImageClass]:
    if not folder.is_dir():
        return []
    found: dict[str, ImageClass] = {}
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not place.is_dir():
            continue
        files = _pictures(place)
        if not files:
            continue
        name = unicodedata.normalize("NFC", place.name)
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"a class folder must have a name in UTF-8, got {place.name!r} in {folder}. Rename it")
        if name in found:
            raise DataError(f"{place} and {found[name].folder} are the same class, {name!r}. Make one folder of them")
        found[name] = ImageClass(name, place, files)
    return [found[name] for name in sorted(found)]


def _pictures(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_picture(entry))
    except OSError as error:
        raise DataError(f"the class folder {folder} cannot be read: {error}") from error


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return (
        os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def _is_held_out(key: bytes) -> bool:
    digest = hashlib.sha256(key).digest()
    return digest[0] * 256 + digest[1] < (1 << 16) // _ONE_IN


def _in_order_of(train: list[ImageClass], test: list[ImageClass], folder: Path) -> list[ImageClass]:
    """Number the test split's classes as the training split's."""
    names = [one.name for one in train]
    by_name = {one.name: one for one in test}
    if unknown := [name for name in by_name if name not in names]:
        raise DataError(
            f"{folder} has pictures of {', '.join(unknown)}, of which the training split has none. "
            f"Its classes are {', '.join(names) or 'none'}"
        )
    return [by_name.get(name, ImageClass(name, folder / name, [])) for name in names]
