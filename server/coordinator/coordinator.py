"""The coordinator: devices on one side, jobs on the other. It knows neither gRPC nor HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from server.coordinator.disk import Disk
from server.coordinator.events import Event, TaskEnded, TaskOutcome
from server.coordinator.intake import Chunk, Intake, Traffic
from server.coordinator.messages import DeviceHello, Heartbeat, SubmitAnswer, TaskOrder, UpdateHeader, task_id_of
from server.coordinator.queue import JobQueue
from server.coordinator.round_runner import RoundRunner
from server.coordinator.runner import JobRunner, RunnerParts
from server.coordinator.sessions import Fleet, Session
from server.coordinator.versions import InitialState, initial_state
from server.errors import NotFoundError, NotReadyError, OffsetError
from server.storage.base import BlobStore, DeviceRecord, Storage

_log = logging.getLogger(__name__)


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
        self._intake = Intake(
            self.disk,
            max_update_bytes=self.limits.max_update_bytes,
            max_chunk_bytes=self.limits.max_chunk_bytes,
            traffic=self.traffic,
            clock=clock,
        )
        self.jobs = JobQueue(RunnerParts(self.disk, self.fleet, self.limits.settle_s, initial_state, clock))

    # Life

    async def start(self) -> None:
        """Remove what a crash left behind and take up the jobs where they stand."""
        orphans = await self.disk.run(self.disk.remove_orphans)
        if orphans:
            _log.info("event=orphans_removed payloads=%d", orphans)
        self.fleet.listen(self._on_event)
        self.jobs.start()

    async def stop(self) -> None:
        """End all streams and stop; what was acknowledged is on disk already."""
        self.fleet.listen(None)
        self.dismiss_devices()
        await self.jobs.stop()
        await self.disk.close()

    def dismiss_devices(self) -> None:
        """End all streams, so that the transport can close; devices will connect again by themselves."""
        self.fleet.end_all(NotReadyError("the coordinator is stopping; connect again in a moment"))

    @property
    def running_job(self) -> JobRunner | None:
        """The job that is running, if any."""
        return self.jobs.runner

    @property
    def _active(self) -> RoundRunner | None:
        """The round being played, if any."""
        return None if self.jobs.runner is None else self.jobs.runner.active

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
        self.fleet.note(session, heartbeat)

    def report(self, session: Session, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """Take a device's word that a task ended without an update."""
        session.last_seen = self.clock()
        active = self._active
        _log.warning(
            "event=task_ended device=%s task=%s outcome=%s reason=%r", session.device_id, task_id, outcome, reason
        )
        device_id = session.device_id
        if active is not None and task_id == task_id_of(active.base.job_id, active.task_round(device_id), device_id):
            active.post(TaskEnded(session.device_id, outcome, reason))

    async def submit(self, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]) -> SubmitAnswer:
        """Take one update in; see ``Intake.submit``."""
        return await self._intake.submit(self.jobs.runner, header, header_bytes, chunks)

    def count_task(self, order: TaskOrder, device_id: str, num_bytes: int) -> None:
        """Count the serialised bytes of a task that was sent."""
        self.traffic.down_bytes += num_bytes
        active = self._active
        if active is not None and order.task_id == task_id_of(
            active.base.job_id, active.task_round(device_id), device_id
        ):
            active.count(device_id, down=num_bytes)

    def count_download(self, device_id: str, digest: str, num_bytes: int) -> None:
        """Count the serialised bytes of a piece of a model, or of a step, that was sent."""
        self.traffic.down_bytes += num_bytes
        active = self._active
        if active is not None and active.leads_to_base(digest):
            active.count(device_id, down=num_bytes)

    async def download(self, digest: str, offset: int) -> tuple[int, AsyncIterator[tuple[int, bytes]]]:
        """Open the payload of a model or of a step.

        Returns:
          Its size, and (offset, bytes) pieces from ``offset`` to its end.

        Raises:
          NotFoundError: no model version has such a payload.
          OffsetError: ``offset`` lies beyond its end.
        """
        size = await self.disk.run(self.disk.storage.find_payload, digest)
        if size is None:
            raise NotFoundError(f"no model has the payload {digest[:80]!r}")
        if offset > size:
            raise OffsetError(f"payload {digest} has {size} bytes, offset {offset} lies beyond its end")
        return size, self._pieces(digest, offset, size)

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
        if self.jobs.runner is not None:
            self.jobs.runner.post(event)
