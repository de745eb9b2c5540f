"""Storage for code that runs on the event loop: every database call happens on one other thread, in order.

Jobs that run at the same time may have payloads of the same bytes, which are one file. So a payload is *claimed* from
before it is written until a row names it, and what another job has done with meanwhile is not removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from server.coordinator.feed import Feed
from server.storage.base import Storage
from server.storage.payloads import BlobStore
from server.storage.refusal import StoreAwayError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Disk:
    """A storage, a blob store and the thread that talks to the database.

    Attributes:
      feed: where a change is told by whoever made it, after ``run`` has returned.
      leaving_bytes: of payloads that nobody needs and that are still there: in a shared store they stay for a while.
    """

    def __init__(self, storage: Storage, blobs: BlobStore) -> None:
        self.storage = storage
        self.blobs = blobs
        self.feed = Feed()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storage")
        self._is_closed = False
        self._claims: Counter[str] = Counter()
        self._claims_lock = threading.Lock()
        self._removed: set[str] = set()
        """Payloads that were removed from a shared store since the last sweep began."""
        self.leaving_bytes = 0

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call ``function`` on the storage thread, after all calls that were made before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    @contextlib.contextmanager
    def claimed(self, digests: Set[str]) -> Iterator[None]:
        """Keep payloads from being removed while they are written and no row names them yet."""
        with self._claims_lock:
            self._claims.update(digests)
        try:
            yield
        finally:
            with self._claims_lock:
                self._claims.subtract(digests)
                for digest in digests:
                    if self._claims[digest] == 0:
                        del self._claims[digest]

    def remove_orphans(self) -> int:
        """Remove payloads that no row names, as a crash may leave them; returns how many. Blocking; for the start.

        A shared store is left to the ``Sweeper``.
        """
        if self.blobs.is_shared:
            return 0
        self.blobs.remove_leftovers()
        orphans = self.blobs.digests() - self.storage.referenced_digests()
        for digest in orphans:
            self.blobs.delete(digest)
        return len(orphans)

    def remove_unreferenced(self, digests: set[str]) -> set[str]:
        """Remove those of the payloads that no row names any more and nobody is about to name. Blocking.

        Returns:
          What goes; from a shared store it does so later, by the ``Sweeper``.
        """
        going: set[str] = set()
        for digest in digests - self.storage.referenced_digests():
            with self._claims_lock:
                if digest not in self._claims:
                    going.add(digest)
                    if not self.blobs.is_shared:
                        self.blobs.delete(digest)
        return going

    def remove_old(self, digests: Set[str], before: float) -> set[str]:
        """Remove from a shared store what no row names, nobody claims and was not written since; returns what went.

        Blocking; not for the storage thread, which it would keep for long.
        """
        gone: set[str] = set()
        with self.storage.may_delete() as may_delete:
            if may_delete:
                with self._claims_lock:
                    going = digests - self._claims.keys()
                for digest in going - self.storage.referenced_digests():
                    self._removed.add(digest)
                    if self.blobs.delete(digest, unless_since=before):
                        gone.add(digest)
        return gone

    def forget_removed(self) -> None:
        """Begin a sweep: what an earlier one removed, nobody counts on any more."""
        self._removed.clear()

    def check_kept(self, digests: Set[str]) -> None:
        """See whether payloads that another coordinator has stored, and that are claimed, are there. Blocking.

        Asks the store only of what was removed from here lately.

        Raises:
          StoreAwayError: one was removed at the moment in which the other one wrote it; it must do so again.
        """
        for digest in digests & self._removed:
            if self.blobs.last_written(digest) is None:
                raise StoreAwayError(f"payload {digest} was just removed; store it again")

    async def close(self) -> None:
        """Finish what was asked for, then close the database; closing again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            await self.run(self.storage.close)
            self._thread.shutdown(wait=True)
