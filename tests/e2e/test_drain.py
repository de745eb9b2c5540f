"""SIGTERM to the coordinator: what is under way comes to its end, nothing else begins, and the next process goes on."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_codec
from bnncore.spec import ModelSpec
from tests.e2e.processes import Fleet, Process
from tests.patience import LIMIT_S, wait_for
from tests.server.scripted import CLASSES, SHAPE, ScriptedDevice, train_task

JOB = {
    "name": "drain",
    "model": {"zoo": "mlp", "params": {"widths": [64]}},
    "classes": list(CLASSES),
    "input_shape": list(SHAPE),
    "rounds": 2,
    "min_devices": 2,
    "quorum": 2,
    "deadline_s": 600.0,
    "local_steps": 2,
    "batch_size": 20,
}


class Upload:
    """An update that is sent half, and the rest when it is told."""

    def __init__(self, device: ScriptedDevice, task: pb.Task, payload: bytes) -> None:
        self._device, self._task, self._payload = device, task, payload
        self._goes_on = asyncio.Event()
        self.answer = asyncio.create_task(self._send())

    def go_on(self) -> None:
        self._goes_on.set()

    async def _send(self) -> Any:
        return await self._device.stub.SubmitUpdate(self._parts())

    async def _parts(self) -> AsyncIterator[pb.SubmitUpdateRequest]:
        half = len(self._payload) // 2
        yield pb.SubmitUpdateRequest(header=self._device.header(self._task, self._payload))
        yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=0, data=self._payload[:half]))
        await self._goes_on.wait()
        yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=half, data=self._payload[half:]))


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    fleet = Fleet(tmp_path, [JOB], {})
    fleet.start_coordinator()
    yield fleet
    fleet.close()


async def payload_of(device: ScriptedDevice, task: pb.Task) -> bytes:
    """Train as the task says."""
    state = train_task(task, device.device_id, await device.download(task.model_digest))
    return get_codec(task.up_codec).encode(ModelSpec.from_json(task.spec_json), state, kind="update")


async def begin_upload(fleet: Fleet, device: ScriptedDevice, task: pb.Task) -> Upload:
    """Send half of an update, and wait until the coordinator is at it."""
    upload = Upload(device, task, await payload_of(device, task))
    received = fleet.root / "coordinator" / "blobs" / "tmp"
    await asyncio.to_thread(wait_for, "an upload under way", lambda: any(received.iterdir()))
    return upload


async def until_draining(fleet: Fleet) -> None:
    def says_so() -> bool:
        return "event=draining" in fleet.coordinator.log.read_text()

    await asyncio.to_thread(wait_for, "the coordinator to drain", says_so)


@contextlib.asynccontextmanager
async def watching(fleet: Fleet) -> AsyncIterator[httpx.Response]:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client,
        client.stream("GET", fleet.url + "/api/v1/events") as response,
    ):
        yield response


async def ended(fleet: Fleet) -> int:
    return await asyncio.to_thread(fleet.coordinator.wait)


async def test_an_upload_under_way_is_taken_in_and_counts_after_the_restart(fleet: Fleet) -> None:
    async with ScriptedDevice(fleet.grpc, "a") as a, ScriptedDevice(fleet.grpc, "b") as b, watching(fleet) as events:
        await asyncio.gather(a.connect(), b.connect())
        tasks = [await device.next_task() for device in (a, b)]
        upload = await begin_upload(fleet, a, tasks[0])

        os.kill(fleet.coordinator.pid, signal.SIGTERM)
        await until_draining(fleet)
        payload = await payload_of(b, tasks[1])
        for attempt in (b.next_event, lambda: b.submit(tasks[1], payload), b.connect):
            with pytest.raises(grpc.aio.AioRpcError, match="the coordinator is stopping") as refusal:
                await attempt()
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        answer = await asyncio.to_thread(httpx.get, fleet.url + "/readyz", timeout=LIMIT_S, trust_env=False)
        assert answer.status_code == 503

        upload.go_on()
        assert (await upload.answer).status == pb.SUBMIT_STATUS_ACCEPTED
        told = [line async for line in events.aiter_lines()]  # to its proper end
        assert any('"status":"ACCEPTED"' in line for line in told)
        assert await ended(fleet) == 0
        assert "event=drained complete=True" in fleet.coordinator.log.read_text()

    await asyncio.to_thread(fleet.start_coordinator)
    async with ScriptedDevice(fleet.grpc, "a") as a, ScriptedDevice(fleet.grpc, "b") as b:
        await asyncio.gather(a.connect(), b.connect())
        again = await b.next_task()
        assert again.task_id == tasks[1].task_id
        assert (await b.submit(again, await payload_of(b, again))).status == pb.SUBMIT_STATUS_ACCEPTED
        assert (await b.next_task()).round_number == 2
    (first, _) = fleet.rounds()
    assert first["state"] == "COMMITTED"
    assert first["accepted"] == 2


@pytest.mark.parametrize("signals", [1, 2], ids=["its time is over", "a second signal"])
async def test_an_upload_that_stalls_holds_up_nobody(tmp_path: Path, signals: int) -> None:
    fleet = Fleet(tmp_path, [JOB], {}, "--drain", "0.5" if signals == 1 else "3600")
    fleet.start_coordinator()
    try:
        async with ScriptedDevice(fleet.grpc, "a") as a, ScriptedDevice(fleet.grpc, "b") as b:
            await asyncio.gather(a.connect(), b.connect())
            upload = await begin_upload(fleet, a, await a.next_task())

            os.kill(fleet.coordinator.pid, signal.SIGTERM)
            await until_draining(fleet)
            if signals == 2:
                os.kill(fleet.coordinator.pid, signal.SIGTERM)

            assert await ended(fleet) == 0
            assert "event=drained complete=False" in fleet.coordinator.log.read_text()
            with pytest.raises(grpc.aio.AioRpcError):
                await upload.answer
        assert list((tmp_path / "coordinator" / "blobs" / "tmp").iterdir()) == []
    finally:
        fleet.close()


def test_one_that_waits_for_its_database_ends_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:  # takes connections in, and says nothing
        database.settimeout(LIMIT_S)
        url = f"postgresql+psycopg://bitfleet@127.0.0.1:{database.getsockname()[1]}/bitfleet"
        doors = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state", str(tmp_path / "state"))
        coordinator = Process(["-m", "server", "serve", "--insecure", *doors, "--database", url], tmp_path / "log", "")
        try:
            with database.accept()[0]:
                assert coordinator.terminate() == 0
        finally:
            coordinator.kill()

    assert (tmp_path / "log").read_text() == "bitfleet-server was stopped before it was ready\n"
