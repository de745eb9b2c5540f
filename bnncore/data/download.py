"""Fetching a published data set, with a checksum for every file."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from bnncore.data.cifar10 import CIFAR10_MD5, FOLDER_NAME, cifar10_files
from bnncore.data.fetching import fetch_file, has_both_splits, make_folder
from bnncore.data.har_download import download_har
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["CIFAR10_URLS", "DOWNLOADS", "MNIST_URLS", "download_cifar10", "download_mnist"]

MNIST_URLS = ("https://yann.lecun.com/exdb/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
"""The publisher, then the mirror that torchvision uses. The checksum decides, not the host."""

CIFAR10_URLS = ("https://www.cs.toronto.edu/~kriz/",)
"""The publisher of CIFAR-10."""

_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
_CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_CHUNK_BYTES = 1 << 16


def download_mnist(root: Path, *, urls: Sequence[str] = MNIST_URLS, sha256: dict[str, str] | None = None) -> None:
    """Fetch the four files of MNIST into ``root/mnist``; a file that is there already is kept.

    Args:
      root: the data folder; made when it is missing.
      urls: folders to try in turn.
      sha256: file names with their checksums; None: MNIST's.

    Raises:
      DataError: no host gave a file with the right checksum, or the folder cannot be written.
    """
    folder = root / "mnist"
    make_folder(folder)
    for name, checksum in (sha256 or _SHA256).items():
        if not (folder / name).is_file():
            fetch_file(name, folder / name, urls, sha256=checksum)


def download_cifar10(
    root: Path,
    *,
    urls: Sequence[str] = CIFAR10_URLS,
    sha256: str = _CIFAR10_SHA256,
    md5: dict[str, str] | None = None,
) -> None:
    """Fetch the archive of CIFAR-10 (163 MiB) and unpack its files into ``root/cifar10/cifar-10-batches-py``.

    Nothing is fetched when the files are there already, in any place where ``cifar10_files`` finds them. The archive is
    deleted when its files are unpacked.

    Args:
      root: the data folder; made when it is missing.
      urls: folders to try in turn.
      sha256: checksum of the archive.
      md5: names of the wanted files with their checksums; None: CIFAR-10's.

    Raises:
      DataError: no host gave an archive with the right checksum, it lacks a file, or the folder cannot be written.
    """
    if md5 is None and has_both_splits(cifar10_files, root):
        return
    folder = root / "cifar10" / FOLDER_NAME
    make_folder(folder)
    archive = folder.parent / _CIFAR10_ARCHIVE
    if not archive.is_file():
        fetch_file(_CIFAR10_ARCHIVE, archive, urls, sha256=sha256)
    try:
        _unpack(archive, folder, CIFAR10_MD5 if md5 is None else md5)
        archive.unlink()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}. Free some space, or delete it and try again"
        ) from error


def _unpack(archive: Path, folder: Path, md5: dict[str, str]) -> None:
    """Write the wanted files of a tar archive, each complete and checked or not at all; the rest is left."""
    wanted = dict(md5)
    with tarfile.open(archive) as members:
        for member in members:
            name = member.name.removeprefix(f"{FOLDER_NAME}/")
            content = members.extractfile(member) if name in wanted and member.isfile() else None
            if content is not None:
                _copy_checked(content, folder / name, wanted.pop(name))
    if wanted:
        raise DataError(f"{archive} lacks {', '.join(wanted)}. Delete it and try again")


def _copy_checked(content: IO[bytes], path: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with replace_file(path) as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != md5:
            raise DataError(f"{path.name} in the archive has MD5 {digest.hexdigest()}, expected {md5}")


DOWNLOADS: dict[str, Callable[[Path], None]] = {
    "cifar10": download_cifar10,
    "har": download_har,
    "mnist": download_mnist,
}
"""What fetches a data set into a data folder, by its name."""
