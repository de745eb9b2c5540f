"""Steps of an exchange that are not what was asked for: early, late, twice, of another attempt, malformed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.secure import Participant
from bnncore.secure.messages import masked_bytes
from server.simulate.exchange import context_of, rules_of
from tests.patience import until
from tests.server.conftest import DEADLINE_S, OpenHouse
from tests.server.member import KEYS, MASKED, REVEAL, SHARES, Member, all_join, all_take
from tests.server.rpc.test_secure_losses import STEPS, begun, check_outcome, job_of
from tests.server.scripted import connected


async def test_steps_are_answered_by_where_the_exchange_stands(open_house: OpenHouse) -> None:
    async with begun(open_house, "abc") as (house, job_id, members):
        a, b, _ = members
        order = await a.order()
        shares = a.payload(order)
        early = await a.send(MASKED, b"x" * 5000)
        ahead = await a.send(SHARES, shares, attempt=2)
        first = await a.send(SHARES, shares)
        again = await a.send(SHARES, shares)
        for member in members[1:]:
            await member.take(SHARES)
        keys = await b.send(KEYS, b.participant.keys)
        over = await b.send(SHARES, shares)
        await all_take(members, MASKED)
        await all_take(members, REVEAL)
        await check_outcome(house, job_id, members, job_of())
        after = await a.send(MASKED, shares)

    assert (early.status, early.reason[:30]) == (pb.SUBMIT_STATUS_REJECTED, "a masked update of this exchan")
    assert (ahead.status, ahead.reason) == (
        pb.SUBMIT_STATUS_REJECTED, "the present exchange is 1, got a step of 2"
    )  # fmt: skip
    assert first.status == pb.SUBMIT_STATUS_ACCEPTED
    assert {again.status, keys.status, over.status, after.status} == {pb.SUBMIT_STATUS_DUPLICATE}


async def test_a_step_before_the_members_are_known_is_refused(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as devices:
        await house.coordinator.jobs.create(job_of(min_devices=3))
        member = Member(devices[0])
        await member.join()
        answer = await member.send(SHARES, b"x")

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert "still collects its members' keys" in answer.reason


@pytest.mark.parametrize(
    ("step", "change", "words"),
    [
        (SHARES, lambda data: data[:-1], "SHARES: the message is cut"),
        (SHARES, lambda data: data + bytes(5000), "must have at most"),
        (SHARES, lambda data: b"nonsense", "another message"),
        (MASKED, lambda data: data[:-1], "a masked update of this exchange must have"),
        (MASKED, lambda data: masked_bytes(bytes(32), memoryview(data)[37:]), "of another exchange"),
        (REVEAL, lambda data: data[:40], "REVEAL: the message is cut"),
    ],
)
async def test_a_step_that_is_malformed_is_refused_and_its_device_is_out(
    open_house: OpenHouse, step: pb.ExchangeStep, change: Any, words: str
) -> None:
    async with begun(open_house) as (house, job_id, members):
        bad, *others = members
        for earlier in STEPS[: STEPS.index(step)]:
            await all_take(members, earlier)
        answer = await bad.send(step, change(bad.payload(await bad.order())))
        refused_by_header = "must have" in words
        if refused_by_header:  # which costs nothing; the device may be in earnest with another one
            await bad.device.report(bad.task, pb.TASK_OUTCOME_FAILED, "why")
        await asyncio.gather(*(member.take(step) for member in others))
        for later in STEPS[STEPS.index(step) + 1 :]:
            await all_take(others, later)
        await check_outcome(house, job_id, members if step == REVEAL else others, job_of())

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert words in answer.reason


@pytest.mark.parametrize("attempt", [0, 2])
async def test_keys_of_no_attempt_are_refused(open_house: OpenHouse, attempt: int) -> None:
    async with open_house() as house, connected(house.address, *"abc") as devices:
        await house.coordinator.jobs.create(job_of(min_devices=3))
        member = Member(devices[0])
        task = await member.device.next_task()
        task.secure.attempt = attempt
        answer = await member.join(task)

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert answer.reason == f"the present exchange is 1, got a step of {attempt}"


async def test_keys_that_arrive_when_their_exchange_is_over_do_not_count_in_the_next(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abcd") as devices:
        await house.coordinator.jobs.create(job_of(min_devices=4, quorum=3))
        members = [Member(device) for device in devices]
        await all_join(members[:3])
        slow = members[3]
        slow.task = await slow.device.next_task()
        slow._participant = Participant.begin(context_of(slow.task), rules_of(slow.task), "d", None)
        payload, may_go_on = slow.participant.keys, asyncio.Event()

        async def parts() -> AsyncIterator[pb.SubmitUpdateRequest]:
            header = slow.device.header(slow.task, payload, step=KEYS, attempt=1, num_examples=1)
            yield pb.SubmitUpdateRequest(header=header)
            await may_go_on.wait()
            yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=0, data=payload))

        sending = asyncio.ensure_future(slow.device.stub.SubmitUpdate(parts()))
        await until(lambda: bool(house.coordinator._intake._under_way))
        house.pass_time(DEADLINE_S)
        for member in members[:2]:
            await member.device.report(member.task, pb.TASK_OUTCOME_FAILED, "why")
        await members[2].take(SHARES)
        assert (await slow.device.next_task()).secure.attempt == 2
        may_go_on.set()
        answer = await sending

    assert (answer.status, answer.reason) == (pb.SUBMIT_STATUS_LATE, "exchange 1 is over")
