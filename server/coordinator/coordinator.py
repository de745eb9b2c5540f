"""The coordinator: devices on one side, jobs on the other. It knows neither gRPC nor HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

from server.coordinator.combining import Arithmetic, MaskedArithmetic
from server.coordinator.desk import Desk
from server.coordinator.disk import Disk
from server.coordinator.dispatch import Dispatcher
from server.coordinator.evaluation import OpenEvaluation, open_evaluation
from server.coordinator.events import Event, TaskEnded, TaskOutcome
from server.coordinator.fleet_jobs import FleetJobs, LocalJobs
from server.coordinator.intake import Chunk, Intake, Traffic
from server.coordinator.messages import DeviceHello, Heartbeat, SubmitAnswer, UpdateHeader
from server.coordinator.open_round import Rounds
from server.coordinator.others import NoOthers, Others
from server.coordinator.queue import JobQueue
from server.coordinator.readiness import Readiness
from server.coordinator.round import Phase
from server.coordinator.round_runner import RoundRunner
from server.coordinator.runner import RunnerParts
from server.coordinator.sessions import Fleet, LocalSession, Session
from server.coordinator.space import Space
from server.coordinator.sweeper import Sweeper
from server.coordinator.versions import InitialState, initial_state
from server.errors import NotFoundError, NotReadyError, OffsetError
from server.limits import Limits
from server.storage.base import DeviceRecord, Storage
from server.storage.payloads import BlobStore
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

_STOPPING = "the coordinator is stopping; connect again in a moment"


class Coordinator:
    """One fleet, and the jobs that it works for."""

    def __init__(
        self,
        storage: Storage,
        blobs: BlobStore,
        *,
        limits: Limits | None = None,
        initial_state: InitialState = initial_state,
        arithmetic: Arithmetic | None = None,
        clock: Callable[[], float] = time.monotonic,
        open_evaluation: OpenEvaluation = open_evaluation,
    ) -> None:
        self.limits = limits or Limits()
        self.clock = clock
        self.disk = Disk(storage, blobs)
        self._arithmetic = arithmetic or MaskedArithmetic()
        self.fleet = Fleet(heartbeat_interval_s=self.limits.heartbeat_interval_s, clock=clock)
        self.others: Others = NoOthers()
        """Who else is told of devices at this door."""
        self.traffic = Traffic()
        self.started_at = time.time()
        self.is_draining = False
        """Whether it is about to stop, and takes nothing new."""
        self.readiness = Readiness(self.disk)
        self.readiness.conditions = {"life": self._life, "lead": self._lead}
        self.space = Space(
            self.disk,
            quota_bytes=self.limits.disk_quota_bytes,
            min_free_bytes=self.limits.min_free_bytes,
            clock=clock,
        )
        self.sweeper = Sweeper(self.disk)
        self._intake = Intake(
            self.disk,
            self.space,
            max_chunk_bytes=self.limits.max_chunk_bytes,
            max_chunks=self.limits.max_chunks,
            traffic=self.traffic,
            clock=clock,
        )
        self.dispatcher = Dispatcher(self.fleet, clock)
        self.jobs = JobQueue(
            RunnerParts(
                self.disk,
                self.space,
                self.fleet,
                self.dispatcher,
                self.limits,
                initial_state,
                self._arithmetic,
                clock,
                open_evaluation,
            ),
            max_running=self.limits.max_jobs,
        )
        self.fleet_jobs: FleetJobs = LocalJobs(self.jobs, self.fleet)
        """What people ask of jobs; among other coordinators, of whichever works on them."""
        self.desk = Desk(
            self.disk,
            self.jobs.running,
            max_update_bytes=self.limits.max_update_bytes,
            max_refusals=self.limits.max_refusals,
        )
        self.rounds: Rounds = self.desk
        """Where updates are judged: here, unless another process plays the rounds."""
        self.fleet.listen(self._on_event)

    # Life

    async def lead(self) -> None:
        """Remove what a crash left behind and take up the jobs where they stand."""
        orphans = await self.disk.run(self.disk.remove_orphans)
        if orphans:
            _log.info("event=orphans_removed payloads=%d", orphans)
        self.sweeper.start()
        self.jobs.start()

    async def follow(self) -> None:
        """Stop working on jobs, which another process does now; devices keep their streams."""
        await self.sweeper.stop()
        await self.jobs.stop()

    def know_authority(self, ca_pem: bytes) -> None:
        """Ask of keys for secure aggregation that they are signed by certificates of this authority."""
        if isinstance(self._arithmetic, MaskedArithmetic):
            self._arithmetic.ca_pem = ca_pem

    async def drain(self) -> None:
        """Take nothing new, and wait for what is under way: uploads on their way in, and rounds that are being merged.

        Devices are sent away at once. They go on training, and send what they have to whoever is here next: rounds stay
        open on disk. The caller bounds the wait.
        """
        self.is_draining = True
        self.fleet.listen(None)  # nobody is gone because of this
        self.dismiss_devices()
        await self._intake.close()
        for active in list(self._open_rounds()):
            if active.round.phase is Phase.AGGREGATING:
                await active.closed.wait()

    async def stop(self) -> None:
        """End all streams and stop; what was acknowledged is on disk already."""
        self.fleet.listen(None)
        self.dismiss_devices()
        self.disk.feed.close()
        await self.sweeper.stop()
        await self.jobs.stop()
        await self.disk.close()

    def dismiss_devices(self) -> None:
        """End all streams, so that the transport can close; devices will connect again by themselves."""
        self.fleet.end_all(NotReadyError(_STOPPING))

    def _life(self) -> str:
        return _STOPPING if self.is_draining else ""

    def _lead(self) -> str:
        return "" if self.jobs.is_working else "jobs are not worked on: the coordinator is starting or stopping"

    def _open_rounds(self) -> Iterator[RoundRunner]:
        """Yield the rounds that are being played."""
        for runner in self.jobs.running.values():
            if runner.active is not None:
                yield runner.active

    # Devices

    async def connect(self, hello: DeviceHello) -> LocalSession:
        """Begin a device's session.

        Raises:
          NotReadyError: the coordinator is about to stop.
        """
        if self.is_draining:
            raise NotReadyError(_STOPPING)
        session = self.fleet.connect(hello)
        self.others.connected(session)
        _log.info("event=device_connected device=%s version=%s", hello.device_id, hello.client_version)
        try:
            await self._save_device(session)
        except BaseException:  # the device is told to come again, and has no stream
            if self.fleet.disconnect(session):
                self.others.disconnected(session)
            raise
        return session

    async def disconnect(self, session: Session) -> None:
        """Note that a device's stream has ended."""
        if self.fleet.disconnect(session):
            self.others.disconnected(session)
            _log.info("event=device_disconnected device=%s", session.device_id)
            try:
                await self._save_device(session)
            except Exception as error:
                if not is_refusal(error):
                    raise
                _log.warning("event=device_not_saved device=%s reason=%r", session.device_id, str(error))

    def heartbeat(self, session: Session, heartbeat: Heartbeat) -> None:
        """Note that a device is alive, and what it is doing."""
        told, now = session.told, heartbeat
        self.fleet.note(session, heartbeat)
        if _is_news(told, now):
            session.told = now
            self.others.noted(session)
            self.disk.feed.publish(
                *("device", session.device_id),
                state=now.state,
                task_id=now.task_id,
                step=now.step,
                total_steps=now.total_steps,
                pss_bytes=now.pss_bytes,
                temperature_c=now.temperature_c,
                paused_by=now.paused_by,
            )

    def report(self, session: Session, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """Take a device's word that a task ended without an update."""
        session.last_seen = self.clock()
        _log.warning(
            "event=task_ended device=%s task=%s outcome=%s reason=%r", session.device_id, task_id, outcome, reason
        )
        self.others.reported(session.device_id, task_id, outcome, reason)
        self.end_task(session.device_id, task_id, outcome, reason)

    def end_task(self, device_id: str, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """Tell the round that is played here, and of which a task is, that it ended without an update."""
        for active in self._open_rounds():
            if active.has_task(task_id, device_id):
                active.post(TaskEnded(device_id, outcome, reason))

    async def submit(self, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]) -> SubmitAnswer:
        """Take one update in; see ``Intake.submit``."""
        return await self._intake.submit(self.rounds, header, header_bytes, chunks)

    def count_order(self, task_id: str, device_id: str, num_bytes: int) -> None:
        """Count the serialised bytes of a task, or of an order for a step of its exchange, that was sent."""
        self.traffic.down_bytes += num_bytes
        self.others.sent(task_id, device_id, num_bytes)
        self.credit_order(task_id, device_id, num_bytes)

    def credit_order(self, task_id: str, device_id: str, num_bytes: int) -> None:
        """Count the bytes of an order for the round that is played here and of which it is, wherever it was sent."""
        for active in self._open_rounds():
            if active.has_task(task_id, device_id):
                active.count(device_id, down=num_bytes)

    def count_download(self, device_id: str, digest: str, num_bytes: int) -> None:
        """Count the serialised bytes of a piece of a model, or of a step, that was sent."""
        self.traffic.down_bytes += num_bytes
        self.others.downloaded(device_id, digest, num_bytes)
        self.credit_download(device_id, digest, num_bytes)

    def credit_download(self, device_id: str, digest: str, num_bytes: int) -> None:
        """Count the bytes of a piece for the round that is played here and leads to it, wherever it was sent."""
        leading = [active for active in self._open_rounds() if active.leads_to_base(digest)]
        at_hand = self.dispatcher.job_at(device_id)  # jobs of one configuration have the same models
        leading.sort(key=lambda active: active.job_id != at_hand)
        for active in leading[:1]:
            active.count(device_id, down=num_bytes)

    async def download(self, device_id: str, digest: str, offset: int) -> tuple[int, AsyncIterator[tuple[int, bytes]]]:
        """Open the payload of a model, or of a step to one, that a task of this device names.

        Returns:
          Its size, and (offset, bytes) pieces from ``offset`` to its end.

        Raises:
          NotFoundError: no task of the device leads to such a payload, whether there is one or not.
          OffsetError: ``offset`` lies beyond its end.
        """
        size = await self.disk.run(self.disk.storage.find_payload, digest, device_id)
        if size is None:
            raise NotFoundError(f"no task of device {device_id} names the payload {digest[:80]!r}")
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
        self.disk.feed.publish_device(record, is_connected=self.fleet.get(hello.device_id) is not None)

    def _on_event(self, event: Event) -> None:
        for runner in self.jobs.running.values():
            runner.post(event)


_NEWS_C = 2.0
"""Degrees by which a device is warmer or colder than it was told to be, before that is told."""


def _is_news(told: Heartbeat, now: Heartbeat) -> bool:
    """Say whether a heartbeat is worth telling: a step every few seconds, of each of many devices, is not."""
    before, after = (
        (
            beat.state,
            beat.task_id,
            beat.conditions,
            beat.temperature_c is None,
            10 * beat.step // max(1, beat.total_steps),
        )
        for beat in (told, now)
    )
    warmer_by = abs((now.temperature_c or 0.0) - (told.temperature_c or 0.0))
    return before != after or warmer_by >= _NEWS_C
