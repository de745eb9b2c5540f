"""What a data folder looks like from outside: names, sizes and times of change, without reading any file.

Needs the standard library alone, so that a look costs a process of this device as little as it can.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["data_signature", "watched_folder"]


def watched_folder(data: Path | None) -> Path | None:
    """Name the folder that a device's data lie in; None: they come from elsewhere."""
    named = os.environ.get("BITFLEET_DATA")
    return data or (Path(named) if named else None)


def data_signature(root: Path | None) -> str:
    """Give a name to what lies in a folder now: another one when a file comes, goes or is written to.

    Args:
      root: the folder; None: there is none, which never changes. Files and folders whose name starts with a dot do not
        count.
    """
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root) if root is not None else ():
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        digest.update(b"\0" + os.fsencode(folder))
        for name in sorted(files):
            if name.startswith("."):
                continue
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:  # it went meanwhile
                continue
            digest.update(f"/{status.st_size}:{status.st_mtime_ns}:".encode() + os.fsencode(name))
    return digest.hexdigest()[:16]
