"""Fetching HAR: an archive within an archive, of which what is trained on is taken and checked by what it says."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bnncore.data.dataset import Dataset
from bnncore.data.fetching import fetch_file, has_both_splits, make_folder
from bnncore.data.har import FOLDER_NAME, MAX_TEXT_BYTES, har_files, har_members, open_har
from bnncore.data.idx import Split
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["HAR_URLS", "digest_examples", "download_har"]

HAR_URLS = ("https://archive.ics.uci.edu/static/public/240/",)
"""The publisher of HAR."""

_ARCHIVE = "human+activity+recognition+using+smartphones.zip"
_INNER_ARCHIVE = f"{FOLDER_NAME}.zip"
_DIGESTS: dict[Split, str] = {
    "train": "e59a33d125e9e1fc12c432dd4b16b6d43d2f59274982e1e69b5fb18bfc5bc28e",
    "test": "dd90c1d54f8a9b00872ecc4c7d29087dde8c577d7a7f6e3f72ed019d4db30ae6",
}
"""Of the examples, as ``digest_examples`` tells them."""
_ROWS = 512


def download_har(root: Path, *, urls: Sequence[str] = HAR_URLS, digests: dict[Split, str] | None = None) -> None:
    """Fetch HAR (61 MB) into ``root/har``, prepare both splits, and check that they are the published examples.

    The publisher packs anew now and then, so the archive has no lasting checksum; its numbers have. Nothing is fetched
    when the files are there already, in any place where ``har_files`` finds them.

    Args:
      root: the data folder; made when it is missing.
      urls: folders to try in turn.
      digests: of the examples, by split; None: HAR's.

    Raises:
      DataError: no host gave an archive, its examples are others, or the folder cannot be written; nothing is kept.
    """
    if has_both_splits(har_files, root):
        return
    folder = root / "har"
    if (folder / FOLDER_NAME).exists():
        raise DataError(f"{folder / FOLDER_NAME} is there, but incomplete. Move it away, and try again")
    make_folder(folder)
    archive = folder / _ARCHIVE
    was_there = archive.is_file()  # copied from a machine that has it
    if not was_there:
        fetch_file(_ARCHIVE, archive, urls, sha256=None)
    try:
        _unpack(archive, folder)
        for split, digest in (digests or _DIGESTS).items():
            with open_har(root, split=split) as examples:
                found = digest_examples(examples)
            if found != digest:
                raise DataError(
                    f"{archive} has other examples ({split}) than the published ones: digest "
                    f"{found}, expected {digest}. Get HAR from elsewhere, and give its folder with --data"
                )
    except BaseException:
        shutil.rmtree(folder / FOLDER_NAME, ignore_errors=True)
        if not was_there:
            archive.unlink()
        raise
    archive.unlink()


def digest_examples(examples: Dataset) -> str:
    """Give the SHA-256 of all examples, in order: inputs, then labels, then people, all uint8."""
    digest = hashlib.sha256()
    out = np.empty((_ROWS, *examples.input_shape), np.uint8)
    for first in range(0, examples.num_examples, _ROWS):
        indices = np.arange(first, min(first + _ROWS, examples.num_examples), dtype=np.uint32)
        examples.read(indices, out.reshape(_ROWS, -1)[: len(indices)])
        digest.update(out[: len(indices)].tobytes())
    for column in (examples.labels, examples.groups):
        digest.update(np.asarray(column, np.uint8).tobytes())
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files that training needs, each complete or not at all; the rest of the archive is left."""
    try:
        with _inner(archive, folder) as inner:
            names = set(inner.namelist())
            wanted = [f"{FOLDER_NAME}/{member}" for member in har_members()]
            if lacking := [name for name in wanted if name not in names]:
                raise DataError(f"the archive lacks {', '.join(lacking)}")
            for name in wanted:
                if inner.getinfo(name).file_size > MAX_TEXT_BYTES:
                    raise DataError(f"{name} in the archive has more than {MAX_TEXT_BYTES >> 20} MiB")
                make_folder((folder / name).parent)
                with inner.open(name) as content, replace_file(folder / name) as file:
                    shutil.copyfileobj(content, file)
    except (OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Free some space, or try again later") from error


@contextmanager
def _inner(archive: Path, folder: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive that the archive holds, or itself where it holds none."""
    with zipfile.ZipFile(archive) as outer, tempfile.TemporaryFile(dir=folder) as unpacked:
        if _INNER_ARCHIVE not in outer.namelist():
            yield outer
            return
        if outer.getinfo(_INNER_ARCHIVE).file_size > MAX_TEXT_BYTES:
            raise DataError(f"{_INNER_ARCHIVE} in the archive has more than {MAX_TEXT_BYTES >> 20} MiB")
        with outer.open(_INNER_ARCHIVE) as content:
            shutil.copyfileobj(content, unpacked)
        with zipfile.ZipFile(unpacked) as inner:
            yield inner
