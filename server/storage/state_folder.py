"""What a state folder holds, and that it has one owner: two coordinators over one would undo each other's work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from bnncore.errors import ConfigurationError

BLOBS_FOLDER = "blobs"
IDENTITY_FOLDER = "identity"
AUTHORITY_FILE = "authority.pem"
"""In the folder above, or where several coordinators share it."""
UPLOADS_FOLDER = "uploads"
"""For what is on its way into an object store."""
LOCK_FILE = "lock"
RESTORING = "restoring"
"""A folder that is there while a backup is put back, and after that was interrupted."""


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own the state folder, made when it is missing, for the block.

    Raises:
      ConfigurationError: it cannot be used, another process owns it, or half a backup is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigurationError(f"--state {folder} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"--state {folder} is in use by another coordinator; stop it or choose another folder"
            ) from None
        if (folder / RESTORING).exists():
            raise ConfigurationError(
                f"putting a backup back into --state {folder} was interrupted: empty the folder and restore again"
            )
        yield
