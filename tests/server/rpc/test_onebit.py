"""Jobs of the recipe ``onebit``: a bit a weight each way, through the real service over gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.checkpoint import load_checkpoint
from bnncore.codec import get_state_codec
from bnncore.spec import ModelSpec
from server.coordinator.versions import steps_to
from server.errors import InvalidJobError
from server.jobs import JobConfig
from server.storage.base import VersionRecord
from tests.patience import patiently
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.holder import Holder
from tests.server.scripted import connected


def onebit_job(**changes: Any) -> JobConfig:
    return make_job(**{"recipe": "onebit", "statistics_batches": 2, "rounds": 3, **changes})


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def test_devices_follow_steps_and_the_last_exchange_brings_statistics_alone(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(onebit_job())
        holders = [Holder(device) for device in devices]
        tasks, _ = await asyncio.gather(*(holder.work(4) for holder in holders))
        await finish(house)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        versions = await house.get(f"/api/v1/models/{job.job_id}/versions")
        response = await house.http.get(f"/api/v1/models/{job.job_id}/versions/4/download")
        disk = house.coordinator.disk
        records = await disk.run(disk.storage.list_versions, job.job_id)

    assert (view["state"], view["rounds_total"], view["rounds_committed"]) == ("COMPLETED", 3, 3)
    assert [task.training.local_steps for task in tasks] == [4, 4, 4, 0]
    assert [task.up_codec for task in tasks] == ["sign", "sign", "sign", "float32"]
    assert [len(task.steps) for task in tasks] == [0, 1, 2, 3]
    # Only steps were downloaded, one a round, and each is smaller than the model by far.
    steps = [record.step_bytes for record in records]
    assert all(holder.downloads == [0, *steps[1:4]] for holder in holders)
    assert 0 < max(steps) < records[1].payload_bytes / 2
    # The closing exchange changed nothing that devices hold.
    assert versions[3]["payload_digest"] == versions[4]["payload_digest"] == tasks[3].model_digest
    assert records[4].step_digest is None
    exported = tmp_path / "model.safetensors"
    exported.write_bytes(response.content)
    assert load_checkpoint(exported).weights_digest == versions[4]["weights_digest"]


async def test_a_device_that_missed_rounds_is_told_the_steps_since(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as devices:
        await house.coordinator.jobs.create(onebit_job(rounds=4, quorum=2))
        a, b, c = (Holder(device) for device in devices)
        first = await c.device.next_task()
        await c.device.submit(first, await c.update(first))
        for _ in range(2):
            task = await a.device.next_task()
            await a.device.submit(task, await a.update(task))
            task = await b.device.next_task()
            await b.device.submit(task, await b.update(task))
        late = await c.device.next_task()
        while late.round_number < 3:
            await c.device.report(late, pb.TASK_OUTCOME_FAILED, "away")
            late = await c.device.next_task()
        await c.update(late)

    assert late.steps[0].base_digest.hex() == first.model_digest
    assert len(late.steps) == 2
    assert c.downloads == [0, sum(step.num_bytes for step in late.steps)]


async def test_a_round_of_signs_survives_a_restart(open_house: OpenHouse) -> None:
    async def digests(*, restart: bool) -> list[str]:
        async with open_house() as house, connected(house.address, "a", "b") as devices:
            name = f"restart-{restart}"
            job = await house.coordinator.jobs.create(onebit_job(rounds=1, name=name))
            a, b = (Holder(device) for device in devices)
            await a.work(1)
            if not restart:
                await b.work(1)
                await asyncio.gather(a.work(1), b.work(1))
                await finish(house)
                return [round_["weights_digest"] for round_ in await house.rounds(job.job_id)]
        async with open_house() as house, connected(house.address, "a", "b") as devices:
            a.device, b.device = devices
            await b.work(1)
            await asyncio.gather(a.work(1), b.work(1))
            await finish(house)
            return [round_["weights_digest"] for round_ in await house.rounds(job.job_id)]

    assert await digests(restart=True) == await digests(restart=False)


async def test_an_update_of_weights_is_refused_in_the_closing_exchange(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        await house.coordinator.jobs.create(onebit_job(rounds=1))
        a, b = (Holder(device) for device in devices)
        await asyncio.gather(a.work(1), b.work(1))
        task = await a.device.next_task()
        spec = ModelSpec.from_json(task.spec_json)
        statistics = get_state_codec("float32").decode(spec, await a.update(task), kind="statistics")
        base = get_state_codec("int8").decode(spec, a.model, kind="model")
        whole = {name: np.asarray(array, np.float32) / 127 if array.dtype == np.int8 else array
                 for name, array in {**base, **statistics}.items()}  # fmt: skip
        payload = get_state_codec("float32").encode(spec, whole, kind="update")
        answer = await a.device.submit(task, payload)

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert "statistics" in answer.reason


async def test_a_job_is_complete_though_nobody_came_to_the_closing_exchange(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(onebit_job(rounds=1, max_attempts=1))
        a, b = (Holder(device) for device in devices)
        await asyncio.gather(a.work(1), b.work(1))
        for holder in (a, b):
            await holder.device.report(await holder.device.next_task(), pb.TASK_OUTCOME_FAILED, "away")
        await finish(house)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")

    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 1)


def test_a_recipe_is_a_choice_of_keys_that_a_job_may_override() -> None:
    job = onebit_job()
    assert (job.up_codec, job.down_codec, job.strategy_params) == ("sign", "sign", {"server_step": 2.0})
    assert onebit_job(up_codec="int8").up_codec == "int8"
    with pytest.raises(InvalidJobError, match="recipe must be one of onebit"):
        make_job(recipe="twobit")
    with pytest.raises(InvalidJobError, match="set statistics_batches"):
        make_job(up_codec="sign")


def version(number: int, *, payload: int = 100, step: int | None = 30, digest: str | None = None) -> VersionRecord:
    return VersionRecord(
        *("job", number, "int8", digest or f"model-{number}", payload, "state", "weights", 0.0),
        step_digest=None if step is None else f"step-{number}",
        step_bytes=step or 0,
    )


def test_steps_are_told_while_together_they_are_smaller_than_the_model() -> None:
    first = version(0, step=None)

    assert steps_to([first]) == ((), True)
    few, from_seed = steps_to([first, version(1), version(2)])
    assert ([step.base_digest for step in few], from_seed) == (["model-0", "model-1"], True)
    many, from_seed = steps_to([first, *(version(number) for number in range(1, 9))])
    assert ([step.base_digest for step in many], from_seed) == (["model-5", "model-6", "model-7"], False)
    assert steps_to([first, version(1, step=None)]) == ((), False)
    same, from_seed = steps_to([first, version(1), version(2, step=None, digest="model-1")])
    assert ([step.digest for step in same], from_seed) == (["step-1"], True)
