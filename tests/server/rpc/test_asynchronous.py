"""Buffered asynchronous rounds over real gRPC: who is slower than a round counts in a later one, for less."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_state_codec
from bnncore.state import State
from server.coordinator.round import Phase
from server.coordinator.versions import read_deployed_state, read_state
from server.jobs import JobConfig
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected


def buffered(**changes: Any) -> JobConfig:
    return make_job(**{"strategy": "fedbuff", "quorum": 2, "rounds": 3, "up_codec": "float32", **changes})


async def send(device: ScriptedDevice, task: pb.Task, payload: bytes) -> pb.SubmitUpdateResponse:
    """Submit, and again while the next round is being prepared, as devices do."""
    while True:
        try:
            return await device.submit(task, payload)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.02)


async def play(device: ScriptedDevice, status: int = pb.SUBMIT_STATUS_ACCEPTED) -> tuple[pb.Task, bytes]:
    """Do one task."""
    task = await device.next_task()
    payload = await device.train(task)
    answer = await send(device, task, payload)
    assert answer.status == status, answer.reason
    return task, payload


async def statuses(house: House, job_id: str) -> list[dict[str, str]]:
    rounds = await house.rounds(job_id)
    return [{update["device_id"]: update["status"] for update in round_["updates"]} for round_ in rounds]


async def committed(house: House, job_id: str, number: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await house.get(f"/api/v1/jobs/{job_id}"))["rounds_committed"] < number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_late_update_counts_in_the_next_round_as_the_difference_that_it_is(
    open_house: OpenHouse, restarts: bool
) -> None:
    job = buffered()
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job_id = (await house.coordinator.jobs.create(job)).job_id
        slow = await c.next_task()
        late_payload = await c.train(slow)
        await asyncio.gather(play(a), play(b))
        await committed(house, job_id, 1)
        if not restarts:
            second = asyncio.create_task(play(a))
            answer = await send(c, slow, late_payload)
            _, payload = await second
            again = await send(c, slow, late_payload)
            await committed(house, job_id, 2)
            much_later = await send(c, slow, late_payload)
            assert (again.status, much_later.status) == (pb.SUBMIT_STATUS_DUPLICATE, pb.SUBMIT_STATUS_DUPLICATE)
    if restarts:
        async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
            given = await c.next_task()
            assert given.task_id == slow.task_id  # it is told again what it was at
            answer = await send(c, slow, late_payload)
            _, payload = await play(a)
            await committed(house, job_id, 2)
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED

    async with open_house() as house:
        said = await statuses(house, job_id)
        blobs, storage = house.coordinator.disk.blobs, house.coordinator.disk.storage
        versions = storage.list_versions(job_id)
        states = [read_state(blobs, job.spec, version) for version in versions]
        deployed = [read_deployed_state(blobs, job.spec, version) for version in versions]
    assert said[0] == {"a": "ACCEPTED", "b": "ACCEPTED", "c": "CARRIED"}
    assert (said[1]["a"], said[1]["c"]) == ("ACCEPTED", "ACCEPTED")

    decode = get_state_codec("float32").decode
    fresh, late = (decode(job.spec, data, kind="update") for data in (payload, late_payload))
    late_weight = round(40 / np.sqrt(2))
    for name, base in states[1].items():
        new, old = change(fresh, deployed[1], name), change(late, deployed[0], name)
        mean = (40 * new + late_weight * old) / (40 + late_weight)
        expected = mean if name.endswith(("mean", "mean_abs_dev")) else base + mean
        if name.endswith("weight"):
            expected = np.clip(expected, -1, 1)
        # differences of float32 are rounded to 2^-24, sums to 2^-19 of the coarsest unit of a statistic
        np.testing.assert_allclose(states[2][name], expected, rtol=2.0**-21, atol=2.0**-18)


def change(new: State, old: State, name: str) -> Any:
    if name.endswith(("mean", "mean_abs_dev")):
        return new[name].astype(np.float64)
    scale = 127.0 if old[name].dtype == np.int8 else 1.0
    return new[name].astype(np.float64) - old[name].astype(np.float64) / scale


async def test_who_is_too_late_is_told_to_stop(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job_id = (await house.coordinator.jobs.create(buffered(strategy_params={"max_staleness": 1}))).job_id
        slow = await c.next_task()
        for number in (1, 2):
            await asyncio.gather(play(a), play(b))
            await committed(house, job_id, number)
        told = [event async for event in events_until_cancel(c)]
        answer = await send(c, slow, await c.train(slow))
        said = await statuses(house, job_id)

    assert told[-1].cancel.task_id == slow.task_id
    assert answer.status == pb.SUBMIT_STATUS_LATE
    assert [row["c"] for row in said[:2]] == ["CARRIED", "LATE"]


async def events_until_cancel(device: ScriptedDevice) -> Any:
    while True:
        event = await device.next_event()
        yield event
        if event.HasField("cancel"):
            return


async def test_a_carried_device_that_fails_is_given_a_new_task(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job_id = (await house.coordinator.jobs.create(buffered(rounds=4))).job_id
        slow = await c.next_task()
        await asyncio.gather(play(a), play(b))
        await committed(house, job_id, 1)
        await until(lambda: carried(house, 2) == {"c"})
        await c.report(slow, pb.TASK_OUTCOME_FAILED, "out of memory")
        await until(lambda: carried(house, 2) == set())
        await asyncio.gather(play(a), play(b))
        await committed(house, job_id, 2)
        while (task := await c.next_task()).round_number < 3:
            assert task.task_id == slow.task_id
        await send(c, task, await c.train(task))
        said = await statuses(house, job_id)

    assert [row["c"] for row in said[:3]] == ["FAILED", "FAILED", "ACCEPTED"]


def carried(house: House, number: int) -> set[str] | None:
    """Return the carried members of a round that is collecting, None when it is not."""
    active = house.open_round()
    if active is None or active.round_number != number or active._round.phase is not Phase.COLLECTING:
        return None
    return set(active._collection.carried)


async def test_the_last_round_carries_nobody_on(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job_id = (await house.coordinator.jobs.create(buffered(rounds=1))).job_id
        slow = await c.next_task()
        await asyncio.gather(play(a), play(b))
        await patiently(house.coordinator.jobs.wait_until_idle())
        answer = await send(c, slow, await c.train(slow))
        said = await statuses(house, job_id)

    assert answer.status == pb.SUBMIT_STATUS_LATE
    assert said == [{"a": "ACCEPTED", "b": "ACCEPTED", "c": "LATE"}]


async def test_more_devices_are_asked_than_needed_and_the_slowest_is_let_go(open_house: OpenHouse) -> None:
    job = make_job(rounds=1, cohort_size=2, over_select=0.5)
    async with open_house() as house, connected(house.address, *"abcd") as devices:
        job_id = (await house.coordinator.jobs.create(job)).job_id
        asked = set()
        tasks: dict[str, pb.Task] = {}

        async def wait(device: ScriptedDevice) -> None:
            tasks[device.device_id] = await device.next_task()
            asked.add(device.device_id)

        waiting = [asyncio.create_task(wait(device)) for device in devices]
        await until(lambda: len(asked) == 3)
        for name in sorted(asked)[:2]:
            device = next(device for device in devices if device.device_id == name)
            await send(device, tasks[name], await device.train(tasks[name]))
        await patiently(house.coordinator.jobs.wait_until_idle())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        (said,) = await statuses(house, job_id)

    assert sorted(said.values()) == ["ACCEPTED", "ACCEPTED", "MISSED"]
    assert set(said) == asked
