"""What devices did lately: read round by round from the newest on, so that a long job costs no more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from server.coordinator import Coordinator, JobState
from server.storage.base import JobRecord, UpdateRecord

ROUNDS_SEEN = 20
"""Newest rounds of a job in which a device is looked for."""
_JOBS_SEEN = 5


@dataclass(frozen=True)
class Turn:
    """A device's part in a round."""

    job: JobRecord
    update: UpdateRecord


class History:
    """Reads from the database what became of devices' tasks."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._disk = coordinator.disk
        self._pages = coordinator.disk.storage.pages

    async def last_turns(self, device_ids: Collection[str]) -> dict[str, Turn]:
        """Return devices' newest parts in a job that runs, or else in one of the newest jobs, by device."""
        return await self._disk.run(self._read_last, frozenset(device_ids))

    async def of_device(self, device_id: str) -> list[Turn]:
        """Return a device's parts in the newest rounds of the newest jobs, the newest first."""
        return await self._disk.run(self._read_of_device, device_id)

    def _read_last(self, device_ids: frozenset[str]) -> dict[str, Turn]:
        turns: dict[str, Turn] = {}
        running = self._pages.jobs(_JOBS_SEEN, state=JobState.RUNNING, newest_first=True).records
        for job in [*running, *(job for job in self._newest_jobs() if job.state != JobState.RUNNING)]:
            missing = device_ids - turns.keys()
            if not missing:
                break
            for update in self._updates(job, missing):
                turns.setdefault(update.device_id, Turn(job, update))
        return turns

    def _read_of_device(self, device_id: str) -> list[Turn]:
        return [Turn(job, update) for job in self._newest_jobs() for update in self._updates(job, {device_id})]

    def _newest_jobs(self) -> list[JobRecord]:
        return self._pages.jobs(_JOBS_SEEN, newest_first=True).records

    def _updates(self, job: JobRecord, device_ids: Collection[str]) -> list[UpdateRecord]:
        """Read what became of devices' tasks in a job's newest rounds, the newest first."""
        rounds = self._pages.rounds(job.job_id, ROUNDS_SEEN, newest_first=True).records
        return self._pages.updates(job.job_id, [record.round_number for record in rounds], device_ids)[::-1]
