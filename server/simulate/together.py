"""Devices that do their tasks together: a worker trains many and adds their updates up.

The coordinator then gets, in place of each payload, the update's header and in which sum it is, as from another replica
that has folded it (``server.coordinator.partial_sums``). What passes through the coordinator's process is the size of a
few models a worker and round, however many devices there are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import payload_digest
from bnncore.durable import replace_file
from bnncore.spec import ModelSpec
from server.coordinator import Coordinator
from server.coordinator.aggregation import is_mergeable
from server.coordinator.events import SubmitStatus
from server.coordinator.messages import SubmitAnswer
from server.coordinator.partial_sums import Part, PartialSum
from server.coordinator.upload import Upload
from server.errors import NotReadyError
from server.jobs import JobConfig
from server.rpc.convert import header_of
from server.simulate.cast import Share
from server.simulate.errors import SimulationError
from server.simulate.ledger import UPDATE, Ledger
from server.simulate.memory import DeviceMemory
from server.simulate.summing import Handed, RoundStart
from server.simulate.trainers import Assignment, Trainer
from server.simulate.training import Lesson
from server.simulate.wire import Wire
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore

__all__ = ["Together", "WorkerSums"]

_RETRY_S = 0.2
_MAX_TRIES = 50


class WorkerSums:
    """The sums that were handed over and are not merged yet; see ``PartialSums``.

    They are on the disk before an update in them counts, so none is lost when the simulation is killed.

    Args:
      folder: where they lie.
      blobs: where whoever gathers them finds them.
    """

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self._folder = folder
        self._blobs = blobs
        folder.mkdir(exist_ok=True)

    def keep(self, total: bytes, parts: Mapping[str, Part]) -> str:
        """Put a sum away until its round is aggregated; returns its name. Blocking."""
        name = payload_digest(total)
        with replace_file(self._folder / name) as file:
            file.write(total)
        with replace_file(self._parts(name)) as file:  # last: with it the sum is complete
            file.write(json.dumps(parts).encode())
        return name

    def is_there(self, replica: str) -> bool:
        """See ``PartialSums``."""
        return self._parts(replica).exists()

    async def gather(self, base: VersionRecord, replicas: Mapping[str, Mapping[str, Part]]) -> Sequence[PartialSum]:
        """See ``PartialSums``."""
        del base
        return [await asyncio.to_thread(self._give, name) for name in replicas if self.is_there(name)]

    def _give(self, name: str) -> PartialSum:
        parts = json.loads(self._parts(name).read_bytes())
        digest = self._blobs.put((self._folder / name).read_bytes())
        return PartialSum(digest, {device_id: Part(*part) for device_id, part in parts.items()})

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        """See ``PartialSums``."""
        del job_id, round_number  # there is one job, which has one round at a time
        for path in self._folder.iterdir():
            path.unlink()

    def _parts(self, name: str) -> Path:
        return self._folder / f"{name}.json"


class _Downloads:
    """Payloads that were downloaded or read for a round, once for all devices; each device's bytes are counted."""

    def __init__(self, coordinator: Coordinator, wire: Wire) -> None:
        self._coordinator = coordinator
        self._wire = wire
        self._downloaded: dict[str, tuple[bytes, int]] = {}
        self._read: dict[str, bytes] = {}

    async def download(self, device_id: str, digest: str) -> tuple[bytes, int]:
        """See ``Wire``."""
        if digest in self._downloaded:
            self._coordinator.count_download(device_id, digest, self._downloaded[digest][1])
        else:
            self._downloaded[digest] = await self._wire.download(device_id, digest)
        return self._downloaded[digest]

    def get(self, digest: str) -> bytes:
        """See ``BlobStore``."""
        if digest not in self._read:
            self._read[digest] = self._coordinator.disk.blobs.get(digest)
        return self._read[digest]


@dataclass(frozen=True)
class Ordered:
    """A task that a device has got.

    Attributes:
      device_id: which.
      share: its samples.
      task: what to do.
    """

    device_id: str
    share: Share
    task: pb.Task


