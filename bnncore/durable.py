"""Files that are either complete or absent, whatever happens while they are written.

A file is written beside its destination under a temporary name, flushed to the disk, renamed over the destination,
and the folder is flushed too: after a power cut a reader finds the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["WRITTEN", "Tally", "drop_folder", "replace_file", "sync_folder"]

BLOCK_BYTES = 4096
"""What a file system writes at least: a file takes whole blocks."""


class Tally:
    """What this process wrote to the disk: the blocks of its files, not the file system's own notes about them.

    ``write_bytes`` of /proc/self/io says the same on a disk, and nothing where files lie in memory (tmpfs).
    """

    def __init__(self) -> None:
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count what was written at once."""
        self.num_bytes += -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


WRITTEN = Tally()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_folder(folder: Path, by_way_of: Path) -> None:
    """Remove a folder, if there is one, so that a power cut leaves it whole or gone.

    Args:
      folder: the folder.
      by_way_of: a name on the same file system, under which it is removed file by file; what lies there goes too.

    Raises:
      OSError: it cannot be renamed.
    """
    shutil.rmtree(by_way_of, ignore_errors=True)
    if folder.exists():
        os.rename(folder, by_way_of)
        sync_folder(folder.parent)
        shutil.rmtree(by_way_of, ignore_errors=True)


@contextlib.contextmanager
def replace_file(path: Path, *, mode: int = 0o666, may_exist: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at ``path`` only when the block ends without an exception.

    Args:
      path: the destination; its folder must exist. An existing file is replaced in one step.
      mode: the file's permissions, from its first byte on, less those that the process's umask takes away.
      may_exist: False leaves an existing file as it is: of several writers the first wins, wherever they run.

    Yields:
      A binary file. When the block raises, the temporary file is removed and ``path`` is as it was.

    Raises:
      FileExistsError: there is a file, and there may be none.
      OSError: the folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            WRITTEN.add(file.tell())
            os.fsync(file.fileno())
        if may_exist:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
