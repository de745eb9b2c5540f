"""Payloads of models that the disk damages: told in the log; the job goes on from the last version that is whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.storage.base import VersionRecord
from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.holder import Holder
from tests.server.scripted import ScriptedDevice, connected

NAMES = ("a", "b")


def damage(house: House, digest: str) -> None:
    """Change one bit of a payload on the disk."""
    path = house.state / "blobs" / digest[:2] / digest
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def work(devices: list[ScriptedDevice]) -> None:
    """Do whatever task comes."""

    async def one(device: ScriptedDevice) -> None:
        while True:
            task = await device.next_task()
            answer = await device.submit(task, await device.train(task))
            assert answer.status == pb.SUBMIT_STATUS_ACCEPTED, answer

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*(one(device) for device in devices))


async def finish(house: House) -> tuple[dict[str, Any], list[str]]:
    """Have devices do what is left; gives the job as people see it, and its digests."""
    async with connected(house.address, *NAMES) as devices:
        working = asyncio.create_task(work(devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    (job,) = await house.get("/api/v1/jobs")
    rounds = await house.rounds(job["id"])
    return job, [round_["weights_digest"] for round_ in rounds if round_["state"] == "COMMITTED"]


async def play(house: House, rounds: int, **changes: Any) -> None:
    """Begin the job, and play so many of its rounds."""
    await house.coordinator.jobs.create(make_job(rounds=4, **changes))
    async with connected(house.address, *NAMES) as devices:
        await asyncio.gather(*(device.work(rounds) for device in devices))
        await until(lambda: next(iter(house.coordinator.jobs.running.values())).rounds_committed == rounds)


def version(house: House, number: int) -> VersionRecord:
    storage = house.coordinator.disk.storage
    found = storage.get_version(storage.list_jobs()[0].job_id, number)
    assert found is not None
    return found


@pytest.fixture
async def undisturbed(open_house: OpenHouse, tmp_path: Path) -> list[str]:
    async with open_house() as house:
        await house.coordinator.jobs.create(make_job(rounds=4))
        _, digests = await finish(house)
    for path in (tmp_path / "bitfleet.db", tmp_path / "bitfleet.db-wal", tmp_path / "bitfleet.db-shm"):
        path.unlink(missing_ok=True)
    return digests


Lost = Callable[[House], list[str]]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda house: [version(house, 2).state_digest], "version 2 consisted of; the job goes on from version 1"),
        (lambda house: [version(house, 2).payload_digest], "version 2 consisted of; the job goes on from version 1"),
        (
            lambda house: [version(house, 2).state_digest, version(house, 1).payload_digest],
            "versions 1 to 2 consisted of; the job goes on from version 0",
        ),
        (
            lambda house: [version(house, number).payload_digest for number in range(3)],
            "versions 0 to 2 consisted of; the job goes on from the start",
        ),
    ],
)
async def test_a_job_goes_on_from_its_last_whole_version_after_a_restart(
    open_house: OpenHouse, undisturbed: list[str], caplog: pytest.LogCaptureFixture, lost: Lost, said: str
) -> None:
    async with open_house() as house:
        await play(house, 2)
        for digest in lost(house):
            damage(house, digest)

    async with open_house() as house:
        await until(lambda: bool(house.coordinator.disk.storage.list_jobs()[0].reason))
        (told,) = await house.get("/api/v1/jobs")
        job, digests = await finish(house)

    assert said in told["reason"]
    assert "event=version_lost" in caplog.text
    assert (job["state"], job["reason"], digests) == ("COMPLETED", "", undisturbed)


async def next_other(device: ScriptedDevice, task_id: str) -> pb.Task:
    """Wait for a task that is not this one, which may be sent again: a device that comes back is told what it is at."""
    while (task := await device.next_task()).task_id == task_id:
        pass
    return task


async def test_a_round_whose_model_is_damaged_is_played_again_from_the_one_before(
    open_house: OpenHouse, undisturbed: list[str]
) -> None:
    async with open_house() as house:
        await play(house, 2)
        async with connected(house.address, *NAMES) as devices:
            tasks = await asyncio.gather(*(device.next_task() for device in devices))
            damage(house, version(house, 2).payload_digest)
            for device, task in zip(devices, tasks, strict=True):
                assert task.round_number == 3
                await device.report(task, pb.TASK_OUTCOME_FAILED, "the model's bytes do not have the digest")
            again = await asyncio.gather(
                *(next_other(device, task.task_id) for device, task in zip(devices, tasks, strict=True))
            )
        job, digests = await finish(house)

    assert [task.round_number for task in again] == [2, 2]
    assert (job["state"], digests) == ("COMPLETED", undisturbed)


async def test_what_a_round_starts_from_is_lost_while_it_is_merged(
    open_house: OpenHouse, undisturbed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        await house.coordinator.jobs.create(make_job(rounds=4, strategy="fedyogi"))
        async with connected(house.address, *NAMES) as devices:
            tasks = await asyncio.gather(*(device.next_task() for device in devices))
            payloads = [await device.train(task) for device, task in zip(devices, tasks, strict=True)]
            damage(house, version(house, 0).state_digest)
            sent = [d.submit(t, p) for d, t, p in zip(devices, tasks, payloads, strict=True)]
            answers = await asyncio.gather(*sent, return_exceptions=True)
            again = await asyncio.gather(*(device.next_task() for device in devices))
        job, digests = await finish(house)

    assert [task.round_number for task in again] == [1, 1]
    for answer in answers:
        assert isinstance(answer, grpc.aio.AioRpcError)
        assert answer.code() == grpc.StatusCode.UNAVAILABLE
    assert "event=version_lost" in caplog.text
    assert (job["state"], len(digests)) == ("COMPLETED", 4)


async def test_a_strategy_whose_memory_is_lost_begins_anew(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        await play(house, 2, strategy="fedyogi")
        damage(house, version(house, 2).memory_digest or "")

    async with open_house() as house:
        job, digests = await finish(house)

    assert "event=memory_lost" in caplog.text
    assert (job["state"], len(digests)) == ("COMPLETED", 4)


async def test_a_lost_step_is_not_offered(open_house: OpenHouse, caplog: pytest.LogCaptureFixture) -> None:
    async with open_house() as house, connected(house.address, *NAMES) as devices:
        await house.coordinator.jobs.create(make_job(rounds=4, recipe="onebit", statistics_batches=2))
        await asyncio.gather(*(Holder(device).work(2) for device in devices))
        whole = await asyncio.gather(*(device.next_task() for device in devices))
        damage(house, version(house, 2).step_digest or "")

    async with open_house() as house, connected(house.address, *NAMES) as devices:
        tasks = await asyncio.gather(*(device.next_task() for device in devices))

    assert [len(task.steps) for task in whole] == [2, 2]
    assert [len(task.steps) for task in tasks] == [0, 0]
    assert "event=step_lost" in caplog.text
