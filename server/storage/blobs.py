"""Payloads in a local folder, named by their SHA-256: ``<root>/<first two hex digits>/<digest>``.

A payload is written under ``<root>/tmp``, flushed, and renamed into its place, so a file with a digest for a name is
complete. Two payloads with the same bytes are one file. Payloads that are kept together share their flushes: all are
renamed, then each folder is flushed once, and a file system with a journal writes that once for all of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from bnncore.durable import sync_folder
from server.errors import NotFoundError
from server.storage.base import BlobWriter

_DIGEST = re.compile(r"[0-9a-f]{64}")


class LocalBlobs:
    """A content-addressed folder; the only writer is this process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        sync_folder(root)

    def writer(self) -> LocalBlobWriter:
        """Begin a payload under a temporary name."""
        return LocalBlobWriter(self._temporary / os.urandom(8).hex(), self)

    def keep(self, writers: Sequence[BlobWriter]) -> None:
        """Flush what is not flushed yet, rename all, flush the folders."""
        folders: set[Path] = set()
        for writer in writers:
            folders |= cast(LocalBlobWriter, writer).move()
        for folder in sorted(folders):
            sync_folder(folder)

    def put(self, data: bytes) -> str:
        """Write a payload unless it is there already."""
        digest = hashlib.sha256(data).hexdigest()
        if self._holds(digest, len(data)):
            return digest
        writer = self.writer()
        try:
            writer.write(data)
            self.keep([writer])
        finally:
            writer.discard()
        return digest

    def get(self, digest: str) -> bytes:
        """Read a whole payload and check it."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"no payload {digest} in {self._root}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise NotFoundError(f"payload {digest} in {self._root} is damaged: its content has digest {found}")
        return data

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Read a piece of a payload; its digest is not checked."""
        try:
            with self.path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            raise NotFoundError(f"no payload {digest} in {self._root}") from None

    def temporary_file(self) -> BinaryIO:
        """Open an unnamed file on the disk of the payloads."""
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._temporary))

    def delete(self, digest: str) -> None:
        """Remove a payload if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> set[str]:
        """List the folder."""
        return {path.name for path in self._root.glob("??/*") if _DIGEST.fullmatch(path.name)}

    def remove_leftovers(self) -> None:
        """Empty the folder of temporary files."""
        for path in self._temporary.iterdir():
            path.unlink()

    def path(self, digest: str) -> Path:
        """Where a payload lies, or would lie.

        Raises:
          NotFoundError: the text is no SHA-256 in lower-case hex, so it names no payload (and no path).
        """
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError(f"a payload is named by 64 lower-case hex digits, got {digest[:80]!r}")
        return self._root / digest[:2] / digest

    def _holds(self, digest: str, size: int) -> bool:
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False


class LocalBlobWriter:
    """One payload on its way into a ``LocalBlobs``."""

    def __init__(self, path: Path, blobs: LocalBlobs) -> None:
        self._path = path
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._size = self._flushed = 0
        self._file: BinaryIO | None = path.open("x+b", buffering=0)
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
        """Append bytes to the temporary file; they are not on disk yet."""
        with self._lock:
            file = self._open_file()
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            self._hash.update(data)
            self._size += len(data)

    def read(self) -> memoryview:
        """Map the temporary file, which takes no memory beside the system's cache of it."""
        with self._lock:
            return memoryview(mmap.mmap(self._open_file().fileno(), 0, prot=mmap.PROT_READ))

    def flush(self) -> None:
        """Flush the temporary file, unless that was done."""
        with self._lock:
            self._flush(self._open_file())

    def move(self) -> set[Path]:
        """Flush the temporary file and rename it; returns the folders that must be flushed for that to last."""
        with self._lock:
            file = self._open_file()
            self._flush(file)
            destination = self._blobs.path(self.digest)
            folders = {destination.parent}
            if not destination.parent.exists():
                destination.parent.mkdir(exist_ok=True)
                folders.add(destination.parent.parent)
            os.replace(self._path, destination)
            file.close()
            self._file = None
            return folders

    def _flush(self, file: BinaryIO) -> None:
        if self._flushed < self._size:
            os.fsync(file.fileno())
            self._flushed = self._size

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the payload was kept or discarded: it can no longer be written, read or kept")
        return self._file

    def discard(self) -> None:
        """Remove the temporary file unless the payload was kept."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._path.unlink(missing_ok=True)
