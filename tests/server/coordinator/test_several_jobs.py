"""Several jobs on one coordinator: they share the devices and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.jobs import JobConfig
from server.storage.payloads import BlobWriter
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import DEADLINE_S, House, OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected

NAMES = ("a", "b", "c")
JOBS = (
    make_job(name="first", rounds=3, seed=1, quorum=3, min_devices=3),
    make_job(name="second", rounds=2, seed=2, quorum=3, min_devices=3, local_steps=7, strategy="fedyogi"),
    make_job(name="third", rounds=2, seed=3, cohort_size=2, min_devices=3, up_codec="int8", down_codec="int8"),
)


async def run(house: House, jobs: tuple[JobConfig, ...]) -> list[list[str]]:
    """Run jobs with devices that do every task they get; returns the digests of each job's models."""
    ids = [(await house.coordinator.jobs.create(job)).job_id for job in jobs]
    async with connected(house.address, *NAMES) as devices:
        working = [asyncio.create_task(device.work(100)) for device in devices]
        await patiently(house.coordinator.jobs.wait_until_idle())
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    return [await digests(house, job_id) for job_id in ids]


async def digests(house: House, job_id: str) -> list[str]:
    rounds = await house.rounds(job_id)
    assert [round_["state"] for round_ in rounds] == ["COMMITTED"] * len(rounds)
    return [round_["weights_digest"] for round_ in rounds]


async def state_of(house: House, job_id: str) -> str:
    view = await house.get(f"/api/v1/jobs/{job_id}")
    return str(view["state"])


async def do(device: ScriptedDevice, task: pb.Task) -> pb.SubmitUpdateResponse:
    return await device.submit(task, await device.train(task))


async def two_jobs(house: House, **changes: Any) -> tuple[str, str]:
    """Create two jobs and wait until both collect."""
    ids = []
    for name in ("one", "two"):
        job = make_job(**{"name": name, "rounds": 1, "min_devices": 1, **changes})
        ids.append((await house.coordinator.jobs.create(job)).job_id)
        await until(lambda: is_collecting(house, ids[-1]))
    return ids[0], ids[1]


def is_collecting(house: House, job_id: str) -> bool:
    runner = house.coordinator.jobs.running.get(job_id)
    return runner is not None and runner.active is not None and runner.active._book.record.state == "COLLECTING"


async def test_a_job_computes_beside_others_what_it_computes_alone(open_house: OpenHouse) -> None:
    async with open_house(max_jobs=1) as house:
        alone = await run(house, JOBS)
    async with open_house(max_jobs=3) as house:
        together = await run(house, JOBS)

    assert [len(job) for job in alone] == [3, 2, 2]
    assert together == alone


async def test_two_jobs_of_one_configuration_do_not_get_in_each_others_way(open_house: OpenHouse) -> None:
    # They have the same models and the same updates, and so the same payloads on the disk.
    job = make_job(rounds=4, quorum=3, min_devices=3, strategy="fedyogi")
    async with open_house() as house:
        first, second = await run(house, (job, job))
        jobs = await house.get("/api/v1/jobs")
        rounds = [await house.rounds(job["id"]) for job in jobs]

    assert first == second
    assert len(set(first)) == 4
    down = [[update["down_bytes"] for round_ in job for update in round_["updates"]] for job in rounds]
    assert 0 < min(down[0]) == min(down[1])
    assert max(down[0]) == max(down[1])


async def test_what_one_job_is_done_with_stays_while_another_is_about_to_name_it(open_house: OpenHouse) -> None:
    # Between a payload's writing and its row's, a job with the same updates commits its round and removes them.
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job(rounds=1))
        task = await a.next_task()
        payload = await a.train(task)
        disk, keep = house.coordinator.disk, house.coordinator.disk.blobs.keep

        def keep_and_lose(writers: Sequence[BlobWriter]) -> None:
            digests = {writer.digest for writer in writers}
            keep(writers)
            disk.remove_unreferenced(digests)

        disk.blobs.keep = keep_and_lose  # type: ignore[method-assign]
        await a.submit(task, payload)
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await do(b, await b.next_task())
        await patiently(house.coordinator.jobs.wait_until_idle())
        disk = house.coordinator.disk
        left = disk.blobs.digests() - disk.storage.referenced_digests()

    assert left == set()  # and once its row was written, it was removed like any other


