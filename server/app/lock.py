"""A state folder has one owner: two coordinators over one folder would undo each other's work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from bnncore.errors import ConfigurationError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own the state folder, made when it is missing, for the block.

    Raises:
      ConfigurationError: it cannot be used, or another process owns it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"--state {folder} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"--state {folder} is in use by another coordinator; stop it or choose another folder"
            ) from None
        yield
