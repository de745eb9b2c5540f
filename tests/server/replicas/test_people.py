"""People and devices at two replicas over one database: what is done at one holds at the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
import pytest

from bnncore.errors import ConfigurationError
from server.replicas import distant_jobs
from tests.patience import LIMIT_S, until
from tests.postgres_server import PostgresServer
from tests.server.api.test_events import device, watching
from tests.server.api.test_metrics import metrics_asked_for
from tests.server.browsing import Browser
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, ended, make_csr, new_key, open_secure_house
from tests.server.identity.test_devices import device as device_of


@pytest.fixture
async def pair(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[SecureHouse, SecureHouse]]:
    """Two replicas; the first one leads."""
    shared: dict[str, Any] = {"database": postgres_url, "identity": tmp_path / "identity", "blobs": tmp_path / "blobs"}
    async with open_secure_house(tmp_path / "a", **shared) as a, open_secure_house(tmp_path / "b", **shared) as b:
        assert a.replica is not None
        assert b.replica is not None
        assert not b.admin_key  # the first one's is the only one
        b.admin.headers["Authorization"] = a.admin.headers["Authorization"]
        assert (a.replica.members.is_lead, b.replica.members.lead_id) == (True, a.replica.id)
        yield a, b


async def test_keys_devices_tokens_and_sessions_of_one_replica_are_those_of_all(
    pair: tuple[SecureHouse, SecureHouse],
) -> None:
    a, b = pair
    assert a.trust.tls.fingerprint == b.trust.tls.fingerprint

    made = (await a.admin.post("/api/v1/keys", json={"name": "ann", "scope": "read"})).json()
    ann = {"Authorization": f"Bearer {made['key']}"}
    opened = await b.stranger.get("/api/v1/jobs", headers=ann)
    closed = await a.admin.delete(f"/api/v1/keys/{made['id']}")
    assert (opened.status_code, closed.status_code) == (200, 204)
    await _until_refused(b.stranger, "/api/v1/jobs", ann)

    token, key = await a.token(uses=1), new_key()
    enrolled = await b.enrol("pi", token=token, key=key)
    again = await a.enrol("pi", token=token, key=key)  # the answer was lost, and the balancer led to the other one
    body = {"csr": make_csr("pi-2", new_key(), "enrol"), "token": token}
    assert again.device_id == "pi"
    assert (await a.stranger.post("/api/v1/enrolments", json=body)).status_code == 401
    async with device_of(a, enrolled) as pi:
        await pi.connect()
        revoked = await b.admin.post("/api/v1/identities/pi/revoke")
        assert revoked.json()["state"] == "REVOKED"
        assert await ended(pi.stream) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "device pi was revoked by its operator",
        )

    browser = Browser(a)
    async with browser.http:
        await browser.log_in(a.admin_key)
        for house in (b, a):
            browser.http.base_url = httpx.URL(house.url)
            browser.origin = {"Origin": house.url, "Sec-Fetch-Site": "same-origin"}
            assert (await browser.http.get("/devices")).status_code == 200
        browser.http.base_url = httpx.URL(b.url)
        browser.origin = {"Origin": b.url, "Sec-Fetch-Site": "same-origin"}
        cookie = dict(browser.http.cookies)
        assert (await browser.send("/logout")).status_code == 303  # a form of a page of the other one
        await _until_refused(a.stranger, "/api/v1/jobs", {"Cookie": "; ".join(f"{k}={v}" for k, v in cookie.items())})


async def _until_refused(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await client.get(path, headers=headers)).status_code != 401:  # noqa: ASYNC110 - a word on its way
            await asyncio.sleep(0.01)


async def test_jobs_are_changed_and_watched_at_a_replica_that_does_not_lead(
    pair: tuple[SecureHouse, SecureHouse],
) -> None:
    lead, door = pair
    job = make_job(rounds=1, min_devices=1).model_dump(mode="json")
    async with watching(door.admin) as stream, device(lead, "a") as a:
        await a.connect()
        await stream.until("device", id="a", connected=True)
        created = await door.admin.post("/api/v1/jobs", json=job)
        worked = asyncio.create_task(a.work(1))
        told = await stream.until("round", id=f"{created.json()['id']}/1", state="COMMITTED")
        await stream.until("job", state="COMPLETED")
        await worked
        waiting = (await door.admin.post("/api/v1/jobs", json=job | {"min_devices": 2})).json()["id"]
        await stream.until("job", id=waiting, state="RUNNING")
        status = [(await house.admin.get("/api/v1/status")).json() for house in pair]
        changes = [await _change(door, waiting, change) for change in ("pause", "resume")]
        await stream.until("job", id=waiting, state="RUNNING")
        idle = asyncio.create_task(door.coordinator.fleet_jobs.wait_until_idle())
        await door.admin.get("/api/v1/status")
        assert not idle.done()
        changes += [await _change(door, waiting, change) for change in ("cancel", "cancel")]
        await idle
    page = (await door.admin.get("/")).text
    wrong = await door.admin.post("/api/v1/jobs", json=job | {"evaluation": {"dataset": "idx", "data": "/no"}})
    lines = [(await house.admin.get("/metrics")).text.splitlines() for house in pair]

    assert created.status_code == 201
    assert [data["state"] for kind, data in told if kind == "round"] == ["OPEN", "COLLECTING", "COMMITTED"]
    assert [[job["id"] for job in view["running"]] for view in status] == [[waiting]] * 2
    assert lead.replica is not None
    assert door.replica is not None
    replica = status[1]["replica"]
    assert (replica["id"], replica["is_lead"], replica["lead"]) == (door.replica.id, False, lead.replica.id)
    assert {member["id"]: member["is_lead"] for member in replica["alive"]} == {
        lead.replica.id: True,
        door.replica.id: False,
    }
    assert [code for code, _ in changes] == [200, 200, 200, 409]
    assert changes[3][1] == f"job {waiting} is CANCELLED and can no longer be cancelled"
    assert all(f"{member['id']}" in page for member in replica["alive"])
    assert wrong.status_code == 422
    assert wrong.json()["detail"].startswith("the job cannot run here")  # where it would be evaluated
    asked = {name for name in metrics_asked_for() if name.startswith("bitfleet_replica")}
    assert len(asked) == 4
    assert asked <= {line.split()[2] for line in lines[1] if line.startswith("# TYPE")}
    for house, found in zip(pair, lines, strict=True):
        assert house.replica is not None
        assert "bitfleet_replicas 2.0" in found
        assert "# TYPE bitfleet_replica_messages_dropped_total counter" in found
        leads = 1.0 if house is lead else 0.0
        assert f'bitfleet_replica_leads{{replica="{house.replica.id}"}} {leads}' in found


async def test_a_change_waits_for_the_next_lead(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distant_jobs, "_NEXT_LEAD_S", 60.0)
    shared: dict[str, Any] = {"database": postgres_url, "identity": tmp_path / "identity", "blobs": tmp_path / "blobs"}
    async with contextlib.AsyncExitStack() as first:
        lead = await first.enter_async_context(open_secure_house(tmp_path / "a", **shared))
        async with open_secure_house(tmp_path / "b", **shared) as door:
            job = make_job().model_dump(mode="json")
            before = (await door.admin.post("/api/v1/jobs", json=job, headers=lead.admin.headers)).json()
            await first.aclose()
            after = await door.admin.post("/api/v1/jobs", json=job, headers=lead.admin.headers, timeout=LIMIT_S)
            jobs = (await door.admin.get("/api/v1/jobs", headers=lead.admin.headers)).json()
            assert door.replica is not None
            assert door.replica.members.is_lead

    assert after.status_code == 201, after.text
    assert [job["id"] for job in jobs] == [before["id"], after.json()["id"]]


async def _change(house: SecureHouse, job_id: str, change: str) -> tuple[int, str]:
    answer = await house.admin.post(f"/api/v1/jobs/{job_id}/{change}")
    return answer.status_code, answer.json().get("detail", "")


@contextlib.contextmanager
def nobody_let_in(postgres: PostgresServer) -> Iterator[None]:
    """Have the database end all connections and take no others, for the block."""
    with psycopg.connect(postgres.conninfo, autocommit=True) as operator:
        operator.execute("ALTER ROLE CURRENT_USER NOLOGIN")
        try:
            operator.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "  # waits for its end
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            yield
        finally:
            operator.execute("ALTER ROLE CURRENT_USER LOGIN")


async def test_what_is_changed_while_a_replica_hears_nothing_is_read_afterwards(
    pair: tuple[SecureHouse, SecureHouse], postgres: PostgresServer
) -> None:
    a, b = pair
    assert b.replica is not None
    bus = b.replica.bus
    pi, key = await a.enrol("pi"), (await a.admin.post("/api/v1/keys", json={"name": "ann", "scope": "read"})).json()
    ann = {"Authorization": f"Bearer {key['key']}"}
    async with device_of(b, pi) as scripted, watching(b.admin) as stream, watching(a.admin) as others:
        await scripted.connect()
        assert (await b.stranger.get("/api/v1/jobs", headers=ann)).status_code == 200
        await stream.until("device", connected=True)
        await others.until("device", connected=True)
        with nobody_let_in(postgres):
            await until(lambda: not bus.is_connected)
            assert (await b.stranger.get("/api/v1/jobs", headers=ann)).status_code == 503
        assert (await a.admin.delete(f"/api/v1/keys/{key['id']}")).status_code == 204
        assert (await a.admin.post("/api/v1/identities/pi/revoke")).status_code == 200
        assert (await ended(scripted.stream))[0] is grpc.StatusCode.PERMISSION_DENIED
        await _until_refused(b.stranger, "/api/v1/jobs", ann)
        await stream.until("reset")
        await others.until("reset")


async def test_a_replica_of_another_authority_is_refused(
    pair: tuple[SecureHouse, SecureHouse], postgres_url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="Give all replicas the same --identity folder"):
        async with open_secure_house(tmp_path / "c", database=postgres_url, blobs=tmp_path / "blobs"):
            pass
