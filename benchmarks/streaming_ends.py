"""The two ends of ``benchmarks.streaming``, each a process of its own: a coordinator, and devices that only send.

    python -m benchmarks.streaming_ends coordinator FOLDER JOB.json
    python -m benchmarks.streaming_ends devices FOLDER ADDRESS JOB.json FIRST COUNT
    python -m benchmarks.streaming_ends fold JOB.json COUNT

Each prints JSON objects, a line each, and goes on at a line on its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.cli.output import rss_peak_bytes
from bnncore.codec import DifferenceCodec, SignTensor, get_codec, payload_digest
from bnncore.spec import ModelSpec
from server.coordinator import Coordinator
from server.job_files import load_job
from server.jobs import JobConfig
from server.limits import Limits
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from server.strategies import FoldingStrategy, make_strategy

CERTIFICATE, KEY = "certificate.pem", "key.pem"
CHUNK_BYTES = 256 * 1024
NUM_EXAMPLES = 100
_PATIENCE_S = 3600.0


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


async def go() -> None:
    await asyncio.to_thread(sys.stdin.readline)


class TimedService(FleetService):
    """Notes this process's processor time at every answer, since the commit of the round follows the last one at once.

    Attributes:
      processor_s: at the last answer.
    """

    processor_s = 0.0

    async def SubmitUpdate(self, *arguments: Any) -> pb.SubmitUpdateResponse:  # noqa: N802 - named by the protocol
        answer = await super().SubmitUpdate(*arguments)
        self.processor_s = time.process_time()
        return answer


async def coordinate(folder: Path, job: JobConfig) -> None:
    """Serve a job over TLS, by the classes that ``bitfleet-server serve`` runs, until its first round is committed."""
    storage = open_storage(f"sqlite:///{folder / 'bitfleet.db'}")
    limits = Limits(heartbeat_interval_s=_PATIENCE_S, upload_idle_s=_PATIENCE_S, max_chunk_bytes=CHUNK_BYTES)
    coordinator = Coordinator(storage, LocalBlobs(folder / "blobs"), limits=limits)
    service = TimedService(coordinator, version="0")
    server = create_server(service, max_chunk_bytes=CHUNK_BYTES)
    pair = ((folder / KEY).read_bytes(), (folder / CERTIFICATE).read_bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    record = await coordinator.jobs.create(job)
    await coordinator.lead()
    say(port=port)
    await go()  # all devices are ready to send
    before_s = time.process_time()
    say(is_ready=True)
    await go()  # all updates are acknowledged
    processor_s = service.processor_s - before_s
    while await coordinator.disk.run(storage.get_version, record.job_id, 1) is None:  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(0.05)
    updates = await coordinator.disk.run(storage.list_updates, record.job_id, 1)
    accepted = sum(update.status == "ACCEPTED" for update in updates)
    say(accepted=accepted, rss_peak_bytes=rss_peak_bytes(), processor_s=processor_s)
    await go()
    coordinator.dismiss_devices()
    await server.stop(1)
    await coordinator.stop()


@dataclass
class Sender:
    """A device that has its update at hand: a stream, a task, and bytes in a file."""

    channel: grpc.aio.Channel
    device_id: str
    stream: Any
    task: pb.Task
    path: Path
    header: pb.UpdateHeader

    async def send(self) -> None:
        answer = await pb_grpc.FleetStub(self.channel).SubmitUpdate(self._parts())  # type: ignore[no-untyped-call]
        if answer.status != pb.SUBMIT_STATUS_ACCEPTED:
            raise RuntimeError(f"{self.device_id}: {pb.SubmitStatus.Name(answer.status)}: {answer.reason}")

    async def _parts(self) -> AsyncIterator[pb.SubmitUpdateRequest]:
        yield pb.SubmitUpdateRequest(header=self.header)
        with self.path.open("rb") as file:
            offset = 0
            while data := file.read(CHUNK_BYTES):
                yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=offset, data=data))
                offset += len(data)


async def send_all(folder: Path, address: str, job: JobConfig, first: int, count: int) -> None:
    """Connect ``count`` devices, each with a channel of its own, wait, and send all their updates at once."""
    root = (folder / CERTIFICATE).read_bytes()
    senders = await asyncio.gather(*(connect(root, folder, address, job, first + i) for i in range(count)))
    say(ready=count, payload_bytes=senders[0].header.total_bytes)
    await go()
    began, before_s = time.monotonic(), time.process_time()
    await asyncio.gather(*(sender.send() for sender in senders))
    say(began=began, ended=time.monotonic(), processor_s=time.process_time() - before_s)
    await go()
    for sender in senders:
        sender.stream.cancel()
        await sender.channel.close()


async def connect(root: bytes, folder: Path, address: str, job: JobConfig, number: int) -> Sender:
    """Open a device's stream and take its task; its update lies in a file then."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root), options=options)
    device_id = f"device-{number}"
    data = pb.DataSummary(classes=job.classes, input_shape=job.input_shape, num_examples=NUM_EXAMPLES)
    hello = pb.Hello(protocol_min=1, protocol_max=1, client_version="0", device_id=device_id, data=data)
    stream = pb_grpc.FleetStub(channel).Connect()  # type: ignore[no-untyped-call]
    await stream.write(pb.ConnectRequest(hello=hello))
    path = folder / f"{device_id}.update"
    payload = await asyncio.to_thread(make_update, job.spec, job.up_codec, number)
    path.write_bytes(payload)
    while not (response := await stream.read()).HasField("task"):
        pass
    task = response.task
    header = pb.UpdateHeader(
        device_id=device_id,
        task_id=task.task_id,
        job_id=task.job_id,
        round_number=task.round_number,
        model_digest=task.model_digest,
        update_digest=payload_digest(payload),
        total_bytes=len(payload),
        num_examples=NUM_EXAMPLES,
        codec=task.up_codec,
    )
    return Sender(channel, device_id, stream, task, path, header)


