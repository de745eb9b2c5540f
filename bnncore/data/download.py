"""Fetching a published data set, with a checksum for every file."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["MNIST_URLS", "download_mnist"]

MNIST_URLS = ("https://yann.lecun.com/exdb/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
"""The publisher, then the mirror that torchvision uses. The checksum decides, not the host."""

_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_TIMEOUT_S = 30.0
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the data folder cannot be made: {error}. Choose another with --data") from error
    for name, checksum in (sha256 or _SHA256).items():
        if not (folder / name).is_file():
            _fetch(name, checksum, folder / name, urls)


def _fetch(name: str, checksum: str, path: Path, urls: Sequence[str]) -> None:
    failures = []
    for url in urls:
        try:
            _fetch_from(url + name, checksum, path)
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{url + name}: {error}")
        else:
            return
    raise DataError(
        f"{name} could not be fetched into {path.parent}: {'; '.join(failures)}. "
        "Copy the file there from a machine that has it, or try again later"
    )


def _fetch_from(url: str, checksum: str, path: Path) -> None:
    digest = hashlib.sha256()
    with replace_file(path) as file, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        while chunk := response.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != checksum:
            raise DataError(f"the file has SHA-256 {digest.hexdigest()}, expected {checksum}")
