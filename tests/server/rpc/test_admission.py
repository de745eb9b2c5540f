"""Who is let in over real gRPC, and whose stream is ended and why."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import CLASSES, SHAPE, ScriptedDevice, connected, samples_of


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def ended(device: ScriptedDevice) -> tuple[grpc.StatusCode, str]:
    """Read a device's stream to its end; returns how it ended."""
    try:
        while await patiently(device.stream.read()) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    return await device.stream.code(), await device.stream.details()


async def test_a_second_stream_replaces_the_first(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "a") as (first, second):
        code, details = await ended(first)
        await house.coordinator.jobs.create(make_job(min_devices=1))
        task = await second.next_task()
        devices = await house.get("/api/v1/devices")

    assert code == grpc.StatusCode.ABORTED
    assert "newer stream" in details
    assert task.round_number == 1
    assert [(device["device_id"], device["connected"]) for device in devices] == [("a", True)]


async def test_a_silent_device_loses_its_stream(open_house: OpenHouse) -> None:
    async with open_house(heartbeat_interval_s=0.4) as house, connected(house.address, "a") as (a,):
        code, details = await ended(a)
        await until(lambda: len(house.coordinator.fleet) == 0)

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "heartbeat" in details


async def test_a_device_that_stays_silent_is_kept_by_its_heartbeats(open_house: OpenHouse) -> None:
    async with open_house(heartbeat_interval_s=0.3) as house:
        longest_s = math.inf
        while longest_s > 0.3:  # this machine may be later with them than any device should be
            async with connected(house.address, "a") as (a,):
                beats = [time.monotonic()]
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    for step in range(12):
                        await a.beat(step=step, total_steps=12, pss_bytes=4096)
                        await asyncio.sleep(0.1)
                        beats.append(time.monotonic())
                (device,) = await house.get("/api/v1/devices")
            longest_s = max(after - before for before, after in pairwise([*beats, time.monotonic()]))

    assert (device["connected"], device["state"], device["pss_bytes"]) == (True, "IDLE", 4096)
    assert (device["step"], device["total_steps"]) == (11, 12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": ("zero", "nine")}, "['nine']"),
        ({"input_shape": (28, 28)}, "[28, 28]"),
        ({"num_examples": 0}, "no training samples"),
        (
            {"memory_bytes": 20 << 20},
            "training takes 26.0 MiB (engine 0.0, trainer 26.0, payloads 0.0), its memory budget is 20.0 MiB",
        ),
    ],
)
async def test_a_device_that_does_not_fit_stays_idle_and_is_explained(
    open_house: OpenHouse, fields: dict[str, Any], words: str
) -> None:
    async with (
        open_house() as house,
        connected(house.address, "a", "b") as devices,
        connected(house.address, "misfit", **fields),
    ):
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await until(lambda: bool(house.coordinator.jobs.running))
        shown = {device["device_id"]: device for device in await house.get("/api/v1/devices")}
        await asyncio.gather(*(device.work(1) for device in devices))
        await finish(house)
        (round_,) = await house.rounds(job.job_id)

    assert words in shown["misfit"]["ineligible"][job.job_id]
    assert shown["a"]["ineligible"] == {}
    assert {update["device_id"] for update in round_["updates"]} == {"a", "b"}


async def test_pictures_fit_any_job_of_pictures_and_real_numbers_one_that_names_their_range(
    open_house: OpenHouse,
) -> None:
    input_range = {"low": [-1.5], "high": [2.5]}
    async with (
        open_house() as house,
        connected(house.address, "sensor", needs_input_range=True, input_shape=(SHAPE[0] * SHAPE[1],)) as (sensor,),
        connected(house.address, "camera", any_image_shape=True, input_shape=(32, 32, 3)) as (camera,),
    ):
        job = await house.coordinator.jobs.create(make_job(min_devices=1, input_range=input_range))
        ranged = await sensor.next_task()
        shown = {device["device_id"]: device["ineligible"] for device in await house.get("/api/v1/devices")}
        await house.coordinator.jobs.create(make_job(min_devices=1))
        plain = await camera.next_task()

    assert "8-bit numbers" in shown["camera"][job.job_id]
    assert (list(ranged.input_range.low), list(ranged.input_range.high)) == ([-1.5], [2.5])
    assert (plain.job_id == job.job_id, plain.HasField("input_range")) == (False, False)


