"""A paused job stands still until it is resumed, and loses nothing by it; a job that reached its target ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as pb
from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import connected, write_held_out_set


async def state_of(house: House, job_id: str) -> str:
    view = await house.get(f"/api/v1/jobs/{job_id}")
    return str(view["state"])


async def test_a_paused_round_goes_on_where_it_stood_after_a_restart(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        job = await house.coordinator.jobs.create(make_job(rounds=1, strategy="fedyogi"))
        first, second = await a.next_task(), await b.next_task()
        await a.submit(first, await a.train(first))
        paused = await house.http.post(f"/api/v1/jobs/{job.job_id}/pause")
        told = await b.next_event()
        again = await house.http.post(f"/api/v1/jobs/{job.job_id}/pause")
        late = await b.submit(second, await b.train(second))
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        before = await state_of(house, job.job_id)
        resumed = await house.http.post(f"/api/v1/jobs/{job.job_id}/resume")
        twice = await house.http.post(f"/api/v1/jobs/{job.job_id}/resume")
        task = await b.next_task()
        answer = await b.submit(task, await b.train(task))
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)
        ended = await state_of(house, job.job_id)

    assert paused.json()["state"] == "PAUSED"
    assert (told.cancel.task_id, told.cancel.reason) == (second.task_id, "the job was paused")
    assert (again.status_code, twice.status_code) == (409, 409)
    assert (late.status, late.reason) == (pb.SUBMIT_STATUS_LATE, f"job {job.job_id} is PAUSED and takes no updates")
    assert (before, resumed.json()["state"], ended) == ("PAUSED", "PENDING", "COMPLETED")
    assert task.task_id == second.task_id
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert (round_["state"], round_["accepted"]) == ("COMMITTED", 2)


async def test_a_paused_job_lets_the_next_one_run(open_house: OpenHouse) -> None:
    async with open_house(max_jobs=1) as house, connected(house.address, "a", "b") as devices:
        first = await house.coordinator.jobs.create(make_job(rounds=1))
        second = await house.coordinator.jobs.create(make_job(rounds=1, name="next"))
        tasks = await asyncio.gather(*(device.next_task() for device in devices))
        await house.coordinator.jobs.pause(first.job_id)
        await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job.job_id) for job in (first, second)]
        await house.coordinator.jobs.resume(first.job_id)
        await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        resumed = await state_of(house, first.job_id)

    assert {task.job_id for task in tasks} == {first.job_id}
    assert states == ["PAUSED", "COMPLETED"]
    assert resumed == "COMPLETED"


async def test_a_paused_job_can_be_cancelled(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job())
        await house.coordinator.jobs.pause(job.job_id)
        await house.coordinator.jobs.cancel(job.job_id)
        ended = await state_of(house, job.job_id)

    assert ended == "CANCELLED"


async def test_a_job_ends_when_its_target_is_reached(open_house: OpenHouse, tmp_path: Path) -> None:
    folder = tmp_path / "held-out"
    write_held_out_set(folder)
    evaluation = {"dataset": "idx", "data": str(folder)}
    job = make_job(rounds=50, target_accuracy=60.0, local_steps=20, evaluation=evaluation)
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job_id = (await house.coordinator.jobs.create(job)).job_id
        working = [asyncio.create_task(device.work(50)) for device in devices]
        await patiently(house.coordinator.jobs.wait_until_idle())
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        view = await house.get(f"/api/v1/jobs/{job_id}")
        rounds = await house.rounds(job_id)

    assert view["state"] == "COMPLETED"
    assert len(rounds) < 50
    assert [round_["accuracy"] >= 60.0 for round_ in rounds] == [False] * (len(rounds) - 1) + [True]
    assert view["reason"] == f"round {len(rounds)} reached {rounds[-1]['accuracy']:.2f} % of the 60 % asked for"


async def test_a_job_begins_at_its_time_and_not_before(open_house: OpenHouse) -> None:
    later, soon = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (3600, 1.5))
    later = later.replace(microsecond=0)
    async with open_house() as house:
        scheduled = await house.coordinator.jobs.create(make_job(rounds=1, starts_at=later))
        await house.coordinator.jobs.pause(scheduled.job_id)
        await house.coordinator.jobs.resume(scheduled.job_id)
        due = await house.coordinator.jobs.create(make_job(rounds=1, starts_at=soon.isoformat()))
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        now = await house.coordinator.jobs.create(make_job(rounds=1))
        answers = await asyncio.gather(*(device.work(2) for device in devices))
        await until(lambda: not house.coordinator.jobs.running)
        views = [await house.get(f"/api/v1/jobs/{job.job_id}") for job in (scheduled, due, now)]
        (round_,) = await house.rounds(due.job_id)
        is_idle = house.coordinator.jobs._idle.is_set()
        cancelled = await house.coordinator.jobs.cancel(scheduled.job_id)

    assert [len(of_device) for of_device in answers] == [2, 2]
    assert [view["state"] for view in views] == ["PENDING", "COMPLETED", "COMPLETED"]
    assert datetime.fromisoformat(views[0]["starts_at"]) == later
    assert datetime.fromisoformat(round_["opened_at"]) >= soon.replace(microsecond=0)
    assert not is_idle
    assert cancelled.state == "CANCELLED"
