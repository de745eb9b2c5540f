"""Files of jobs in the state folder: one a job, the jobs that were at work last."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bnncore.durable import sync_folder

__all__ = ["CAPACITY", "JobFiles", "name_of_job"]

CAPACITY = 8
"""Jobs whose files are kept."""


def name_of_job(job_id: str) -> str:
    """Name what belongs to a job in the state folder: by a digest, since the id comes from the coordinator."""
    return hashlib.sha256(job_id.encode()).hexdigest()


class JobFiles:
    """One folder of files by job."""

    def __init__(self, root: Path, capacity: int = CAPACITY) -> None:
        self._root = root
        self._capacity = capacity

    def path(self, job_id: str) -> Path:
        """Name a job's file, whether there is one or not."""
        return self._root / f"{name_of_job(job_id)}.safetensors"

    def find(self, job_id: str) -> Path | None:
        """Look a job's file up."""
        path = self.path(job_id)
        return path if path.exists() else None

    def adopt(self, job_id: str, file: Path) -> None:
        """Let a file, which lies on the disk already, take the place of the job's earlier one.

        Where there is no such file nothing changes: so this may be done again after a power cut.

        Raises:
          OSError: the disk refused.
        """
        if not file.exists():
            return
        self._root.mkdir(exist_ok=True)
        os.rename(file, self.path(job_id))
        sync_folder(self._root)
        sync_folder(file.parent)
        for path in self.newest_first()[self._capacity :]:
            path.unlink()

    def newest_first(self) -> list[Path]:
        """List the files."""
        return sorted(self._root.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
