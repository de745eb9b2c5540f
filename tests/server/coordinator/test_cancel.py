"""A cancelled job ends, whichever moment it is cancelled at."""

import asyncio
from typing import Any

import pytest

from tests.patience import patiently
from tests.server.conftest import OpenHouse, make_job


@pytest.mark.parametrize("moment", ["set_job_state", "list_rounds", "get_round", "save_round"])
async def test_a_job_cancelled_while_a_round_is_prepared_ends(
    open_house: OpenHouse, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house() as house:
        jobs, loop = house.coordinator.jobs, asyncio.get_running_loop()
        storage = jobs._disk.storage
        call = getattr(storage, moment)
        cancelled: list[Any] = []

        def cancel_meanwhile(job_id: str, *args: Any, **kwargs: Any) -> Any:
            if not cancelled:
                # This runs on the disk's thread; the request takes its turn before the job goes on.
                job = getattr(job_id, "job_id", job_id)
                cancelled.append(asyncio.run_coroutine_threadsafe(jobs.cancel(job), loop))
            return call(job_id, *args, **kwargs)

        monkeypatch.setattr(storage, moment, cancel_meanwhile)
        job = await jobs.create(make_job())
        await patiently(jobs.wait_until_idle())

        assert cancelled
        assert (await jobs.get(job.job_id)).state == "CANCELLED"


async def test_a_job_cancelled_after_a_fault_is_not_taken_up_again(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house() as house:
        jobs = house.coordinator.jobs
        broken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def fail(*_: Any) -> None:
            loop.call_soon_threadsafe(broken.set)
            raise OSError("the disk is away")

        monkeypatch.setattr(jobs._disk.storage, "list_rounds", fail)
        job = await jobs.create(make_job())
        await broken.wait()
        await asyncio.sleep(0)  # let the fault reach the queue, which then waits a second
        await jobs.cancel(job.job_id)
        await patiently(jobs.wait_until_idle())

        assert (await jobs.get(job.job_id)).state == "CANCELLED"
