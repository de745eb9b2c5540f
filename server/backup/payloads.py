"""Payloads on their way into a backup and out of one, whichever store they are kept in.

A backup has them all in one folder before it writes the first: names in the coordinator's own folder, or copies of what
an object store has. Nothing is deleted from that store meanwhile (``server.storage.backup_lock``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from bnncore.errors import ConfigurationError
from server.errors import PayloadLostError
from server.settings import Settings
from server.storage.backup_lock import while_nothing_is_deleted
from server.storage.blob_stores import open_blobs
from server.storage.holding import holding
from server.storage.payloads import BlobStore
from server.storage.sql import using_database
from server.storage.state_folder import BLOBS_FOLDER

_PIECE = 1 << 20
_AT_ONCE = 8
"""Payloads that are on their way to or from an object store at the same time."""


class Held(Protocol):
    """Payloads in a folder, named by their digests."""

    @property
    def folder(self) -> Path:
        """Where they are."""

    def hold(self, digests: Set[str]) -> set[str]:
        """Have these in the folder; returns those that are not in the store."""

    def close(self) -> None:
        """Need no others."""


@contextlib.contextmanager
def held_payloads(settings: Settings, work: Path) -> Iterator[Held]:
    """Open what brings payloads into a folder; they are gone after the block.

    Args:
      settings: which name the store.
      work: a folder with room for them where they are in an object store.

    Raises:
      ConfigurationError: there is no such store.
    """
    if settings.blobs:
        folder = work / BLOBS_FOLDER
        folder.mkdir()
        with using_database(settings.database_url) as engine, contextlib.ExitStack() as lock:
            lock.enter_context(while_nothing_is_deleted(engine))
            yield _Fetched(open_blobs(settings, is_written=False), folder, lock)
        return
    root = settings.state / BLOBS_FOLDER
    if not root.is_dir():
        raise ConfigurationError(
            f"{settings.state} is no state folder of a coordinator: it has no folder {BLOBS_FOLDER}; where payloads "
            "are in an object store, --blobs names it"
        )
    with holding(root) as held:
        yield held


class _Fetched:
    """Copies of what is in an object store, from which nothing is deleted until there are enough of them."""

    def __init__(self, store: BlobStore, folder: Path, lock: contextlib.ExitStack) -> None:
        self._store = store
        self._lock = lock
        self.folder = folder

    def hold(self, digests: Set[str]) -> set[str]:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return {
                digest
                for digest, is_there in zip(digests, threads.map(self._fetch, digests), strict=True)
                if not is_there
            }

    def close(self) -> None:
        self._lock.close()

    def _fetch(self, digest: str) -> bool:
        path = self.folder / digest
        try:
            with path.open("wb") as file:
                while piece := self._store.read(digest, file.tell(), _PIECE):
                    file.write(piece)
        except PayloadLostError:
            path.unlink()
            return False
        return True


def send_payloads(settings: Settings, files: Iterable[Path]) -> None:
    """Put files into the object store that the settings name."""
    store = open_blobs(settings)

    def send(path: Path) -> None:
        writer = store.writer()
        try:
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    writer.write(piece)
            store.keep([writer])
        finally:
            writer.discard()

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(send, files):
            pass
