"""What a round costs beside training: measured over real gRPC, told by the API."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.patience import until
from tests.server.conftest import DEADLINE_S, OpenHouse, make_job
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
        await asyncio.gather(*(device.work(1) for device in devices))
        tasks = [await device.next_task() for device in devices]
        disk = house.coordinator.disk
        opened = await disk.run(disk.storage.get_round, job.job_id, 2)
        for device, task in zip(devices, tasks, strict=True):
            await device.submit(task, await device.train(task))
        await house.coordinator.jobs.wait_until_idle()
        second = await disk.run(disk.storage.get_round, job.job_id, 2)

    assert opened is not None
    assert opened.collecting_since == opened.opened_at
    assert second is not None
    assert second.committed_at is not None
    assert second.overhead_s is not None
    assert 0 < second.collected_s <= second.committed_at - second.opened_at
    assert second.overhead_s == pytest.approx(second.collected_s - 0.01)


async def test_an_attempt_that_missed_its_quorum_counts_and_the_wait_after_it_does_not(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=1))
        began = time.monotonic()
        async with connected(house.address, "a") as (a,):
            await a.next_task()
            await asyncio.sleep(HELD_S)
        await until(lambda: len(house.coordinator.fleet) == 0)
        house.pass_time(DEADLINE_S)
        await until(lambda: (active := house.open_round()) is not None and active.round.attempt == 2)
        held_s = time.monotonic() - began
        await asyncio.sleep(WAIT_S)
        began = time.monotonic()
        async with connected(house.address, "b") as (b,):
            await b.work(1)
            await house.coordinator.jobs.wait_until_idle()
        took = time.monotonic() - began
        (round_,) = await house.rounds(job.job_id)

    assert round_["attempt"] == 2
    assert HELD_S < round_["overhead_s"] + 0.01 < held_s + took + WAIT_S / 2


async def test_time_at_another_jobs_task_is_no_overhead(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        await house.coordinator.jobs.create(make_job(name="first", rounds=1, min_devices=1))
        task = await a.next_task()
        job = await house.coordinator.jobs.create(make_job(name="second", rounds=1, min_devices=1))
        await until(lambda: house.coordinator.dispatcher.queue_of("a") == [job.job_id])
        await asyncio.sleep(HELD_S)
        await a.submit(task, await a.train(task))
        await a.work(1)
        await house.coordinator.jobs.wait_until_idle()
        disk = house.coordinator.disk
        round_ = await disk.run(disk.storage.get_round, job.job_id, 1)

    assert round_ is not None
    assert round_.overhead_s is not None
    assert round_.collected_s - round_.overhead_s > HELD_S


async def test_without_a_measurement_of_training_there_is_no_overhead(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", training_seconds=0.0) as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.gather(*(device.work(1) for device in devices))
        await house.coordinator.jobs.wait_until_idle()
        (round_,) = await house.rounds(job.job_id)
        status = await house.get("/api/v1/status")

    assert (round_["state"], round_["overhead_s"], status["round_overhead_s"]) == ("COMMITTED", None, None)
