"""Devices that may not work for a while: on battery, over a metered network, too hot."""

from __future__ import annotations

import asyncio

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.server.conftest import House, OpenHouse, make_job, until
from tests.server.scripted import connected


async def reason(house: House, device_id: str) -> str | None:
    devices = {device["device_id"]: device for device in await house.get("/api/v1/devices")}
    found: str | None = devices[device_id]["ineligible"]
    return found


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (pb.Conditions(on_battery=True), "it runs on battery"),
        (pb.Conditions(metered=True, too_hot=True), "its network is metered, it is too hot"),
    ],
)
async def test_a_device_is_idle_until_its_conditions_let_it_work(
    open_house: OpenHouse, conditions: pb.Conditions, words: str
) -> None:
    async with open_house() as house, connected(house.address, "a", conditions=conditions) as (a,):
        await house.coordinator.jobs.create(make_job(rounds=1, min_devices=1))
        await until(lambda: house.coordinator.running_job is not None)
        assert await reason(house, "a") == words

        await a.beat()

        task = await a.next_task()
        assert await reason(house, "a") is None
        assert task.round_number == 1


async def test_a_flip_while_idle_keeps_a_device_out_of_the_next_round(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=2, min_devices=2))
        tasks = [await device.next_task() for device in (a, b, c)]
        await a.beat(conditions=pb.Conditions(on_battery=True))  # what it has begun goes on
        await until(lambda: house.coordinator.fleet.get("a").heartbeat.conditions.on_battery)  # type: ignore[union-attr]
        for device, task in zip((a, b, c), tasks, strict=True):
            await device.submit(task, await device.train(task))
        await asyncio.gather(b.work(1), c.work(1))
        await asyncio.wait_for(house.coordinator.jobs.wait_until_idle(), 30)
        rounds = await house.rounds(job.job_id)

    members = [[update["device_id"] for update in round_["updates"]] for round_ in rounds]
    assert members == [["a", "b", "c"], ["b", "c"]]


def ready(house: House) -> frozenset[str]:
    """Devices that the open round could ask."""
    runner = house.coordinator.running_job
    return frozenset() if runner is None or runner.active is None else runner.active._round.connected


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
            await asyncio.wait_for(house.coordinator.jobs.wait_until_idle(), 30)
        (round_,) = await house.rounds(job.job_id)

    assert {update["device_id"]: update["status"] for update in round_["updates"]} == {"a": "MISSED", "b": "ACCEPTED"}
