"""Secure aggregation when things go wrong: devices lost at each step, steps that are not what was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.coordinator.versions import read_state
from server.jobs import JobConfig
from server.storage.base import UpdateRecord
from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.member import KEYS, MASKED, REVEAL, SHARES, Member, all_join, all_take
from tests.server.rpc.test_secure import expected_versions, versions_of
from tests.server.scripted import connected

STEPS = (SHARES, MASKED, REVEAL)
PHASE_S = 600.0


def job_of(**changes: Any) -> JobConfig:
    secure = {"phase_s": PHASE_S, "threshold": 0.6, **changes.pop("secure", {})}
    return make_job(**{"rounds": 1, "min_devices": 5, "secure_aggregation": secure, **changes})


@asynccontextmanager
async def begun(
    open_house: OpenHouse, names: Sequence[str] = "abcde", **changes: Any
) -> AsyncIterator[tuple[House, str, list[Member]]]:
    """A round whose members have sent their keys."""
    async with open_house() as house, connected(house.address, *names) as devices:
        job = await house.coordinator.jobs.create(job_of(**{"min_devices": len(names), **changes}))
        members = [Member(device) for device in devices]
        await all_join(members)
        yield house, job.job_id, members


async def check_outcome(
    house: House, job_id: str, survivors: Sequence[Member], config: JobConfig
) -> list[UpdateRecord]:
    """Check that the model is what the survivors' plain sum gives, and that nothing of the exchange is left."""
    await patiently(house.coordinator.jobs.wait_until_idle())
    versions = await versions_of(house.coordinator, job_id)
    (expected,) = expected_versions(config, house.coordinator, versions, list(survivors))
    state = read_state(house.coordinator.disk.blobs, config.spec, versions[1])
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    disk = house.coordinator.disk
    assert disk.blobs.digests() == await disk.run(disk.storage.referenced_digests)
    assert await disk.run(disk.storage.list_steps, job_id, 1) == []
    return await disk.run(disk.storage.list_updates, job_id, 1)


def status_of(rows: Sequence[UpdateRecord]) -> dict[str, str]:
    return {row.device_id: row.status for row in rows}


async def in_step(house: House, step: str) -> None:
    def is_there() -> bool:
        active = house.open_round()
        return active is not None and active.exchange is not None and active.exchange.step == step

    await until(is_there)


@pytest.mark.parametrize("step", STEPS, ids=pb.ExchangeStep.Name)
@pytest.mark.parametrize("how", ["says so", "is too slow", "vanishes"])
async def test_members_are_lost_at_a_step_and_the_sum_is_that_of_the_others(
    open_house: OpenHouse, step: pb.ExchangeStep, how: str
) -> None:
    async with begun(open_house) as (house, job_id, members):
        lost, others = members[1], [member for member in members if member is not members[1]]
        for earlier in STEPS[: STEPS.index(step)]:
            await all_take(members, earlier)
        await lost.order()
        if how == "says so":
            await lost.device.report(lost.task, pb.TASK_OUTCOME_FAILED, "no power")
        elif how == "vanishes":
            await lost.device.vanish()
        await asyncio.gather(*(member.take(step) for member in others))
        if how != "says so" and step != REVEAL:
            await in_step(house, pb.ExchangeStep.Name(step).removeprefix("EXCHANGE_STEP_"))
            house.pass_time(PHASE_S)
        for later in STEPS[STEPS.index(step) + 1 :]:
            await all_take(others, later)
        survivors = members if step == REVEAL else others
        rows = await check_outcome(house, job_id, survivors, job_of())
        (round_,) = await house.rounds(job_id)
        if step != REVEAL and how == "is too slow":
            cancel = (await lost.device.next_event()).cancel
            assert cancel.task_id == lost.task.task_id

    is_in = step == REVEAL
    assert status_of(rows) == {name: "ACCEPTED" if name != "b" or is_in else "LOST" for name in "abcde"}
    exchange = round_["exchange"]
    assert exchange["members"] == 5
    assert (exchange["lost_before_shares"], exchange["lost_before_masked"]) == (step == SHARES, step == MASKED)


