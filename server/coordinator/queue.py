"""The queue of jobs: so many run at the same time, the others wait in the order in which they were created.

A job with a time to begin at waits for it, and keeps nobody else waiting meanwhile.

Running jobs share the devices (``dispatch.py``) and nothing else: what a job computes is what it computes alone.

A fault of the disk or the database is waited out: the job is taken up again from what is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from dataclasses import replace

from bnncore.errors import BitfleetError
from bnncore.optimizer import resolve_preset
from server.coordinator.evaluation import HeldOutSet, OpenEvaluation
from server.coordinator.job_state import JobState
from server.coordinator.partial_sums import PartialSums
from server.coordinator.rules import check_limits
from server.coordinator.runner import JobCancelled, JobRunner, RunnerParts
from server.coordinator.salvage import go_back_to_whole_version
from server.coordinator.start import load_start
from server.errors import ConflictError, InvalidJobError, LeaseLostError, NotFoundError, PayloadLostError
from server.jobs import JobConfig
from server.storage.base import JobRecord
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

_MAX_FAULTS = 5
"""Faults in a row, without a round committed between them, after which a job has failed."""
_FAULT_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 8.0
"""Between two tries to go on while the disk refuses."""
_LONGEST_SLEEP_S = 30.0
"""Between two looks at the clock while a job waits for its time: the machine's clock may be set."""


