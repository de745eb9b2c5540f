"""Updates that come in at any replica, over real PostgreSQL and real gRPC: one round, one model, each update once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import event

from bitfleet.v1 import fleet_pb2 as pb
from server.coordinator import Coordinator
from server.jobs import JobConfig
from server.replicas.bus import Bus
from server.replicas.names import application_name
from server.storage.base import UpdateRecord
from tests.patience import LIMIT_S, until
from tests.postgres_server import PostgresServer
from tests.server.conftest import OpenHouse, make_job
from tests.server.member import Member
from tests.server.replicas.conftest import Door, OpenDoor, waits_for_lease
from tests.server.scripted import ScriptedDevice, connected

ANSWER_S = 20.0
"""After which a device asks again."""

REPOSITORY = Path(__file__).resolve().parents[3]
ACCEPTED, DUPLICATE = pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE

END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"


class Roaming(ScriptedDevice):
    """A device whose stream is at one replica, and that sends its updates to another."""

    async def __aenter__(self) -> Roaming:
        await super().__aenter__()
        self.elsewhere = self
        self._stack = contextlib.AsyncExitStack()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()
        await super().__aexit__(*error)

    async def send_to(self, address: str) -> None:
        self.elsewhere = await self._stack.enter_async_context(Roaming(address, self.device_id))

    async def take_round(self, number: int) -> None:
        """Do a round's task; who connects again is sent the one that it may have done."""
        while (task := await self.next_task()).round_number < number:
            pass
        assert (await self.submit(task, await self.train(task))).status == ACCEPTED

    async def insist(self, task: pb.Task, payload: bytes) -> pb.SubmitUpdateResponse:
        """Send an update again until it can be taken, as a device does."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await self.submit(task, payload)
            except TimeoutError:
                continue
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)

    async def submit(self, task: pb.Task, payload: bytes, **changes: Any) -> pb.SubmitUpdateResponse:
        if self.elsewhere is self:
            return await super().submit(task, payload, **changes)
        return await self.elsewhere.submit(task, payload, **changes)


@contextlib.asynccontextmanager
async def roaming(stream: str, **doors: str) -> AsyncIterator[list[Roaming]]:
    """Open devices, by name, with their streams at one replica and their updates sent to others."""
    async with contextlib.AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(Roaming(stream, name)) for name in doors]
        for device in devices:
            await device.connect()
            await device.send_to(doors[device.device_id])
        yield devices


async def outcome_of(coordinator: Coordinator, job_id: str) -> list[str | None]:
    """Return what a job's rounds have made, once it has ended."""
    async with asyncio.timeout(LIMIT_S):
        await coordinator.jobs.wait_until_idle()
    assert (await coordinator.jobs.get(job_id)).state == "COMPLETED"
    records = await coordinator.disk.run(coordinator.disk.storage.list_rounds, job_id)
    return [record.weights_digest for record in records]


async def rows_of(door: Door, job_id: str, number: int = 1) -> dict[str, UpdateRecord]:
    rows = await door.coordinator.disk.run(door.storage.list_updates, job_id, number)
    return {row.device_id: row for row in rows}


async def work(devices: Iterable[ScriptedDevice], config: JobConfig) -> None:
    if config.secure_aggregation is not None:
        await asyncio.gather(*(Member(device).work(config.exchanges) for device in devices))
    else:
        await asyncio.gather(*(device.work(config.rounds) for device in devices))


_MADE_ALONE: dict[str, list[str | None]] = {}
"""By job."""


@pytest.fixture
async def alone(open_house: OpenHouse, request: pytest.FixtureRequest) -> tuple[JobConfig, list[str | None]]:
    """A job, and what a coordinator by itself makes of it."""
    config = make_job(rounds=2, min_devices=3, **request.param)
    if config.to_json() not in _MADE_ALONE:
        async with open_house() as house, connected(house.address, "x", "y", "z") as devices:
            job = await house.coordinator.jobs.create(config)
            await work(devices, config)
            _MADE_ALONE[config.to_json()] = await outcome_of(house.coordinator, job.job_id)
    return config, _MADE_ALONE[config.to_json()]


JOBS: dict[str, dict[str, Any]] = {
    "sums": {"strategy": "fedadam"},
    "the lead folds": {"strategy": "median"},
    "masks": {"strategy": "signvote", "up_codec": "sign", "statistics_batches": 2, "secure_aggregation": {}},
}


