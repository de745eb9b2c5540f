"""Jobs that start from a model instead of their seed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.state import without_statistics
from server.coordinator.versions import initial_state
from server.errors import InvalidJobError
from tests.patience import patiently
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import connected


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def digest_of(house: House, job_id: str, version: int) -> str:
    view = await house.get(f"/api/v1/models/{job_id}/versions/{version}")
    return str(view["weights_digest"])


async def test_a_job_goes_on_from_a_version_of_another(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        first = await house.coordinator.jobs.create(make_job(rounds=2))
        await asyncio.gather(a.work(2), b.work(2))
        await finish(house)
        start = {"model": first.job_id, "version": 1}

        job = await house.coordinator.jobs.create(make_job(rounds=1, start=start))
        tasks = [await device.next_task() for device in (a, b)]

        assert await digest_of(house, job.job_id, 0) == await digest_of(house, first.job_id, 1)
        assert not any(task.HasField("initial_seed") for task in tasks)
        for device, task in zip((a, b), tasks, strict=True):
            await device.submit(task, await device.train(task))
        await finish(house)
        assert (await house.get(f"/api/v1/jobs/{job.job_id}"))["state"] == "COMPLETED"


@pytest.mark.parametrize("statistics", [True, False])
async def test_a_job_starts_from_a_checkpoint(open_house: OpenHouse, tmp_path: Path, statistics: bool) -> None:
    source = make_job(seed=9)
    state = initial_state(source)
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, source.spec, state if statistics else without_statistics(state))
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        job = await house.coordinator.jobs.create(make_job(start={"checkpoint": str(path)}))
        task = await a.next_task()
        exported = await house.http.get(f"/api/v1/models/{job.job_id}/versions/0/download")

    assert not task.HasField("initial_seed")
    (tmp_path / "exported").write_bytes(exported.content)
    again = load_checkpoint(tmp_path / "exported").state
    steps = {name: 127.0 if array.dtype == np.int8 else 1.0 for name, array in state.items()}
    assert all(np.allclose(again[name] * steps[name], array, rtol=1e-6) for name, array in state.items())


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"model": "none", "version": 0}, "there is no model 'none'"),
        ({"checkpoint": "/no/such/file"}, "start cannot be read: the checkpoint cannot be read"),
    ],
)
async def test_what_is_not_there_is_refused_at_once(open_house: OpenHouse, start: dict[str, Any], words: str) -> None:
    async with open_house() as house:
        with pytest.raises(InvalidJobError, match=words):
            await house.coordinator.jobs.create(make_job(start=start))


async def test_another_network_is_refused_by_name(open_house: OpenHouse, tmp_path: Path) -> None:
    wider = make_job(model={"zoo": "mlp", "params": {"widths": [17]}})
    save_checkpoint(tmp_path / "wide", wider.spec, initial_state(wider))
    async with open_house() as house:
        with pytest.raises(InvalidJobError, match=rf"network 'mlp' \({wider.spec.digest[:12]}\), the job's is 'mlp'"):
            await house.coordinator.jobs.create(make_job(start={"checkpoint": str(tmp_path / "wide")}))
