"""Payloads that a backup still needs: whoever deletes one meanwhile leaves it to the backup.

A backup makes a folder of its own under ``<root>/backups`` and locks it; the lock ends with its process. What is
deleted from then on gets a second name there first. So a moment of the database that is read after that names payloads
that are all either in their place or in the folder, however slow the disk is and however much goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path

_BACKUPS = "backups"
_LOCK = "lock"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
"""What file systems without hard links say."""


class Holding:
    """Gives payloads that lie in a folder a second name, as whoever deletes one does, until ``close``.

    Attributes:
      folder: where the names are, which are the payloads' digests.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self.folder = folder

    def hold(self, digests: Set[str]) -> set[str]:
        """Give payloads a second name, unless they have one; returns those that have none now."""
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):  # deleted just now: then it was given its name before that
                _give(self._root / digest[:2] / digest, self.folder / digest)
        return {digest for digest in digests if not (self.folder / digest).exists()}

    def close(self) -> None:
        """Be given nothing more; what has a name keeps it."""
        (self.folder / _LOCK).unlink()
        self.folder = self.folder.rename(self.folder.with_suffix(".closed"))  # whoever is giving now gives in vain


@contextlib.contextmanager
def holding(root: Path) -> Iterator[Holding]:
    """Hold what is deleted from a folder of payloads; it is let go after the block.

    Raises:
      OSError: the disk refused.
    """
    (root / _BACKUPS).mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = _locked_folder(root, stack)
        held = Holding(root, folder)
        try:
            yield held
        finally:
            if held.folder == folder:
                held.close()
            shutil.rmtree(held.folder)


def give_to_backups(root: Path, payload: Path) -> None:
    """Leave a payload that is about to be deleted to the backups that are being made.

    A backup that it cannot be given to names it as missing: room that is asked for on a full disk must come free.
    """
    for folder in _folders(root):
        with contextlib.suppress(OSError), _is_dead(folder) as is_dead:
            if not is_dead:
                _give(payload, folder / payload.name)


def remove_dead_backups(root: Path) -> None:
    """Remove the folders of backups whose process ended before they did."""
    for folder in _folders(root):
        with contextlib.suppress(FileNotFoundError), _is_dead(folder) as is_dead:
            if is_dead:
                shutil.rmtree(folder)


def _folders(root: Path) -> list[Path]:
    try:
        return list((root / _BACKUPS).iterdir())
    except FileNotFoundError:
        return []


def _locked_folder(root: Path, stack: contextlib.ExitStack) -> Path:
    """Make a folder that is locked until the stack ends."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=root / _BACKUPS))
        lock = stack.enter_context((folder / _LOCK).open("w"))
        if os.geteuid() == 0:  # the coordinator, which need not be root, puts payloads in
            owner = root.stat()
            for path in (root / _BACKUPS, folder, folder / _LOCK):
                os.chown(path, owner.st_uid, owner.st_gid)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():  # no coordinator that starts just now took it for a dead one's
            return folder


@contextlib.contextmanager
def _is_dead(folder: Path) -> Iterator[bool]:
    """Say whether a backup's process is gone; for the block, a folder of that name is nobody's.

    Raises:
      FileNotFoundError: the folder is not locked yet, or needs nothing any more.
    """
    with (folder / _LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _give(payload: Path, name: Path) -> None:
    """Give a payload a second name, or copy it where there are none."""
    if name.exists():
        return
    try:
        os.link(payload, name)
    except FileExistsError:  # given by another meanwhile
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        half = name.with_name(f"{name.name}.{os.urandom(4).hex()}")
        try:
            shutil.copyfile(payload, half)
            os.replace(half, name)
        finally:
            half.unlink(missing_ok=True)
