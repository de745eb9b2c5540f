"""What a round costs beside its devices' work: the time of the slowest device is taken off the round's.

That device's time is its training and, where another job had it first, the wait for that; a wait that began before a
restart of the coordinator counts as overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.storage.base import UpdateRecord


class Waits:
    """How long a round's members were at other jobs' tasks before they could begin."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def begin(self, device_id: str) -> None:
        """Note that a device is at another job's task; it may be known already."""
        self._since.setdefault(device_id, self._clock())

    def end(self, device_id: str) -> bool:
        """Note that it is not waited for any more; returns whether it was."""
        since = self._since.pop(device_id, None)
        if since is None:
            return False
        self._seconds[device_id] = self._seconds.get(device_id, 0.0) + self._clock() - since
        return True

    def overhead_s(self, collected_s: float, rows: Iterable[UpdateRecord]) -> float | None:
        """Return a round's overhead in seconds; None when no device measured its training.

        Args:
          collected_s: the round's seconds without those in which there were too few devices.
          rows: its updates; only accepted ones matter.
        """
        busy = [
            row.training_seconds + self._seconds.get(row.device_id, 0.0)
            for row in rows
            if row.status == "ACCEPTED" and row.training_seconds is not None
        ]
        return max(0.0, collected_s - max(busy)) if busy else None
