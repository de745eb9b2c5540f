"""What this device took, sent and wrote today, held against its owner's budgets.

A day is one of UTC, by the device's clock; another date than the kept one, in whichever direction, begins anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bnncore.durable import WRITTEN, replace_file
from edge_client.errors import TaskDeclinedError
from edge_client.outbox import utc_now
from edge_client.policy import Policy
from edge_client.records import as_record, read_json

__all__ = ["DailyUse", "Use"]


@dataclass
class Use:
    """Bytes of one day."""

    day: str = ""
    """ISO 8601."""
    down: int = 0
    """All that came from the coordinator: events, models, steps."""
    up: int = 0
    """Payloads of updates, each as often as it was sent."""
    written: int = 0
    """To the disk, in whole blocks (``bnncore.durable.WRITTEN``), the trainer's too."""
    most_written_by_task: int = 0


class DailyUse:
    """Counts, and says when a budget does not allow more. What is kept on the disk is written by ``save`` alone.

    Args:
      path: where the counts outlive this process.
      policy: has the budgets.
      now: the time, ISO 8601.
    """

    def __init__(self, path: Path, policy: Policy, *, now: Callable[[], str] = utc_now) -> None:
        self._path = path
        self._policy = policy
        self._now = now
        self._counted = WRITTEN.num_bytes
        self._use = self._kept = read_use(path)

    @property
    def today(self) -> Use:
        """The counts of this day."""
        day = self._now()[:10]
        if self._use.day != day:
            self._use = Use(day)
        return self._use

    @property
    def is_down_spent(self) -> bool:
        """Whether nothing more may come from the coordinator today."""
        limit = self._policy.max_down
        return limit is not None and self.today.down >= limit

    def check_task(self, num_bytes: int = 0) -> None:
        """Check that a task may be begun, or go on, that downloads so many bytes.

        Raises:
          TaskDeclinedError: a budget of the day does not allow it.
        """
        use, policy = self.today, self._policy
        _check("downloaded", use.down, num_bytes, policy.max_down)
        _check("sent", use.up, 1, policy.max_up)
        _check("written", use.written, max(num_bytes, use.most_written_by_task), policy.max_written)

    def check_up(self, num_bytes: int) -> None:
        """Check that so many bytes may be sent; raises TaskDeclinedError."""
        _check("sent", self.today.up, num_bytes, self._policy.max_up)

    def take_down(self, num_bytes: int) -> None:
        """Count what came; raises TaskDeclinedError when that is more than may come in a day."""
        self.today.down += num_bytes
        _check("downloaded", self.today.down, 0, self._policy.max_down)

    def take_up(self, num_bytes: int) -> None:
        """Count what is about to be sent."""
        self.today.up += num_bytes

    def take_written(self, by_trainer: int = 0) -> int:
        """Count what this process wrote since it was last asked, and what its trainer did; returns both together."""
        total = WRITTEN.num_bytes
        num_bytes = total - self._counted + by_trainer
        self._counted = total
        self.today.written += num_bytes
        return num_bytes

    def note_task(self, written: int) -> None:
        """Remember what a task wrote: the next one is expected to write as much."""
        self.today.most_written_by_task = max(written, self.today.most_written_by_task)

    def save(self) -> None:
        """Keep the counts, where they changed; a full disk is no reason to fail."""
        if self.today != self._kept:
            self._kept = Use(**asdict(self.today))
            with contextlib.suppress(OSError), replace_file(self._path) as file:
                file.write(json.dumps(asdict(self._kept)).encode())


def read_use(path: Path) -> Use:
    """Read the counts that are kept; none where there are none, or the disk has damaged them."""
    try:
        use = as_record(Use, read_json(path.read_bytes()))
    except (OSError, ValueError):
        return Use()
    return use if min(use.down, use.up, use.written, use.most_written_by_task) >= 0 else Use()


def _check(done: str, used: int, more: int, limit: int | None) -> None:
    if limit is not None and used + more > limit:
        raise TaskDeclinedError(
            f"the device's owner lets {limit} bytes be {done} in a day; {used} were today, and {more} more are too many"
        )
