"""Room for payloads: a quota on all of them, and what stays free on their disk.

Whoever is about to write asks first. Where there is no room, old model versions go (``retention.py``); where that is
not enough, the answer is "not now": an update is sent again later, a round waits before it begins. What a round leaves
behind has its room from the beginning, so a round that has collected its updates never fails for want of it.

For one event loop.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from server.coordinator.disk import Disk
from server.coordinator.retention import let_go
from server.errors import LeaseLostError, NoRoomError

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 5.0
"""After old versions were looked for in vain."""


class Space:
    """The room on the disk of payloads.

    Args:
      disk: whose payloads.
      quota_bytes: for all of them, with what is being written; 0 = without limit.
      min_free_bytes: what must stay free on their file system.
      clock: seconds; only differences matter.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        quota_bytes: int,
        min_free_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._clock = clock
        self._looks_again_at = 0.0
        self._held_bytes = 0
        self.quota_bytes = quota_bytes
        self.min_free_bytes = min_free_bytes
        self.refusals = 0
        """How often there was no room, since the start."""

    @property
    def used_bytes(self) -> int:
        """Bytes of payloads, without those that nobody needs and that are still there."""
        return max(0, self._disk.blobs.used_bytes - self._disk.leaving_bytes)

    @property
    def held_bytes(self) -> int:
        """Bytes that are promised to what is being written."""
        return self._held_bytes

    def free_bytes(self) -> int | None:
        """Return what is free on the file system; None in an object store, which grows."""
        return self._disk.blobs.free_bytes()

    async def make_room(self, num_bytes: int) -> AbstractContextManager[None]:
        """See to it that there is room for so many bytes now.

        Returns:
          A context that keeps it; it is to be entered at once.

        Raises:
          NoRoomError: there is none; the message says which bound is in the way.
        """
        if self._lacking(num_bytes) > 0 and self._clock() >= self._looks_again_at:
            await self._disk.run(self._let_go, self._lacking(num_bytes))
            if self._lacking(num_bytes) > 0:
                self._looks_again_at = self._clock() + _LOOK_AGAIN_S
        if self._lacking(num_bytes) > 0:
            self.refusals += 1
            raise NoRoomError(self._why_not(num_bytes))
        return self.held(num_bytes)

    @contextlib.contextmanager
    def held(self, num_bytes: int) -> Iterator[None]:
        """Keep so many bytes free for the block, whether there is room for them or not."""
        self._held_bytes += num_bytes
        try:
            yield
        finally:
            self._held_bytes -= num_bytes

    def _lacking(self, num_bytes: int) -> int:
        """Return how many bytes must go before so many more have room."""
        wanted = self._held_bytes + num_bytes
        over_quota = self.used_bytes + wanted - self.quota_bytes if self.quota_bytes else 0
        free = self.free_bytes() if self.min_free_bytes else None
        return max(0, over_quota, 0 if free is None else self.min_free_bytes + wanted - free)

    def _why_not(self, num_bytes: int) -> str:
        quota = f" of a quota of {self.quota_bytes}" if self.quota_bytes else ""
        free = self.free_bytes()
        on_disk = "" if free is None else f", and {self.min_free_bytes} of {free} free bytes stay free"
        return (
            f"there is no room for {num_bytes} bytes: payloads take {self.used_bytes}{quota}, {self._held_bytes} are "
            f"promised{on_disk}; try again later"
        )

    def _let_go(self, num_bytes: int) -> None:
        disk = self._disk
        try:
            gone = let_go(disk.storage, disk.blobs, num_bytes)
        except LeaseLostError:
            return  # that is for the coordinator that works on jobs
        if gone:
            before = self.used_bytes
            going = disk.remove_unreferenced(gone)
            if disk.blobs.is_shared:
                disk.leaving_bytes += sum(map(disk.blobs.size, going))
            _log.info("event=old_versions_removed payloads=%d bytes=%d", len(gone), before - self.used_bytes)
