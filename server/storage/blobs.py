"""Payloads in a local folder, named by their SHA-256: ``<root>/<first two hex digits>/<digest>``.

A payload is written under ``<root>/tmp``, flushed, and renamed into its place, so a file with a digest for a name is
complete. Two payloads with the same bytes are one file. Payloads that are kept together share their flushes: all are
renamed, then each folder is flushed once, and a file system with a journal writes that once for all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from bnncore.durable import sync_folder
from server.errors import PayloadLostError
from server.storage.blob_writer import FileWriter
from server.storage.holding import give_to_backups, remove_dead_backups
from server.storage.payloads import BlobWriter, StoredPayload, is_digest, key_of


class LocalBlobs:
    """A content-addressed folder; the only writer is this process."""

    is_shared = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        sync_folder(root)
        self._counting = threading.Lock()
        self._used_bytes = sum(self.size(digest) for digest in self.digests())

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
        """Write a payload unless it is there already; one that the disk has damaged is written anew."""
        digest = hashlib.sha256(data).hexdigest()
        if self.holds(digest):
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
            raise PayloadLostError(f"no payload {digest} in {self._root}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise PayloadLostError(f"payload {digest} in {self._root} is damaged: its content has digest {found}")
        return data

    def holds(self, digest: str) -> bool:
        """Read a payload through, and say whether it is whole."""
        try:
            with self.path(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Read a piece of a payload; its digest is not checked."""
        try:
            with self.path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            raise PayloadLostError(f"no payload {digest} in {self._root}") from None

    def temporary_file(self) -> BinaryIO:
        """Open an unnamed file on the disk of the payloads."""
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._temporary))

    def delete(self, digest: str, *, unless_since: float | None = None) -> bool:
        """Remove a payload if it is there; a backup that is being made keeps it."""
        with self._counting:
            written_at, size = self.last_written(digest), self.size(digest)
            if written_at is None or (unless_since is not None and written_at >= unless_since):
                return False
            give_to_backups(self._root, self.path(digest))
            self.path(digest).unlink(missing_ok=True)
            self._used_bytes -= size
            return True

    def digests(self) -> set[str]:
        """List the folder."""
        return {path.name for path in self._root.glob("??/*") if is_digest(path.name)}

    def stored(self, *, may_be_old: bool = False) -> Iterator[StoredPayload]:
        """List the folder with what the file system knows of each."""
        for digest in self.digests():
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                state = self.path(digest).stat()
                yield StoredPayload(digest, state.st_size, state.st_mtime)

    def last_written(self, digest: str) -> float | None:
        """Ask the file system."""
        try:
            return self.path(digest).stat().st_mtime
        except FileNotFoundError:
            return None

    def url_for(self, digest: str, seconds: float) -> None:
        """Return None: a folder is served by the coordinator alone."""

    def remove_leftovers(self) -> None:
        """Empty the folder of temporary files, and remove what backups left that were interrupted."""
        for path in self._temporary.iterdir():
            path.unlink()
        remove_dead_backups(self._root)

    @property
    def used_bytes(self) -> int:
        """Bytes of all payloads, counted as they come and go."""
        return self._used_bytes

    def check(self) -> None:
        """Look whether the folder is there."""
        os.stat(self._temporary)

    def free_bytes(self) -> int:
        """Ask the file system, for what is left to those who are not root."""
        state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize

    def size(self, digest: str) -> int:
        """Ask the file system."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def place(self, temporary: Path, digest: str) -> None:
        """Rename a temporary file to a payload's, and count it."""
        destination = self.path(digest)
        with self._counting:
            before = self.size(digest)
            os.replace(temporary, destination)
            self._used_bytes += self.size(digest) - before

    def path(self, digest: str) -> Path:
        """Where a payload lies, or would lie.

        Raises:
          NotFoundError: the text is no SHA-256 in lower-case hex, so it names no payload (and no path).
        """
        return self._root / key_of(digest)


class LocalBlobWriter(FileWriter):
    """One payload on its way into a ``LocalBlobs``."""

    def __init__(self, path: Path, blobs: LocalBlobs) -> None:
        super().__init__(cast(BinaryIO, path.open("x+b", buffering=0)))
        self._path = path
        self._blobs = blobs
        self._flushed = 0

    def flush(self) -> None:
        """Flush the temporary file, unless that was done."""
        with self._lock:
            self._flush(self._open_file())

    def move(self) -> set[Path]:
        """Flush the temporary file and rename it; returns the folders that must be flushed for that to last."""
        with self._lock:
            self._flush(self._open_file())
            destination = self._blobs.path(self.digest)
            folders = {destination.parent}
            if not destination.parent.exists():
                destination.parent.mkdir(exist_ok=True)
                folders.add(destination.parent.parent)
            self._blobs.place(self._path, self.digest)
            self._close()
            return folders

    def discard(self) -> None:
        """Remove the temporary file unless the payload was kept."""
        with self._lock:
            if self._is_open:
                self._close()
                self._path.unlink(missing_ok=True)

    def _flush(self, file: BinaryIO) -> None:
        if self._flushed < self._size:
            os.fsync(file.fileno())
            self._flushed = self._size
