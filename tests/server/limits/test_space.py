"""The quota of payloads and the room that stays free: what is needed is kept, what is not taken is said so."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.storage.base import VersionRecord
from server.storage.blobs import LocalBlobs
from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.scripted import connected

_ROOM_OF_FIVE = 32 * 1024
"""Enough for about five versions of the small model, with what a round is promised."""


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def versions_of(house: House, job_id: str) -> list[VersionRecord]:
    return await house.coordinator.disk.run(house.coordinator.disk.storage.list_versions, job_id)


async def disk_of(house: House) -> dict[str, Any]:
    disk: dict[str, Any] = (await house.get("/api/v1/status"))["disk"]
    return disk


async def test_old_versions_go_when_room_is_needed_and_the_job_goes_on(open_house: OpenHouse) -> None:
    async with open_house(disk_quota_bytes=_ROOM_OF_FIVE) as house, connected(house.address, "a") as (a,):
        job = await house.coordinator.jobs.create(make_job(min_devices=1, rounds=12))
        await a.work(12)
        await finish(house)
        rounds, versions = await house.rounds(job.job_id), await versions_of(house, job.job_id)
        shown = await house.get(f"/api/v1/models/{job.job_id}/versions")
        disk = await disk_of(house)
        gone = await house.http.get(f"/api/v1/models/{job.job_id}/versions/1/download")
        newest = await house.http.get(f"/api/v1/models/{job.job_id}/versions/12/download")
        metrics = (await house.http.get("/metrics")).text
    kept = [version.version for version in versions if version.is_kept]
    blobs = LocalBlobs(house.state / "blobs")

    assert [round_["state"] for round_ in rounds] == ["COMMITTED"] * 12
    assert kept[-2:] == [11, 12]
    assert [version["version"] for version in shown if version["is_kept"]] == kept
    assert len(kept) < 13
    assert kept == list(range(kept[0], 13))  # the oldest went first
    assert blobs.used_bytes == disk["used_bytes"] <= disk["quota_bytes"] == _ROOM_OF_FIVE
    assert blobs.digests() == {digest for v in versions if v.is_kept for digest in (v.payload_digest, v.state_digest)}
    assert (gone.status_code, newest.status_code) == (404, 200)
    assert "is no longer kept" in gone.json()["detail"]
    assert f"bitfleet_disk_used_bytes {float(disk['used_bytes'])}" in metrics


async def test_the_best_version_stays_however_old_it_is(open_house: OpenHouse) -> None:
    async with open_house(disk_quota_bytes=_ROOM_OF_FIVE) as house, connected(house.address, "a") as (a,):
        storage = house.coordinator.disk.storage
        job = await house.coordinator.jobs.create(make_job(min_devices=1, rounds=12))
        await a.work(3)
        await house.coordinator.disk.run(storage.set_evaluation, job.job_id, 2, accuracy=99.0, loss=0.1)
        await a.work(9)
        await finish(house)
        versions = await versions_of(house, job.job_id)
        best = await house.http.get(f"/api/v1/models/{job.job_id}/versions/2/download")

    assert not versions[1].is_kept
    assert versions[2].is_kept
    assert best.status_code == 200


async def test_a_job_continues_after_a_restart_from_what_was_kept(open_house: OpenHouse) -> None:
    async with open_house(disk_quota_bytes=_ROOM_OF_FIVE) as house, connected(house.address, "a") as (a,):
        job = await house.coordinator.jobs.create(make_job(min_devices=1, rounds=12))
        await a.work(10)
    async with open_house() as house, connected(house.address, "a") as (a,):
        await a.work(2)
        await finish(house)
        rounds = await house.rounds(job.job_id)

    assert [round_["state"] for round_ in rounds] == ["COMMITTED"] * 12


async def test_an_update_without_room_is_refused_for_now_and_taken_later(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        space = house.coordinator.space
        await house.coordinator.jobs.create(make_job(min_devices=1, rounds=1))
        task = await a.next_task()
        payload = await a.train(task)
        space.quota_bytes = space.used_bytes + space.held_bytes + len(payload) - 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.submit(task, payload)
        disk = await disk_of(house)
        left = list((house.state / "blobs" / "tmp").iterdir())
        space.quota_bytes += 1
        answer = await a.submit(task, payload)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"there is no room for {len(payload)} bytes" in (caught.value.details() or "")
    assert disk["refusals"] == 1
    assert left == []
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_what_a_strategy_puts_aside_needs_room_too(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        space = house.coordinator.space
        await house.coordinator.jobs.create(make_job(min_devices=1, rounds=1, strategy="median"))
        task = await a.next_task()
        payload = await a.train(task)
        space.quota_bytes = space.used_bytes + space.held_bytes + len(payload)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.submit(task, payload)
        space.quota_bytes = 0
        answer = await a.submit(task, payload)
        await finish(house)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert space.held_bytes == 0


@pytest.mark.parametrize("bound", [{"disk_quota_bytes": 100}, {"min_free_bytes": 2**62}], ids=["quota", "free"])
async def test_a_job_waits_for_room_and_says_so(open_house: OpenHouse, bound: dict[str, int]) -> None:
    async with open_house(**bound) as house, connected(house.address, "a") as (a,):
        space, jobs = house.coordinator.space, house.coordinator.jobs
        first = await jobs.create(make_job(min_devices=1, rounds=1))
        second = await jobs.create(make_job(min_devices=1, rounds=1, seed=1))
        await until(lambda: len(jobs.running) == 2 and all(runner.waits_for for runner in jobs.running.values()))
        shown = (await house.get("/api/v1/status"))["running"]
        await jobs.cancel(second.job_id)  # one that waits can be stopped
        space.quota_bytes = space.min_free_bytes = 0
        await a.work(1)
        await finish(house)
        states = {job["id"]: job["state"] for job in await house.get("/api/v1/jobs")}

    assert all("there is no room for" in job["waits_for"] for job in shown)
    assert states == {first.job_id: "COMPLETED", second.job_id: "CANCELLED"}