class Together:
    """Does many devices' tasks at once.

    Args:
      coordinator: that gives them.
      job: whose.
      trainer: who trains.
      wire: to the coordinator.
      ledger: what devices send and receive.
      state: the work folder.
    """

    def __init__(
        self, coordinator: Coordinator, job: JobConfig, trainer: Trainer, wire: Wire, ledger: Ledger, state: Path
    ) -> None:
        self._coordinator = coordinator
        self._job = job
        self._trainer = trainer
        self._wire = wire
        self._ledger = ledger
        self._memories = state / "devices"
        self._round_number = 0
        self._given: set[str] = set()
        """Devices whose task of the round is done, or being done."""
        self._downloads = _Downloads(coordinator, wire)
        self._sums = WorkerSums(state / "sums", coordinator.disk.blobs)
        coordinator.jobs.gather_from(self._sums)

    @staticmethod
    def fits(job: JobConfig, trainer: Trainer, *, has_attackers: bool) -> bool:
        """Say whether a job's updates can be added up by who trains; poison has to be looked at one by one."""
        return trainer.adds_up and is_mergeable(job) and not has_attackers

    async def do_tasks(self, ordered: Sequence[Ordered]) -> None:
        """Do some devices' tasks of one round."""
        number = ordered[0].task.round_number
        if number != self._round_number:
            self._round_number, self._downloads = number, _Downloads(self._coordinator, self._wire)
            self._given.clear()
        # A task that is sent once more is not done once more: it is in a sum already.
        ordered = list({order.device_id: order for order in ordered if order.device_id not in self._given}.values())
        self._given.update(order.device_id for order in ordered)
        if ordered:
            await self._do(number, ordered)

    async def _do(self, number: int, ordered: Sequence[Ordered]) -> None:
        disk = self._coordinator.disk
        base = await disk.run(disk.storage.get_version, ordered[0].task.job_id, number - 1)
        if base is None:
            raise SimulationError(f"version {number - 1} of the model is not there any more")
        start = RoundStart(self._job, base)
        prepared = [await self._prepare(order) for order in ordered]
        payloads = {digest: self._downloads.get(digest) for digest in start.digests}
        handed = await self._trainer.train_together(start, payloads, [assignment for assignment, _ in prepared])
        headers = [pb.UpdateHeader.FromString(header) for header in handed.headers]
        for (_, down_bytes), header in zip(prepared, headers, strict=True):
            up_bytes = self._wire.update_bytes(header)
            self._ledger.note(number, header.device_id, UPDATE, down_bytes=down_bytes, up_bytes=up_bytes)
        name = await asyncio.to_thread(self._keep, ordered, headers, handed)
        await asyncio.gather(*(self._deliver(header, name) for header in headers))

    def _keep(self, ordered: Sequence[Ordered], headers: Sequence[pb.UpdateHeader], handed: Handed) -> str:
        """Write down what must not be lost once the updates count; returns the sum's name. Blocking."""
        for order, header, local_state in zip(ordered, headers, handed.local_states, strict=True):
            spec, local = ModelSpec.from_json(order.task.spec_json), frozenset(order.task.local_tensors)
            self._memory(order.device_id).keep(header, local_state, spec, local)
        return self._sums.keep(handed.total, handed.parts)

    async def _prepare(self, order: Ordered) -> tuple[Assignment, int]:
        """Give a device what it needs; returns that and the bytes that it has received."""
        task, memory = order.task, self._memory(order.device_id)
        spec, local = ModelSpec.from_json(task.spec_json), frozenset(task.local_tensors)
        download = await memory.find_model(task, self._downloads)
        lesson = Lesson(
            order.device_id,
            task.round_number,
            task.SerializeToString(),
            memory.local_state(task.round_number, spec, local),
            downloaded_bytes=download.payload_bytes,
        )
        return Assignment(lesson, download.source, order.share), task.ByteSize() + download.wire_bytes

    def _memory(self, device_id: str) -> DeviceMemory:
        return DeviceMemory(self._memories, device_id, self._downloads)

    async def _deliver(self, header: pb.UpdateHeader, name: str) -> None:
        """Tell the round of an update that is in a sum, until it is counted."""
        for _ in range(_MAX_TRIES):
            try:
                answer = await self._offer(header, name)
            except NotReadyError:
                await asyncio.sleep(_RETRY_S)
                continue
            if answer.status in (SubmitStatus.ACCEPTED, SubmitStatus.DUPLICATE):
                return
            raise SimulationError(
                f"the update of {header.device_id} in round {header.round_number} was not counted: "
                f"{answer.status}: {answer.reason}"
            )
        raise SimulationError(f"the coordinator took no update of {header.device_id} in {_MAX_TRIES} tries")

    async def _offer(self, message: pb.UpdateHeader, name: str) -> SubmitAnswer:
        header = header_of(message, key_digest=None)
        round_ = await self._coordinator.desk.judge(header)
        if isinstance(round_, SubmitAnswer):
            return round_
        round_.count(up=self._wire.update_bytes(message))
        return await round_.offer(Upload(header, folded_by=name))
