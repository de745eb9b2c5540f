"""Files from other hosts, each complete or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnncore.data.idx import Split
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["fetch_file", "has_both_splits", "make_folder"]

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16
_MAX_FILE_BYTES = 1 << 29  # the largest, CIFAR-10's archive, has 163 MiB


def has_both_splits(find: Callable[[Path, Split], Any], root: Path) -> bool:
    """Say whether a data set's files are below a data folder already; ``find`` raises DataError where they are not."""
    try:
        find(root, "train")
        find(root, "test")
    except DataError:
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder below the data folder, and those above it.

    Raises:
      DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the data folder cannot be made: {error}. Choose another with --data") from error


def fetch_file(name: str, path: Path, urls: Sequence[str], *, sha256: str | None) -> None:
    """Fetch a file from the first host that has the right one; a terminal sees how far it is.

    Args:
      name: of the file, which is added to each URL.
      path: where to.
      urls: folders to try in turn.
      sha256: its checksum; None: what is in it is checked by the caller.

    Raises:
      DataError: no host gave a file with the right checksum, or it cannot be written.
    """
    failures = []
    for url in urls:
        try:
            _fetch_from(url + name, path, sha256)
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{url + name}: {error}")
        else:
            return
    raise DataError(
        f"{name} could not be fetched into {path.parent}: {'; '.join(failures)}. "
        "Copy the file there from a machine that has it, or try again later"
    )


def _fetch_from(url: str, path: Path, sha256: str | None) -> None:
    from tqdm import tqdm

    digest, done = hashlib.sha256(), 0
    with replace_file(path) as file, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        told = response.headers.get("Content-Length", "")
        total = int(told) if told.isdecimal() else None
        with tqdm(desc=path.name, total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if done > _MAX_FILE_BYTES:
                    raise DataError(f"the file has more than {_MAX_FILE_BYTES >> 20} MiB, which no data set's has")
                bar.update(len(chunk))
        if total is not None and done != total:
            raise DataError(f"the host said {total} bytes and sent {done}")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DataError(f"the file has SHA-256 {digest.hexdigest()}, expected {sha256}")
