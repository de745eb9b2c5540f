"""Payloads of models and steps on the device's disk, by digest: what is cached need not be downloaded again.

A payload is in the cache only when it is whole and its digest was checked. A download in progress is a ``.part``
beside it, so that a broken one goes on where it stopped, after a restart too. The newest ``capacity`` payloads stay.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from bnncore.durable import sync_folder
from edge_client.errors import TaskFailedError

__all__ = ["CAPACITY", "STEP_CAPACITY", "ModelCache"]

CAPACITY = 2
"""Models kept: the one at hand and the one before, which a task that is sent again may still name."""

STEP_CAPACITY = 16
"""Steps kept: more than lead to any model, since together they have fewer bytes than it."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 16


class ModelCache:
    """Payloads in one folder, bounded to ``capacity``."""

    def __init__(self, root: Path, capacity: int = CAPACITY) -> None:
        self.root = root
        self._capacity = capacity

    def find(self, digest: str) -> Path | None:
        """Look a payload up; None when it has to be downloaded.

        Raises:
          TaskFailedError: ``digest`` is no SHA-256 in lower-case hex.
        """
        path = self._path(digest)
        return path if path.exists() else None

    def partial_bytes(self, digest: str) -> int:
        """Count the bytes that an earlier download left."""
        try:
            return self._part(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def open_partial(self, digest: str) -> BinaryIO:
        """Open a download for appending; other unfinished downloads are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        part = self._part(digest)
        for stale in self.root.glob("*.part"):
            if stale != part:
                stale.unlink()
        return open(part, "ab")

    def discard_partial(self, digest: str) -> None:
        """Remove an unfinished download."""
        self._part(digest).unlink(missing_ok=True)

    def complete(self, digest: str) -> Path | None:
        """Take a finished download into the cache, if its bytes are the ones that the digest names.

        Returns:
          The payload's file; None when the digest differs: the bytes are removed then.

        Raises:
          OSError: the disk refused.
        """
        return self.adopt(digest, self._part(digest))

    def adopt(self, digest: str, file: Path) -> Path | None:
        """Move a file into the cache, if its bytes are the ones that the digest names; see ``complete``."""
        if _digest_of(file) != digest:
            file.unlink()
            return None
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        path = self._path(digest)
        os.rename(file, path)
        sync_folder(self.root)
        self._evict(path)
        return path

    def discard(self, digest: str) -> None:
        """Remove a payload that turned out to be unusable."""
        self._path(digest).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """List the cached digests with their sizes in bytes."""
        return {path.stem: path.stat().st_size for path in sorted(self.root.glob("*.safetensors"))}

    def _evict(self, newest: Path) -> None:
        others = [path for path in self.root.glob("*.safetensors") if path != newest]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in others[self._capacity - 1 :]:
            path.unlink()

    def _path(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise TaskFailedError(f"model_digest must be a SHA-256 in lower-case hex, got {digest[:80]!r}")
        return self.root / f"{digest}.safetensors"

    def _part(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".part")


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
