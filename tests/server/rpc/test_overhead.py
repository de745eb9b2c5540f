"""What a round costs beside training: measured over real gRPC, told by the API."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.server.conftest import OpenHouse, make_job, until
from tests.server.scripted import ScriptedDevice, connected

WAIT_S = 0.5
HELD_S = 0.2


async def hold(device: ScriptedDevice) -> None:
    """Do a task, and send its update only some time after training."""
    task = await device.next_task()
    payload = await device.train(task)
    await asyncio.sleep(HELD_S)
    await device.submit(task, payload)


async def test_waiting_for_devices_and_training_are_no_overhead(open_house: OpenHouse) -> None:
    trained_s = 0.1
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.sleep(WAIT_S)
        began = time.monotonic()
        async with connected(house.address, "a", "b", training_seconds=trained_s) as devices:
            await asyncio.gather(*(hold(device) for device in devices))
            await house.coordinator.jobs.wait_until_idle()
        took = time.monotonic() - began
        (round_,) = await house.rounds(job.job_id)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        status = await house.get("/api/v1/status")

    assert HELD_S - trained_s < round_["overhead_s"] < took - trained_s
    assert round_["training_seconds_max"] == trained_s
    assert view["overhead_s"] == status["round_overhead_s"] == round_["overhead_s"]


async def test_a_round_that_begins_at_once_is_measured_from_its_opening(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=2))
        await asyncio.gather(*(device.work(2) for device in devices))
        await house.coordinator.jobs.wait_until_idle()
        disk = house.coordinator.disk
        second = await disk.run(disk.storage.get_round, job.job_id, 2)

    assert second is not None
    assert second.committed_at is not None
    assert second.overhead_s is not None
    assert second.collected_s == pytest.approx(second.committed_at - second.opened_at, abs=0.02)
    assert second.overhead_s == pytest.approx(second.collected_s - 0.01)


async def test_an_attempt_that_missed_its_quorum_counts_and_the_wait_after_it_does_not(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=1))
        async with connected(house.address, "a") as (a,):
            await a.next_task()
            await asyncio.sleep(HELD_S)
        await until(lambda: len(house.coordinator.fleet) == 0)
        house.pass_time(60.0)
        await asyncio.sleep(WAIT_S)
        began = time.monotonic()
        async with connected(house.address, "b") as (b,):
            await b.work(1)
            await house.coordinator.jobs.wait_until_idle()
        took = time.monotonic() - began
        (round_,) = await house.rounds(job.job_id)

    assert round_["attempt"] == 2
    assert HELD_S < round_["overhead_s"] + 0.01 < HELD_S + took + WAIT_S / 2


async def test_without_a_measurement_of_training_there_is_no_overhead(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", training_seconds=0.0) as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.gather(*(device.work(1) for device in devices))
        await house.coordinator.jobs.wait_until_idle()
        (round_,) = await house.rounds(job.job_id)
        status = await house.get("/api/v1/status")

    assert (round_["state"], round_["overhead_s"], status["round_overhead_s"]) == ("COMMITTED", None, None)
