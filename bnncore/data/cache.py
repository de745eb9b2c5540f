"""The cache folder: compressed data sets, inflated once so that their rows can be read at any position."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Sequence
from io import BufferedIOBase
from pathlib import Path

from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["cache_error", "cache_folder", "cached", "cached_set", "inflate_to_cache"]

_CHUNK_BYTES = 1 << 16


def cache_folder() -> Path:
    """Where inflated data sets are kept: $BITFLEET_CACHE, or ~/.cache/bitfleet (under $XDG_CACHE_HOME when set)."""
    if chosen := os.environ.get("BITFLEET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitfleet"


def cached(source: Path) -> Path:
    """Where the prepared form of a source file is kept.

    The name changes when the source's path, size or modification time does, so an old copy is never taken for it.
    The folder is made when it is missing.

    Raises:
      DataError: the cache folder cannot be made or the source cannot be read.
    """
    return cached_set(source.name.removesuffix(".gz"), [source])


def cached_set(name: str, sources: Sequence[Path]) -> Path:
    """Where the prepared form of several source files is kept; like ``cached``.

    Args:
      name: the first part of the entry's name; a new form of the same sources needs another one.
      sources: all files that it is made from.

    Raises:
      DataError: the cache folder cannot be made or a source cannot be read.
    """
    identity = []
    source = sources[0]
    try:
        for source in sources:
            status = source.stat()
            identity.append(f"{source.resolve()} {status.st_size} {status.st_mtime_ns}")
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(source, error) from error
    return folder / f"{name}-{hashlib.sha256(chr(10).join(identity).encode()).hexdigest()[:16]}"


def cache_error(source: Path, error: OSError) -> DataError:
    """Say that a source cannot be prepared, and how to move the cache."""
    return DataError(
        f"{source} must be unpacked into {cache_folder()}: {error}. "
        "Free space there, or choose another folder with the environment variable BITFLEET_CACHE"
    )


def inflate_to_cache(source: Path, read_header: Callable[[BufferedIOBase, Path], tuple[int, ...]]) -> Path:
    """Inflate a gzip file of uint8 rows into the cache, unless it is there already.

    It is streamed in small pieces, and appears in the cache only when it is complete.

    Args:
      source: the ``.gz`` file.
      read_header: reads the head of the inflated file and gives the shape of what follows, so that a file that
        inflates to more than it says is stopped early.

    Raises:
      DataError: the file is cut, corrupted, or longer than its header says; the cache cannot be written.
    """
    target = cached(source)
    if target.is_file():
        return target
    try:
        with gzip.open(source) as packed:
            shape = read_header(packed, source)
            left = packed.tell() + math.prod(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}. Is the file complete?") from error
    try:
        with replace_file(target) as raw, gzip.open(source) as packed:
            while chunk := _read_chunk(packed, source):
                left -= len(chunk)
                if left < 0:
                    raise DataError(f"{source} inflates to more bytes than its header says. Download it again")
                raw.write(chunk)
    except OSError as error:
        raise cache_error(source, error) from error
    return target


def _read_chunk(packed: BufferedIOBase, source: Path) -> bytes:
    try:
        return packed.read(_CHUNK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be inflated: {error}. Is the file complete? Download it again") from error
