"""Devices without training: one process that speaks bitfleet's protocol for many.

    python -m benchmarks.flower.virtual_devices HOST:PORT COUNT JOB.json

Each device opens its stream, takes tasks, downloads what a task names, and sends an update of random bits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from benchmarks.streaming_ends import CHUNK_BYTES, NUM_EXAMPLES, make_update
from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.codec import payload_digest
from server.job_files import load_job
from server.jobs import JobConfig

HEARTBEAT_S = 5.0


async def play(address: str, number: int, job: JobConfig, sending: asyncio.Semaphore) -> None:
    """Be one device, for as many tasks as come until this process is killed."""
    device_id = f"device-{number}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        fleet = pb_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]
        stream = fleet.Connect()
        data = pb.DataSummary(classes=job.classes, input_shape=job.input_shape, num_examples=NUM_EXAMPLES)
        hello = pb.Hello(protocol_min=1, protocol_max=1, client_version="0", device_id=device_id, data=data)
        await stream.write(pb.ConnectRequest(hello=hello))
        async with asyncio.TaskGroup() as group:
            group.create_task(_beat(stream))
            while True:
                response = await stream.read()
                if response.HasField("task") and response.task.up_codec == job.up_codec:  # not the closing statistics
                    async with sending:
                        await _answer(fleet, device_id, response.task, job, number)


async def _answer(fleet: pb_grpc.FleetStub, device_id: str, task: pb.Task, job: JobConfig, number: int) -> None:
    """Download what a task names, and send an update for it."""
    digests = [step.digest.hex() for step in task.steps[-1:]]  # a device that took part has all steps but the last
    if not digests and not task.HasField("initial_seed"):
        digests = [task.model_digest]
    for digest in digests:
        async for _ in fleet.DownloadModel(pb.DownloadModelRequest(device_id=device_id, model_digest=digest)):
            pass
    payload = await asyncio.to_thread(make_update, job.spec, task.up_codec, number + 1000 * task.round_number)
    answer = await fleet.SubmitUpdate(_parts(device_id, task, payload))
    if answer.status != pb.SUBMIT_STATUS_ACCEPTED:
        raise SystemExit(f"{device_id}: {pb.SubmitStatus.Name(answer.status)}: {answer.reason}")


async def _beat(stream: grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]) -> None:
    while True:
        await stream.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(state=pb.DEVICE_STATE_IDLE)))
        await asyncio.sleep(HEARTBEAT_S)


async def _parts(device_id: str, task: pb.Task, payload: bytes) -> AsyncIterator[pb.SubmitUpdateRequest]:
    yield pb.SubmitUpdateRequest(
        header=pb.UpdateHeader(
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
    )
    for offset in range(0, len(payload), CHUNK_BYTES):
        yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=offset, data=payload[offset : offset + CHUNK_BYTES]))


async def main() -> None:
    """Start the devices, a task each, with at most four sending at a time as on Flower's side."""
    address, count, job = sys.argv[1], int(sys.argv[2]), load_job(Path(sys.argv[3]))
    sending = asyncio.Semaphore(4)
    await asyncio.gather(*(play(address, number, job, sending) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(main())
