"""Payloads, which are named by their SHA-256 in lower-case hex, and what the coordinator asks of the store of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from server.errors import NotFoundError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredPayload:
    """A payload as its store lists it."""

    digest: str
    size: int
    """Bytes."""
    written_at: float
    """When it was last written: seconds since 1970 by this machine's clock."""


def is_digest(text: str) -> bool:
    """Say whether a text can name a payload."""
    return _DIGEST.fullmatch(text) is not None


def key_of(digest: str) -> str:
    """Return where a payload lies below its store's root: ``ab/abcd...``.

    Raises:
      NotFoundError: the text is no SHA-256 in lower-case hex, so it names no payload (and no path).
    """
    if not is_digest(digest):
        raise NotFoundError(f"a payload is named by 64 lower-case hex digits, got {digest[:80]!r}")
    return f"{digest[:2]}/{digest}"


class BlobWriter(Protocol):
    """A payload being written; it appears in the store only when it is kept."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> str:
        """SHA-256 in lower-case hex of what was written so far."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def read(self) -> memoryview:
        """Return what was written so far, at least a byte; it stays readable whatever becomes of the payload."""

    def flush(self) -> None:
        """Put what was written so far on the disk, so that ``BlobStore.keep`` has less to do."""

    def discard(self) -> None:
        """Forget the payload; does nothing when it was kept or discarded before."""


class BlobStore(Protocol):
    """Payloads by digest."""

    @property
    def is_shared(self) -> bool:
        """Whether other coordinators write to it too, so that what no row names may be about to be named by one."""

    def writer(self) -> BlobWriter:
        """Begin a payload."""

    def keep(self, writers: Sequence[BlobWriter]) -> None:
        """Make payloads durable under their digests, together; raises ValueError for one kept or discarded before."""

    def put(self, data: bytes) -> str:
        """Make a payload durable and return its digest; in a shared store it is written anew if it is there."""

    def get(self, digest: str) -> bytes:
        """Return a payload after checking its digest; raises PayloadLostError when it is missing or damaged."""

    def holds(self, digest: str) -> bool:
        """Say whether a payload is there and its bytes are those that its digest names."""

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset`` on; raises PayloadLostError when it is missing."""

    def temporary_file(self) -> BinaryIO:
        """Open an unnamed local file for writing and reading; it is gone when it is closed, or by a crash."""

    def delete(self, digest: str, *, unless_since: float | None = None) -> bool:
        """Remove a payload, unless it was written since a time; returns whether one was removed.

        What this process writes at the same moment under the same digest is there afterwards.
        """

    def digests(self) -> set[str]:
        """Return the digests of all payloads."""

    def stored(self, *, may_be_old: bool = False) -> Iterator[StoredPayload]:
        """List all payloads; where ``may_be_old`` as they were some minutes ago, if that saves listing them again."""

    def last_written(self, digest: str) -> float | None:
        """Return when a payload was last written, as in ``StoredPayload``; None when there is none."""

    def url_for(self, digest: str, seconds: float) -> str | None:
        """Return a URL at which anyone may read a payload for so long; None where the store gives none."""

    def remove_leftovers(self) -> None:
        """Remove what a crash left half written."""

    @property
    def used_bytes(self) -> int:
        """Bytes of all payloads."""

    def check(self) -> None:
        """Ask the store for as little as possible; raises OSError when it does not answer."""

    def free_bytes(self) -> int | None:
        """Return the bytes that are free where they lie; None where there is no end to them."""

    def size(self, digest: str) -> int:
        """Return a payload's bytes; 0 when there is none."""
