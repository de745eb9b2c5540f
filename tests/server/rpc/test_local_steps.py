"""How many steps a device is asked for where its speed decides."""

from __future__ import annotations

import asyncio

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected


async def take_part(device: ScriptedDevice) -> int:
    """Do one task; returns the steps that it asked for. Each device says it did 4, in its ``training_seconds``."""
    task = await device.next_task()
    await device.submit(task, await device.train(task))
    return task.training.local_steps


async def test_steps_follow_the_speed_measured_in_the_latest_accepted_update(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.coordinator.jobs.create(make_job(rounds=3, local_steps=30, local_seconds=2.0))
        async with connected(house.address, "fast", "slow", training_seconds=0.5) as (fast, slow):
            slow.training_seconds = 4.5
            first = await asyncio.gather(take_part(fast), take_part(slow))
            fast.training_seconds = 0.25
            second = await asyncio.gather(take_part(fast), take_part(slow))
            third = [(await device.next_task()).training.local_steps for device in (fast, slow)]

    assert list(first) == [3, 3]  # not measured: a tenth
    assert list(second) == [16, 1]  # 2 s * 4 / 0.5 s, and 1.78 of the slow one
    assert third == [30, 1]  # 32 are more than the job's


async def test_a_restart_asks_for_the_same_steps(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.coordinator.jobs.create(make_job(rounds=2, local_steps=30, local_seconds=2.0))
        async with connected(house.address, "a", "b", training_seconds=0.4) as (a, b):
            await asyncio.gather(take_part(a), take_part(b))
            before = await a.next_task()

    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        again = await a.next_task()

    assert before.training.local_steps == again.training.local_steps == 20
    assert again.task_id == before.task_id


async def test_an_update_that_was_not_accepted_or_not_measured_says_nothing(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = make_job(rounds=2, local_steps=30, local_seconds=2.0, min_devices=1, quorum=1)
        await house.coordinator.jobs.create(job)
        async with connected(house.address, "a", "refused", "unmeasured") as (a, refused, unmeasured):
            task = await refused.next_task()
            answer = await refused.submit(task, await refused.train(task), codec="float32")
            unmeasured.training_seconds = 0.0
            await asyncio.gather(take_part(a), take_part(unmeasured))
            steps = [(await device.next_task()).training.local_steps for device in (a, refused, unmeasured)]

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert steps == [30, 3, 3]


@pytest.mark.parametrize(
    ("local_steps", "measured", "expected"),
    [(5, None, 1), (200, None, 20), (200, (60, 3.0), 100), (200, (1, 1e9), 1), (200, (60, 1e-300), 200)],
)
def test_steps_stay_between_one_and_the_jobs(
    local_steps: int, measured: tuple[int, float] | None, expected: int
) -> None:
    assert make_job(local_steps=local_steps, local_seconds=5.0).local_steps_at(measured) == expected
    assert make_job(local_steps=local_steps).local_steps_at(measured) == local_steps
