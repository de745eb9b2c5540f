"""Payloads in an S3 object store, which several coordinators share: ``<prefix>/<first two hex digits>/<digest>``.

Objects are written whole or not at all, by the store's own rule. What is on its way lies in unnamed local files, of
which a crash leaves nothing; only an upload in parts leaves some, until ``remove_leftovers``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from server.errors import PayloadLostError
from server.storage.blob_writer import FileWriter
from server.storage.payloads import BlobWriter, StoredPayload, is_digest, key_of
from server.storage.read_cache import ReadCache
from server.storage.s3_bucket import Bucket

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_UPLOADS = 8
"""That run at the same time, for one call."""
_COUNTED_S = 300.0
"""After which the bytes of all payloads, to which others add, are counted anew."""


class S3Blobs:
    """A content-addressed prefix of a bucket; others may write to it too.

    Args:
      bucket: opened.
      folder: for what is on its way, on a local disk.
    """

    is_shared = True

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._bucket = bucket
        self._folder = folder
        self._near = ReadCache(folder, self._fetch)
        self._uploads = ThreadPoolExecutor(max_workers=_UPLOADS, thread_name_prefix="uploads")
        self._changed = threading.Condition()
        self._changing: set[str] = set()
        """Payloads that are written or removed at this moment."""
        self._counting = threading.Lock()
        self._is_counted = True  # by `digests`, below
        self._used_bytes = 0
        self._counted_at = 0.0
        self._first_list: list[StoredPayload] | None = None
        """As it was when the store was opened, for the first sweep: of 100,000 payloads a list takes 100 requests."""
        self._first_list = list(self.stored())

    def writer(self) -> S3BlobWriter:
        """Begin a payload in a local file."""
        return S3BlobWriter(self.temporary_file(), self)

    def keep(self, writers: Sequence[BlobWriter]) -> None:
        """Send all to the store, some at the same time; writes anew what is there."""
        sent = [self._uploads.submit(cast(S3BlobWriter, writer).send) for writer in writers[1:]]
        try:
            for writer in writers[:1]:
                cast(S3BlobWriter, writer).send()
        finally:
            errors = [future.exception() for future in sent]
        for error in errors:
            if error is not None:
                raise error

    def put(self, data: bytes) -> str:
        """Send a payload to the store; writes it anew if it is there."""
        digest = hashlib.sha256(data).hexdigest()
        view = memoryview(data)
        self.send(digest, len(data), lambda offset, length: bytes(view[offset : offset + length]))
        return digest

    def send(self, digest: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """Make a payload durable; see ``Bucket.put``."""
        with self._alone(digest):
            self._bucket.put(key_of(digest), size, read)
        with self._counting:
            self._used_bytes += size

    def get(self, digest: str) -> bytes:
        """Read a whole payload and check it."""
        found = ""
        for _ in range(2):  # what came damaged may have been whole when it left
            data = self._fetched(digest, b"".join)
            found = hashlib.sha256(data).hexdigest()
            if found == digest:
                return data
        raise PayloadLostError(f"payload {digest} in the object store is damaged: its content has digest {found}")

    def holds(self, digest: str) -> bool:
        """Read a payload through, and say whether it is whole; raises OSError when the store does not answer."""
        try:
            return self._fetched(digest, _digest_of) == digest
        except PayloadLostError:
            return False

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Read a piece of a payload, which was fetched and checked as a whole."""
        return self._near.read(digest, offset, length)

    def temporary_file(self) -> BinaryIO:
        """Open an unnamed file on the local disk."""
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder, buffering=0))

    def delete(self, digest: str, *, unless_since: float | None = None) -> bool:
        """Remove a payload if it is there."""
        self._near.forget(digest)
        with self._alone(digest):
            state = self._bucket.state(key_of(digest))
            if state is None or (unless_since is not None and state.written_at >= unless_since):
                return False
            self._bucket.delete(key_of(digest))
        with self._counting:
            self._used_bytes -= state.size
        return True

    def digests(self) -> set[str]:
        """List the prefix."""
        return {payload.digest for payload in self.stored()}

    def stored(self, *, may_be_old: bool = False) -> Iterator[StoredPayload]:
        """List the prefix, and count what is there."""
        with self._counting:
            before = self._used_bytes
            is_new = time.monotonic() - self._counted_at <= _COUNTED_S
            first_list, self._first_list = self._first_list, None
        if may_be_old and is_new and first_list is not None:
            yield from first_list
            return
        total = 0
        for one in self._bucket.list():
            digest = one.key.rpartition("/")[2]
            if is_digest(digest) and one.key == key_of(digest):
                total += one.size
                yield StoredPayload(digest, one.size, one.written_at)
        with self._counting:
            self._used_bytes += total - before  # what was sent meanwhile may count twice, until the next time
            self._counted_at = time.monotonic()

    def last_written(self, digest: str) -> float | None:
        """Ask the store, after a removal from here that is under way: who was told of it sooner would count on it."""
        with self._alone(digest):
            state = self._bucket.state(key_of(digest))
        return None if state is None else state.written_at

    def url_for(self, digest: str, seconds: float) -> str:
        """Sign a URL; whether there is such a payload is not asked."""
        return self._bucket.url_for(key_of(digest), seconds)

    def remove_leftovers(self) -> None:
        """Remove the parts of uploads that were interrupted long ago."""
        self._bucket.remove_half_sent()

    @property
    def used_bytes(self) -> int:
        """Bytes of all payloads, as counted a few minutes ago, with what was sent from here since."""
        with self._counting:
            if self._is_counted and time.monotonic() - self._counted_at > _COUNTED_S:
                self._is_counted = False
                self._uploads.submit(self._count)
            return self._used_bytes

    def _count(self) -> None:
        try:
            self.digests()
        except OSError as error:
            _log.warning("event=payloads_not_counted reason=%r", str(error))
            with self._counting:
                self._counted_at = time.monotonic()
        finally:
            self._is_counted = True

    def check(self) -> None:
        """Ask whether the bucket is there."""
        self._bucket.check()

    def free_bytes(self) -> None:
        """Return None: an object store grows."""

    def size(self, digest: str) -> int:
        """Ask the store."""
        state = self._bucket.state(key_of(digest))
        return 0 if state is None else state.size

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """Let nobody else in this process write or remove the payload for the block."""
        with self._changed:
            self._changed.wait_for(lambda: digest not in self._changing)
            self._changing.add(digest)
        try:
            yield
        finally:
            with self._changed:
                self._changing.remove(digest)
                self._changed.notify_all()

    def _fetch(self, digest: str, file: BinaryIO) -> None:
        def write(pieces: Iterator[bytes]) -> str:
            file.seek(0)
            file.truncate()
            found = hashlib.sha256()
            for piece in pieces:
                found.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
            return found.hexdigest()

        for _ in range(2):
            found = self._fetched(digest, write)
            if found == digest:
                return
        raise PayloadLostError(f"payload {digest} in the object store is damaged: its content has digest {found}")

    def _fetched(self, digest: str, consume: Callable[[Iterator[bytes]], _T]) -> _T:
        key = key_of(digest)
        try:
            return self._bucket.fetch(key, consume)
        except FileNotFoundError:
            raise PayloadLostError(f"no payload {digest} in the object store") from None


class S3BlobWriter(FileWriter):
    """One payload on its way into an ``S3Blobs``."""

    def __init__(self, file: BinaryIO, blobs: S3Blobs) -> None:
        super().__init__(file)
        self._blobs = blobs

    def flush(self) -> None:
        """Do nothing: what is on the local disk is not durable, nor needs to be."""

    def send(self) -> None:
        """Send what was written to the store, and let go of the local file."""
        with self._lock:
            descriptor = self._open_file().fileno()
            self._blobs.send(self.digest, self.size, lambda offset, length: os.pread(descriptor, length, offset))
            self._close()

    def discard(self) -> None:
        """Let go of the local file."""
        with self._lock:
            self._close()


def _digest_of(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
