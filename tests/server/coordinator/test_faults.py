"""A disk or a database that fails for a moment: nothing is lost, nobody has to restart anything."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.errors import ConfigurationError
from server.coordinator import JobState, queue
from server.coordinator.coordinator import Coordinator
from server.storage.blobs import LocalBlobs
from server.storage.payloads import BlobWriter
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected


def fail_once(target: Any, method: str, calls_before: int = 0) -> None:
    """Make one call of a real object's method fail as a full disk does."""
    real, left = getattr(target, method), [calls_before]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return real(*args, **kwargs)

    setattr(target, method, call)


async def deliver_all(devices: list[ScriptedDevice], rounds: int) -> None:
    """Deliver every round, sending again what was answered with "try again"."""

    async def one(device: ScriptedDevice) -> None:
        done: set[int] = set()
        while len(done) < rounds:
            task = await device.next_task()
            payload = await device.train(task)
            while task.round_number not in done:
                try:
                    answer = await device.submit(task, payload)
                    assert answer.status in (pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE), answer.reason
                    done.add(task.round_number)
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.05)

    await asyncio.gather(*(one(device) for device in devices))


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("storage", "record_updates"),
        ("storage", "commit_round"),
        ("storage", "save_round"),
        ("storage", "set_job_state"),
        ("storage", "list_jobs"),
        ("blobs", "put"),
        ("blobs", "delete"),
    ],
)
async def test_a_fault_of_the_disk_is_waited_out(open_house: OpenHouse, part: str, method: str) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        if method in ("put", "save_round"):  # let the job begin undisturbed
            await until(lambda: len(house.coordinator.disk.blobs.digests()) == 2)
        fail_once(getattr(house.coordinator.disk, part), method)
        if method == "list_jobs":
            house.coordinator.jobs._changed.set()
        await deliver_all(devices, 1)
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")

    assert (view["state"], round_["state"], round_["accepted"]) == ("COMPLETED", "COMMITTED", 2)


async def test_a_full_disk_is_waited_out_however_long_it_is_full(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, "_FAULT_PAUSE_S", 0.01)
    monkeypatch.setattr(queue, "_LONGEST_PAUSE_S", 0.02)

    async def until_refused(times: int) -> None:
        await until(lambda: caplog.text.count("event=disk_refuses job=") == times)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        await house.coordinator.jobs.create(make_job(rounds=1))
        tasks = await asyncio.gather(*(device.next_task() for device in devices))
        payload = await devices[0].train(tasks[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))  # no file takes more: the next best to a full disk
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await devices[0].submit(tasks[0], payload)
            for times in range(1, 2 * queue._MAX_FAULTS):
                await devices[1].report(tasks[1], pb.TASK_OUTCOME_FAILED, "which the job has to write down")
                await until_refused(times)
                tasks[1] = await devices[1].next_task()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await devices[0].submit(tasks[0], payload)
        await devices[1].submit(tasks[1], await devices[1].train(tasks[1]))
        await patiently(house.coordinator.jobs.wait_until_idle())
        (job,) = await house.get("/api/v1/jobs")

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert job["state"] == "COMPLETED"


