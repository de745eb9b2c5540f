"""Removes what no row names from a store of payloads that several coordinators write to.

There a payload that no row names may be one that is about to be named: another coordinator has stored an update, and
the word that it has is still on its way. So nothing is removed before it has lain there for `GRACE_S` since it was last
written, and whoever names a payload writes it anew before. Of one that another coordinator writes at the very moment in
which it is removed here, `Disk.check_kept` tells before a row names it. And nothing is removed while a backup is made.

Only the coordinator that works on jobs sweeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from server.coordinator.disk import Disk
from server.storage.payloads import StoredPayload
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

GRACE_S = 600.0
"""For which a payload that no row names stays."""

_AT_ONCE = 16
"""Payloads that are removed before it is asked anew which are named."""


class Sweeper:
    """Sweeps a shared store now, and once every `GRACE_S`.

    Args:
      disk: with the store.
      clock: seconds since 1970.
    """

    def __init__(self, disk: Disk, clock: Callable[[], float] = time.time) -> None:
        self._disk = disk
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless nobody else writes to the store."""
        if self._disk.blobs.is_shared and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what was about to be removed stays for a later sweep."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def sweep(self) -> int:
        """Remove what may go; returns how many payloads went.

        Raises:
          OSError: the store does not answer.
        """
        disk = self._disk
        await asyncio.to_thread(disk.blobs.remove_leftovers)
        stored = await asyncio.to_thread(lambda: list(disk.blobs.stored(may_be_old=True)))
        needed = await disk.run(disk.storage.referenced_digests)  # after the list: what is named since stays
        # What was written since stays too, however old the list is: each is asked for its time before it goes.
        before = self._clock() - GRACE_S
        idle = [payload for payload in stored if payload.digest not in needed]
        old = [payload.digest for payload in idle if payload.written_at < before]
        disk.forget_removed()
        removed: set[str] = set()
        for start in range(0, len(old), _AT_ONCE):
            removed |= await asyncio.to_thread(disk.remove_old, set(old[start : start + _AT_ONCE]), before)
        self._disk.leaving_bytes = _bytes_of(idle) - _bytes_of([one for one in idle if one.digest in removed])
        if removed:
            _log.info("event=payloads_removed payloads=%d of=%d", len(removed), len(stored))
        return len(removed)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - whatever it was, it is logged, and the next sweep tries again
                if is_refusal(error):
                    _log.warning("event=sweep_failed reason=%r", str(error))
                else:
                    _log.exception("event=sweep_failed")
            await asyncio.sleep(GRACE_S)


def _bytes_of(payloads: list[StoredPayload]) -> int:
    return sum(payload.size for payload in payloads)
