"""The devices of a simulation: a stream each, and a few hands that do their tasks.

A device is a coroutine that holds its stream; what it weighs while it is idle is that stream. Tasks wait in one queue
and are done by a bounded number of hands, each with at most one model and one update in memory, so memory follows the
number of hands and not that of devices. A ``Trainer`` trains them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

import bnncore
from bitfleet.v1 import fleet_pb2 as pb
from bnncore.engine import isa_selected
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from server.jobs import JobConfig
from server.rpc.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from server.simulate.cast import Cast, Share
from server.simulate.errors import SimulationError
from server.simulate.exchange import begin_member, resume_member, step_header
from server.simulate.ledger import UPDATE, Ledger
from server.simulate.memory import DeviceMemory, pending_updates
from server.simulate.together import Ordered, Together
from server.simulate.trainers import Assignment, Trainer
from server.simulate.training import Lesson, header_of
from server.simulate.wire import CallAborted, Wire
from server.storage.payloads import BlobStore

_HANDS_BESIDE_TRAINING = 2
"""Tasks that are down- or uploading while a device trains in every place."""

_MOST_TOGETHER = 64
"""Tasks that are done together at most: their devices' local states are in memory, and are lost with a worker."""

_RETRY_S = 0.2
_MAX_TRIES = 50


@dataclass(frozen=True, order=True)
class _Work:
    """A task in the queue; the lowest rank is done first."""

    rank: tuple[int, int]
    number: int
    """Of the device, from 0."""
    task_bytes: bytes = b""
    order_bytes: bytes = b""
    """Of a step of an exchange, in place of a task."""