async def test_a_device_whose_memory_suffices_takes_part(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", memory_bytes=27 << 20) as (a,):
        await house.coordinator.jobs.create(make_job(min_devices=1))

        assert (await a.next_task()).round_number == 1


async def test_a_device_with_fewer_classes_in_another_order_takes_part(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", classes=("two", "zero")) as (a,):
        await house.coordinator.jobs.create(make_job(min_devices=1))

        assert (await a.next_task()).round_number == 1


@pytest.mark.parametrize(
    ("protocol", "words"),
    [((0, 0), 'Upgrade the device with: pip install --upgrade "bitfleet==0.1.0"'), ((2, 9), "Upgrade the coordinator")],
)
async def test_a_device_of_another_protocol_is_told_how_to_upgrade(
    open_house: OpenHouse, protocol: tuple[int, int], words: str
) -> None:
    async with open_house() as house, ScriptedDevice(house.address, "a", protocol=protocol) as device:
        stream = device.stub.Connect()
        await stream.write(device.hello())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()

    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert words in (caught.value.details() or "")


async def test_the_newest_common_protocol_is_chosen(open_house: OpenHouse) -> None:
    async with open_house() as house, ScriptedDevice(house.address, "a", protocol=(1, 7)) as device:
        welcome = await device.connect()

    assert welcome.protocol == 1
    assert (welcome.heartbeat_interval_s, welcome.max_chunk_bytes) == (LIMIT_S, 1024)


@pytest.mark.parametrize("device_id", ["", "a/b", "x" * 65, "ö", "a\n"])
async def test_a_malformed_name_is_refused(open_house: OpenHouse, device_id: str) -> None:
    async with open_house() as house, ScriptedDevice(house.address, device_id) as device:
        stream = device.stub.Connect()
        await stream.write(device.hello())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_begins_with_one_hello(open_house: OpenHouse) -> None:
    async with open_house() as house, ScriptedDevice(house.address, "a") as device:
        early = device.stub.Connect()
        await early.write(pb.ConnectRequest(heartbeat=pb.Heartbeat()))
        with pytest.raises(grpc.aio.AioRpcError) as first:
            await early.read()
        await device.connect()
        await device.stream.write(device.hello())
        code, _ = await ended(device)

    assert first.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_device_that_does_not_read_does_not_hold_up_the_others(open_house: OpenHouse, tmp_path: Path) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        session = house.coordinator.fleet.get("a")
        assert session is not None
        from server.coordinator.messages import CancelOrder

        for number in range(200):  # more than a queue holds, without giving the loop a chance to send
            session.send(CancelOrder(f"t{number}", "x" * 1000))
        code, details = await ended(a)

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "unread" in details


async def test_a_table_is_the_held_out_set_of_a_job_by_the_jobs_range(open_house: OpenHouse, tmp_path: Path) -> None:
    images, labels = samples_of("held-out", 60)
    values = (-1 + 2 * images.astype(float) / 255).tolist()
    rows = [[*numbers, CLASSES[label]] for numbers, label in zip(values, labels, strict=True)]
    (tmp_path / "train.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    (tmp_path / "test.csv").write_text((tmp_path / "train.csv").read_text())
    config = make_job(
        rounds=3,
        local_steps=20,
        input_range={"low": [-1.0], "high": [1.0]},
        evaluation={"dataset": "csv", "data": str(tmp_path)},
    )
    async with (
        open_house() as house,
        connected(house.address, "a", "b", needs_input_range=True, input_shape=(16,)) as devices,
    ):
        job = await house.coordinator.jobs.create(config)
        await asyncio.gather(*(device.work(3) for device in devices))
        await finish(house)
        rounds = await house.rounds(job.job_id)

    assert rounds[-1]["accuracy"] > 60  # a third by chance