@pytest.mark.parametrize("alone", JOBS.values(), ids=JOBS, indirect=True)
async def test_a_jobs_model_is_the_same_wherever_its_updates_come_in(
    open_door: OpenDoor, alone: tuple[JobConfig, list[str | None]], caplog: pytest.LogCaptureFixture
) -> None:
    config, expected = alone
    async with open_door("a") as a, open_door("b") as b, open_door("c") as c:
        job = await a.coordinator.jobs.create(config)
        async with roaming(b.address, x=b.address, y=c.address, z=a.address) as devices:
            await work(devices, config)
            found = await outcome_of(a.coordinator, job.job_id)
        rows = await rows_of(a, job.job_id)
        await until(lambda: all(len(door.replica.updates.partials) == 0 for door in (a, b, c)))

    assert found == expected
    is_sum = config.strategy == "fedadam"
    assert {name: row.folded_by for name, row in rows.items()} == (
        {"x": "b", "y": "c", "z": None} if is_sum else {"x": None, "y": None, "z": None}
    )
    assert all(row.up_bytes > row.payload_bytes > 0 for row in rows.values())
    assert "updates_folded_again" not in caplog.text
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("alone", [JOBS["sums"]], indirect=True)
@pytest.mark.parametrize("who", ["the lead", "a door"])
async def test_what_was_acknowledged_counts_once_when_a_replica_is_gone(
    open_door: OpenDoor, alone: tuple[JobConfig, list[str | None]], who: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, expected = alone
    async with contextlib.AsyncExitStack() as stack:
        lives = {name: await stack.enter_async_context(contextlib.AsyncExitStack()) for name in "abc"}
        a, b, c = [await lives[name].enter_async_context(open_door(name)) for name in "abc"]
        job = await a.coordinator.jobs.create(config)
        async with roaming(a.address, x=b.address, y=c.address, z=c.address) as devices:
            tasks = [await device.next_task() for device in devices]
            payloads = [await device.train(task) for device, task in zip(devices, tasks, strict=True)]
            assert (await devices[0].submit(tasks[0], payloads[0])).status == ACCEPTED
            assert (await devices[1].submit(tasks[1], payloads[1])).status == ACCEPTED
            if who == "a door":  # with the sum that y's update is in
                await lives["c"].aclose()
                left = a
        if who == "the lead":
            await lives["a"].aclose()
            await until(lambda: b.leads or c.leads)  # which holds a sum itself
            left = b if b.leads else c
        doors = {"x": b.address, "y": b.address, "z": b.address}
        async with roaming(left.address, **doors) as devices:
            assert (await devices[1].insist(tasks[1], payloads[1])).status == DUPLICATE
            assert (await devices[2].insist(tasks[2], payloads[2])).status == ACCEPTED
            await asyncio.gather(*(device.take_round(2) for device in devices))
            found = await outcome_of(left.coordinator, job.job_id)

    assert found == expected
    assert ("updates_folded_again" in caplog.text) == (who == "a door")
    assert [record for record in caplog.records if record.exc_info] == []


@contextlib.asynccontextmanager
async def doomed_door(name: str, url: str, blobs: Path, when: str) -> AsyncIterator[tuple[Process, str]]:
    """Start a replica that is killed before or after it adds its first update up; yields its address too."""
    command = [sys.executable, "-m", "tests.server.replicas.crashing", name, url, str(blobs), when]
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=PIPE)
    try:
        assert process.stdout is not None
        yield process, f"127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("alone", [JOBS["sums"]], indirect=True)
async def test_a_replica_may_be_killed_around_its_sum(
    open_door: OpenDoor, postgres_url: str, tmp_path: Path, alone: tuple[JobConfig, list[str | None]]
) -> None:
    """What the lead has accepted counts once: whether the replica was killed before its fold or before its answer."""
    config, expected = alone
    async with open_door("a") as a, contextlib.AsyncExitStack() as stack:
        doomed = [
            doomed_door(name, postgres_url, tmp_path / "blobs", when)
            for name, when in (("b", "before"), ("c", "after"))
        ]
        (b, b_address), (c, c_address) = await asyncio.gather(*map(stack.enter_async_context, doomed))
        job = await a.coordinator.jobs.create(config)
        async with roaming(a.address, x=b_address, y=c_address, z=a.address) as (x, y, z):
            for device, door in ((x, b), (y, c)):
                task = await device.next_task()
                payload = await device.train(task)
                with pytest.raises(grpc.aio.AioRpcError):
                    await device.submit(task, payload)
                assert await door.wait() == -signal.SIGKILL
                device.elsewhere = device
                assert (await device.submit(task, payload)).status == DUPLICATE
            folded_by = {name: row.folded_by for name, row in (await rows_of(a, job.job_id)).items()}
            await asyncio.gather(z.work(2), x.work(1), y.work(1))
            found = await outcome_of(a.coordinator, job.job_id)

    assert folded_by == {"x": "b", "y": "c", "z": None}
    assert found == expected


