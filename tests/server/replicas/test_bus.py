"""Messages between replicas, over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import psycopg
import pytest

from server.coordinator.events import ExchangeStep
from server.coordinator.messages import (
    Conditions,
    DeviceHello,
    ExchangeOrder,
    ExchangePeer,
    Heartbeat,
    ModelStep,
    PrivacyTerms,
    SecureTerms,
    TaskOrder,
)
from server.errors import ConflictError, InvalidCursorError, InvalidJobError, NoRoomError, NotReadyError
from server.job_problems import JobProblem
from server.replicas.bus import Body, Bus
from server.replicas.lease import Lease
from server.replicas.names import application_name
from server.replicas.replica import conninfo_of
from server.replicas.wire import error_from_json, error_to_json, from_json, to_json
from server.storage.sql import open_storage
from tests.patience import LIMIT_S, patiently, until
from tests.postgres_server import PostgresServer


@contextlib.asynccontextmanager
async def buses(url: str, *names: str) -> AsyncIterator[list[Bus]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Bus(name, conninfo_of(url))) for name in names]


def cut_off(replica_id: str, url: str) -> None:
    """End a replica's connections before its event loop can notice."""
    end = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(conninfo_of(url), autocommit=True) as connection:
        assert connection.execute(end, (application_name(replica_id),)).fetchall()


async def test_messages_reach_whom_they_are_for_in_the_order_in_which_they_were_told(postgres_url: str) -> None:
    heard: dict[str, list[tuple[str, Any]]] = {"a": [], "b": [], "c": []}

    def note(mine: list[tuple[str, Any]], sender: str, body: Body) -> None:
        mine.append((sender, body["n"]))

    async with buses(postgres_url, "a", "b", "c") as (a, b, c):
        for bus in (a, b, c):
            bus.on("word", partial(note, heard[bus.id]))
        for n in range(500):
            a.tell("b", "word", {"n": n})
        a.tell("b", "word", {"n": "ö" * 200_000})  # many payloads
        a.tell(None, "word", {"n": "all"})
        await until(lambda: bool(heard["c"]) and len(heard["b"]) == 502)
        statements = a.num_statements

    assert heard["b"] == [("a", n) for n in (*range(500), "ö" * 200_000, "all")]
    assert heard["c"] == [("a", "all")]
    assert heard["a"] == []  # who tells all is not told
    assert statements < 20  # many messages by one


async def test_who_leaves_before_the_database_answers_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = Bus("a", f"host=127.0.0.1 port={silent.getsockname()[1]}")
        before = asyncio.all_tasks()
        entering = asyncio.create_task(bus.__aenter__())
        await until(lambda: len(asyncio.all_tasks() - before) == 2)  # it, and what connects

        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await patiently(entering)

        assert asyncio.all_tasks() == before


async def test_a_question_is_answered_or_raises_what_the_other_side_raised(postgres_url: str) -> None:
    async def double(sender: str, body: Body) -> Body:
        return {"n": 2 * body["n"], "asked_by": sender}

    async def refuse(sender: str, body: Body) -> Body:
        raise ConflictError("it has ended")

    async def break_down(sender: str, body: Body) -> Body:
        raise ValueError("a mistake")

    async with buses(postgres_url, "a", "b") as (a, b):
        for bus in (a, b):
            bus.answer("double", double)
            bus.answer("refuse", refuse)
            bus.answer("break", break_down)

        assert await asyncio.gather(*(a.ask("b", "double", {"n": n}) for n in range(50))) == [
            {"n": 2 * n, "asked_by": "a"} for n in range(50)
        ]
        with pytest.raises(ConflictError, match="it has ended"):
            await a.ask("b", "refuse", {})
        with pytest.raises(NotReadyError, match="ValueError"):
            await a.ask("b", "break", {})
        with pytest.raises(NotReadyError, match="no question of kind 'unknown'"):
            await a.ask("b", "unknown", {})
        with pytest.raises(NotReadyError, match="replica nobody did not answer"):
            await a.ask("nobody", "double", {"n": 1}, timeout_s=0.05)
        with pytest.raises(NotReadyError, match="no replica leads"):
            await a.ask("lead", "double", {"n": 1})
        a.find_lead = b.find_lead = lambda: "b"
        assert await a.ask("lead", "double", {"n": 4}) == {"n": 8, "asked_by": "a"}
        assert await b.ask("lead", "double", {"n": 5}) == {"n": 10, "asked_by": "b"}  # itself

        waiting = asyncio.create_task(a.ask("nobody", "double", {"n": 1}, timeout_s=LIMIT_S))
        await asyncio.sleep(0)
        a.forget("nobody")
        with pytest.raises(NotReadyError, match="replica nobody is gone"):
            await waiting


