"""The coordinator: devices on one side, jobs on the other. It knows neither gRPC nor HTTP.

Jobs run one at a time, in the order in which they were created.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

from bnncore.errors import BitfleetError
from bnncore.optimizer import resolve_preset
from server.coordinator.disk import Disk
from server.coordinator.evaluation import HeldOutSet
from server.coordinator.events import Event, TaskEnded, TaskOutcome
from server.coordinator.intake import Chunk, Intake, Traffic
from server.coordinator.messages import DeviceHello, Heartbeat, SubmitAnswer, TaskOrder, UpdateHeader, task_id_of
from server.coordinator.runner import JobCancelled, JobRunner, RunnerParts
from server.coordinator.sessions import Fleet, Session
from server.coordinator.versions import InitialState, initial_state
from server.errors import ConflictError, InvalidJobError, NotFoundError, NotReadyError, OffsetError
from server.jobs import JobConfig, parse_job
from server.storage.base import BlobStore, DeviceRecord, JobRecord, Storage

_log = logging.getLogger(__name__)


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Limits:
    """What the coordinator asks of devices; see ``Settings`` for the meaning."""

    heartbeat_interval_s: float = 5.0
    settle_s: float = 0.5
    upload_idle_s: float = 30.0
    max_chunk_bytes: int = 256 * 1024
    max_update_bytes: int = 256 * 1024 * 1024


class Coordinator:
    """One fleet, one queue of jobs."""

    def __init__(
        self,
        storage: Storage,
        blobs: BlobStore,
        *,
        limits: Limits | None = None,
        initial_state: InitialState = initial_state,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.clock = clock
        self.disk = Disk(storage, blobs)
        self.fleet = Fleet(heartbeat_interval_s=self.limits.heartbeat_interval_s, clock=clock)
        self.traffic = Traffic()
        self.started_at = time.time()
        self._intake = Intake(self.disk, max_update_bytes=self.limits.max_update_bytes, traffic=self.traffic)
        self._parts = RunnerParts(self.disk, self.fleet, self.limits.settle_s, initial_state, clock)
        self._runner: JobRunner | None = None
        self._queue_changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Remove what a crash left behind and take up the jobs where they stand."""
        orphans = await self.disk.run(self.disk.remove_orphans)
        if orphans:
            _log.info("event=orphans_removed payloads=%d", orphans)
        self.fleet.listen(self._on_event)
        self._worker = asyncio.create_task(self._work(), name="jobs")

    async def stop(self) -> None:
        """End all streams and stop; what was acknowledged is on disk already."""
        self.fleet.listen(None)
        self.dismiss_devices()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        await self.disk.close()

    def dismiss_devices(self) -> None:
        """End all streams, so that the transport can close; devices will connect again by themselves."""
        self.fleet.end_all(NotReadyError("the coordinator is stopping; connect again in a moment"))

    async def wait_until_idle(self) -> None:
        """Wait until no job is pending or running."""
        await self._idle.wait()

    @property
    def running_job(self) -> JobRunner | None:
        """The job that is running, if any."""
        return self._runner

    @property
    def is_ready(self) -> bool:
        """Whether jobs are being worked on."""
        return self._worker is not None and not self._worker.done()

    # Jobs

    async def create_job(self, config: JobConfig) -> JobRecord:
        """Add a job to the queue.

        Raises:
          InvalidJobError: its optimizer does not exist, or its evaluation set cannot be opened.
        """
        await asyncio.to_thread(_check_job, config)
        job = JobRecord(
            job_id=f"{config.name[:40]}-{secrets.token_hex(4)}",
            name=config.name,
            state=JobState.PENDING,
            config_json=config.to_json(),
            spec_json=config.spec.to_json(),
            created_at=time.time(),
        )
        await self.disk.run(self.disk.storage.add_job, job)
        _log.info("event=job_created job=%s rounds=%d", job.job_id, config.rounds)
        self._idle.clear()
        self._queue_changed.set()
        return job

    async def ensure_job(self, config: JobConfig) -> JobRecord:
        """Return the job with this very configuration, adding it when there is none: a restart goes on with it."""
        text = config.to_json()
        for job in await self.disk.run(self.disk.storage.list_jobs):
            if job.config_json == text:
                return job
        return await self.create_job(config)

    async def cancel_job(self, job_id: str) -> JobRecord:
        """Cancel a pending or running job; what it committed stays.

        Raises:
          NotFoundError: there is no such job.
          ConflictError: it has ended.
        """
        job = await self.get_job(job_id)
        if JobState(job.state).is_over:
            raise ConflictError(f"job {job_id} is {job.state} and can no longer be cancelled")
        await self._end_job(job_id, JobState.CANCELLED, "cancelled by the operator")
        if self._runner is not None and self._runner.job_id == job_id:
            self._runner.cancel("the job was cancelled")
        return await self.get_job(job_id)

    async def get_job(self, job_id: str) -> JobRecord:
        """Return a job; raises NotFoundError when there is none of this id."""
        job = await self.disk.run(self.disk.storage.get_job, job_id)
        if job is None:
            raise NotFoundError(f"there is no job {job_id!r}; list them with: bitfleet-server jobs list")
        return job

    async def _work(self) -> None:
        while True:
            self._queue_changed.clear()
            jobs = await self.disk.run(self.disk.storage.list_jobs)
            job = next((job for job in jobs if not JobState(job.state).is_over), None)
            if job is None:
                self._idle.set()
                await self._queue_changed.wait()
            else:
                await self._run_job(job)

    async def _run_job(self, job: JobRecord) -> None:
        _log.info("event=job_running job=%s", job.job_id)
        try:
            if job.state != JobState.RUNNING:
                await self.disk.run(self.disk.storage.set_job_state, job.job_id, JobState.RUNNING)
            self._runner = JobRunner(job, parse_job(json.loads(job.config_json)), self._parts)
            await self._runner.run()
            await self._end_job(job.job_id, JobState.COMPLETED, "")
        except JobCancelled:
            pass  # written down when it was asked for
        except Exception as error:  # noqa: BLE001 - one broken job must not stop the others
            if not isinstance(error, BitfleetError):
                _log.exception("event=job_broken job=%s", job.job_id)
            await self._end_job(job.job_id, JobState.FAILED, str(error) or type(error).__name__)
        finally:
            self._runner = None

    async def _end_job(self, job_id: str, state: JobState, reason: str) -> None:
        await self.disk.run(self.disk.storage.set_job_state, job_id, state, finished_at=time.time(), reason=reason)
        _log.info("event=job_ended job=%s state=%s reason=%r", job_id, state, reason)

    # Devices

    async def connect(self, hello: DeviceHello) -> Session:
        """Begin a device's session."""
        session = self.fleet.connect(hello)
        _log.info("event=device_connected device=%s version=%s", hello.device_id, hello.client_version)
        await self._save_device(session)
        return session

    async def disconnect(self, session: Session) -> None:
        """Note that a device's stream has ended."""
        if self.fleet.disconnect(session):
            _log.info("event=device_disconnected device=%s", session.device_id)
            await self._save_device(session)

    def heartbeat(self, session: Session, heartbeat: Heartbeat) -> None:
        """Note that a device is alive, and what it is doing."""
        session.heartbeat = heartbeat
        session.last_seen = self.clock()

    def report(self, session: Session, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """Take a device's word that a task ended without an update."""
        session.last_seen = self.clock()
        active = None if self._runner is None else self._runner.active
        _log.warning(
            "event=task_ended device=%s task=%s outcome=%s reason=%r", session.device_id, task_id, outcome, reason
        )
        if active is not None and task_id == task_id_of(active.base.job_id, active.round_number, session.device_id):
            active.post(TaskEnded(session.device_id, outcome, reason[:500]))

    async def submit(self, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]) -> SubmitAnswer:
        """Take one update in; see ``Intake.submit``."""
        return await self._intake.submit(self._runner, header, header_bytes, chunks)

    def count_task(self, order: TaskOrder, device_id: str, num_bytes: int) -> None:
        """Count the serialised bytes of a task that was sent."""
        self.traffic.down_bytes += num_bytes
        active = None if self._runner is None else self._runner.active
        if active is not None and (active.base.job_id, active.round_number) == (order.job_id, order.round_number):
            active.count(device_id, down=num_bytes)

    def count_download(self, device_id: str, model_digest: str, num_bytes: int) -> None:
        """Count the serialised bytes of a piece of a model that was sent."""
        self.traffic.down_bytes += num_bytes
        active = None if self._runner is None else self._runner.active
        if active is not None and active.base.payload_digest == model_digest:
            active.count(device_id, down=num_bytes)

    async def download(self, model_digest: str, offset: int) -> tuple[int, AsyncIterator[tuple[int, bytes]]]:
        """Open a model's payload.

        Returns:
          Its size, and (offset, bytes) pieces from ``offset`` to its end.

        Raises:
          NotFoundError: no model version has such a payload.
          OffsetError: ``offset`` lies beyond its end.
        """
        size = await self.disk.run(self.disk.storage.find_payload, model_digest)
        if size is None:
            raise NotFoundError(f"no model has the payload {model_digest[:80]!r}")
        if offset > size:
            raise OffsetError(f"payload {model_digest} has {size} bytes, offset {offset} lies beyond its end")
        return size, self._pieces(model_digest, offset, size)

    async def _pieces(self, digest: str, offset: int, size: int) -> AsyncIterator[tuple[int, bytes]]:
        while offset < size:
            data = await asyncio.to_thread(self.disk.blobs.read, digest, offset, self.limits.max_chunk_bytes)
            if not data:
                raise NotFoundError(f"payload {digest} is shorter on disk than its {size} bytes")
            yield offset, data
            offset += len(data)

    async def _save_device(self, session: Session) -> None:
        hello, now = session.hello, time.time()
        record = DeviceRecord(
            device_id=hello.device_id,
            first_seen=now,
            last_seen=now,
            client_version=hello.client_version,
            classes=hello.classes,
            input_shape=hello.input_shape,
            num_examples=hello.num_examples,
            isa=hello.isa,
            machine=hello.machine,
            threads=hello.threads,
            memory_bytes=hello.memory_bytes,
            pss_bytes=session.heartbeat.pss_bytes,
        )
        await self.disk.run(self.disk.storage.save_device, record)

    def _on_event(self, event: Event) -> None:
        if self._runner is not None:
            self._runner.post(event)


def _check_job(config: JobConfig) -> None:
    try:
        resolve_preset(config.preset, config.optimizer)
        if config.evaluation is not None:
            HeldOutSet(config, config.evaluation).close()
    except InvalidJobError:
        raise
    except BitfleetError as error:
        raise InvalidJobError(f"the job cannot run here: {error}") from error
