"""What changes is told as it happens: the feed, and the stream of it over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.coordinator.feed import Feed, Watcher
from server.limits import ConnectionLimits
from tests.patience import LIMIT_S, until
from tests.server.conftest import OpenHouse, make_job
from tests.server.identity.house import SecureHouse, new_key, open_secure_house
from tests.server.scripted import ScriptedDevice, connected, write_held_out_set


async def heard(watcher: Watcher) -> list[tuple[str, str]]:
    events = await watcher.next(within_s=0.0)
    assert events is not None
    return [(event.kind, json.loads(event.data).get("id", "")) for event in events]


async def test_a_watcher_is_told_what_comes_after_the_event_that_it_knows() -> None:
    feed = Feed(kept=3)
    early = feed.watch()
    assert await heard(early) == [("reset", "")]
    assert await heard(early) == []
    feed.publish("device", "a")
    events = await early.next(within_s=0.0)
    assert events is not None
    (first,) = events
    feed.publish("device", "b")

    assert await heard(feed.watch(first.id)) == [("device", "b")]
    assert await heard(early) == [("device", "b")]


async def test_whoever_falls_behind_is_told_to_fetch_anew_and_goes_on_from_there() -> None:
    feed = Feed(kept=3)
    slow = feed.watch()
    await heard(slow)
    for name in "abcd":
        feed.publish("device", name)

    assert await heard(slow) == [("reset", "")]
    feed.publish("device", "e")
    assert await heard(slow) == [("device", "e")]


@pytest.mark.parametrize("known", ["", "7", "00000000-1", "{process}-99", "{process}--1", "{process}-x", "é-1", "-"])
async def test_an_event_of_another_process_or_of_none_is_not_known(known: str) -> None:
    feed = Feed()
    feed.publish("device", "a")
    process = feed.since(0)[0][0].id.split("-")[0]

    assert await heard(feed.watch(known.format(process=process))) == [("reset", "")]


async def test_a_closed_feed_ends_its_watchers_and_takes_no_more() -> None:
    feed = Feed()
    watcher = feed.watch()
    await heard(watcher)
    waits = asyncio.create_task(watcher.next(within_s=60.0))
    await asyncio.sleep(0)
    feed.publish("device", "a")
    assert await waits
    waits = asyncio.create_task(watcher.next(within_s=60.0))
    await asyncio.sleep(0)
    feed.close()
    feed.publish("device", "b")

    assert await waits is None


@dataclass
class Stream:
    """An open stream of events."""

    response: httpx.Response
    _lines: AsyncIterator[str]

    async def event(self) -> tuple[str, str, dict[str, Any]]:
        """Read the next event: its id, kind and object."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(LIMIT_S):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    return fields["id"], fields["event"], json.loads(fields["data"])
        raise AssertionError("the stream has ended")

    async def until(self, kind: str, **values: Any) -> list[tuple[str, dict[str, Any]]]:
        """Read up to an event that says so; gives all that were read."""
        read = []
        while True:
            _, name, data = await self.event()
            read.append((name, data))
            if name == kind and values.items() <= data.items():
                return read

    async def is_ended(self) -> bool:
        """Wait for its end, whatever else is read; an end that was no proper one raises."""
        async with asyncio.timeout(LIMIT_S):
            async for _ in self._lines:
                pass
        return True


