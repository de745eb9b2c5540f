"""Payloads of a store that is far away, kept near while they are asked for piece by piece.

A model is downloaded by many devices in many pieces; it is fetched once. Its bytes lie in unnamed local files, of which
a crash leaves nothing.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

_MOST_BYTES = 1024 * 1024 * 1024
_MOST_FILES = 64


class ReadCache:
    """The payloads that were read last, within bounds. For any number of threads.

    Args:
      folder: on whose disk they lie.
      fetch: writes a whole payload to a file, or raises.
    """

    def __init__(
        self,
        folder: Path,
        fetch: Callable[[str, BinaryIO], None],
        *,
        most_bytes: int = _MOST_BYTES,
        most_files: int = _MOST_FILES,
    ) -> None:
        self._folder = folder
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._files: OrderedDict[str, _Entry] = OrderedDict()
        """The one that was read last is the last."""
        self._lock = threading.Lock()

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset`` on; the first who asks for a payload fetches it."""
        with self._lock:
            entry = self._files.setdefault(digest, _Entry())
            self._files.move_to_end(digest)
        with entry.lock:
            if entry.data is None:
                try:
                    entry.data = self._fetched(digest)
                except BaseException:
                    self.forget(digest, entry)
                    raise
            data = entry.data
        self._shrink()
        return data[offset : offset + length]

    def forget(self, digest: str, entry: _Entry | None = None) -> None:
        """Let go of a payload; with ``entry``, only if it is that one."""
        with self._lock:
            if entry is None or self._files.get(digest) is entry:
                self._files.pop(digest, None)

    def _fetched(self, digest: str) -> mmap.mmap | bytes:
        with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
            self._fetch(digest, cast(BinaryIO, file))
            size = file.seek(0, os.SEEK_END)
            return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) if size else b""

    def _shrink(self) -> None:
        """Let go of those that were read the longest ago; their bytes go with their last reader."""
        with self._lock:
            used = sum(len(entry.data or b"") for entry in self._files.values())
            while len(self._files) > 1 and (used > self._most_bytes or len(self._files) > self._most_files):
                _, oldest = self._files.popitem(last=False)
                used -= len(oldest.data or b"")


class _Entry:
    """A payload, or one that is being fetched by whoever holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: mmap.mmap | bytes | None = None
        """Mapped from its file, which has no name and is closed."""
