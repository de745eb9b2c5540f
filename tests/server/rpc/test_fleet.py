"""Devices over real gRPC: rounds of real training, and everything a device can do wrong."""

from __future__ import annotations

import asyncio

from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import connected


async def test_a_fleet_trains_all_rounds_of_a_job(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as devices:
        job = await house.coordinator.create_job(make_job(rounds=3))
        await asyncio.gather(*(device.work(3) for device in devices))
        await asyncio.wait_for(house.coordinator.wait_until_idle(), 20)

        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        rounds = await house.rounds(job.job_id)
    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 3)
    assert [(r["round"], r["state"], r["accepted"]) for r in rounds] == [(n, "COMMITTED", 3) for n in (1, 2, 3)]
    assert len({r["weights_digest"] for r in rounds}) == 3