@contextlib.asynccontextmanager
async def watching(client: httpx.AsyncClient, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    async with client.stream("GET", f"/api/v1/events{query}", headers=headers) as response:
        yield Stream(response, response.aiter_lines())


async def status_of_stream(client: httpx.AsyncClient) -> int:
    async with watching(client) as stream:
        return stream.response.status_code


@contextlib.asynccontextmanager
async def device(house: SecureHouse, name: str) -> AsyncIterator[ScriptedDevice]:
    enrolled = await house.enrol(name, key=new_key())
    async with ScriptedDevice(str(house.grpc), name, credentials=house.credentials(enrolled)) as scripted:
        yield scripted


async def test_a_jobs_life_is_told_as_it_happens_and_can_be_asked_for_when_it_is(
    house: SecureHouse, tmp_path: Path
) -> None:
    write_held_out_set(tmp_path / "held-out")
    reader = await house.with_scope("read")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    job = make_job(rounds=1, min_devices=1, evaluation=evaluation).model_dump(mode="json")
    async with watching(reader) as stream, device(house, "a") as a:
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (await stream.event())[1:] == ("reset", {})
        await a.connect()
        await stream.until("device", id="a", connected=True)
        job_id = (await house.admin.post("/api/v1/jobs", json=job)).json()["id"]
        worked = asyncio.create_task(a.work(1))
        told = await stream.until("round", id=f"{job_id}/1", state="COMMITTED")
        (round_,) = (await reader.get(f"/api/v1/jobs/{job_id}/rounds")).json()
        told += await stream.until("job", state="COMPLETED")
        after = (await reader.get(f"/api/v1/jobs/{job_id}/rounds")).json()
        await worked
        await a.vanish()
        await stream.until("device", id="a", connected=False)

    assert round_["state"] == "COMMITTED"
    states = [(kind, data["state"]) for kind, data in told if "state" in data and kind in ("job", "round")]
    assert [state for kind, state in states if kind == "job"] == ["PENDING", "RUNNING", "COMPLETED"]
    assert [state for kind, state in states if kind == "round"] == ["OPEN", "COLLECTING", "COMMITTED"]
    (update,) = [data for kind, data in told if kind == "update"]
    assert (update["id"], update["status"], update["num_examples"]) == (f"{job_id}/1/a", "ACCEPTED", 40)
    assert [data["version"] for kind, data in told if kind == "model"] == [0, 1]
    (accuracy,) = [data["accuracy"] for kind, data in told if "accuracy" in data]
    assert accuracy == after[0]["accuracy"]


async def test_of_a_devices_heartbeats_those_are_told_that_say_something_new(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        watcher = house.coordinator.disk.feed.watch()
        await watcher.next(within_s=0.0)
        for step, temperature_c in ((1, 50.0), (2, 50.5), (9, 51.9), (12, 51.5), (13, 54.0)):
            await a.beat(task_id="t", step=step, total_steps=100, temperature_c=temperature_c)
        session = house.coordinator.fleet.get("a")
        assert session is not None
        await until(lambda: session.heartbeat.step == 13)
        told = [json.loads(event.data) for event in await watcher.next(within_s=0.0) or []]

    assert [(event["id"], event["step"], event["temperature_c"]) for event in told] == [
        ("a", 1, 50.0), ("a", 12, 51.5), ("a", 13, 54.0)
    ]  # fmt: skip


async def test_a_stream_can_be_of_one_job_and_goes_on_where_it_broke_off(house: SecureHouse) -> None:
    job = make_job().model_dump(mode="json")
    first = (await house.admin.post("/api/v1/jobs", json=job)).json()["id"]
    async with watching(house.admin, f"?job={first}") as stream:
        known, kind, _ = await stream.event()
    second = (await house.admin.post("/api/v1/jobs", json=job)).json()["id"]
    await house.admin.post(f"/api/v1/jobs/{first}/cancel")

    assert kind == "reset"
    async with watching(house.admin, f"?job={first}", **{"Last-Event-ID": known}) as stream:
        read = await stream.until("job", state="CANCELLED")
        assert {data["job"] if kind == "round" else data["id"] for kind, data in read} == {first}
    async with watching(house.admin, **{"Last-Event-ID": known}) as stream:
        assert second in {data["id"] for _, data in await stream.until("job", state="CANCELLED")}


async def test_who_may_no_longer_read_hears_no_more(house: SecureHouse) -> None:
    reader = await house.with_scope("read")
    keys = {key["name"]: key["id"] for key in (await house.admin.get("/api/v1/keys")).json()}

    assert await status_of_stream(house.stranger) == 401
    await house.stranger.post("/login", data={"key": house.admin_key}, headers={"Origin": house.url})
    async with watching(reader) as by_key, watching(house.stranger) as by_cookie:
        assert [(await stream.event())[1] for stream in (by_key, by_cookie)] == ["reset", "reset"]
        await house.admin.delete(f"/api/v1/keys/{keys['read']}")
        job = make_job().model_dump(mode="json")
        job_id = (await house.admin.post("/api/v1/jobs", json=job)).json()["id"]
        assert await by_key.is_ended()
        assert await by_cookie.until("job", id=job_id)


async def test_so_many_streams_are_open_and_their_places_come_back(tmp_path: Path) -> None:
    limits = ConnectionLimits(max_event_streams=4)  # half of them from one address
    async with open_secure_house(tmp_path / "state", connections=limits) as house:
        async with watching(house.admin) as one, watching(house.admin) as two:
            await one.event()
            await two.event()
            refused = await house.admin.get("/api/v1/events")
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert "streams of events" in refused.json()["detail"]
        async with asyncio.timeout(LIMIT_S):
            while await status_of_stream(house.admin) == 503:
                pass


async def test_streams_end_when_the_coordinator_does(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with open_secure_house(tmp_path / "state") as house:
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=house.url, verify=house.context(), headers=house.admin.headers, timeout=LIMIT_S
                )
            )
            stream = await stack.enter_async_context(watching(client))
            await stream.event()

        assert await stream.is_ended()
