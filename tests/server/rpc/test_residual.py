"""Residual networks in a fleet: real-valued layers, biases and shortcuts are merged beside binary weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bnncore.checkpoint import load_checkpoint
from bnncore.zoo import resnete18
from tests.patience import patiently
from tests.server.conftest import OpenHouse, make_job
from tests.server.holder import Holder
from tests.server.scripted import SHAPE, connected, write_held_out_set

SPEC = resnete18(SHAPE, (8, 16), 1, 3)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "sign", "flips"])
async def test_a_round_moves_every_kind_of_tensor(open_house: OpenHouse, tmp_path: Path, codec: str) -> None:
    is_difference = codec in ("sign", "flips")
    write_held_out_set(tmp_path / "held-out")
    job = make_job(
        model={"spec": SPEC.to_dict()},
        up_codec=codec,
        down_codec=codec,
        rounds=2,
        statistics_batches=2 if is_difference else 0,
        evaluation={"dataset": "idx", "data": str(tmp_path / "held-out")},
    )
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        record = await house.coordinator.jobs.create(job)
        if is_difference:
            await asyncio.gather(*(Holder(device).work(3) for device in devices))
        else:
            await asyncio.gather(*(device.work(2) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        view = await house.get(f"/api/v1/jobs/{record.job_id}")
        rounds = await house.rounds(record.job_id)
        models = [
            (await house.http.get(f"/api/v1/models/{record.job_id}/versions/{number}/download")).content
            for number in (0, 2)
        ]

    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 2)
    assert all(0 <= round_["accuracy"] <= 100 for round_ in rounds[:2])
    states = []
    for number, content in enumerate(models):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        states.append(load_checkpoint(path).state)
    unmoved = {tensor.role for tensor in SPEC.tensors if (states[0][tensor.name] == states[1][tensor.name]).all()}
    assert unmoved == set()