class JobQueue:
    """All jobs, and those that run."""

    def __init__(self, parts: RunnerParts, *, max_running: int) -> None:
        self._parts = parts
        self._disk = parts.disk
        self._max_running = max_running
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._ensuring = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self.running: dict[str, JobRunner] = {}
        """The jobs that are running, by id."""

    @property
    def is_working(self) -> bool:
        """Whether jobs are being worked on."""
        return self._worker is not None and not self._worker.done()

    def gather_from(self, partial_sums: PartialSums) -> None:
        """Let the rounds that begin from now on take in what others have added up."""
        self._parts = replace(self._parts, partial_sums=partial_sums)

    def start(self) -> None:
        """Begin to work on jobs, from where they stand."""
        self._worker = asyncio.create_task(self._work(), name="jobs")

    async def stop(self) -> None:
        """Stop working; what was acknowledged is on disk already. It may be started again."""
        tasks = [*self._runs.values(), *([self._worker] if self._worker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker = None
        self._cancelled.clear()  # what else becomes of jobs now is in the database
        self._paused.clear()

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

    async def create(self, config: JobConfig, key: str | None = None) -> JobRecord:
        """Add a job at the end.

        Args:
          config: what is asked for.
          key: of the request, which may come more than once: whoever got no answer sends it again. None: it does not.

        Returns:
          The job; under a key that is known, the one that the earlier request made.

        Raises:
          InvalidJobError: it asks too much, its optimizer does not exist, its evaluation set cannot be opened, what
            it starts from cannot be read or is of another network, or the earlier request was for another job.
        """
        if key is None:
            return await self._add(config)
        job = await self._disk.run(self._disk.storage.find_job, key)
        if job is None:
            try:
                return await self._add(config, key)
            except ConflictError:  # the same request, at the same time
                job = await self._disk.run(self._disk.storage.find_job, key)
                if job is None:
                    raise
        if job.config_json != config.to_json():
            raise InvalidJobError(
                f"the request's Idempotency-Key is that of an earlier one, which made job {job.job_id} of another "
                "configuration; a new request takes a key of its own"
            )
        return job

    async def _add(self, config: JobConfig, key: str | None = None) -> JobRecord:
        check_limits(config, self._parts.limits)
        await asyncio.to_thread(_check, config, self._parts.open_evaluation)
        if config.start is not None:
            await load_start(self._disk, config, config.start)
        job = JobRecord(
            job_id=f"{config.name[:40]}-{secrets.token_hex(4)}",
            name=config.name,
            state=JobState.PENDING,
            config_json=config.to_json(),
            spec_json=config.spec.to_json(),
            created_at=time.time(),
            starts_at=None if config.starts_at is None else config.starts_at.timestamp(),
            idempotency_key=key,
        )
        await self._disk.run(self._disk.storage.add_job, job)
        self._disk.feed.publish("job", job.job_id, job_id=job.job_id, name=job.name, state=job.state, reason="")
        _log.info("event=job_created job=%s rounds=%d", job.job_id, config.rounds)
        self._idle.clear()
        self._changed.set()
        return job

    async def ensure(self, config: JobConfig) -> JobRecord:
        """Return the job with this very configuration, adding it when there is none: a restart goes on with it."""
        text = config.to_json()
        async with self._ensuring:  # replicas that start at the same time may ask for the same job
            for job in await self._disk.run(self._disk.storage.list_jobs):
                if job.config_json == text:
                    return job
            return await self._add(config)

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
        if job_id in self.running:
            self.running[job_id].cancel("the job was cancelled")
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
        if job_id in self.running:
            self.running[job_id].dismiss("the job was paused")
        if job_id in self._runs:
            self._runs[job_id].cancel()
        await self._set_state(job_id, JobState.PAUSED, reason="paused by the operator")
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
        await self._set_state(job_id, JobState.PENDING)
        self._paused.discard(job_id)
        _log.info("event=job_resumed job=%s", job_id)
        self._idle.clear()
        self._changed.set()
        return await self.get(job_id)

    async def _work(self) -> None:
        while True:
            try:
                self._changed.clear()
                next_s = await self._begin_jobs()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), next_s)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is logged and the queue goes on
                _log_interruption(error, "queue")
                await asyncio.sleep(_FAULT_PAUSE_S)

    async def _begin_jobs(self) -> float | None:
        """Begin as many of the jobs that wait as may run; those that ran before a restart come first.

        Returns:
          Seconds after which to look again, at the latest; None: when something has changed.
        """
        jobs = await self._disk.run(self._disk.storage.list_jobs)
        waiting = [job for job in jobs if JobState(job.state).is_runnable and self._waits(job.job_id)]
        now = time.time()
        early = [job.starts_at - now for job in waiting if job.starts_at is not None and _is_early(job, now)]
        waiting = [job for job in waiting if not _is_early(job, now)]
        waiting.sort(key=lambda job: job.state != JobState.RUNNING)
        for job in waiting[: self._max_running - len(self._runs)]:
            self._runs[job.job_id] = run = asyncio.create_task(self._run(job), name=f"job {job.job_id}")
            run.add_done_callback(functools.partial(self._clear_up, job.job_id))
        for job in waiting:
            if job.state == JobState.RUNNING and self._waits(job.job_id):  # fewer may run than before the restart
                await self._set_state(job.job_id, JobState.PENDING)
        if not self._runs and not early:
            self._idle.set()
        return min([_LONGEST_SLEEP_S, *early]) if early else None

    def _waits(self, job_id: str) -> bool:
        return job_id not in self._runs and job_id not in self._cancelled | self._paused

    async def _run(self, job: JobRecord) -> None:
        _log.info("event=job_running job=%s", job.job_id)
        try:
            await self._run_to_its_end(job)
        except Exception as error:  # noqa: BLE001 - the database, when the end was to be written down: the job is begun again
            _log_interruption(error, job.job_id)
            await asyncio.sleep(_FAULT_PAUSE_S)

    def _clear_up(self, job_id: str, run: asyncio.Task[None]) -> None:
        """Make room for the next job."""
        del run
        del self._runs[job_id]
        self.running.pop(job_id, None)
        self._parts.dispatcher.forget(job_id)
        self._changed.set()

    async def _run_to_its_end(self, job: JobRecord) -> None:
        """Run a job until it has ended; cancelled when the job is paused or the queue stops."""
        committed = faults = 0
        pause_s = _FAULT_PAUSE_S
        while job.job_id not in self._cancelled:
            runner: JobRunner | None = None
            try:
                lost = await go_back_to_whole_version(self._disk, job.job_id)
                if job.job_id in self._cancelled:  # meanwhile; what was written down then is not to be overwritten
                    return None
                runner = JobRunner(job, JobConfig.from_json(job.config_json), self._parts)
                self.running[job.job_id] = runner
                await self._set_state(job.job_id, JobState.RUNNING, reason=lost)
                return await self._end(job.job_id, JobState.COMPLETED, await runner.run())
            except JobCancelled:
                return None  # written down when it was asked for
            except LeaseLostError:
                raise
            except Exception as error:  # noqa: BLE001 - one broken job must not stop the others
                if isinstance(error, BitfleetError) and not isinstance(error, PayloadLostError):
                    return await self._end(job.job_id, JobState.FAILED, str(error))
                if is_refusal(error):  # no fault of the job's, however long it takes
                    _log.error("event=disk_refuses job=%s next_try_s=%g reason=%r", job.job_id, pause_s, str(error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                pause_s = _FAULT_PAUSE_S
                progress = 0 if runner is None else runner.rounds_committed
                faults = 1 if progress > committed else faults + 1
                committed = progress
                _log.exception("event=job_interrupted job=%s fault=%d", job.job_id, faults)
                if faults == _MAX_FAULTS:
                    reason = f"interrupted {faults} times in a row, at last by {type(error).__name__}: {error}"
                    return await self._end(job.job_id, JobState.FAILED, reason)
                await asyncio.sleep(_FAULT_PAUSE_S)
        return None

    async def _set_state(
        self, job_id: str, state: JobState, *, reason: str = "", finished_at: float | None = None
    ) -> None:
        await self._disk.run(self._disk.storage.set_job_state, job_id, state, finished_at=finished_at, reason=reason)
        self._disk.feed.publish("job", job_id, job_id=job_id, state=state, reason=reason)

    async def _end(self, job_id: str, state: JobState, reason: str) -> None:
        await self._set_state(job_id, state, finished_at=time.time(), reason=reason)
        self._parts.partial_sums.drop(job_id)
        _log.info("event=job_ended job=%s state=%s reason=%r", job_id, state, reason)


def _log_interruption(error: Exception, of: str) -> None:
    """Log why the queue, or a job, begins again; with a traceback where nobody is known to be in the way."""
    if isinstance(error, LeaseLostError):  # another replica goes on; this queue is stopped in a moment
        _log.info("event=lease_lost of=%s reason=%r", of, str(error))
    elif is_refusal(error):
        _log.error("event=disk_refuses of=%s reason=%r", of, str(error))
    else:
        _log.exception("event=interrupted of=%s", of)


def _is_early(job: JobRecord, now: float) -> bool:
    """Say whether a job still waits for its time; one that has begun goes on, whatever the clock says now."""
    return job.state == JobState.PENDING and job.starts_at is not None and job.starts_at > now


def _check(config: JobConfig, open_evaluation: OpenEvaluation) -> None:
    try:
        preset = resolve_preset(config.preset, config.optimizer)
        if config.proximal_mu > 0 and (preset.name == "paper" or preset.optimizer.name == "bop"):
            raise InvalidJobError(
                f"strategy {config.strategy!r} pulls latent weights, of which {preset.optimizer.name!r} under preset "
                f"{preset.name!r} keeps none that can be moved; take another optimizer, or mu = 0"
            )
        if config.evaluation is not None:
            HeldOutSet(config, open_evaluation(config, config.evaluation)).close()
    except InvalidJobError:
        raise
    except BitfleetError as error:
        raise InvalidJobError(f"the job cannot run here: {error}") from error