async def test_too_few_members_fail_the_exchange_and_new_keys_of_the_same_vectors_succeed(
    open_house: OpenHouse,
) -> None:
    async with begun(open_house) as (house, job_id, members):
        keys = [member.participant.keys for member in members]
        await all_take(members, SHARES)
        orders = [await member.order() for member in members]
        old = members[0].payload(orders[0])
        for member in members[2:]:
            await member.device.report(member.task, pb.TASK_OUTCOME_FAILED, "why")
        answer = await members[0].send(MASKED, old)
        await members[1].send(MASKED, members[1].payload(orders[1]))
        first = members[0].task
        tasks = [await member.device.next_task() for member in members]
        again = await members[0].send(KEYS, keys[0], attempt=1)
        late = await members[0].send(MASKED, old, attempt=1)
        vectors = [member.vectors[1] for member in members]
        for member, task in zip(members, tasks, strict=True):
            assert (await member.join(task)).status == pb.SUBMIT_STATUS_ACCEPTED
        for step in STEPS:
            await all_take(members, step)
        rows = await check_outcome(house, job_id, members, job_of())
        (round_,) = await house.rounds(job_id)

    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert [task.secure.attempt for task in tasks] == [2] * 5
    assert tasks[0].task_id == first.task_id
    assert again.status == late.status == pb.SUBMIT_STATUS_LATE
    assert again.reason == "exchange 1 is over; the task was sent again for exchange 2"
    assert not set(keys) & {member.participant.keys for member in members}
    assert [member.vectors[1] for member in members] == vectors
    assert (round_["attempt"], round_["exchange"]["attempt"]) == (2, 2)
    assert set(status_of(rows).values()) == {"ACCEPTED"}