async def test_a_device_gets_the_second_jobs_task_when_the_first_one_has_its_update(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one, two = await two_jobs(house)
        await until(lambda: house.coordinator.dispatcher.queue_of("a") == [two])
        first = await a.next_task()
        status = await status_when(house, queued=[0, 1])
        answers = [await do(a, first)]
        second = await a.next_task()
        answers.append(await do(a, second))
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job_id) for job_id in (one, two)]

    shown = [(job["id"], job["round"], job["state"], job["devices"], job["accepted"]) for job in status["running"]]
    assert shown == [(one, 1, "COLLECTING", 1, 0), (two, 1, "COLLECTING", 1, 0)]
    assert (first.job_id, second.job_id) == (one, two)
    assert [answer.status for answer in answers] == [pb.SUBMIT_STATUS_ACCEPTED] * 2
    assert states == ["COMPLETED", "COMPLETED"]


async def status_when(house: House, *, queued: list[int]) -> dict[str, Any]:
    """Return the status once so many of each job's members are queued."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            status: dict[str, Any] = await house.get("/api/v1/status")
            if [job["queued"] for job in status["running"]] == queued:
                return status


async def test_a_device_that_failed_at_one_job_goes_on_with_the_other(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one, two = await two_jobs(house, max_attempts=2)
        first = await a.next_task()
        await a.report(first, pb.TASK_OUTCOME_FAILED, "no memory")
        second = await a.next_task()
        await do(a, second)
        again = await a.next_task()
        await do(a, again)
        await patiently(house.coordinator.jobs.wait_until_idle())
        attempts = [(await house.rounds(job_id))[0]["attempt"] for job_id in (one, two)]

    # The attempt that failed begins again at once, before anybody else has asked for the device.
    assert (first.job_id, {second.job_id, again.job_id}) == (one, {one, two})
    assert attempts == [2, 1]


@pytest.mark.parametrize("what", ["cancel", "pause"])
async def test_ending_the_job_at_hand_frees_the_device_for_the_other(open_house: OpenHouse, what: str) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one, two = await two_jobs(house)
        first = await a.next_task()
        await house.http.post(f"/api/v1/jobs/{one}/{what}")
        told = await a.next_event()
        second = await a.next_task()
        await do(a, second)
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job_id) for job_id in (one, two)]

    assert told.cancel.task_id == first.task_id
    assert second.job_id == two
    assert states == ["CANCELLED" if what == "cancel" else "PAUSED", "COMPLETED"]


@pytest.mark.parametrize("what", ["cancel", "pause"])
async def test_ending_a_job_that_is_queued_does_not_touch_the_one_at_hand(open_house: OpenHouse, what: str) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one, two = await two_jobs(house)
        first = await a.next_task()
        await house.http.post(f"/api/v1/jobs/{two}/{what}")
        await until(lambda: list(house.coordinator.jobs.running) == [one])
        answer = await do(a, first)
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job_id) for job_id in (one, two)]
        (row,) = (await house.rounds(two))[0]["updates"]

    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert states == ["COMPLETED", "CANCELLED" if what == "cancel" else "PAUSED"]
    assert row["down_bytes"] == 0  # it was never sent the task


async def test_the_deadline_does_not_count_while_another_job_has_the_device(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one = await house.coordinator.jobs.create(make_job(name="long", rounds=1, min_devices=1, deadline_s=10_000.0))
        long = await a.next_task()
        two = await house.coordinator.jobs.create(make_job(name="short", rounds=1, min_devices=1))
        await until(lambda: house.coordinator.dispatcher.queue_of("a") == [two.job_id])
        house.pass_time(5000.0)
        await do(a, long)
        short = await a.next_task()
        answer = await do(a, short)
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(two.job_id)

    assert (long.job_id, short.job_id) == (one.job_id, two.job_id)
    assert DEADLINE_S / 2 < short.deadline_s <= DEADLINE_S
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert (round_["state"], round_["attempt"]) == ("COMMITTED", 1)
    assert round_["overhead_s"] < DEADLINE_S  # the wait for the other job is none of it


async def test_a_device_that_never_ends_its_task_is_taken_away_from_it_when_another_job_waits(
    open_house: OpenHouse,
) -> None:
    # Each job waits for the device that does not do the other one's task: neither round would ever end.
    async with open_house() as house, connected(house.address, "a", "b"):
        jobs = [make_job(name=name, rounds=1, min_devices=2, deadline_s=1.0, max_attempts=1) for name in ("one", "two")]
        ids = [(await house.coordinator.jobs.create(job)).job_id for job in jobs]
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job_id) for job_id in ids]

    assert states == ["FAILED", "FAILED"]


async def test_a_reconnect_brings_the_task_at_hand_again_and_no_other(open_house: OpenHouse) -> None:
    async with open_house() as house:
        async with connected(house.address, "a") as (a,):
            one, two = await two_jobs(house)
            first = await a.next_task()
        async with connected(house.address, "a") as (a,):
            again = await a.next_task()
            await do(a, again)
            second = await a.next_task()
            await do(a, second)
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert first.task_id == again.task_id
    assert (again.job_id, second.job_id) == (one, two)


async def test_both_jobs_go_on_after_a_restart(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        one, two = await two_jobs(house)
        await do(a, await a.next_task())
        await until(lambda: one not in house.coordinator.jobs.running)
        third = (await house.coordinator.jobs.create(make_job(name="three", rounds=1, min_devices=1))).job_id
        await until(lambda: is_collecting(house, third))
    async with open_house() as house, connected(house.address, "a") as (a,):
        await until(lambda: sorted(house.coordinator.jobs.running) == sorted([two, third]))
        tasks = [await a.next_task()]
        await do(a, tasks[0])
        tasks.append(await a.next_task())
        await do(a, tasks[1])
        await patiently(house.coordinator.jobs.wait_until_idle())
        states = [await state_of(house, job_id) for job_id in (one, two, third)]

    assert {task.job_id for task in tasks} == {two, third}
    assert states == ["COMPLETED"] * 3


async def test_no_more_jobs_run_than_may_and_the_others_wait_in_their_order(open_house: OpenHouse) -> None:
    async with open_house(max_jobs=2) as house, connected(house.address, "a") as (a,):
        ids = [
            (await house.coordinator.jobs.create(make_job(name=f"job-{n}", rounds=1, min_devices=1))).job_id
            for n in range(4)
        ]
        await until(lambda: len(house.coordinator.jobs.running) == 2)
        at_first = list(house.coordinator.jobs.running)
        states = [await state_of(house, job_id) for job_id in ids]
        tasks = []
        for _ in ids:
            tasks.append(await a.next_task())
            await do(a, tasks[-1])
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert at_first == ids[:2]
    assert states == ["RUNNING", "RUNNING", "PENDING", "PENDING"]
    assert {task.job_id for task in tasks[:2]} == set(ids[:2])  # which of the two asked first is a matter of luck
    assert {task.job_id for task in tasks[2:]} == set(ids[2:])


async def test_who_ran_before_a_restart_goes_on_and_who_finds_no_room_waits(open_house: OpenHouse) -> None:
    async with open_house() as house:
        jobs = house.coordinator.jobs
        ids = [(await jobs.create(make_job(name=f"job-{n}"))).job_id for n in range(3)]
        await until(lambda: len(jobs.running) == 3)
        await jobs.pause(ids[0])
        await until(lambda: len(jobs.running) == 2)
        await house.coordinator.stop()
    async with open_house(max_jobs=1) as house:
        jobs = house.coordinator.jobs
        await until(lambda: len(jobs.running) == 1)
        await jobs.resume(ids[0])
        running = list(jobs.running)
        await until_state(house, ids[2], "PENDING")
        states = [await state_of(house, job_id) for job_id in ids]

    assert running == [ids[1]]
    assert states == ["PENDING", "RUNNING", "PENDING"]


async def until_state(house: House, job_id: str, state: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await state_of(house, job_id) != state:  # noqa: ASYNC110 - what is asked over HTTP has no event
            await asyncio.sleep(0.01)
