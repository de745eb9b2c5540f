"""The devices' port over mutual TLS: what an enrolled device may have open, and what it may drag out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.errors import InvalidJobError
from server.limits import ConnectionLimits
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, ended, open_secure_house
from tests.server.scripted import ScriptedDevice

JOB = make_job(min_devices=1, rounds=1)


@contextlib.asynccontextmanager
async def house_with_device(tmp_path: Path, **limits: Any) -> AsyncIterator[tuple[SecureHouse, ScriptedDevice]]:
    """Open a house and an enrolled device with a stream."""
    async with open_secure_house(tmp_path / "state", limits=limits) as house:
        credentials = house.credentials(await house.enrol("a"))
        async with ScriptedDevice(str(house.grpc), "a", credentials=credentials) as device:
            await device.connect()
            yield house, device


def temporary_files(house: SecureHouse) -> list[Path]:
    return list((house.state / "blobs" / "tmp").iterdir())


def open_transfers(house: SecureHouse) -> int:
    return house.service._transfers.num_taken


async def begin_upload(device: ScriptedDevice, task: pb.Task, payload: bytes, sent: int = 10) -> Any:
    """Send an update's header and its first bytes, and no more."""
    call = device.stub.SubmitUpdate()
    device._calls.append(call)
    await call.write(pb.SubmitUpdateRequest(header=device.header(task, payload)))
    await call.write(chunk(0, payload[:sent]))
    return call


def chunk(offset: int, data: bytes) -> pb.SubmitUpdateRequest:
    return pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=offset, data=data))


async def iter_of(*messages: pb.ConnectRequest) -> AsyncIterator[pb.ConnectRequest]:
    for message in messages:
        yield message


async def idle_streams(device: ScriptedDevice, number: int) -> list[Any]:
    """Begin streams on which nothing is said."""
    calls = [device.stub.Connect() for _ in range(number)]
    device._calls.extend(calls)
    for call in calls:
        await call.wait_for_connection()
    return calls


async def test_streams_beyond_those_of_a_device_are_refused(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_streams_per_device=2) as (house, device):
        more = await idle_streams(device, 3)
        await until(lambda: any(call.done() for call in more))
        codes = [await call.code() for call in more if call.done()]

        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert house.coordinator.fleet.get("a") is not None  # the stream that was there is not the one that pays


async def test_streams_beyond_those_of_the_fleet_are_refused_and_a_place_comes_back(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_streams=1) as (house, device):
        credentials = house.credentials(await house.enrol("b"))
        async with ScriptedDevice(str(house.grpc), "b", credentials=credentials) as b:
            call = b.stub.Connect(iter_of(b.hello()))
            refused = await ended(call)
            await device.vanish()
            await until(lambda: len(house.coordinator.fleet) == 0)
            await until(lambda: house.service._streams.num_taken == 0)
            welcome = await b.connect()

    assert refused[0] is grpc.StatusCode.UNAVAILABLE
    assert "1 streams are open" in refused[1]
    assert welcome.protocol == 1