def make_update(spec: ModelSpec, codec_name: str, seed: int | Sequence[int]) -> bytes:
    """Make a valid update of random bits; each seed's differs from the others'."""
    generator = np.random.default_rng(seed)
    codec = get_codec(codec_name)
    tensors: dict[str, Any] = {}
    for tensor in spec.tensors:
        if tensor.role != "weight":
            value = 1.0 if tensor.role == "mean_abs_dev" else 0.0
            tensors[tensor.name] = np.full(tensor.shape, value, np.float32)
        elif isinstance(codec, DifferenceCodec):
            rows, row_size = tensor.shape[0], int(np.prod(tensor.shape[1:]))
            bits = generator.integers(0, 256, (rows, (row_size + 7) // 8), np.uint8)
            bits[:, -1] &= np.uint8((1 << (row_size % 8 or 8)) - 1)
            scales = generator.integers(1, 2048, rows, np.uint16)
            tensors[tensor.name] = SignTensor(tensor.shape, scales, bits)
        else:
            tensors[tensor.name] = generator.integers(-127, 128, tensor.shape, np.int8)
    return codec.encode(spec, tensors, kind="update")


def fold(job: JobConfig, count: int) -> None:
    """Decode and fold updates that are in memory: what a coordinator cannot do faster than."""
    spec = job.spec
    payloads = [make_update(spec, job.up_codec, seed) for seed in range(8)]
    codec = get_codec(job.up_codec)
    strategy = make_strategy(job.strategy, job.strategy_params)
    assert isinstance(strategy, FoldingStrategy)
    accumulator = strategy.init(spec, is_difference=codec.is_difference)
    began, before_s = time.monotonic(), time.process_time()
    for i in range(count):
        update = codec.decode(spec, payloads[i % len(payloads)], kind="update")
        strategy.fold(accumulator, update, NUM_EXAMPLES)
    processor_s = time.process_time() - before_s
    say(updates_per_s=count / (time.monotonic() - began), processor_s=processor_s)


def main() -> None:
    """Be the end that the first argument names."""
    role, *words = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        match role, words:
            case "coordinator", [folder, job]:
                asyncio.run(coordinate(Path(folder), load_job(Path(job))))
            case "devices", [folder, address, job, first, count]:
                asyncio.run(send_all(Path(folder), address, load_job(Path(job)), int(first), int(count)))
            case "fold", [job, count]:
                fold(load_job(Path(job)), int(count))
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    main()
