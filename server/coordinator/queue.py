"""The queue of jobs: they run one at a time, in the order in which they were created.

A fault of the disk or the database is waited out: the job is taken up again from what is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from enum import StrEnum

from bnncore.errors import BitfleetError
from bnncore.optimizer import resolve_preset
from server.coordinator.evaluation import HeldOutSet
from server.coordinator.runner import JobCancelled, JobRunner, RunnerParts
from server.coordinator.start import load_start
from server.errors import ConflictError, InvalidJobError, NotFoundError
from server.jobs import JobConfig, parse_job
from server.storage.base import JobRecord

_log = logging.getLogger(__name__)

_MAX_FAULTS = 5
"""Faults in a row, without a round committed between them, after which a job has failed."""
_FAULT_PAUSE_S = 1.0


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)

    @property
    def is_runnable(self) -> bool:
        """Whether the queue takes the job up when its turn comes."""
        return self in (JobState.PENDING, JobState.RUNNING)


class JobQueue:
    """All jobs, and the one that runs."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._disk = parts.disk
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self._run_of_job: asyncio.Task[str] | None = None
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.runner: JobRunner | None = None
        """The job that is running, if any."""

    @property
    def is_working(self) -> bool:
        """Whether jobs are being worked on."""
        return self._worker is not None and not self._worker.done()

    def start(self) -> None:
        """Begin to work on jobs, from where they stand."""
        self._worker = asyncio.create_task(self._work(), name="jobs")

    async def stop(self) -> None:
        """Stop working; what was acknowledged is on disk already."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker

    async def wait_until_idle(self) -> None:
        """Wait until no job is pending or running."""
        await self._idle.wait()

    async def get(self, job_id: str) -> JobRecord:
        """Return a job.

        Raises:
          NotFoundError: there is none of this id.
        """
        job = await self._disk.run(self._disk.storage.get_job, job_id)
        if job is None:
            raise NotFoundError(f"there is no job {job_id!r}; list them with: bitfleet-server jobs list")
        return job

    async def create(self, config: JobConfig) -> JobRecord:
        """Add a job at the end.

        Raises:
          InvalidJobError: its optimizer does not exist, its evaluation set cannot be opened, or what it starts from
            cannot be read or is of another network.
        """
        await asyncio.to_thread(_check, config)
        if config.start is not None:
            await load_start(self._disk, config, config.start)
        job = JobRecord(
            job_id=f"{config.name[:40]}-{secrets.token_hex(4)}",
            name=config.name,
            state=JobState.PENDING,
            config_json=config.to_json(),
            spec_json=config.spec.to_json(),
            created_at=time.time(),
        )
        await self._disk.run(self._disk.storage.add_job, job)
        _log.info("event=job_created job=%s rounds=%d", job.job_id, config.rounds)
        self._idle.clear()
        self._changed.set()
        return job

    async def ensure(self, config: JobConfig) -> JobRecord:
        """Return the job with this very configuration, adding it when there is none: a restart goes on with it."""
        text = config.to_json()
        for job in await self._disk.run(self._disk.storage.list_jobs):
            if job.config_json == text:
                return job
        return await self.create(config)

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancel a pending or running job; what it committed stays.

        Raises:
          NotFoundError: there is no such job.
          ConflictError: it has ended.
        """
        job = await self.get(job_id)
        if JobState(job.state).is_over:
            raise ConflictError(f"job {job_id} is {job.state} and can no longer be cancelled")
        # Nothing is awaited before the write is queued: nobody starts or completes the job in the meantime.
        self._cancelled.add(job_id)
        if self.runner is not None and self.runner.job_id == job_id:
            self.runner.cancel("the job was cancelled")
        await self._end(job_id, JobState.CANCELLED, "cancelled by the operator")
        return await self.get(job_id)

    async def pause(self, job_id: str) -> JobRecord:
        """Stop a pending or running job where it stands; devices are told to stop, what was accepted stays.

        Raises:
          NotFoundError: there is no such job.
          ConflictError: it has ended, or is paused already.
        """
        job = await self.get(job_id)
        if JobState(job.state).is_over or job.state == JobState.PAUSED:
            raise ConflictError(f"job {job_id} is {job.state}; only a pending or running job can be paused")
        # Nothing is awaited before the write is queued: nobody starts or completes the job in the meantime.
        self._paused.add(job_id)
        if self.runner is not None and self.runner.job_id == job_id and self._run_of_job is not None:
            self.runner.dismiss("the job was paused")
            self._run_of_job.cancel()
        await self._disk.run(self._disk.storage.set_job_state, job_id, JobState.PAUSED, reason="paused by the operator")
        _log.info("event=job_paused job=%s", job_id)
        return await self.get(job_id)

    async def resume(self, job_id: str) -> JobRecord:
        """Let a paused job go on from where it stands, in its old place in the queue.

        Raises:
          NotFoundError: there is no such job.
          ConflictError: it is not paused.
        """
        job = await self.get(job_id)
        if job.state != JobState.PAUSED:
            raise ConflictError(f"job {job_id} is {job.state}; only a paused job can be resumed")
        await self._disk.run(self._disk.storage.set_job_state, job_id, JobState.PENDING)
        self._paused.discard(job_id)
        _log.info("event=job_resumed job=%s", job_id)
        self._idle.clear()
        self._changed.set()
        return await self.get(job_id)

    async def _work(self) -> None:
        while True:
            try:
                await self._run_next()
            except Exception:  # noqa: BLE001 - whatever it was, it is logged and the queue goes on
                _log.exception("event=queue_interrupted")
                await asyncio.sleep(_FAULT_PAUSE_S)

    async def _run_next(self) -> None:
        self._changed.clear()
        jobs = await self._disk.run(self._disk.storage.list_jobs)
        stopped = self._cancelled | self._paused
        job = next((job for job in jobs if JobState(job.state).is_runnable and job.job_id not in stopped), None)
        if job is None:
            self._idle.set()
            await self._changed.wait()
            return
        try:
            await self._run(job)
        finally:
            self.runner = None

    async def _run(self, job: JobRecord) -> None:
        _log.info("event=job_running job=%s", job.job_id)
        committed = faults = 0
        while job.job_id not in self._cancelled | self._paused:
            try:
                self.runner = JobRunner(job, parse_job(json.loads(job.config_json)), self._parts)
                await self._disk.run(self._disk.storage.set_job_state, job.job_id, JobState.RUNNING)
                if job.job_id in self._paused:
                    return None
                self._run_of_job = asyncio.create_task(self.runner.run(), name=f"job {job.job_id}")
                reason = await self._run_of_job
                return await self._end(job.job_id, JobState.COMPLETED, reason)
            except asyncio.CancelledError:
                if job.job_id in self._paused and not _is_cancelling():
                    return None  # written down when it was asked for
                raise
            except JobCancelled:
                return None  # written down when it was asked for
            except BitfleetError as error:
                return await self._end(job.job_id, JobState.FAILED, str(error))
            except Exception as error:  # noqa: BLE001 - one broken job must not stop the others
                progress = 0 if self.runner is None else self.runner.rounds_committed
                faults = 1 if progress > committed else faults + 1
                committed = progress
                _log.exception("event=job_interrupted job=%s fault=%d", job.job_id, faults)
                if faults == _MAX_FAULTS:
                    reason = f"interrupted {faults} times in a row, at last by {type(error).__name__}: {error}"
                    return await self._end(job.job_id, JobState.FAILED, reason)
                await asyncio.sleep(_FAULT_PAUSE_S)
        return None

    async def _end(self, job_id: str, state: JobState, reason: str) -> None:
        await self._disk.run(self._disk.storage.set_job_state, job_id, state, finished_at=time.time(), reason=reason)
        _log.info("event=job_ended job=%s state=%s reason=%r", job_id, state, reason)


def _is_cancelling() -> bool:
    """Say whether this very task was cancelled, not one that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _check(config: JobConfig) -> None:
    try:
        preset = resolve_preset(config.preset, config.optimizer)
        if config.proximal_mu > 0 and (preset.name == "paper" or preset.optimizer.name == "bop"):
            raise InvalidJobError(
                f"strategy {config.strategy!r} pulls latent weights, of which {preset.optimizer.name!r} under preset "
                f"{preset.name!r} keeps none that can be moved; take another optimizer, or mu = 0"
            )
        if config.evaluation is not None:
            HeldOutSet(config, config.evaluation).close()
    except InvalidJobError:
        raise
    except BitfleetError as error:
        raise InvalidJobError(f"the job cannot run here: {error}") from error
