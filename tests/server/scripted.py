"""A device that a test drives by hand: a real gRPC client over loopback that trains with the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.codec import get_codec, get_state_codec
from bnncore.data import write_idx
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from bnncore.state import State
from tests.patience import patiently

CLASSES = ("zero", "one", "two")
SHAPE = (4, 4)


def samples_of(device_id: str, count: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Make a device's own data: three noisy stripes patterns, a function of the device's name."""
    rng = np.random.default_rng(derive_seed(device_id))
    labels = rng.integers(0, 3, count).astype(np.int32)
    images = rng.integers(0, 60, (count, 16)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, label * 5 : label * 5 + 5] += 190
    return images, labels


def write_held_out_set(folder: Path) -> None:
    """Write a test set of such samples as an ``idx`` data set."""
    folder.mkdir()
    images, labels = samples_of("held-out", 150)
    write_idx(folder, images.reshape(-1, 4, 4), labels.astype("uint8"), "test")
    (folder / "classes.json").write_text(json.dumps(CLASSES))


def train_task(task: pb.Task, device_id: str, payload: bytes) -> State:
    """Train as a device does: from the payload, a function of (model, data, task, device)."""
    spec = ModelSpec.from_json(task.spec_json)
    images, labels = samples_of(device_id)
    batch_size = min(task.training.batch_size, len(labels))
    engine = Engine(
        spec, batch_size=batch_size, preset=resolve_preset(task.training.preset, task.training.optimizer or None),
        seed=derive_seed(task.training.seed, task.round_number, device_id),
    )  # fmt: skip
    engine.load_state(get_state_codec(task.down_codec).decode(spec, payload, kind="model"))
    for step in range(task.training.local_steps):
        rows = (np.arange(batch_size) + step * batch_size) % len(labels)
        engine.input[:] = images[rows]
        engine.labels[:] = labels[rows]
        engine.step(task.training.step_scale)
    return engine.state()


