"""Devices that may not work for a while: on battery, over a metered network, too hot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import connected


async def reason(house: House, device_id: str) -> str | None:
    devices = {device["device_id"]: device for device in await house.get("/api/v1/devices")}
    found: str | None = next(iter(devices[device_id]["ineligible"].values()), None)
    return found


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (pb.Conditions(on_battery=True), "it runs on battery"),
        (pb.Conditions(metered=True, too_hot=True), "its network is metered, it is too hot"),
        (pb.Conditions(outside_hours=True), "it is outside of its hours"),
    ],
)
async def test_a_device_is_idle_until_its_conditions_let_it_work(
    open_house: OpenHouse, conditions: pb.Conditions, words: str
) -> None:
    async with open_house() as house, connected(house.address, "a", conditions=conditions) as (a,):
        await house.coordinator.jobs.create(make_job(rounds=1, min_devices=1))
        await until(lambda: bool(house.coordinator.jobs.running))
        assert await reason(house, "a") == words

        await a.beat()

        task = await a.next_task()
        assert await reason(house, "a") is None
        assert task.round_number == 1


async def test_what_holds_a_trainer_and_how_warm_its_device_is_are_shown(open_house: OpenHouse) -> None:
    async def view(house: House) -> dict[str, Any]:
        (device,) = await house.get("/api/v1/devices")
        return {key: device[key] for key in ("state", "paused_by", "temperature_c", "labels")}

    async with open_house() as house, connected(house.address, "a") as (a,):
        await until(lambda: house.coordinator.fleet.get("a") is not None)
        assert await view(house) == {"state": "IDLE", "paused_by": None, "temperature_c": None, "labels": {}}
        paused = pb.Heartbeat(state=pb.DEVICE_STATE_PAUSED, conditions=pb.Conditions(too_hot=True), temperature_c=71.25)
        await a.stream.write(pb.ConnectRequest(heartbeat=paused))
        await until(lambda: house.coordinator.fleet.get("a").heartbeat.state == "PAUSED")  # type: ignore[union-attr]

        told = await view(house)
        assert told == {"state": "PAUSED", "paused_by": "it is too hot", "temperature_c": 71.25, "labels": {}}


async def test_a_flip_while_idle_keeps_a_device_out_of_the_next_round(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=2, min_devices=2))
        tasks = [await device.next_task() for device in (a, b, c)]
        await a.beat(conditions=pb.Conditions(on_battery=True))  # what it has begun goes on
        await until(lambda: house.coordinator.fleet.get("a").heartbeat.conditions.on_battery)  # type: ignore[union-attr]
        for device, task in zip((a, b, c), tasks, strict=True):
            await device.submit(task, await device.train(task))
        await asyncio.gather(b.work(1), c.work(1))
        await patiently(house.coordinator.jobs.wait_until_idle())
        rounds = await house.rounds(job.job_id)

    members = [[update["device_id"] for update in round_["updates"]] for round_ in rounds]
    assert members == [["a", "b", "c"], ["b", "c"]]


def ready(house: House) -> frozenset[str]:
    """Devices that the open round could ask."""
    active = house.open_round()
    return frozenset() if active is None else active._round.connected


async def test_a_round_does_not_open_while_too_few_may_work(open_house: OpenHouse) -> None:
    async with open_house(settle_s=3600.0) as house, connected(house.address, "a", "b") as (a, b):
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=2))
        await until(lambda: ready(house) == {"a", "b"})
        await a.beat(conditions=pb.Conditions(too_hot=True))
        await until(lambda: ready(house) == {"b"})
        house.pass_time(4000.0)
        await b.beat(conditions=pb.Conditions(too_hot=True))
        await until(lambda: ready(house) == set())
        assert [round_["state"] for round_ in await house.rounds(job.job_id)] == ["OPEN"]

        await asyncio.gather(a.beat(), b.beat())
        await until(lambda: ready(house) == {"a", "b"})
        house.pass_time(4000.0)

        assert {(await device.next_task()).round_number for device in (a, b)} == {1}


async def test_a_member_that_comes_back_on_battery_is_not_waited_for(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=2, quorum=1))
        async with connected(house.address, "a", "b") as (a, b):
            task = await b.next_task()
            await a.vanish()
            a.conditions = pb.Conditions(on_battery=True)
            await a.connect()
            await b.submit(task, await b.train(task))
            await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)

    assert {update["device_id"]: update["status"] for update in round_["updates"]} == {"a": "MISSED", "b": "ACCEPTED"}
