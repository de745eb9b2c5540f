"""Unpacking and checking a published file before anything reads it.

Used in the preparation process only: an xz decoder takes as much memory as its dictionary, 65 MiB for CIFAR-10, which
must not count against training.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from bnncore.data.cache import cache_folder
from bnncore.errors import DataError

__all__ = ["unpacked"]

_CHUNK_BYTES = 1 << 16
_XZ_MEMORY_BYTES = 1 << 27
"""What a decoder may take: twice what the data sets need."""


@contextlib.contextmanager
def unpacked(source: Path, *, max_bytes: int, md5: str | None = None) -> Iterator[BinaryIO]:
    """Open what a file holds, unpacked when its name ends with ``.xz``.

    It is copied to a nameless file in the cache folder first: what is read later is what was checked, and the decoder's
    memory is free again by then.

    Args:
      source: the file.
      max_bytes: most that it may unpack to.
      md5: its publisher's checksum of the unpacked file; None: there is none.

    Yields:
      The unpacked content, at its start.

    Raises:
      DataError: the file cannot be read, is cut or corrupted, is larger than allowed, or has another checksum.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        with contextlib.closing(_pieces(source)) as pieces:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
                if file.tell() > max_bytes:
                    raise DataError(f"{source} must hold at most {max_bytes} bytes, got more. Download it again")
        if md5 is not None and digest.hexdigest() != md5:
            state = " unpacked" if source.suffix == ".xz" else ""
            raise DataError(
                f"{source} must have the publisher's MD5 checksum {md5}{state}, "
                f"got {digest.hexdigest()}. Download it again"
            )
        file.seek(0)
        yield file


def _pieces(source: Path) -> Generator[bytes, None, None]:
    try:
        with open(source, "rb") as file:
            if source.suffix != ".xz":
                while piece := file.read(_CHUNK_BYTES):
                    yield piece
                return
            decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
            while not decoder.eof:
                packed = file.read(_CHUNK_BYTES) if decoder.needs_input else b""
                if decoder.needs_input and not packed:
                    raise DataError(f"{source} is cut: it ends before its last block does. Download it again")
                yield decoder.decompress(packed, _CHUNK_BYTES)
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"{source} cannot be unpacked: {error}. Is the file complete? Download it again") from error