async def test_when_attempts_are_used_up_the_job_fails_and_says_why(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc", max_attempts=1) as (house, job_id, members):
        await members[0].order()
        await members[0].device.report(members[0].task, pb.TASK_OUTCOME_DECLINED, "the cohort is too small")
        await asyncio.gather(*(member.take(SHARES) for member in members[1:]))
        await patiently(house.coordinator.jobs.wait_until_idle())
        job = await house.get(f"/api/v1/jobs/{job_id}")
        cancelled = (await members[1].device.next_event()).cancel
        assert house.coordinator.disk.blobs.digests() == await house.coordinator.disk.run(
            house.coordinator.disk.storage.referenced_digests
        )

    assert job["state"] == "FAILED"
    assert "exchange 1, step SHARES: no device is left that could take it, 2 of 3 devices answered" in job["reason"]
    assert cancelled.task_id == members[1].task.task_id


async def test_who_comes_back_during_the_exchange_goes_on_with_its_order(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc") as (house, job_id, members):
        await all_take(members, SHARES)
        (one, *others) = members
        await one.order()
        await one.device.vanish()
        await all_take(others, MASKED)
        await one.device.connect()
        await all_take([one], MASKED)
        await one.order()
        await one.device.vanish()
        await one.device.connect()
        await all_take(members, REVEAL)
        await check_outcome(house, job_id, members, job_of())


async def test_shares_that_are_none_are_found_out_and_left_out(open_house: OpenHouse) -> None:
    async with begun(open_house) as (house, job_id, members):
        liar, *others = members
        await all_take(members, SHARES)
        await all_take(members, MASKED)
        honest = liar.payload(await liar.order())
        wrong = honest[:-2] + bytes([honest[-2] ^ 1, honest[-1]])
        assert (await liar.send(REVEAL, wrong)).status == pb.SUBMIT_STATUS_ACCEPTED
        await asyncio.gather(*(member.take(REVEAL) for member in others))
        await check_outcome(house, job_id, members, job_of())


async def test_a_vector_that_is_no_update_spoils_its_exchange_and_says_so(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc", max_attempts=1) as (house, job_id, members):
        await all_take(members, SHARES)
        bad = members[0]
        payload = bytearray(bad.payload(await bad.order()))
        payload[37:] = bytes(byte ^ 0xA5 for byte in payload[37:])
        assert (await bad.send(MASKED, bytes(payload))).status == pb.SUBMIT_STATUS_ACCEPTED
        await all_take(members[1:], MASKED)
        await asyncio.gather(*(member.take(REVEAL) for member in members))
        await patiently(house.coordinator.jobs.wait_until_idle())
        job = await house.get(f"/api/v1/jobs/{job_id}")

    assert job["state"] == "FAILED"
    assert "a device sent what is no update" in job["reason"]


async def test_the_exchange_is_seen_while_it_is_played(open_house: OpenHouse) -> None:
    async with begun(open_house, "abcd", secure={"min_members": 3}) as (house, job_id, members):
        await members[0].order()
        await members[0].device.report(members[0].task, pb.TASK_OUTCOME_FAILED, "why")
        await all_take(members[1:], SHARES)
        await in_step(house, "MASKED")
        (running,) = (await house.get("/api/v1/status"))["running"]
        (round_,) = await house.rounds(job_id)

    assert running["state"] == round_["state"] == "UNMASKING"
    assert running["exchange"] == {
        "attempt": 1, "step": "MASKED", "members": 4, "lost_before_shares": 1, "lost_before_masked": 0
    }  # fmt: skip
    assert (round_["exchange"]["attempt"], round_["exchange"]["step"]) == (1, "MASKED")


async def test_cancelling_the_job_stops_the_members(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc") as (house, job_id, members):
        await all_take(members, SHARES)
        await in_step(house, "MASKED")
        await house.coordinator.jobs.cancel(job_id)
        await patiently(house.coordinator.jobs.wait_until_idle())
        for member in members:
            while not (event := await member.device.next_event()).HasField("cancel"):
                pass
            assert event.cancel.task_id == member.task.task_id


async def test_a_member_that_leaves_while_others_train_is_not_waited_for(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abcd") as devices:
        job = await house.coordinator.jobs.create(job_of(min_devices=4))
        members = [Member(device) for device in devices]
        await all_join(members[:3])
        await members[0].device.report(members[0].task, pb.TASK_OUTCOME_FAILED, "why")
        await until(lambda: (active := house.open_round()) is not None and bool(active._lost))
        await all_join(members[3:])
        for step in STEPS:
            await all_take(members[1:], step)
        rows = await check_outcome(house, job.job_id, members[1:], job_of())

    assert status_of(rows) == {"a": "LOST", "b": "ACCEPTED", "c": "ACCEPTED", "d": "ACCEPTED"}


async def test_a_device_in_an_exchange_is_given_no_other_jobs_task(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc") as (house, job_id, members):
        await all_take(members, SHARES)
        other = await house.coordinator.jobs.create(make_job(name="other", rounds=1, min_devices=3))
        await until(lambda: other.job_id in house.coordinator.dispatcher.queue_of("a"))
        at_hand = house.coordinator.dispatcher.job_at("a")
        await all_take(members, MASKED)
        await all_take(members, REVEAL)
        tasks = [await member.device.next_task() for member in members]
        house.coordinator.jobs.running[other.job_id].cancel("enough")
        await check_outcome(house, job_id, members, job_of())

    assert at_hand == job_id
    assert {task.job_id for task in tasks} == {other.job_id}


async def test_a_step_that_the_disk_has_lost_is_asked_for_again_with_new_keys(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc") as (house, job_id, members):
        await all_take(members, SHARES)
        await all_take(members[:2], MASKED)
        disk = house.coordinator.disk
        (lost, _) = [row for row in await disk.run(disk.storage.list_steps, job_id, 1) if row.step == "MASKED"]
        disk.blobs.delete(lost.digest)
    async with open_house() as house, connected(house.address, *"abc") as devices:
        for member, device in zip(members, devices, strict=True):
            member.device = device
        await all_join(members)
        for step in STEPS:
            await all_take(members, step)
        await check_outcome(house, job_id, members, job_of())
        (round_,) = await house.rounds(job_id)

    assert (round_["attempt"], round_["exchange"]["attempt"]) == (2, 2)


async def test_after_a_reveal_that_failed_others_are_asked(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abcdef") as devices:
        job = await house.coordinator.jobs.create(job_of(min_devices=3, cohort_size=3, max_attempts=2))
        members = {device.device_id: Member(device) for device in devices}
        await until(lambda: (active := house.open_round()) is not None and bool(active.round.cohort))
        active = house.open_round()
        assert active is not None
        chosen = sorted(active.round.cohort)
        first = [members[name] for name in chosen]
        await all_join(first)
        await all_take(first, SHARES)
        await all_take(first, MASKED)
        await first[0].take(REVEAL)
        for member in first[1:]:
            await member.order()
            await member.device.report(member.task, pb.TASK_OUTCOME_DECLINED, "why")
        others = [members[name] for name in sorted(members.keys() - set(chosen))]
        for step in (all_join(others), *(all_take(others, step) for step in STEPS)):
            await step
        rows = await check_outcome(house, job.job_id, others, job_of())

        (round_,) = await house.rounds(job.job_id)

    assert status_of(rows) == {
        name: "ACCEPTED" if name not in chosen else "LOST" if name == chosen[0] else "DECLINED" for name in "abcdef"
    }
    assert (round_["exchange"]["attempt"], round_["exchange"]["members"]) == (2, 3)
