"""Joules of a training, from a device's header to the round that they are shown in."""

from __future__ import annotations

import asyncio
import math
import re

from bitfleet.v1 import fleet_pb2 as pb
from tests.patience import patiently
from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected


async def work(device: ScriptedDevice, joules: float, source: str) -> None:
    task = await device.next_task()
    payload = await device.train(task)
    metrics = pb.UpdateMetrics(loss=0.5, steps=4, seconds=1.0, joules=joules, joules_source=source)
    await device.submit(task, payload, metrics=metrics)


async def test_energy_is_shown_with_its_source_where_it_can_be_true(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c", "d") as (a, b, c, d):
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=4))
        await asyncio.gather(
            work(a, 3.0, "rapl"), work(b, 1.0, "model"), work(c, math.nan, "pmic"), work(d, 5.0, "a guess")
        )
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)
        metrics = (await house.http.get("/metrics")).text

    told = {row["device_id"]: (row["joules"], row["joules_source"]) for row in round_["updates"]}
    assert told == {"a": (3.0, "rapl"), "b": (1.0, "model"), "c": (None, ""), "d": (None, "")}
    assert round_["joules_per_device"] == 2.0
    assert sorted(re.findall(r"bitfleet_training_joules_total(\{.*)", metrics)) == [
        '{source="model"} 1.0', '{source="rapl"} 3.0'
    ]  # fmt: skip
