"""Devices over real gRPC: rounds of real training, reconnects, losses, deadlines."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from server.coordinator import JobState
from server.strategies import STRATEGIES
from tests.patience import patiently, until
from tests.server.conftest import DEADLINE_S, House, OpenHouse, make_job
from tests.server.scripted import connected


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
async def test_a_fleet_trains_all_rounds_of_a_job(open_house: OpenHouse, strategy: str) -> None:
    async with open_house() as house, connected(house.address, "a", "b", "c") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=3, strategy=strategy, quorum=3))
        answers = await asyncio.gather(*(device.work(3) for device in devices))
        await finish(house)

        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        rounds = await house.rounds(job.job_id)
    assert {answer.status for per_device in answers for answer in per_device} == {pb.SUBMIT_STATUS_ACCEPTED}
    assert (view["state"], view["rounds_committed"]) == ("COMPLETED", 3)
    assert [(r["round"], r["state"], r["accepted"], r["rejected"]) for r in rounds] == [
        (number, "COMMITTED", 3, 0) for number in (1, 2, 3)
    ]
    assert len({r["weights_digest"] for r in rounds}) == 3


async def digests_of(open_house: OpenHouse, order: str) -> list[str]:
    """Run two rounds in which the devices submit in a given order; returns the digests of the models."""
    async with open_house() as house, connected(house.address, *"abc") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=2, name=f"order-{order}"))
        by_name = {device.device_id: device for device in devices}
        for _ in range(2):
            tasks = {name: await device.next_task() for name, device in by_name.items()}
            for name in order:
                await by_name[name].submit(tasks[name], await by_name[name].train(tasks[name]))
        await finish(house)
        return [round_["weights_digest"] for round_ in await house.rounds(job.job_id)]


async def test_the_order_of_arrival_does_not_enter_the_model(open_house: OpenHouse) -> None:
    assert await digests_of(open_house, "abc") == await digests_of(open_house, "cab")


async def test_a_task_says_all_that_training_needs(open_house: OpenHouse) -> None:
    job = make_job(rounds=3, seed=2**63 + 5, optimizer="bop", step_schedule="linear", down_codec="float32")
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        record = await house.coordinator.jobs.create(job)
        first, _ = await asyncio.gather(a.next_task(), b.work(1))
        await a.submit(first, await a.train(first))
        second = await a.next_task()

    assert (first.job_id, first.round_number, second.round_number) == (record.job_id, 1, 2)
    assert first.task_id != second.task_id
    assert (first.HasField("initial_seed"), first.initial_seed) == (True, 2**63 + 5)
    assert not second.HasField("initial_seed")
    assert first.spec_json == record.spec_json
    assert (first.training.preset, first.training.optimizer) == ("bitfleet", "bop")
    assert (first.training.batch_size, first.training.local_steps, first.training.seed) == (10, 4, 2**63 + 5)
    assert first.training.step_scale == 1.0
    assert second.training.step_scale == pytest.approx(0.55)
    assert (first.down_codec, first.up_codec, list(first.classes)) == ("float32", "int8", ["zero", "one", "two"])
    assert 0 < first.deadline_s <= DEADLINE_S


@pytest.mark.parametrize("optimizer", ["latent8m", "adam"])
@pytest.mark.parametrize("down_codec", ["int8", "float32"])
async def test_a_device_can_make_the_initial_model_itself(
    open_house: OpenHouse, optimizer: str, down_codec: str
) -> None:
    import hashlib

    from bnncore.codec import get_codec

    job = make_job(rounds=1, seed=77, optimizer=optimizer, down_codec=down_codec)
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(job)
        task = await a.next_task()
        downloaded = await a.download(task.model_digest)

    engine = Engine(job.spec, batch_size=4, preset=resolve_preset(task.training.preset, task.training.optimizer))
    engine.initialise(task.initial_seed)
    made = get_codec(task.down_codec).encode(job.spec, engine.state(), kind="model")
    assert made == downloaded
    assert hashlib.sha256(made).hexdigest() == task.model_digest
    assert len(made) == task.model_bytes


async def test_float32_updates_under_adam_train_too(open_house: OpenHouse) -> None:
    job = make_job(rounds=2, optimizer="adam", up_codec="float32", down_codec="float32")
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        await house.coordinator.jobs.create(job)
        answers = await asyncio.gather(*(device.work(2) for device in devices))
        await finish(house)

    assert {answer.status for per_device in answers for answer in per_device} == {pb.SUBMIT_STATUS_ACCEPTED}


async def test_a_download_resumes_at_an_offset(open_house: OpenHouse) -> None:
    job = make_job(model={"zoo": "mlp", "params": {"widths": [200]}})  # some chunks of 1 KiB
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(job)
        task = await a.next_task()
        whole = await a.download(task.model_digest)

        assert len(whole) > 3 * 1024
        assert await a.download(task.model_digest, offset=1500) == whole[1500:]
        assert await a.download(task.model_digest, offset=len(whole)) == b""
        with pytest.raises(grpc.aio.AioRpcError) as beyond:
            await a.download(task.model_digest, offset=len(whole) + 1)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await a.download("0" * 64)
    assert beyond.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_update_of_another_device_is_not_for_download(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        update = await a.train(task)
        header = a.header(task, update)
        await a.submit(task, update)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await b.download(header.update_digest)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_bytes_are_those_that_were_serialised(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.gather(*(device.work(1) for device in devices))
        await finish(house)
        (round_,) = await house.rounds(job.job_id)

    by_device = {update["device_id"]: update for update in round_["updates"]}
    for device in devices:
        assert by_device[device.device_id]["down_bytes"] == device.down_bytes
        assert by_device[device.device_id]["up_bytes"] == device.up_bytes
    assert round_["down_bytes_per_device"] == round(sum(device.down_bytes for device in devices) / 2)
    assert round_["up_bytes_per_device"] == round(sum(device.up_bytes for device in devices) / 2)
    assert round_["device_seconds_max"] == 1.25


async def test_a_reconnecting_device_gets_its_task_again(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job(rounds=1))
        first = await a.next_task()
        await a.vanish()
        await a.connect()
        again = await a.next_task()
        answer = await a.submit(again, await a.train(again))
        await b.work(1)
        await finish(house)

    assert again.task_id == first.task_id
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_a_device_that_delivered_gets_no_task_after_a_reconnect(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        await house.coordinator.jobs.create(make_job(rounds=2))
        await a.work(1)
        await a.vanish()
        await a.connect()
        await b.work(1)

        assert (await a.next_task()).round_number == 2


async def test_a_lost_device_is_not_waited_for_when_the_quorum_is_reached(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=1, min_devices=3, quorum=2))
        tasks = [(device, await device.next_task()) for device in (a, b, c)]
        await c.vanish()
        await until(lambda: len(house.coordinator.fleet) == 2)
        house.coordinator.fleet.expect("c", within_s=0.0)  # as when its heartbeats have been missed
        for device, task in tasks[:2]:
            await device.submit(task, await device.train(task))
        await finish(house)
        (round_,) = await house.rounds(job.job_id)

    assert (round_["state"], round_["accepted"], round_["devices"]) == ("COMMITTED", 2, 3)
    assert {update["device_id"]: update["status"] for update in round_["updates"]}["c"] == "MISSED"


async def test_a_cancelled_job_tells_its_devices_and_the_next_job_runs(open_house: OpenHouse) -> None:
    async with open_house(max_jobs=1) as house, connected(house.address, "a", "b") as (a, b):
        job = await house.coordinator.jobs.create(make_job(name="first"))
        after = await house.coordinator.jobs.create(make_job(name="second", rounds=1))
        task = await a.next_task()
        response = await house.http.post(f"/api/v1/jobs/{job.job_id}/cancel")
        cancel = (await a.next_event()).cancel
        late = await a.submit(task, await a.train(task))
        await b.next_task()
        await asyncio.gather(a.work(1), b.work(1))
        await finish(house)
        states = {job["id"]: job["state"] for job in await house.get("/api/v1/jobs")}

    assert response.json()["state"] == "CANCELLED"
    assert (cancel.task_id, cancel.reason) == (task.task_id, "the job was cancelled")
    assert late.status == pb.SUBMIT_STATUS_LATE
    assert states == {job.job_id: JobState.CANCELLED, after.job_id: JobState.COMPLETED}


async def test_a_job_fails_when_no_device_can_do_its_task(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        job = await house.coordinator.jobs.create(make_job(min_devices=1, max_attempts=2))
        for _ in range(2):
            await a.report(await a.next_task(), pb.TASK_OUTCOME_FAILED, "the trainer was killed")
        await finish(house)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        (round_,) = await house.rounds(job.job_id)

    assert view["state"] == "FAILED"
    assert "attempt 2 of 2" in view["reason"]
    assert (round_["state"], round_["attempt"]) == ("FAILED", 2)
    assert [(u["status"], u["reason"]) for u in round_["updates"]] == [("FAILED", "the trainer was killed")]


async def test_a_device_may_decline_and_the_others_go_on(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await c.report(await c.next_task(), pb.TASK_OUTCOME_DECLINED, "it needs 9 MiB, 4 are allowed")
        await asyncio.gather(a.work(1), b.work(1))
        await finish(house)
        (round_,) = await house.rounds(job.job_id)

    assert (round_["state"], round_["accepted"]) == ("COMMITTED", 2)


async def test_a_missed_deadline_opens_another_attempt_without_the_lost_device(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, c):
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await c.next_task()
        await c.vanish()
        await until(lambda: len(house.coordinator.fleet) == 2)
        await asyncio.gather(a.work(1), b.work(1))
        house.pass_time(DEADLINE_S)
        await finish(house)
        (round_,) = await house.rounds(job.job_id)

    assert (round_["state"], round_["attempt"], round_["accepted"], round_["devices"]) == ("COMMITTED", 2, 2, 2)
