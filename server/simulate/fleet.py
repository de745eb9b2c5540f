"""The devices of a simulation: a stream each, and a few hands that do their tasks.

A device is a coroutine that holds its stream; what it weighs while it is idle is that stream. Tasks wait in one queue
and are done by a bounded number of hands, each with at most one model and one update in memory, so memory follows the
number of hands and not that of devices. Training happens in threads, one engine a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

import bnncore
from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import payload_digest
from bnncore.data import Dataset
from bnncore.engine import isa_selected
from bnncore.errors import BitfleetError
from bnncore.federated import EngineShelf, LocalTask, LocalTraining, LocalUpdate, train_locally
from bnncore.federated.replica import model_codec
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from server.coordinator.versions import initial_state
from server.rpc.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from server.simulate.attack import poison
from server.simulate.ledger import Ledger
from server.simulate.memory import DeviceMemory, ModelSource, pending_updates
from server.simulate.scenario import Scenario
from server.simulate.wire import CallAborted, Wire
from server.storage.base import BlobStore

_HANDS_BESIDE_TRAINING = 2
"""Tasks that are down- or uploading while every thread trains."""

_RETRY_S = 0.2
_MAX_TRIES = 50


class SimulationError(BitfleetError):
    """A simulated device or the job failed."""


@dataclass(frozen=True, order=True)
class _Work:
    """A task in the queue; the lowest rank is done first."""

    rank: tuple[int, int]
    number: int
    """Of the device, from 0."""
    task_bytes: bytes


class SimulatedFleet:
    """All devices of a scenario.

    Args:
      scenario: who they are.
      dataset: the training split.
      shards: each device's samples of it.
      wire: to the coordinator.
      ledger: what they send and receive.
      memories: folder of what they remember.
      blobs: where models lie.
      threads: that train.
      shuffle: decides the order in which the tasks of a round are done; None: that in which they came.
    """

    def __init__(
        self,
        scenario: Scenario,
        dataset: Dataset,
        shards: list[NDArray[np.uint32]],
        wire: Wire,
        ledger: Ledger,
        memories: Path,
        blobs: BlobStore,
        *,
        threads: int,
        shuffle: int | None,
    ) -> None:
        self._scenario = scenario
        self._dataset = dataset
        self._shards = shards
        self._wire = wire
        self._ledger = ledger
        self._memories = memories
        self._blobs = blobs
        self._threads = threads
        self._shuffle = shuffle
        self._queue: asyncio.PriorityQueue[_Work] = asyncio.PriorityQueue()
        self._arrivals = 0
        self._trainers = ThreadPoolExecutor(threads, thread_name_prefix="device")
        self._local = threading.local()
        self._stopping = threading.Event()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[asyncio.Task[None]]:
        """Have all devices live for the block; the task ends when one of them fails."""
        task = asyncio.create_task(self._live(), name="fleet")
        try:
            yield task
        finally:
            self._stopping.set()
            task.cancel()
            await asyncio.wait({task})
            self._trainers.shutdown(wait=True, cancel_futures=True)

    def _on_step(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise SimulationError(f"training was stopped after {done} of {total} steps")

    async def _live(self) -> None:
        await self._send_pending()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._threads + _HANDS_BESIDE_TRAINING):
                group.create_task(self._work())
            for number in range(self._scenario.devices):
                group.create_task(self._hold_stream(number, self._scenario.device_id(number)))

    async def _hold_stream(self, number: int, device_id: str) -> None:
        """Be connected, and queue the tasks that come."""
        said: asyncio.Queue[pb.ConnectRequest] = asyncio.Queue()
        said.put_nowait(self._hello(number, device_id))
        recent: deque[str] = deque(maxlen=2)
        async for response in self._wire.connect(said):
            if response.WhichOneof("event") != "task":
                continue  # Welcome; a cancellation, which only a member that was away can get
            task = response.task
            asked_before = task.task_id in recent
            recent.append(task.task_id)
            if self._scenario.is_absent(task.round_number, device_id) and not asked_before:
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
        dataset = self._dataset
        return pb.ConnectRequest(
            hello=pb.Hello(
                protocol_min=PROTOCOL_MIN,
                protocol_max=PROTOCOL_MAX,
                client_version=bnncore.__version__,
                device_id=device_id,
                data=pb.DataSummary(
                    classes=dataset.classes, input_shape=dataset.input_shape, num_examples=len(self._shards[number])
                ),
                capabilities=pb.Capabilities(isa=isa_selected(), threads=1, machine="simulated"),
            )
        )

    async def _work(self) -> None:
        """Do tasks one after another: download, train, send."""
        while True:
            work = await self._queue.get()
            task = pb.Task.FromString(work.task_bytes)
            device_id = self._scenario.device_id(work.number)
            memory = self._memory(device_id)
            source = await memory.find_model(task, self._wire)
            update = await asyncio.get_running_loop().run_in_executor(
                self._trainers, self._train, task, work.number, source, memory
            )
            header = _header(task, device_id, update, source.payload_bytes)
            # What is sent is written down first, so that a simulation taken up again knows of all that was counted.
            up_bytes = self._wire.update_bytes(header, update.payload)
            down_bytes = len(work.task_bytes) + source.wire_bytes
            self._ledger.note(task.round_number, device_id, down_bytes=down_bytes, up_bytes=up_bytes)
            memory.keep_pending(header, update, ModelSpec.from_json(task.spec_json))
            is_hostile = self._scenario.is_attacker(work.number)
            memory.settle(header, accepted=await self._deliver(header, update.payload, is_hostile=is_hostile))

    def _train(self, task: pb.Task, number: int, source: ModelSource, memory: DeviceMemory) -> LocalUpdate:
        shelf: EngineShelf | None = getattr(self._local, "shelf", None)
        if shelf is None:
            shelf = self._local.shelf = EngineShelf()
        spec = ModelSpec.from_json(task.spec_json)
        with self._dataset.subset(self._shards[number]) as samples:
            update = train_locally(
                _local_task(task, memory.device_id),
                source.model,
                samples,
                shelf,
                self._on_step,
                steps=source.steps,
                feedback=memory.feedback(spec),
            )
        scenario = self._scenario
        if scenario.attack is None or not scenario.is_attacker(number) or update.steps == 0:
            return update  # also of an attacker, where it holds statistics alone
        model = update.model or source.model
        if model is None:
            base = initial_state(scenario.job())
        else:
            base = model_codec(task.down_codec).decode(spec, model, kind="model")
        return replace(update, payload=poison(scenario.attack, spec, base, update.payload, task.up_codec))

    def _memory(self, device_id: str) -> DeviceMemory:
        return DeviceMemory(self._memories, device_id, self._blobs)

    async def _send_pending(self) -> None:
        """Send what was sent before an interruption, or was about to be, and hear how it ended."""
        for header, payload in pending_updates(self._memories):
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


def _header(task: pb.Task, device_id: str, update: LocalUpdate, downloaded_bytes: int) -> pb.UpdateHeader:
    return pb.UpdateHeader(
        device_id=device_id,
        task_id=task.task_id,
        job_id=task.job_id,
        round_number=task.round_number,
        model_digest=task.model_digest,
        update_digest=payload_digest(update.payload),
        total_bytes=len(update.payload),
        num_examples=update.num_examples,
        codec=task.up_codec,
        metrics=pb.UpdateMetrics(
            loss=update.loss,
            accuracy=update.accuracy,
            steps=update.steps,
            seconds=update.training_seconds,
            training_seconds=update.training_seconds,
            downloaded_bytes=downloaded_bytes,
        ),
    )


def _local_task(task: pb.Task, device_id: str) -> LocalTask:
    training = task.training
    return LocalTask(
        device_id=device_id,
        round_number=task.round_number,
        model_digest=task.model_digest,
        initial_seed=task.initial_seed,
        spec_json=task.spec_json,
        down_codec=task.down_codec,
        up_codec=task.up_codec,
        classes=tuple(task.classes),
        training=LocalTraining(
            preset=training.preset,
            optimizer=training.optimizer,
            batch_size=training.batch_size,
            local_steps=training.local_steps,
            step_scale=training.step_scale,
            seed=training.seed,
            proximal_mu=training.proximal_mu,
            statistics_batches=training.statistics_batches,
        ),
    )
