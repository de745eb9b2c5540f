"""Storage for code that runs on the event loop: every database call happens on one other thread, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from server.storage.base import BlobStore, Storage

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Disk:
    """A storage, a blob store and the thread that talks to the database."""

    def __init__(self, storage: Storage, blobs: BlobStore) -> None:
        self.storage = storage
        self.blobs = blobs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storage")
        self._is_closed = False

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call ``function`` on the storage thread, after all calls that were made before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    def remove_orphans(self) -> int:
        """Remove payloads that no row names, as a crash may leave them; returns how many. Blocking; for the start."""
        self.blobs.remove_leftovers()
        orphans = self.blobs.digests() - self.storage.referenced_digests()
        for digest in orphans:
            self.blobs.delete(digest)
        return len(orphans)

    def remove_unreferenced(self, digests: set[str]) -> None:
        """Remove those of the payloads that no row names any more. Blocking."""
        for digest in digests - self.storage.referenced_digests():
            self.blobs.delete(digest)

    async def close(self) -> None:
        """Finish what was asked for, then close the database; closing again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            await self.run(self.storage.close)
            self._thread.shutdown(wait=True)
