"""Jobs with differential privacy through the real service: noise in the model, an account in the status, an end."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_codec, get_difference_codec
from bnncore.federated.feedback import tell_difference
from bnncore.state import State
from server.coordinator import Coordinator
from server.coordinator.aggregation import Aggregation
from server.coordinator.versions import VersionWriter, initial_state, read_state
from server.jobs import JobConfig
from server.privacy import epsilon_after
from server.storage.blobs import LocalBlobs
from server.strategies import FoldingStrategy, make_strategy
from tests.patience import patiently
from tests.server.conftest import DEADLINE_S, OpenHouse, make_job
from tests.server.identity.house import open_secure_house
from tests.server.member import plain_sum
from tests.server.rpc.test_secure import NAMES, enter, versions_of
from tests.server.scripted import connected

CLIPPED: dict[str, Any] = {"up_codec": "int8", "rounds": 2}
SIGNS: dict[str, Any] = {"up_codec": "sign", "rounds": 2, "statistics_batches": 2}


def private_job(mechanism: str, **changes: Any) -> JobConfig:
    privacy = {"mechanism": mechanism, "epsilon": 500.0, "noise_multiplier": 0.2}
    if changes.get("up_codec", "int8") == "int8":
        privacy["clip"] = 20.0
    return make_job(
        **{
            "min_devices": 4,
            "secure_aggregation": {"min_members": 4, "phase_s": DEADLINE_S},
            "privacy": privacy,
            **changes,
        }
    )


def fold(config: JobConfig, total: Any, base: State) -> State:
    """What the first round's model would be without noise."""
    strategy = make_strategy(config.strategy, config.strategy_params)
    assert isinstance(strategy, FoldingStrategy)
    accumulator = strategy.init(config.spec, is_difference=True)
    strategy.fold_sum(accumulator, total, config.sign_scales(1, b""))
    return strategy.finish(accumulator, base, None)[0]


async def first_states(coordinator: Coordinator, job_id: str, config: JobConfig) -> tuple[State, State]:
    versions = await versions_of(coordinator, job_id)
    first, second = (read_state(coordinator.disk.blobs, config.spec, version) for version in versions[:2])
    return first, second


@pytest.mark.parametrize("mechanism", ["distributed", "central"])
@pytest.mark.parametrize("kind", [CLIPPED, SIGNS], ids=["clipped", "signs"])
async def test_a_masked_sum_comes_out_with_the_noise_that_the_job_asks_for(
    tmp_path: Path, mechanism: str, kind: dict[str, Any]
) -> None:
    config = private_job(mechanism, **kind)
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, *NAMES)
        job = await house.coordinator.jobs.create(config)
        await asyncio.gather(*(member.work(config.exchanges) for member in members))
        await patiently(house.coordinator.jobs.wait_until_idle())
        start, state = await first_states(house.coordinator, job.job_id, config)
        view = (await house.admin.get(f"/api/v1/jobs/{job.job_id}")).json()
        rounds = (await house.admin.get(f"/api/v1/jobs/{job.job_id}/rounds")).json()

    exact = plain_sum([member.vectors[1] for member in members])
    form = exact.form
    assert form.privacy is not None
    part = form.parts[0]
    noise = state["dense1.weight"] - fold(config, exact, start)["dense1.weight"]
    worth = 4 if kind is SIGNS else 1
    expected = form.privacy.sum_sigma(part, 4) / part.fineness / 4 * worth / 127
    assert abs(noise.std() / expected - 1) < 5 / math.sqrt(2 * noise.size)

    told = members[0].task.secure.privacy
    assert (told.mechanism, told.noise_multiplier, told.delta) == (mechanism, 0.2, 1e-5)
    assert told.clip == (0 if kind is SIGNS else 20)
    assert members[0].task.training.step_scale == pytest.approx(1.0 if kind is SIGNS else 0.1)
    spent = [epsilon_after(0.2 * (1 - 1e-9), 1e-5, number) for number in range(1, config.exchanges + 1)]
    assert [round_["epsilon"] for round_ in rounds] == spent
    assert view["privacy"] == {
        "mechanism": mechanism, "epsilon": spent[-1], "epsilon_budget": 500.0, "delta": 1e-5, "noise_multiplier": 0.2
    }  # fmt: skip
    assert view["state"] == "COMPLETED"


