"""What devices say of a model on their own validation parts: added up by version, shown, and a reason to stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.errors import InvalidJobError
from server.jobs import JobConfig
from tests.patience import patiently
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.holder import Holder
from tests.server.scripted import connected


def job_of(**changes: Any) -> JobConfig:
    base = {"recipe": "onebit", "statistics_batches": 2, "local_validation": 0.2, "rounds": 2}
    return make_job(**{**base, **changes})


async def play(house: House, holders: list[Holder], scores: list[list[tuple[int, int, float]]]) -> None:
    """Have the devices do a round for each list of their scores."""
    for of_round in scores:
        for holder, score in zip(holders, of_round, strict=True):
            holder.device.score = score
        await asyncio.gather(*(holder.work(1) for holder in holders))


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def test_scores_are_added_up_with_the_round_that_made_the_version(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(job_of())
        holders = [Holder(device) for device in devices]
        await play(house, holders, [[(10, 1, 2.0), (30, 2, 2.0)], [(10, 9, 0.5), (30, 12, 1.5)], [(10, 10, 0.0)] * 2])
        await finish(house)
        rounds = await house.rounds(job.job_id)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")

    # The second round's devices judge what the first one made, the closing exchange what the second one made.
    assert [round_["local_accuracy"] for round_ in rounds] == [100 * 21 / 40, 100.0, None]
    assert [round_["local_examples"] for round_ in rounds] == [40, 20, 0]
    assert [round_["local_loss"] for round_ in rounds] == [1.25, 0.0, None]
    assert (view["local_accuracy"], view["accuracy"], view["best_version"]) == (100.0, None, 2)
    told = {row["device_id"]: (row["validation_examples"], row["validation_correct"]) for row in rounds[1]["updates"]}
    assert told == {"a": (10, 9), "b": (30, 12)}


async def test_a_task_names_the_part_that_is_held_out(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        await house.coordinator.jobs.create(job_of())
        task = await devices[0].next_task()

    assert task.training.local_validation == 0.2


async def test_what_cannot_be_true_does_not_count(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c", "d") as devices:
        job = await house.coordinator.jobs.create(job_of(rounds=1))
        holders = [Holder(device) for device in devices]
        scores = [(10, 11, 0.5), (2**60, 5, 0.5), (10, 5, float("nan")), (10, 5, 0.5)]
        await play(house, holders, [scores, scores])
        await finish(house)
        (first, _) = await house.rounds(job.job_id)

    assert (first["accepted"], first["local_examples"], first["local_accuracy"]) == (4, 10, 50.0)


async def test_the_scores_of_an_open_round_survive_a_restart(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(job_of())
        holders = [Holder(device) for device in devices]
        await play(house, holders, [[(0, 0, 0.0)] * 2])
        await play(house, holders[:1], [[(10, 9, 0.5)]])
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        for holder, device in zip(holders, devices, strict=True):
            holder.device = device
        await play(house, holders[1:], [[(30, 12, 1.5)]])
        await play(house, holders, [[(10, 10, 0.0)] * 2])
        await finish(house)
        rounds = await house.rounds(job.job_id)

    assert [round_["local_examples"] for round_ in rounds] == [40, 20, 0]


async def test_a_job_ends_when_the_devices_reach_the_target(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(job_of(rounds=9, target_accuracy=90, target="local"))
        holders = [Holder(device) for device in devices]
        await play(house, holders, [[(10, 1, 2.0)] * 2, [(10, 8, 0.5), (30, 26, 0.5)], [(10, 10, 0.1), (30, 26, 0.1)]])
        await finish(house)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")

    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 3)
    assert view["reason"] == "round 2 reached 90.00 % of the 90 % asked for"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_validation": 0.6}, "local_validation"),
        ({"local_validation": 0.1, "recipe": None, "statistics_batches": 0}, "set statistics_batches"),
        ({"local_validation": 0.0, "target": "local", "target_accuracy": 90.0}, "set local_validation"),
        ({"target_accuracy": 90.0}, "with target local"),
    ],
)
def test_a_job_that_could_not_be_judged_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        job_of(**changes)
