"""One fleet whose devices came in by several doors."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from sqlalchemy import event

from bitfleet.v1 import fleet_pb2 as pb
from server.errors import ForbiddenError
from server.replicas.names import application_name
from tests.patience import until
from tests.postgres_server import PostgresServer
from tests.server.conftest import DEADLINE_S, make_job
from tests.server.replicas.conftest import Door, OpenDoor
from tests.server.replicas.test_lead import END
from tests.server.scripted import ScriptedDevice, connected


def fleet_of(door: Door) -> set[str]:
    return {session.device_id for session in door.coordinator.fleet}


async def test_the_lead_has_tasks_for_devices_at_every_door(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b, connected(b.address, "x", "y", "z") as (x, y, z):
        await until(lambda: fleet_of(a) == {"x", "y", "z"})
        await z.beat(conditions=pb.Conditions(too_hot=True))
        remote = {session.device_id: session for session in a.coordinator.fleet}
        await until(lambda: remote["z"].heartbeat.conditions.too_hot)
        job = await a.coordinator.jobs.create(make_job(min_devices=2, max_attempts=1))

        tasks = [await device.next_task() for device in (x, y)]
        assert [(task.round_number, task.spec_json) for task in tasks] == [(1, job.spec_json)] * 2
        assert 0 < tasks[0].deadline_s <= DEADLINE_S  # in seconds from now, at the door too
        await x.download(tasks[0].model_digest)
        runner = a.coordinator.jobs.running[job.job_id]
        assert runner.eligibility.why_not(remote["x"]) is None
        assert runner.eligibility.why_not(remote["z"]) == "it is too hot"
        find_lead, b.replica.bus.find_lead = b.replica.bus.find_lead, lambda: None  # which is not asked
        told = await b.coordinator.fleet_jobs.problems(["x", "z", "unknown"])
        b.replica.bus.find_lead = find_lead
        assert told == {"x": {}, "z": {job.job_id: "it is too hot"}}

        await x.report(tasks[0], pb.TASK_OUTCOME_FAILED, "no power")
        await y.report(tasks[1], pb.TASK_OUTCOME_DECLINED, "not today")
        await until(lambda: job.job_id not in a.coordinator.jobs.running)
        rows = {row.device_id: row for row in a.storage.list_updates(job.job_id)}
        assert [(rows[name].status, rows[name].reason) for name in "xy"] == [
            ("FAILED", "no power"),
            ("DECLINED", "not today"),
        ]

        remote["y"].end(ForbiddenError("it was revoked"))
        with pytest.raises(grpc.aio.AioRpcError, match="it was revoked"):
            while True:
                await y.next_event()
        await until(lambda: fleet_of(a) == {"x", "z"})
    assert fleet_of(a) == set()


async def test_bytes_that_a_door_sent_are_counted_by_the_lead(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b, connected(b.address, "x") as (x,):
        job = await a.coordinator.jobs.create(make_job(min_devices=1, max_attempts=1))
        task = await x.next_task()
        await x.download(task.model_digest)
        active = a.coordinator.jobs.running[job.job_id].active
        assert active is not None
        await until(lambda: active._collection.assigned({"x"})[0].down_bytes == x.down_bytes)


async def test_heartbeats_cost_no_statement_and_others_are_told_of_news_alone(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b, connected(b.address, "x") as (x,):
        await until(lambda: fleet_of(a) == {"x"})
        (session,) = a.coordinator.fleet
        told, statements = [], []
        a.replica.bus.on("device.note", lambda sender, body: told.append(body))
        event.listen(b.storage._engine, "before_cursor_execute", lambda *about: statements.append(about[2]))
        for step in range(40):
            await x.beat(step=step, total_steps=100)
        await x.beat(step=100, total_steps=100)
        await until(lambda: session.heartbeat.step == 100)
        assert [body["heartbeat"]["step"] for body in told] == [10, 20, 30, 100]
        assert statements == []


async def test_a_device_that_comes_in_by_another_door_leaves_the_one_before(open_door: OpenDoor) -> None:
    async with open_door("a") as a, open_door("b") as b, open_door("c") as c:
        doors = (a, b, c)

        async def until_it_is_only_at(here: Door) -> None:
            wanted = [int(door is here) for door in doors]
            await until(lambda: [len(door.coordinator.fleet.here) for door in doors] == wanted)

        async with ScriptedDevice(a.address, "x") as at_a, ScriptedDevice(b.address, "x") as at_b:
            for device, here in ((at_a, a), (at_b, b), (at_a, a)):
                await device.connect()
                await until_it_is_only_at(here)
                await until(lambda: [fleet_of(door) for door in doors] == [{"x"}] * 3)
            for call in at_b._calls:
                assert await call.code() == grpc.StatusCode.ABORTED


async def test_a_door_that_was_cut_off_tells_all_again_and_its_devices_are_told_again(
    open_door: OpenDoor, postgres: PostgresServer
) -> None:
    async with open_door("a") as a, open_door("b") as b, connected(b.address, "x") as (x,):
        await until(lambda: fleet_of(a) == {"x"})
        job = await a.coordinator.jobs.create(make_job(min_devices=2))
        async with connected(a.address, "y") as (y,):
            first = await x.next_task()
            await y.next_task()
            async with connected(b.address, "z"):
                await until(lambda: fleet_of(a) == {"x", "y", "z"})

                await asyncio.to_thread(postgres.query, END, application_name("b"))

                again = await x.next_task()
                assert again.task_id == first.task_id
                await until(lambda: fleet_of(a) == fleet_of(b) == {"x", "y", "z"})
        await until(lambda: fleet_of(a) == fleet_of(b) == {"x"})
        assert job.job_id in a.coordinator.jobs.running


async def test_devices_are_sent_away_from_a_door_that_is_without_its_database_for_long(
    open_door: OpenDoor, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replicas.members.CUT_OFF_S", 0.5)
    async with open_door("a") as a, connected(a.address, "x") as (x,):
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(grpc.aio.AioRpcError, match="without its database"):
                await x.next_event()
            with pytest.raises(grpc.aio.AioRpcError, match="takes nothing now"):
                await x.connect()
            assert fleet_of(a) == set()
        finally:
            await asyncio.to_thread(postgres.start)
        await until(lambda: a.replica.members.is_lead)
        await x.connect()
