"""Tasks that came and were not begun yet: one a job, the newest, and not too many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.task_rules import seconds_left

__all__ = ["Job", "WaitingTasks"]

CAPACITY = 8
"""Tasks that wait; the oldest give way."""


@dataclass(frozen=True)
class Job:
    """A task and its end."""

    task: wire.Task
    expires_at: float
    """When its round stops collecting, by the event loop's monotonic clock."""


class WaitingTasks:
    """The queue."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, task: wire.Task) -> None:
        """Take a task in; it takes the place of an older one of its job."""
        now = asyncio.get_running_loop().time()
        self._jobs = {key: job for key, job in self._jobs.items() if job.task.job_id != task.job_id}
        self._jobs[task.task_id] = Job(task, now + seconds_left(task.deadline_s))
        while len(self._jobs) > CAPACITY:
            del self._jobs[next(iter(self._jobs))]

    def take(self, only: str | None = None) -> Job | None:
        """Give the task that waits longest; or the one of this id only. None: there is none."""
        key = next((key for key in self._jobs if only in (None, key)), None)
        return None if key is None else self._jobs.pop(key)

    def drop(self, task_id: str) -> None:
        """Forget a task, if it waits."""
        self._jobs.pop(task_id, None)

    def clear(self) -> None:
        """Forget them all."""
        self._jobs.clear()