async def test_a_bus_whose_connections_are_ended_makes_new_ones_and_tells_whoever_keeps_something(
    postgres: PostgresServer, postgres_url: str
) -> None:
    heard: list[str] = []

    async with buses(postgres_url, "a", "b") as (a, b):
        b.on("word", lambda sender, body: heard.append(body["word"]))
        a.on_connect(lambda: a.tell("b", "word", {"word": "I am here"}))
        await until(lambda: heard == ["I am here"])

        waiting = asyncio.create_task(a.ask("b", "nothing that comes to an end", {}, timeout_s=LIMIT_S))
        b.answer("nothing that comes to an end", lambda sender, body: asyncio.Future())
        await until(lambda: a.num_sent == 2 and a.num_statements >= 2)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        assert await asyncio.to_thread(postgres.query, ended, application_name("a"))

        with pytest.raises(NotReadyError, match="lost its database"):
            await waiting
        await until(lambda: heard == ["I am here", "I am here"])
        a.tell("b", "word", {"word": "and go on"})
        await until(lambda: heard[-1] == "and go on")


@pytest.mark.parametrize("turns", range(10))
async def test_a_bus_is_left_at_whatever_moment_its_database_is_lost(postgres_url: str, turns: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        async with buses(postgres_url, "a", "b") as (_, b):
            cut_off(b.id, postgres_url)
            for _ in range(turns):
                await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(10))
async def test_a_lease_is_given_back_at_whatever_moment_its_database_is_lost(postgres_url: str, turns: int) -> None:
    open_storage(postgres_url).close()  # makes the tables
    held = asyncio.Event()

    async def gain(fence: int) -> None:
        held.set()

    async def lose() -> None:
        pass

    async with asyncio.timeout(LIMIT_S):
        async with Lease("a", conninfo_of(postgres_url), lambda: ("", ""), on_gain=gain, on_loss=lose):
            await held.wait()
            cut_off("a", postgres_url)
            for _ in range(turns):
                await asyncio.sleep(0)


@pytest.mark.parametrize("limit", [("outbox._MOST_BYTES", 10_000), ("bus._HANGS_S", 0.5)], ids=["full", "silent"])
async def test_a_database_that_hangs_is_given_up(
    limit: tuple[str, float], postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    async with buses(postgres_url, "a", "b") as (a, b):
        b.on("word", lambda sender, body: heard.append(body["word"]))
        a.tell("b", "word", {"word": "before"})
        await until(lambda: heard == ["before"])
        sends = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE '%%pg_notify%%'"
        ((backend,),) = await asyncio.to_thread(postgres.query, sends, application_name("a"))
        os.kill(backend, signal.SIGSTOP)
        try:
            with monkeypatch.context() as limited:
                limited.setattr(f"server.replicas.{limit[0]}", limit[1])
                asked = asyncio.create_task(a.ask("b", "double", {}, timeout_s=600))
                await asyncio.sleep(0)
                for n in range(600):
                    a.tell("b", "word", {"word": n, "more": "-" * 100})
                with pytest.raises(NotReadyError, match="lost its database"):
                    await asked
            await until(lambda: a.is_connected)
            a.tell("b", "word", {"word": "after"})
            await until(lambda: heard == ["before", "after"])
        finally:
            os.kill(backend, signal.SIGCONT)
        late = 'a 2 0 1 {"kind":"word","body":{"word":"late"}}'  # by the backend that goes on
        await asyncio.to_thread(postgres.query, "SELECT pg_notify('bitfleet', %s)", late)
        a.tell("b", "word", {"word": "last"})
        await until(lambda: heard[-1] == "last")

    assert heard == ["before", "after", "last"]
    assert a.num_dropped >= 300


def test_values_are_the_same_after_the_way_as_json() -> None:
    hello = DeviceHello(
        "pi-1", "0.1", ("a", "ö"), (3, 8), 40, conditions=Conditions(too_hot=True), labels={"site": "läb"}
    )
    beat = Heartbeat("TRAINING", "t", 3, 9, conditions=Conditions(metered=True), temperature_c=41.5)
    secure = SecureTerms(1, 3, 0.5, 8, "signs", 3, b"\0\xff", PrivacyTerms("gauss", 1.0, 0.5, 1e-5))
    order = TaskOrder(
        "t", "j", 2, "m", 100, None, "{}", "bitfleet", "adam", 10, 4, 1.0, 7, "int8", "sign", ("a",), deadline_at=105.0,
        steps=(ModelStep("b", "d", 5),), secure=secure,
    )  # fmt: skip
    step = ExchangeOrder("t", 1, ExchangeStep.SHARES, 3, (ExchangePeer("b", b"\1", survived=True),), b"seed")

    for value in (hello, beat, step):
        assert from_json(type(value), to_json(value)) == value
    told = to_json(order, now=100.0)
    assert told["deadline_at"] == 5.0  # seconds from now, whatever the other's clock says
    assert from_json(TaskOrder, told, now=100.0) == order


def test_errors_are_the_same_after_the_way_as_json() -> None:
    problem = JobProblem(("model", 0), "is missing")
    errors = (NoRoomError("full"), InvalidCursorError("x"), InvalidJobError("wrong", [problem]))

    again = [error_from_json(error_to_json(error)) for error in errors]

    assert [(type(error), str(error)) for error in again] == [(type(error), str(error)) for error in errors]
    assert isinstance(again[2], InvalidJobError)
    assert again[2].problems == (problem,)