@dataclass
class ScriptedDevice:
    """One device; ``async with`` opens its channel, ``connect`` its stream."""

    address: str
    device_id: str
    classes: tuple[str, ...] = CLASSES
    input_shape: tuple[int, ...] = SHAPE
    num_examples: int = 40
    training_seconds: float = 0.01
    score: tuple[int, int, float] = (0, 0, 0.0)
    """What it says of a model on its validation part: examples, hits, mean loss."""
    any_image_shape: bool = False
    needs_input_range: bool = False
    memory_bytes: int = 0
    conditions: pb.Conditions = field(default_factory=pb.Conditions)
    protocol: tuple[int, int] = (1, 1)
    credentials: grpc.ChannelCredentials | None = None
    down_bytes: int = 0
    up_bytes: int = 0
    _calls: list[Any] = field(default_factory=list)

    async def __aenter__(self) -> ScriptedDevice:
        # a channel of its own: a shared one would make a device wait out the backoff of another
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.credentials is None:
            self.channel = grpc.aio.insecure_channel(self.address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(self.address, self.credentials, options=options)
        self.stub: Any = pb_grpc.FleetStub(self.channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.vanish()
        await self.channel.close()

    async def vanish(self) -> None:
        """Drop the stream as a power cut does."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()

    def hello(self) -> pb.ConnectRequest:
        return pb.ConnectRequest(
            hello=pb.Hello(
                protocol_min=self.protocol[0],
                protocol_max=self.protocol[1],
                client_version="0.1.0",
                device_id=self.device_id,
                data=pb.DataSummary(
                    classes=self.classes,
                    input_shape=self.input_shape,
                    num_examples=self.num_examples,
                    any_image_shape=self.any_image_shape,
                    needs_input_range=self.needs_input_range,
                ),
                capabilities=pb.Capabilities(isa="portable", threads=1, memory_bytes=self.memory_bytes, machine="test"),
                conditions=self.conditions,
            )
        )

    async def connect(self) -> pb.Welcome:
        self.stream = self.stub.Connect()
        self._calls.append(self.stream)
        await self.stream.write(self.hello())
        response = await self.stream.read()
        if response is grpc.aio.EOF:
            raise AssertionError(f"{await self.stream.code()}: {await self.stream.details()}")
        welcome: pb.Welcome = response.welcome
        return welcome

    async def beat(self, **fields: Any) -> None:
        await self.stream.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(state=pb.DEVICE_STATE_IDLE, **fields)))

    async def report(self, task: pb.Task, outcome: pb.TaskOutcome, reason: str) -> None:
        report = pb.TaskReport(task_id=task.task_id, outcome=outcome, reason=reason)
        await self.stream.write(pb.ConnectRequest(report=report))

    async def next_event(self) -> pb.ConnectResponse:
        response = await patiently(self.stream.read())
        if response is grpc.aio.EOF:
            raise AssertionError(f"{await self.stream.code()}: {await self.stream.details()}")
        return response  # type: ignore[no-any-return]

    async def next_task(self) -> pb.Task:
        """Wait for the next task, skipping cancellations."""
        while True:
            response = await self.next_event()
            if response.HasField("task"):
                self.down_bytes += response.ByteSize()
                return response.task

    async def download(self, digest: str, offset: int = 0) -> bytes:
        request = pb.DownloadModelRequest(device_id=self.device_id, model_digest=digest, offset=offset)
        payload = b""
        async for response in self.stub.DownloadModel(request):
            assert response.offset == offset + len(payload)
            self.down_bytes += response.ByteSize()
            payload += response.data
        return payload

    def header(self, task: pb.Task, payload: bytes, **changes: Any) -> pb.UpdateHeader:
        fields: dict[str, Any] = {
            "device_id": self.device_id,
            "task_id": task.task_id,
            "job_id": task.job_id,
            "round_number": task.round_number,
            "model_digest": task.model_digest,
            "update_digest": hashlib.sha256(payload).hexdigest(),
            "total_bytes": len(payload),
            "num_examples": self.num_examples,
            "codec": task.up_codec,
            "metrics": pb.UpdateMetrics(
                loss=0.5,
                accuracy=0.9,
                steps=4,
                seconds=1.25,
                peak_pss_bytes=1 << 20,
                training_seconds=self.training_seconds,
                validation_examples=self.score[0],
                validation_correct=self.score[1],
                validation_loss=self.score[2],
            ),
        }
        return pb.UpdateHeader(**{**fields, **changes})

    async def submit(
        self, task: pb.Task, payload: bytes, *, chunk_bytes: int = 300, **changes: Any
    ) -> pb.SubmitUpdateResponse:
        """Send an update; ``changes`` replace fields of its header."""

        async def parts() -> AsyncIterator[pb.SubmitUpdateRequest]:
            yield self._sent(pb.SubmitUpdateRequest(header=self.header(task, payload, **changes)))
            for start in range(0, len(payload), chunk_bytes):
                chunk = pb.UpdateChunk(offset=start, data=payload[start : start + chunk_bytes])
                yield self._sent(pb.SubmitUpdateRequest(chunk=chunk))

        return await patiently(self.stub.SubmitUpdate(parts()))

    def _sent(self, message: pb.SubmitUpdateRequest) -> pb.SubmitUpdateRequest:
        self.up_bytes += message.ByteSize()
        return message

    async def train(self, task: pb.Task) -> bytes:
        """Download the task's model, train, and encode the update."""
        payload = await self.download(task.model_digest)
        state = await asyncio.to_thread(train_task, task, self.device_id, payload)
        return get_codec(task.up_codec).encode(ModelSpec.from_json(task.spec_json), state, kind="update")

    async def work(self, rounds: int) -> list[pb.SubmitUpdateResponse]:
        """Take tasks, train and submit, as a good device does."""
        answers = []
        for _ in range(rounds):
            task = await self.next_task()
            answers.append(await self.submit(task, await self.train(task)))
        return answers


@contextlib.asynccontextmanager
async def connected(address: str, *device_ids: str, **fields: Any) -> AsyncIterator[list[ScriptedDevice]]:
    """Open devices with a live stream each."""
    async with contextlib.AsyncExitStack() as stack:
        devices = []
        for device_id in device_ids:
            device = await stack.enter_async_context(ScriptedDevice(address, device_id, **fields))
            await device.connect()
            devices.append(device)
        yield devices