async def test_the_same_update_at_two_replicas_at_once_counts_once(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b, open_door("c") as c:
        job = await a.coordinator.jobs.create(make_job(rounds=1, min_devices=2))
        async with roaming(a.address, x=b.address, y=b.address) as (x, y):
            task = await x.next_task()
            payload = await x.train(task)
            async with Roaming(c.address, "x") as twin:
                answers = await asyncio.gather(x.submit(task, payload), twin.submit(task, payload))
            await y.work(1)
            await outcome_of(a.coordinator, job.job_id)
        rows = await rows_of(a, job.job_id)

    assert sorted(answer.status for answer in answers) == [ACCEPTED, DUPLICATE]
    assert {row.status for row in rows.values()} == {"ACCEPTED"}


async def test_without_a_lead_devices_send_again_later(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b:
        await a.coordinator.jobs.create(make_job(rounds=1, min_devices=2))
        async with roaming(a.address, x=b.address, y=b.address) as (x, _):
            task = await x.next_task()
            payload = await x.train(task)
            b.replica.bus.find_lead = lambda: None

            with pytest.raises(grpc.aio.AioRpcError, match="no replica leads") as caught:
                await x.submit(task, payload)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

            b.replica.bus.find_lead = lambda: "a"
            assert (await x.submit(task, payload)).status == ACCEPTED


async def test_a_lead_that_ends_before_it_answers_has_counted_what_it_wrote_down(
    open_door: OpenDoor, postgres: PostgresServer
) -> None:
    async with open_door("a") as a, open_door("b") as b, open_door("c") as c:
        job = await a.coordinator.jobs.create(make_job(rounds=1, min_devices=2))
        async with roaming(a.address, x=b.address, y=c.address) as (x, y):
            tasks = [await device.next_task() for device in (x, y)]
            payloads = [await x.train(tasks[0]), await y.train(tasks[1])]
            await waits_for_lease(postgres, "b", "c")
            write = a.storage.record_updates

            def write_and_end(updates: Iterable[UpdateRecord]) -> None:
                write(updates)
                postgres.query(END, application_name("a"))

            a.storage.record_updates = write_and_end  # type: ignore[method-assign]

            answer = await x.insist(tasks[0], payloads[0])  # the first time nobody answered

            left = b if b.leads else c
            assert answer.status == DUPLICATE
            assert (await y.insist(tasks[1], payloads[1])).status == ACCEPTED
            assert len(await outcome_of(left.coordinator, job.job_id)) == 1
            assert {row.status for row in (await rows_of(left, job.job_id)).values()} == {"ACCEPTED"}


async def test_an_invalid_update_is_refused_by_the_lead_wherever_it_comes_in(open_door: OpenDoor) -> None:
    async with open_door("a", max_refusals=2) as a, open_door("b") as b:
        # Without y the round would be over with x's refusal, and the next attempt would have a task for x.
        job = await a.coordinator.jobs.create(make_job(rounds=1, min_devices=2, quorum=1))
        async with roaming(a.address, x=b.address, y=b.address) as (x, _):
            task = await x.next_task()
            payload = await x.train(task)

            wrong = await x.submit(task, payload[:-1])
            again = await x.submit(task, payload, model_digest="0" * 64)
            with pytest.raises(grpc.aio.AioRpcError, match="2 updates of device x were refused"):
                await x.submit(task, payload)
            rows = await rows_of(a, job.job_id)

    assert {wrong.status, again.status} == {pb.SUBMIT_STATUS_REJECTED}
    assert "starts from model" in again.reason
    assert rows["x"].status == "REJECTED"


async def test_statements_for_an_update_do_not_grow_with_the_cohort(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message on the bus is at most one statement: see the tests of the bus."""
    counted = Counter[str]()
    send = Bus._send

    def count_message(bus: Bus, to: str, message: dict[str, Any]) -> int:
        about = str(message.get("kind", "answer"))
        if about == "answer" or about.startswith("update."):
            counted[about] += 1
        return send(bus, to, message)

    monkeypatch.setattr(Bus, "_send", count_message)
    found = []
    async with open_door("a") as a, open_door("b") as b:
        for door in (a, b):
            event.listen(
                door.storage._engine, "before_cursor_execute", lambda *told: counted.update([told[2].split(None, 1)[0]])
            )
        for size in (3, 7):
            names = [f"d{size}{index}" for index in range(size)]
            await a.coordinator.jobs.create(make_job(rounds=1, min_devices=size))
            async with roaming(a.address, **dict.fromkeys(names, b.address)) as devices:
                tasks = [await device.next_task() for device in devices]
                payloads = [await device.train(task) for device, task in zip(devices, tasks, strict=True)]
                assert (await devices[0].submit(tasks[0], payloads[0])).status == ACCEPTED  # b reads the job
                counted.clear()
                for device, task, payload in zip(devices[1:-1], tasks[1:-1], payloads[1:-1], strict=True):
                    assert (await device.submit(task, payload)).status == ACCEPTED
                found.append(counted.total() / (size - 2))
                counted.clear()
                assert (await devices[1].submit(tasks[1], payloads[1])).status == DUPLICATE
                assert counted == {
                    "update.judge": 1,
                    "answer": 1,
                }  # whoever has been here is asked for its header first
                assert (await devices[-1].submit(tasks[-1], payloads[-1])).status == ACCEPTED
                await a.coordinator.jobs.wait_until_idle()
    assert found == [4, 4]
