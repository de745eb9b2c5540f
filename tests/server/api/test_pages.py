"""Lists in pages, filters, and answers that are not sent again, over a real coordinator."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event

from tests.patience import patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.identity.house import SecureHouse
from tests.server.scripted import ScriptedDevice, connected


async def walk(house: House, path: str) -> list[list[Any]]:
    """Follow a list's Link headers to its end; gives its pages."""
    pages: list[list[Any]] = []
    url: str | None = path
    while url is not None:
        answer = await house.http.get(url)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url")
    assert int(answer.headers["X-Total-Count"]) == sum(map(len, pages))
    return pages


async def test_lists_come_in_pages_that_lead_to_each_other(open_house: OpenHouse) -> None:
    async with open_house(max_jobs=1) as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=3))
        await asyncio.gather(*(device.work(3) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        jobs = [make_job(name=f"n{number % 2}", min_devices=9) for number in range(4)]
        later = [(await house.coordinator.jobs.create(config)).job_id for config in jobs]
        base = f"/api/v1/jobs/{job.job_id}/rounds"

        assert [[view["id"] for view in page] for page in await walk(house, "/api/v1/jobs?limit=2")] == [
            [job.job_id, later[0]], later[1:3], later[3:]
        ]  # fmt: skip
        assert [[view["id"] for view in page] for page in await walk(house, "/api/v1/jobs?limit=1&name=n1")] == [
            [later[1]], [later[3]]
        ]  # fmt: skip
        assert [[view["id"] for view in page] for page in await walk(house, "/api/v1/jobs?state=COMPLETED")] == [
            [job.job_id]
        ]
        rounds = await walk(house, f"{base}?limit=2")
        assert [[view["round"] for view in page] for page in rounds] == [[1, 2], [3]]
        assert await walk(house, f"{base}?state=FAILED") == [[]]
        (short,) = await walk(house, f"{base}?updates=false")
        assert short == [{**view, "updates": []} for page in rounds for view in page]
        assert await house.get(f"{base}/2") == rounds[0][1]
        assert (await house.http.get(f"{base}/4")).status_code == 404
        models = await walk(house, "/api/v1/models?limit=1")
        assert models[0][0]["id"] == job.job_id
        assert models[0][0]["versions"] == 4
        versions = await walk(house, f"/api/v1/models/{job.job_id}/versions?limit=3")
        assert [[view["version"] for view in page] for page in versions] == [[0, 1, 2], [3]]
        for bad in ("limit=0", "limit=501", "limit=x", "after=none", "state=DONE"):
            answer = await house.http.get(f"/api/v1/jobs?{bad}")
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), bad


async def test_a_list_of_jobs_asks_the_database_as_often_however_many_there_are(open_house: OpenHouse) -> None:
    async with open_house() as house:
        engine, asked = house.coordinator.disk.storage._engine, list[str]()  # type: ignore[attr-defined]

        for _ in range(6):
            await house.coordinator.jobs.create(make_job(min_devices=9))
        await until(lambda: len(house.coordinator.jobs.running) == house.coordinator.limits.max_jobs)
        await house.coordinator.jobs.stop()  # they ask the database too, and what was asked last is still being read
        event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

        async def statements(limit: int) -> int:
            asked.clear()
            assert len(await house.get(f"/api/v1/jobs?limit={limit}")) == limit
            await house.get(f"/api/v1/models?limit={limit}")
            return len(asked)

        few = [await statements(1) for _ in range(9)]
        many = [await statements(6) for _ in range(9)]

        assert min(few) == min(many)


async def test_what_has_not_changed_is_not_sent_again(open_house: OpenHouse) -> None:
    async with open_house() as house:
        first = await house.http.get("/api/v1/jobs")
        tag = first.headers["etag"]
        again = [
            await house.http.get("/api/v1/jobs", headers={"If-None-Match": known})
            for known in (tag, f'"x", W/{tag}', "*", '"x"')
        ]
        await house.coordinator.jobs.create(make_job())
        changed = await house.http.get("/api/v1/jobs", headers={"If-None-Match": tag})
        missing = await house.http.get("/api/v1/jobs/none", headers={"If-None-Match": "*"})

    assert [answer.status_code for answer in again] == [304, 304, 304, 200]
    assert (again[0].content, again[0].headers["etag"], again[0].headers["x-total-count"]) == (b"", tag, "0")
    assert "content-length" not in again[0].headers
    assert (changed.status_code, len(changed.json())) == (200, 1)
    assert changed.headers["etag"] != tag
    assert (missing.status_code, "etag" in missing.headers) == (404, False)


async def test_devices_are_found_by_state_stream_and_label(house: SecureHouse) -> None:
    token = await house.token(uses=2, labels={"site": "lab"})
    a = await house.enrol("a", token=token)
    b = await house.enrol("b", token=token)
    c = await house.enrol("c")
    async with (
        ScriptedDevice(str(house.grpc), "a", credentials=house.credentials(a)) as one,
        ScriptedDevice(str(house.grpc), "b", credentials=house.credentials(b)) as two,
        ScriptedDevice(str(house.grpc), "c", credentials=house.credentials(c)) as three,
    ):
        for device in (one, two, three):
            await device.connect()
        await two.vanish()
        await until(lambda: house.coordinator.fleet.get("b") is None)

        async def found(query: str) -> str:
            answer = await house.admin.get(f"/api/v1/devices?{query}")
            assert answer.status_code == 200, answer.text
            assert int(answer.headers["X-Total-Count"]) == len(answer.json())
            return "".join(view["device_id"] for view in answer.json())

        assert await found("") == "abc"
        assert (await found("connected=true"), await found("connected=false")) == ("ac", "b")
        assert (await found("state=IDLE"), await found("state=OFFLINE"), await found("state=TRAINING")) == (
            "ac",
            "b",
            "",
        )
        assert (await found("label=site=lab"), await found("label=site=lab&connected=true")) == ("ab", "a")
        assert await found("connected=true&state=OFFLINE") == ""
        assert (await found("name=B"), await found("name=B&connected=true"), await found("name=%25")) == ("b", "", "")
        assert (await house.admin.get("/api/v1/devices?label=site")).status_code == 422
        view = (await house.admin.get("/api/v1/devices/b")).json()
        assert (view["device_id"], view["labels"], view["connected"]) == ("b", {"site": "lab"}, False)
        assert (await house.admin.get("/api/v1/devices/d")).status_code == 404
