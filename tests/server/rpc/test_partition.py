"""Links that are cut or slow.

Half of the devices are cut off, without a word: the round meets its quorum, or is tried again when they are back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bitfleet.v1 import fleet_pb2 as pb
from tests.edge_client.wire import Wire
from tests.patience import patiently, until
from tests.server.conftest import DEADLINE_S, House, OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected


@contextlib.asynccontextmanager
async def two_sides(house: House) -> AsyncIterator[tuple[Wire, list[ScriptedDevice], list[ScriptedDevice]]]:
    """Connect two devices directly, and two by a cable that can be pulled."""
    async with (
        Wire(int(house.address.rpartition(":")[2])) as wire,
        connected(house.address, "near-1", "near-2") as near,
        connected(f"127.0.0.1:{wire.port}", "far-1", "far-2") as far,
    ):
        yield wire, near, far


async def deliver(devices: list[ScriptedDevice], tasks: list[pb.Task]) -> list[pb.SubmitUpdateResponse]:
    payloads = [await device.train(task) for device, task in zip(devices, tasks, strict=True)]
    sent = [device.submit(task, payload) for device, task, payload in zip(devices, tasks, payloads, strict=True)]
    return list(await asyncio.gather(*sent))


async def tasks_of(devices: list[ScriptedDevice]) -> list[pb.Task]:
    return list(await asyncio.gather(*(device.next_task() for device in devices)))


async def test_a_round_meets_its_quorum_without_the_half_that_is_cut_off(open_house: OpenHouse) -> None:
    async with open_house() as house, two_sides(house) as (wire, near, far):
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=4, quorum=2))
        tasks = await tasks_of(near + far)
        wire.stall()
        await deliver(near, tasks[:2])
        house.pass_time(DEADLINE_S + 1)
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)
        wire.resume()

    assert (round_["state"], round_["attempt"], round_["accepted"]) == ("COMMITTED", 1, 2)
    assert {task.quorum for task in tasks} == {2}
    statuses = {update["device_id"]: update["status"] for update in round_["updates"]}
    assert {statuses[device.device_id] for device in near} == {"ACCEPTED"}
    assert {statuses[device.device_id] for device in far} <= {"MISSED", "ABANDONED"}


async def test_a_round_without_its_quorum_goes_on_with_what_it_has_when_the_link_is_back(open_house: OpenHouse) -> None:
    async with open_house() as house, two_sides(house) as (wire, near, far):
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=4, quorum=4))
        tasks = await tasks_of(near + far)
        wire.stall()
        answers = await deliver(near, tasks[:2])
        house.pass_time(DEADLINE_S + 1)
        await until(lambda: (active := house.open_round()) is not None and active.round.attempt == 2)
        wire.resume()
        for device in far:
            await device.vanish()
            await device.connect()
        answers += await deliver(far, await tasks_of(far))
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)

    assert {answer.status for answer in answers} == {pb.SUBMIT_STATUS_ACCEPTED}
    assert (round_["state"], round_["attempt"], round_["accepted"]) == ("COMMITTED", 2, 4)


async def test_a_round_takes_all_devices_along_whose_links_are_slow(open_house: OpenHouse) -> None:
    wanted = make_job(rounds=2, min_devices=4, quorum=4)
    async with (
        open_house() as house,
        Wire(int(house.address.rpartition(":")[2]), delay_s=0.3) as wire,  # there and back: as by a satellite
        connected(house.address, "near-1", "near-2") as near,
        connected(f"127.0.0.1:{wire.port}", "far-1", "far-2") as far,
    ):
        job = await house.coordinator.jobs.create(wanted)
        for _ in range(2):
            answers = await deliver(near + far, await tasks_of(near + far))
            assert {answer.status for answer in answers} == {pb.SUBMIT_STATUS_ACCEPTED}
        await patiently(house.coordinator.jobs.wait_until_idle())
        rounds = await house.rounds(job.job_id)

    assert [(row["state"], row["attempt"], row["accepted"]) for row in rounds] == [("COMMITTED", 1, 4)] * 2