async def test_transfers_beyond_those_of_a_device_are_refused(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_transfers_per_device=2) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        payload = await device.train(task)
        held = house.coordinator.space.held_bytes
        calls = [await begin_upload(device, task, payload) for _ in range(2)]
        await until(lambda: len(temporary_files(house)) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.submit(task, payload)
        for call in calls:
            call.cancel()
        await until(lambda: open_transfers(house) == 0)
        left = temporary_files(house)
        assert house.coordinator.space.held_bytes == held
        answer = await device.submit(task, payload)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "2 uploads and downloads of a are open" in (caught.value.details() or "")
    assert left == []
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_an_upload_that_is_abandoned_is_cleared_up(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, upload_idle_s=0.5) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        payload = await device.train(task)
        held = house.coordinator.space.held_bytes
        code, _ = await ended(await begin_upload(device, task, payload))
        await until(lambda: open_transfers(house) == 0)

        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert house.coordinator.space.held_bytes == held
        assert temporary_files(house) == []


async def test_an_upload_that_trickles_is_given_up_while_it_goes_on(tmp_path: Path) -> None:
    async def trickle(call: Any, payload: bytes) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for offset in range(1, len(payload)):
                await call.write(chunk(offset, payload[offset : offset + 1]))
                await asyncio.sleep(0.05)

    async with house_with_device(tmp_path, upload_idle_s=0.5, min_upload_rate=10_000) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        payload = await device.train(task)
        call = await begin_upload(device, task, payload, sent=1)
        trickling = asyncio.create_task(trickle(call, payload))
        code, _ = await ended(call)
        await until(lambda: open_transfers(house) == 0)
        left = temporary_files(house)
        trickling.cancel()

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert left == []


async def test_a_download_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    job = make_job(min_devices=1, rounds=1, model={"zoo": "mlp", "params": {"widths": [30_000]}})
    async with house_with_device(tmp_path, upload_idle_s=0.5) as (house, device):
        await house.coordinator.jobs.create(job)
        task = await device.next_task()
        request = pb.DownloadModelRequest(device_id="a", model_digest=task.model_digest)
        call = device.stub.DownloadModel(request)
        await call.read()  # so it has begun
        await until(lambda: open_transfers(house) == 0)
        call.cancel()


async def test_an_empty_chunk_is_refused(tmp_path: Path) -> None:
    async with house_with_device(tmp_path) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        call = await begin_upload(device, task, bytes(5000))
        await call.write(chunk(10, b""))
        code, details = await ended(call)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "must not be empty" in details


async def test_an_update_comes_in_so_many_chunks(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_chunks=3) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        payload = await device.train(task)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.submit(task, payload, chunk_bytes=len(payload) // 4)
        answer = await device.submit(task, payload, chunk_bytes=len(payload) // 3 + 1)

    assert "at most 3 chunks" in (caught.value.details() or "")
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_after_so_many_refused_updates_no_more_are_read_in_the_round(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_refusals=2) as (house, device):
        await house.coordinator.jobs.create(JOB)
        task = await device.next_task()
        payload = await device.train(task)
        refused = [await device.submit(task, b"\xff" * 100) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.submit(task, payload)

    assert {answer.status for answer in refused} == {pb.SUBMIT_STATUS_REJECTED}
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 updates of device a were refused in round 1" in (caught.value.details() or "")


async def test_a_device_may_say_so_much_in_a_minute(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_requests_per_minute=20) as (house, device):
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(100):
                await device.beat()
        code, _ = await ended(device.stream)
        await until(lambda: len(house.coordinator.fleet) == 0)

    # A write that meets the end of its call is told as INTERNAL (https://github.com/grpc/grpc/issues/36066).
    assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


async def test_a_round_asks_so_many_devices(tmp_path: Path) -> None:
    async with house_with_device(tmp_path, max_cohort=1) as (house, a):
        credentials = house.credentials(await house.enrol("b"))
        async with ScriptedDevice(str(house.grpc), "b", credentials=credentials) as b:
            await b.connect()
            job = await house.coordinator.jobs.create(JOB)
            first = [asyncio.create_task(device.next_task()) for device in (a, b)]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            (runner,) = house.coordinator.jobs.running.values()
            assert runner.active is not None
            cohort = runner.active.round.cohort
            for task in first:
                task.cancel()
        with pytest.raises(InvalidJobError, match="a round asks 3 devices, this coordinator 1 at most"):
            await house.coordinator.jobs.create(make_job(cohort_size=2, over_select=0.5))
        await house.coordinator.jobs.cancel(job.job_id)

    assert len(cohort) == 1


async def test_a_model_that_is_too_large_is_refused_before_it_is_made(tmp_path: Path) -> None:
    huge = {"zoo": "mlp", "params": {"widths": [2**20, 2**20]}}
    async with open_secure_house(tmp_path / "state") as house:
        response = await house.admin.post("/api/v1/jobs", json={**JOB.model_dump(mode="json"), "model": huge})

    assert response.status_code == 422
    assert "this coordinator takes 536870912 at most (max_model_bytes)" in response.json()["detail"]


async def test_metadata_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with house_with_device(tmp_path) as (_, device):
        request = pb.DownloadModelRequest(device_id="a", model_digest="0" * 64)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.stub.DownloadModel(request, metadata=(("x", "y" * 20_000),)).read()

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_handshake_that_never_ends_and_a_connection_without_a_call_are_closed(tmp_path: Path) -> None:
    soon = ConnectionLimits(request_timeout_s=0.5, idle_timeout_s=0.5)
    async with open_secure_house(tmp_path / "state", connections=soon) as house:
        device = await house.enrol("a")
        reader, writer = await asyncio.open_connection(house.grpc.host, house.grpc.port)
        assert await patiently(reader.read()) == b""
        writer.close()

        async with grpc.aio.secure_channel(str(house.grpc), house.credentials(device)) as channel:
            await patiently(channel.channel_ready())
            async with asyncio.timeout(LIMIT_S):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


async def test_connections_beyond_those_of_the_fleet_are_closed(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state", limits={"max_streams": 2}) as house:
        pairs = [await asyncio.open_connection(house.grpc.host, house.grpc.port) for _ in range(5)]
        readers = [asyncio.create_task(reader.read()) for reader, _ in pairs]
        done, waiting = await asyncio.wait(readers, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)

        assert (len(done), len(waiting)) == (1, 4)
        for reader in waiting:
            reader.cancel()
        for _, writer in pairs:
            writer.transport.abort()