class SimulatedFleet:
    """All devices of a simulation.

    Args:
      cast: who they are.
      shares: each device's samples.
      job: what they work for.
      wire: to the coordinator.
      ledger: what they send and receive.
      memories: folder of what they remember.
      blobs: where models lie.
      trainer: who trains.
      together: by whom tasks are done many at once; None: each by itself.
      shuffle: decides the order in which the tasks of a round are done; None: that in which they came.
    """

    def __init__(
        self,
        cast: Cast,
        shares: Sequence[Share],
        job: JobConfig,
        wire: Wire,
        ledger: Ledger,
        memories: Path,
        blobs: BlobStore,
        *,
        trainer: Trainer,
        together: Together | None,
        shuffle: int | None,
    ) -> None:
        self._cast = cast
        self._shares = shares
        self._job = job
        self._wire = wire
        self._ledger = ledger
        self._memories = memories
        self._blobs = blobs
        self._trainer = trainer
        self._together = together
        self._shuffle = shuffle
        self._queue: asyncio.PriorityQueue[_Work] = asyncio.PriorityQueue()
        self._arrivals = 0
        self._at_work: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[asyncio.Task[None]]:
        """Have all devices live for the block; the task ends when one of them fails."""
        task = asyncio.create_task(self._live(), name="fleet")
        try:
            yield task
        finally:
            self._trainer.stop()
            task.cancel()
            await asyncio.wait({task})

    async def _live(self) -> None:
        await self._send_pending()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._trainer.places + _HANDS_BESIDE_TRAINING):
                group.create_task(self._work())
            for number in range(self._cast.devices):
                group.create_task(self._hold_stream(number, self._cast.device_id(number)))

    async def _hold_stream(self, number: int, device_id: str) -> None:
        """Be connected, and queue the tasks that come."""
        said: asyncio.Queue[pb.ConnectRequest] = asyncio.Queue()
        said.put_nowait(self._hello(number, device_id))
        recent: deque[str] = deque(maxlen=2)
        async for response in self._wire.connect(said):
            if response.WhichOneof("event") == "exchange":
                self._arrivals += 1
                self._queue.put_nowait(_Work((0, self._arrivals), number, b"", response.exchange.SerializeToString()))
                continue
            if response.WhichOneof("event") != "task":
                continue  # Welcome; a cancellation, which only a member that was away can get
            task = response.task
            asked_before = task.task_id in recent
            recent.append(task.task_id)
            if self._cast.is_absent(task.round_number, device_id) and not asked_before:
                report = pb.TaskReport(task_id=task.task_id, outcome=pb.TASK_OUTCOME_FAILED, reason="away")
                said.put_nowait(pb.ConnectRequest(report=report))
            else:
                self._arrivals += 1
                rank = (self._rank(task.round_number, device_id), self._arrivals)
                self._queue.put_nowait(_Work(rank, number, task.SerializeToString()))

    def _rank(self, round_number: int, device_id: str) -> int:
        if self._shuffle is None:
            return 0
        return derive_seed("arrival", self._shuffle, round_number, device_id)

    def _hello(self, number: int, device_id: str) -> pb.ConnectRequest:
        share = self._shares[number]
        return pb.ConnectRequest(
            hello=pb.Hello(
                protocol_min=PROTOCOL_MIN,
                protocol_max=PROTOCOL_MAX,
                client_version=bnncore.__version__,
                device_id=device_id,
                data=pb.DataSummary(
                    classes=share.dataset.classes,
                    input_shape=share.dataset.input_shape,
                    num_examples=share.num_examples,
                    needs_input_range=self._job.input_range is not None,  # which the samples have followed
                ),
                capabilities=pb.Capabilities(isa=isa_selected(), threads=1, machine="simulated"),
            )
        )

    async def _work(self) -> None:
        """Do what there is to do, one after another."""
        while True:
            work = await self._queue.get()
            device_id = self._cast.device_id(work.number)
            if self._together is not None:
                await self._together.do_tasks([self._ordered(work), *map(self._ordered, self._more(work))])
                continue
            async with self._at_work[device_id]:
                if work.order_bytes:
                    await self._take_step(pb.ExchangeOrder.FromString(work.order_bytes), self._memory(device_id))
                else:
                    await self._do_task(pb.Task.FromString(work.task_bytes), work.number, self._memory(device_id))

    def _more(self, first: _Work) -> Iterator[_Work]:
        """Take more tasks of a round out of the queue, but not all: all places are to end at about the same time."""
        round_number = pb.Task.FromString(first.task_bytes).round_number
        for _ in range(min(self._queue.qsize() // (2 * self._trainer.places), _MOST_TOGETHER - 1)):
            work = self._queue.get_nowait()
            if pb.Task.FromString(work.task_bytes).round_number != round_number:
                self._queue.put_nowait(work)
                return
            yield work

    def _ordered(self, work: _Work) -> Ordered:
        device_id, share = self._cast.device_id(work.number), self._shares[work.number]
        return Ordered(device_id, share, pb.Task.FromString(work.task_bytes))

    async def _do_task(self, task: pb.Task, number: int, memory: DeviceMemory) -> None:
        """Do a task: download, train, send; or enter its exchange with what was trained."""
        is_secure = task.HasField("secure")
        if is_secure and memory.settle_before(task):
            await self._send_keys(task, memory)
            return
        spec, local = ModelSpec.from_json(task.spec_json), frozenset(task.local_tensors)
        download = await memory.find_model(task, self._wire)
        is_hostile = self._cast.is_attacker(number)
        attack = self._cast.attack if is_hostile else None
        held = memory.local_state(task.round_number, spec, local)
        lesson = Lesson(memory.device_id, task.round_number, task.SerializeToString(), held, attack)
        update = await self._trainer.train(Assignment(lesson, download.source, self._shares[number]))
        header = header_of(task, memory.device_id, update, download.payload_bytes)
        # What is sent is written down first, so that a simulation taken up again knows of all that was counted.
        up_bytes = 0 if is_secure else self._wire.update_bytes(header)
        down_bytes = task.ByteSize() + download.wire_bytes
        self._ledger.note(task.round_number, memory.device_id, UPDATE, down_bytes=down_bytes, up_bytes=up_bytes)
        memory.keep_pending(header, update, spec, local)
        if is_secure:
            await self._send_keys(task, memory)
            return
        memory.settle(header, accepted=await self._deliver(header, update.payload, is_hostile=is_hostile))

    async def _send_keys(self, task: pb.Task, memory: DeviceMemory) -> None:
        """Enter the exchange of a task whose update is trained; asked again, with the same keys as before."""
        kept, has_masks = memory.member(), self._cast.has_masks
        if kept is not None and kept[0].secure.attempt == task.secure.attempt:
            member = resume_member(*kept, has_masks=has_masks)
        else:
            member = begin_member(task, memory.device_id, has_masks=has_masks)
            memory.keep_member(task, member.to_bytes())
        await self._send_step(memory, pb.EXCHANGE_STEP_KEYS, task.secure.attempt, member.keys, 0)

    async def _take_step(self, order: pb.ExchangeOrder, memory: DeviceMemory) -> None:
        """Take a step of an exchange that the device is still in."""
        kept, pending = memory.member(), memory.pending()
        if kept is None or pending is None:
            return
        task, state = kept
        if (task.task_id, task.secure.attempt) != (order.task_id, order.attempt):
            return
        member = resume_member(task, state, has_masks=self._cast.has_masks)
        payload = await asyncio.to_thread(member.answer, order, pending[1])
        memory.keep_member(task, member.to_bytes())
        await self._send_step(memory, order.step, order.attempt, payload, order.ByteSize())
        if order.step == pb.EXCHANGE_STEP_REVEAL:
            memory.settle(pending[0], accepted=True)

    async def _send_step(
        self, memory: DeviceMemory, step: pb.ExchangeStep, attempt: int, payload: bytes, down_bytes: int
    ) -> None:
        pending = memory.pending()
        assert pending is not None
        header = step_header(pending[0], step, attempt, payload)
        up_bytes, part = self._wire.update_bytes(header), f"{pb.ExchangeStep.Name(step)}.{attempt}"
        self._ledger.note(header.round_number, memory.device_id, part, down_bytes=down_bytes, up_bytes=up_bytes)
        await self._deliver(header, payload, is_hostile=True)

    def _memory(self, device_id: str) -> DeviceMemory:
        return DeviceMemory(self._memories, device_id, self._blobs)

    async def _send_pending(self) -> None:
        """Send what was sent before an interruption, or was about to be, and hear how it ended."""
        for header, payload in pending_updates(self._memories):
            if self._job.secure_aggregation is not None:
                continue  # it is in an exchange, and is asked again for what is missing
            counted = await self._deliver(header, payload, is_hostile=True)
            self._memory(header.device_id).settle(header, accepted=counted)

    async def _deliver(self, header: pb.UpdateHeader, payload: bytes, *, is_hostile: bool) -> bool:
        """Send an update until it is answered, and say whether it counts; only a hostile one may be refused."""
        for _ in range(_MAX_TRIES):
            try:
                answer = await self._wire.submit(header, payload)
                break
            except CallAborted as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(_RETRY_S)
        else:
            raise SimulationError(f"the coordinator took no update of {header.device_id} in {_MAX_TRIES} tries")
        counted = answer.status in (pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE)
        if not counted and not is_hostile:
            raise SimulationError(
                f"the update of {header.device_id} in round {header.round_number} was not counted: "
                f"{pb.SubmitStatus.Name(answer.status)}: {answer.reason}"
            )
        return counted