async def test_an_update_that_the_disk_does_not_take_is_asked_for_again(open_house: OpenHouse) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job(rounds=1, model={"zoo": "mlp", "params": {"widths": [256, 256]}}))
        task = await a.next_task()
        payload = await a.train(task)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(payload) // 2, before[1]))
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await a.submit(task, payload)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        again = await a.submit(task, payload)
        await b.work(1)
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert again.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_a_device_that_breaks_off_while_its_update_is_kept_disturbs_nobody(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeping, may_keep, keep = threading.Event(), threading.Event(), LocalBlobs.keep

    def slow_keep(blobs: LocalBlobs, writers: Sequence[BlobWriter]) -> None:
        keeping.set()
        assert may_keep.wait(LIMIT_S)
        keep(blobs, writers)

    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job(rounds=1))
        task = await a.next_task()
        payload = await a.train(task)
        monkeypatch.setattr(LocalBlobs, "keep", slow_keep)
        broken_off = asyncio.create_task(a.submit(task, payload))
        await until(keeping.is_set)
        broken_off.cancel()
        await asyncio.sleep(0.3)  # for the cancellation to arrive
        may_keep.set()
        again = await a.submit(task, payload)
        await b.work(1)
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert again.status == pb.SUBMIT_STATUS_DUPLICATE
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_updates_that_are_ready_together_share_the_way_to_the_disk_and_are_answered_after_it(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"device-{i}" for i in range(6)]
    may_keep, keep, kept_together = threading.Event(), LocalBlobs.keep, []

    def slow_keep(blobs: LocalBlobs, writers: Sequence[BlobWriter]) -> None:
        assert may_keep.wait(LIMIT_S)
        keep(blobs, writers)
        kept_together.append(len(writers))

    async with open_house() as house, connected(house.address, *names) as devices:
        await house.coordinator.jobs.create(make_job(rounds=1, min_devices=len(names)))
        tasks = await asyncio.gather(*(device.next_task() for device in devices))
        payloads = [await device.train(task) for device, task in zip(devices, tasks, strict=True)]
        monkeypatch.setattr(LocalBlobs, "keep", slow_keep)
        sent = [
            asyncio.create_task(device.submit(task, payload))
            for device, task, payload in zip(devices, tasks, payloads, strict=True)
        ]
        active = house.open_round()
        assert active is not None
        await until(lambda: active._mailbox.qsize() + len(active._unwritten) == len(names))
        duplicate = asyncio.create_task(devices[0].submit(tasks[0], payloads[0]))
        await asyncio.sleep(0.1)  # for an answer that would come too early
        early = [task for task in (*sent, duplicate) if task.done()]
        may_keep.set()
        answers = await asyncio.gather(*sent)
        again = await duplicate
        monkeypatch.undo()
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert early == []
    assert {answer.status for answer in answers} == {pb.SUBMIT_STATUS_ACCEPTED}
    assert again.status == pb.SUBMIT_STATUS_DUPLICATE
    assert max(kept_together) > 1


async def test_a_payload_lost_on_disk_is_asked_for_again(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job(rounds=1))
        task = await a.next_task()
        payload = await a.train(task)
        digest = a.header(task, payload).update_digest
        await a.submit(task, payload)
    next(house.state.glob(f"blobs/*/{digest}")).write_bytes(b"damaged")

    async with open_house() as house, connected(house.address, "a", "b") as devices:
        answers = await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert {answer.status for (answer,) in answers} == {pb.SUBMIT_STATUS_ACCEPTED}


async def test_a_job_whose_network_cannot_be_made_fails_and_the_next_one_runs(open_house: OpenHouse) -> None:
    def broken(config: Any) -> Any:
        raise ConfigurationError(f"no room for {config.name}")

    async with open_house() as house:
        object.__setattr__(house.coordinator.jobs._parts, "initial_state", broken)
        job = await house.coordinator.jobs.create(make_job())
        await patiently(house.coordinator.jobs.wait_until_idle())
        view = await house.get(f"/api/v1/jobs/{job.job_id}")

    assert (view["state"], view["reason"]) == ("FAILED", "no room for stripes")


async def test_a_job_cancelled_before_it_was_started_does_not_start(open_house: OpenHouse) -> None:
    async with open_house() as house:
        coordinator: Coordinator = house.coordinator
        job = await coordinator.jobs.create(make_job())
        await coordinator.jobs.cancel(job.job_id)
        await patiently(coordinator.jobs.wait_until_idle())

        assert (await coordinator.jobs.get(job.job_id)).state == JobState.CANCELLED
    async with open_house() as house:
        await patiently(house.coordinator.jobs.wait_until_idle())

        assert (await house.coordinator.jobs.get(job.job_id)).state == JobState.CANCELLED


async def test_what_a_device_says_cannot_forge_a_log_line_or_break_the_database(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        task = await c.next_task()
        await c.report(task, pb.TASK_OUTCOME_DECLINED, "no\x00\nlevel=ERROR event=forged")
        await asyncio.gather(a.work(1), b.work(1))
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)

    (declined,) = [update for update in round_["updates"] if update["device_id"] == "c"]
    assert (declined["status"], declined["reason"]) == ("DECLINED", "no??level=ERROR event=forged")
