"""Jobs with secure aggregation through the real service over TLS, with devices that really mask."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.secure import Signer, Trust
from bnncore.secure.crypto import load_signer
from bnncore.secure.scales import Scales, scales_from_bytes
from server.coordinator import Coordinator
from server.coordinator.versions import read_state
from server.identity.authority import private_pem
from server.jobs import JobConfig
from server.storage.base import VersionRecord
from server.strategies import FoldingStrategy, make_strategy
from tests.patience import patiently
from tests.server.conftest import DEADLINE_S, make_job
from tests.server.identity.house import Enrolled, SecureHouse, open_secure_house
from tests.server.member import SHARES, Member, plain_sum
from tests.server.scripted import ScriptedDevice

NAMES = ("a", "b", "c", "d")
JOBS: dict[str, dict[str, Any]] = {
    "onebit": {"recipe": "onebit", "statistics_batches": 2},
    "signvote": {"strategy": "signvote", "up_codec": "sign", "statistics_batches": 2},
    "fedavg": {"strategy": "fedavg", "up_codec": "int8"},
    "fedadam": {"strategy": "fedadam", "up_codec": "int8", "local_tensors": ["norm2.beta"]},
    "fedprox": {"strategy": "fedprox", "up_codec": "int8", "statistics_batches": 2},
    "fedyogi": {"strategy": "fedyogi", "up_codec": "sign", "statistics_batches": 2},
}


def secure_job(**changes: Any) -> JobConfig:
    return make_job(**{"rounds": 2, "min_devices": 3, "secure_aggregation": {"phase_s": DEADLINE_S}, **changes})


def signer_of(device: Enrolled) -> Signer:
    return load_signer(private_pem(device.key), device.certificate_pem.encode())


async def enter(house: SecureHouse, stack: AsyncExitStack, *names: str) -> list[Member]:
    """Enrol devices and open their streams."""
    members = []
    for name in names:
        enrolled = await house.enrol(name)
        device = ScriptedDevice(str(house.grpc), name, credentials=house.credentials(enrolled))
        await stack.enter_async_context(device)
        await device.connect()
        members.append(Member(device, signer=signer_of(enrolled), trust=Trust(house.authority.pem)))
    return members


async def versions_of(coordinator: Coordinator, job_id: str) -> list[VersionRecord]:
    return await coordinator.disk.run(coordinator.disk.storage.list_versions, job_id)


def expected_versions(
    config: JobConfig, coordinator: Coordinator, versions: list[VersionRecord], members: list[Member]
) -> list[dict[str, Any]]:
    """What the strategy makes of the plain sums, round by round, in the clear."""
    strategy = make_strategy(config.strategy, config.strategy_params)
    assert isinstance(strategy, FoldingStrategy)
    blobs, memory, expected = coordinator.disk.blobs, None, []
    scales: Scales = {}
    for number, base in enumerate(versions[:-1], 1):
        total = plain_sum([member.vectors[number] for member in members])
        start = read_state(blobs, config.spec, base)
        closing = config.is_closing(number)
        merging = make_strategy("fedavg", {}) if closing else strategy
        assert isinstance(merging, FoldingStrategy)
        accumulator = merging.init(config.spec, is_difference=not closing)
        merging.fold_sum(accumulator, total, scales)
        state, kept = merging.finish(accumulator, start, None if closing else memory)
        memory = memory if closing else kept
        own = {t.name for t in config.spec.tensors if closing and not t.is_statistic} | config.local_names
        expected.append({name: start[name] if name in own else array for name, array in state.items()})
        scales = total.mean_scales
    return expected


@pytest.mark.parametrize("kind", JOBS)
async def test_the_model_is_what_the_plain_sum_of_the_same_vectors_gives(tmp_path: Path, kind: str) -> None:
    config = secure_job(**JOBS[kind])
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, *NAMES)
        job = await house.coordinator.jobs.create(secure_job(**JOBS[kind], min_devices=4))
        await asyncio.gather(*(member.work(config.exchanges) for member in members))
        await patiently(house.coordinator.jobs.wait_until_idle())
        versions = await versions_of(house.coordinator, job.job_id)
        expected = expected_versions(config, house.coordinator, versions, members)
        states = [read_state(house.coordinator.disk.blobs, config.spec, version) for version in versions[1:]]
        rounds = (await house.admin.get(f"/api/v1/jobs/{job.job_id}/rounds")).json()
        storage = house.coordinator.disk.storage
        digests = await house.coordinator.disk.run(storage.referenced_digests)
        kept = house.coordinator.disk.blobs.digests()

    assert len(states) == config.exchanges
    for state, wanted in zip(states, expected, strict=True):
        for name, array in wanted.items():
            np.testing.assert_array_equal(state[name], array, err_msg=name)
    for round_ in rounds:
        assert round_["exchange"] == {
            "attempt": 1, "step": None, "members": 4, "lost_before_shares": 0, "lost_before_masked": 0
        }  # fmt: skip
        assert {(row["status"], row["exchange_step"], row["num_examples"]) for row in round_["updates"]} <= {
            ("ACCEPTED", "REVEAL", 1), ("ACCEPTED", "MASKED", 1)
        }  # fmt: skip
    assert kept == digests  # nothing of the exchanges is left


async def test_signs_have_the_scale_of_the_round_before(tmp_path: Path) -> None:
    config = secure_job(**JOBS["onebit"], min_devices=3)
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, "a", "b", "c")
        await house.coordinator.jobs.create(config)
        told = []
        for _ in range(config.exchanges):
            await asyncio.gather(*(member.work(1) for member in members))
            told.append(members[0].task.secure.scales)
        await patiently(house.coordinator.jobs.wait_until_idle())

    first = plain_sum([member.vectors[1] for member in members]).mean_scales
    assert told[0] == told[2] == b""  # none were agreed; the closing exchange has no signs
    agreed = scales_from_bytes(config.spec, told[1])
    assert agreed.keys() == first.keys()
    for name, scales in first.items():
        np.testing.assert_array_equal(agreed[name], scales)


async def test_keys_must_be_signed_by_whom_the_link_is_of(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, "a", "b", "c")
        await house.coordinator.jobs.create(secure_job())
        good, unsigned, foreign = members
        unsigned._signer = None
        foreign._signer = good._signer
        answers = [await member.join() for member in members]

    assert [answer.status for answer in answers] == [
        pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_REJECTED, pb.SUBMIT_STATUS_REJECTED
    ]  # fmt: skip
    assert "not signed" in answers[1].reason
    assert "of another device" in answers[2].reason


async def test_an_update_in_the_clear_is_refused(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        (member, *_) = await enter(house, stack, "a", "b", "c")
        await house.coordinator.jobs.create(secure_job())
        task = await member.device.next_task()
        answer = await member.device.submit(task, await member.device.train(task))

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert "takes none in the clear" in answer.reason


async def test_members_share_masks_with_their_neighbours_alone_where_the_job_says_so(tmp_path: Path) -> None:
    config = secure_job(rounds=1, secure_aggregation={"degree": 4, "phase_s": DEADLINE_S}, min_devices=8)
    async with open_secure_house(tmp_path / "state") as house, AsyncExitStack() as stack:
        members = await enter(house, stack, *"abcdefgh")
        job = await house.coordinator.jobs.create(config)
        await asyncio.gather(*(member.join() for member in members))
        order = await members[0].order()
        payload = members[0].payload(order)
        await members[0].send(SHARES, payload)
        await asyncio.gather(*(member.take(SHARES) for member in members[1:]))
        for _ in range(2):
            await asyncio.gather(*(member.take() for member in members))
        await patiently(house.coordinator.jobs.wait_until_idle())
        versions = await versions_of(house.coordinator, job.job_id)
        (expected,) = expected_versions(config, house.coordinator, versions, members)
        state = read_state(house.coordinator.disk.blobs, config.spec, versions[1])

    assert (len(order.peers), order.num_members, len(order.graph_seed)) == (4, 8, 32)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array)
