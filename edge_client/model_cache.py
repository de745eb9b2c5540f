"""Payloads of models and steps on the device's disk, by digest: what is cached need not be downloaded again.

A payload is in the cache only when it is whole and its digest was checked. A download in progress is a ``.part``
beside it, so that a broken one goes on where it stopped, after a restart too. The newest ``capacity`` payloads stay.

Models have a cache for each job, so that a job finds the model that it left here, from which small steps lead on,
whatever other jobs did in between.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from bnncore.durable import sync_folder
from edge_client.errors import TaskFailedError
from edge_client.job_files import CAPACITY as JOBS
from edge_client.job_files import name_of_job

__all__ = ["CAPACITY", "STEP_CAPACITY", "ModelCache", "ModelCaches"]

CAPACITY = 2
"""Models kept: the one at hand and the one before, which a task that is sent again may still name."""

STEP_CAPACITY = 32
"""Steps kept: as many as a task names at most."""

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
        self.keep_newest(self._capacity, first=path)
        return path

    def discard(self, digest: str) -> None:
        """Remove a payload that turned out to be unusable."""
        self._path(digest).unlink(missing_ok=True)

    def keep_newest(self, count: int, first: Path | None = None) -> None:
        """Remove all but the newest payloads; ``first`` is the newest, whatever the device's clock said."""
        paths = self.root.glob("*.safetensors")
        newest = sorted(paths, key=lambda path: (path == first, path.stat().st_mtime_ns), reverse=True)
        for path in newest[count:]:
            path.unlink()

    def sizes(self) -> dict[str, int]:
        """List the cached digests with their sizes in bytes."""
        return {path.stem: path.stat().st_size for path in sorted(self.root.glob("*.safetensors"))}

    def _path(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise TaskFailedError(f"model_digest must be a SHA-256 in lower-case hex, got {digest[:80]!r}")
        return self.root / f"{digest}.safetensors"

    def _part(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".part")


class ModelCaches:
    """The caches of the jobs that were at work last: two models of the job at hand, one of each other."""

    def __init__(self, root: Path, jobs: int = JOBS) -> None:
        self.root = root
        self._jobs = jobs

    def of(self, job_id: str) -> ModelCache:
        """Give the cache of the job at hand; those of other jobs are cut down."""
        own = self.root / name_of_job(job_id)
        own.mkdir(parents=True, exist_ok=True)
        os.utime(own)
        others = [folder for folder in self._folders() if folder != own]
        for folder in others[: self._jobs - 1]:
            ModelCache(folder).keep_newest(1)
        for folder in others[self._jobs - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)
        return ModelCache(own)

    def find(self, digest: str) -> Path | None:
        """Look a model up, whichever job it is of; see ``ModelCache.find``."""
        return next((path for folder in self._folders() if (path := ModelCache(folder).find(digest))), None)

    def discard(self, digest: str) -> None:
        """Remove a model that turned out to be unusable."""
        for folder in self._folders():
            ModelCache(folder).discard(digest)

    def sizes(self) -> dict[str, int]:
        """List the cached digests with their sizes in bytes."""
        return {digest: size for folder in self._folders() for digest, size in ModelCache(folder).sizes().items()}

    def _folders(self) -> list[Path]:
        """List the jobs' folders, the newest first."""
        folders = [path for path in self.root.glob("*") if path.is_dir()]
        return sorted(folders, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