async def test_the_clip_follows_what_devices_say(tmp_path: Path) -> None:
    privacy = {"mechanism": "central", "epsilon": 500.0, "noise_multiplier": 0.2, "clip": 20.0, "clip_quantile": 0.5}
    config = private_job("central", **CLIPPED, privacy=privacy)
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, *NAMES)
        await house.coordinator.jobs.create(config)
        await asyncio.gather(*(member.work(1) for member in members))
        first = members[0].task.secure.privacy.clip
        await asyncio.gather(*(member.work(1) for member in members))
        second = {member.task.secure.privacy.clip for member in members}
        await patiently(house.coordinator.jobs.wait_until_idle())

    # All devices' random steps are far beyond 20: none is within it, so it grows, as far as noise lets that be seen.
    assert first == 20.0
    assert len(second) == 1
    assert 20.0 < min(second) <= 20.0 * math.exp(0.1) * (1 + 1e-9)


async def test_a_job_ends_before_the_round_that_would_exceed_its_budget(open_house: OpenHouse) -> None:
    budget = epsilon_after(1.0, 1e-5, 2) * 1.01
    privacy = {"mechanism": "central", "epsilon": budget, "noise_multiplier": 1.0, "clip": 20.0}
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=9, privacy=privacy))
        task = await devices[0].next_task()
        status = await house.get("/api/v1/status")
        await devices[0].submit(task, await devices[0].train(task))
        await asyncio.gather(devices[0].work(1), devices[1].work(2))
        await patiently(house.coordinator.jobs.wait_until_idle())
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        rounds = await house.rounds(job.job_id)

    assert (status["running"][0]["privacy"]["epsilon"], status["running"][0]["privacy"]["epsilon_budget"]) == (
        0,
        budget,
    )
    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 2)
    assert view["reason"].startswith("the privacy budget is spent: epsilon is ")
    assert len(rounds) == 2
    assert rounds[-1]["epsilon"] == view["privacy"]["epsilon"] <= budget


async def test_a_job_without_privacy_says_so(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        answers = await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        rounds = await house.rounds(job.job_id)

    assert answers[0][0].status == pb.SUBMIT_STATUS_ACCEPTED
    assert view["privacy"] is None
    assert rounds[0]["epsilon"] is None


@pytest.mark.parametrize("codec", ["int8", "sign"])
def test_updates_in_the_clear_are_bounded_before_they_are_added(tmp_path: Path, codec: str) -> None:
    """One device claims the largest change there is; what it moves is within its bound, and noise hides it."""
    privacy: dict[str, Any] = {"mechanism": "central", "epsilon": 900.0, "noise_multiplier": 0.2}
    if codec == "int8":
        privacy["clip"] = 20.0
    config = make_job(up_codec=codec, statistics_batches=2, privacy=privacy)
    spec, blobs = config.spec, LocalBlobs(tmp_path)
    base = VersionWriter("job", spec, config.down_codec, blobs).write(0, initial_state(config), 0.0)
    start = get_codec("int8").decode(spec, blobs.get(base.payload_digest), kind="model")
    aggregation, again = (Aggregation(config, spec, blobs, base) for _ in range(2))
    loud: dict[str, Any] = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            loud[tensor.name] = np.where(np.asarray(start[tensor.name]) > 0, -127, 127).astype(np.int8)
        else:
            loud[tensor.name] = np.full(tensor.shape, 50, np.float32)
    if codec == "sign":
        loud, _ = tell_difference(spec, loud, start, None, get_difference_codec("sign"))  # type: ignore[arg-type]
    for each in (aggregation, again):
        each.add("loud", loud, 1_000_000, base)
    first, _ = aggregation.finish(blobs.put)
    second, _ = again.finish(blobs.put)

    part = config.value_form(1).parts[0]
    worth = 4 if codec == "sign" else 1
    names = [tensor.name for tensor in spec.tensors if tensor.role == "weight"]
    moved = np.concatenate([(first[name] - read_state(blobs, spec, base)[name]).ravel() for name in names]) * 127
    bound, sigma = part.bound / part.fineness * worth, part.sigma / part.fineness * worth
    assert np.linalg.norm(moved) <= bound + 1.2 * sigma * math.sqrt(moved.size)
    assert any((first[name] != second[name]).any() for name in names)  # noise is drawn anew
