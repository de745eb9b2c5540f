"""A payload on its way into a store: a local file while it is written, of which the digest is known all along."""

from __future__ import annotations

import hashlib
import mmap
import threading
from typing import BinaryIO


class FileWriter:
    """Bytes in an unbuffered file, counted and hashed as they come."""

    def __init__(self, file: BinaryIO) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._file: BinaryIO | None = file
        # A call that is cancelled leaves its thread writing; nobody may close the file under it.
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def digest(self) -> str:
        """SHA-256 of them."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes to the file; they are not durable yet."""
        with self._lock:
            file = self._open_file()
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            self._hash.update(data)
            self._size += len(data)

    def read(self) -> memoryview:
        """Map the file, which takes no memory beside the system's cache of it."""
        with self._lock:
            return memoryview(mmap.mmap(self._open_file().fileno(), 0, prot=mmap.PROT_READ))

    @property
    def _is_open(self) -> bool:
        return self._file is not None

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the payload was kept or discarded: it can no longer be written, read or kept")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
