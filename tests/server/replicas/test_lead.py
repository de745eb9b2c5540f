"""One replica leads at a time, and which one is settled by the database."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from psycopg import AsyncConnection
from sqlalchemy import Connection, Engine, event

from bnncore.errors import ConfigurationError
from server.coordinator.job_state import RESULTS
from server.errors import ConflictError, LeaseLostError
from server.replicas.lease import _LOCK
from server.replicas.members import CONNECTIONS
from server.replicas.names import application_name
from server.storage.base import JobRecord
from tests.patience import LIMIT_S, until, wait_for
from tests.postgres_server import PostgresServer
from tests.server.conftest import make_job
from tests.server.replicas.conftest import OpenDoor, waits_for_lease

WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"


async def test_another_one_leads_when_the_lead_leaves_or_loses_its_lease(
    open_door: OpenDoor, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_door("b") as b:
        async with open_door("a") as a:  # it came later
            assert (b.leads, a.leads) == (True, False)
            assert a.replica.members.lead_id == b.replica.members.lead_id == "b"
            job = await b.coordinator.jobs.create(make_job())
            await until(lambda: job.job_id in b.coordinator.jobs.running)
            await waits_for_lease(postgres, "a")

            await asyncio.to_thread(postgres.query, END, application_name("b"))

            await until(lambda: a.leads and not b.leads and not b.coordinator.jobs.running)
            await until(lambda: job.job_id in a.coordinator.jobs.running)
            await until(lambda: a.replica.members.lead_id == b.replica.members.lead_id == "a")
            assert b.coordinator.readiness.conditions["lead"]() == ""
        await until(lambda: b.leads and job.job_id in b.coordinator.jobs.running)
        assert set(b.replica.members.alive) == {"b"}
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_replica_that_hears_nothing_judges_nobody(
    open_door: OpenDoor, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, seconds in {"BEAT_S": 0.1, "DOUBTED_S": 0.5, "HELD_S": 2.0}.items():
        monkeypatch.setattr(f"server.replicas.members.{name}", seconds)
    listens = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'LISTEN%%'"
    async with open_door("a") as a, open_door("b") as b:
        ((backend,),) = await asyncio.to_thread(postgres.query, listens, application_name("b"))
        connections: list[str] = []
        os.kill(backend, signal.SIGSTOP)
        try:
            b.replica.bus.on_connect(lambda: connections.append("once now, and then anew"))
            await until(lambda: len(connections) >= 2)
        finally:
            os.kill(backend, signal.SIGCONT)
        await until(lambda: set(b.replica.members.alive) == {"a", "b"})

        assert (a.storage.fence, a.replica.members.lead_id, b.replica.members.lead_id) == (1, "a", "a")
    assert not [text for text in caplog.messages if "silent_replica_ended" in text or "nothing was heard" in text]


async def test_a_job_is_made_once_though_the_lead_dies_before_it_answers(
    open_door: OpenDoor, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replicas.distant_jobs._NEXT_LEAD_S", 60.0)
    async with open_door("a") as a, open_door("b") as b:
        await waits_for_lease(postgres, "b")
        add_job = a.storage.add_job

        def add_and_die(job: JobRecord) -> None:
            add_job(job)
            postgres.query(END, application_name("a"))

        monkeypatch.setattr(a.storage, "add_job", add_and_die)
        job_id = await b.coordinator.fleet_jobs.create(make_job())

        await until(lambda: b.leads)
        assert [job.job_id for job in await b.coordinator.disk.run(b.storage.list_jobs)] == [job_id]


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("change", ["cancel", "pause", "resume"])
async def test_a_job_is_changed_though_the_lead_dies_before_it_answers(
    open_door: OpenDoor, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, change: str, is_done: bool
) -> None:
    monkeypatch.setattr("server.replicas.distant_jobs._NEXT_LEAD_S", LIMIT_S)
    async with open_door("a") as a, open_door("b") as b:
        await waits_for_lease(postgres, "b")
        job_id = (await a.coordinator.jobs.create(make_job())).job_id
        await until(lambda: job_id in a.coordinator.jobs.running)
        if change == "resume":
            await a.coordinator.jobs.pause(job_id)
        set_job_state = a.storage.set_job_state

        def set_and_die(*given: Any, **more: Any) -> None:
            if is_done:
                set_job_state(*given, **more)
            postgres.query(END, application_name("a"))
            if not is_done:
                raise LeaseLostError("as of one that another one leads instead of")

        monkeypatch.setattr(a.storage, "set_job_state", set_and_die)
        await getattr(b.coordinator.fleet_jobs, change)(job_id)

        await until(lambda: b.leads)
        assert (await b.coordinator.jobs.get(job_id)).state in RESULTS[change]
        with pytest.raises(ConflictError):  # by somebody else, it is refused as ever
            await getattr(b.coordinator.fleet_jobs, change)(job_id)


async def test_what_one_writes_that_does_not_lead_any_more_is_refused(open_door: OpenDoor) -> None:
    job = JobRecord("j", "j", "PENDING", "{}", "{}", created_at=1.0)
    async with open_door("a") as a, open_door("b") as b:
        with pytest.raises(LeaseLostError, match="played by replica a"):
            b.storage.add_job(job)

        a.storage.fence = 0  # as of a lead that was stopped and knows nothing of what came after
        with pytest.raises(LeaseLostError):
            a.storage.add_job(job)
        a.storage.fence = 1
        a.storage.add_job(job)


async def test_what_was_begun_under_an_earlier_lease_is_not_written_under_the_next_one(open_door: OpenDoor) -> None:
    async with open_door("a") as a:
        lead, a.storage.fence = a.storage.fence, 7  # of before: it waited for the database until the next one was got

        def get_lease(connection: Connection) -> None:
            a.storage.fence = lead

        event.listen(Engine, "begin", get_lease)
        try:
            with pytest.raises(LeaseLostError):
                a.storage.set_job_state("j", "CANCELLED")
        finally:
            event.remove(Engine, "begin", get_lease)
        a.storage.set_job_state("j", "CANCELLED")


async def test_replicas_have_their_payloads_at_the_same_place(open_door: OpenDoor) -> None:
    async with open_door("a", store="s3://one"):
        with pytest.raises(ConfigurationError, match=r"replica a .* at s3://one, .* at s3://other: give all"):
            async with open_door("b", store="s3://other"):
                pass
        with pytest.raises(ConfigurationError, match="in the state folder"):
            async with open_door("c", store=""):
                pass


async def test_a_replica_of_another_store_never_leads_while_one_of_the_fleet_is_there(
    open_door: OpenDoor, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.replicas.replica._FIRST_LEAD_S", 0.1)
    async with open_door("a", store="s3://one") as a, await AsyncConnection.connect(postgres.conninfo) as other:
        await until(lambda: a.leads)
        asked = asyncio.create_task(other.execute("SELECT pg_advisory_lock(%s, %s)", _LOCK))
        await asyncio.to_thread(wait_for, "the other to stand in line", lambda: postgres.query(WAITS) == [(1,)])
        await asyncio.to_thread(postgres.query, END, application_name("a"))
        await asked  # nobody leads now
        await until(lambda: a.replica.bus.is_connected and a.replica.members.lead_id is None)
        with pytest.raises(ConfigurationError, match=r"at s3://one, .* at s3://other: give all"):
            async with open_door("b", store="s3://other"):
                pass
    monkeypatch.setattr("server.replicas.terms._HEARD_S", 0.1)
    await until_gone(postgres, "a")
    async with open_door("c", store="s3://other") as c:  # the payloads have moved
        await until(lambda: c.leads)
    assert "event=terms_changed before=('s3://one', '') now=('s3://other', '')" in caplog.messages
    assert await asyncio.to_thread(postgres.query, "SELECT store, authority FROM leases") == [("s3://other", "")]


async def until_gone(postgres: PostgresServer, name: str) -> None:
    def is_gone() -> bool:
        return postgres.query(CONNECTIONS, application_name(name)) == [(0,)]

    await asyncio.to_thread(wait_for, f"{name}'s connections to end", is_gone)
