"""The REST API's door: keys and scopes, the dashboard's cookie, the audit log, and that no secret is told twice."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DatabaseError

from server.api.access import COOKIE
from tests.server.conftest import OpenHouse, make_job
from tests.server.identity.house import SecureHouse, make_csr, new_key, open_secure_house

JOB = make_job().model_dump(mode="json")
LOOKING = ["/status", "/jobs", "/devices", "/models"]
OPERATING = ["/jobs/none/cancel", "/jobs/none/pause", "/jobs/none/resume"]
ADMINISTERING = [("GET", "/identities"), ("GET", "/keys"), ("GET", "/tokens"), ("GET", "/audit")]
ADMINISTERING += [("POST", "/identities/none/revoke"), ("DELETE", "/keys/none"), ("DELETE", "/tokens/none")]


async def statuses(client: httpx.AsyncClient) -> dict[str, int]:
    """Ask for everything, and give the answers' statuses."""
    asked = [("GET", path) for path in LOOKING] + [("POST", path) for path in OPERATING] + ADMINISTERING
    found = {f"{method} {path}": (await client.request(method, f"/api/v1{path}")).status_code for method, path in asked}
    found["POST /jobs"] = (await client.post("/api/v1/jobs", json=JOB)).status_code
    found["POST /tokens"] = (await client.post("/api/v1/tokens", json={})).status_code
    found["POST /keys"] = (await client.post("/api/v1/keys", json={"name": "n", "scope": "admin"})).status_code
    found["GET /metrics"] = (await client.get("/metrics")).status_code
    return found


async def test_each_scope_opens_its_own_routes_and_those_below(house: SecureHouse) -> None:
    reader, operator = await house.with_scope("read"), await house.with_scope("operate")

    nobody, read, operate, admin = [
        await statuses(client) for client in (house.stranger, reader, operator, house.admin)
    ]

    looking = {*(f"GET {path}" for path in LOOKING), "GET /metrics"}
    operating = {*(f"POST {path}" for path in OPERATING), "POST /jobs"}
    assert set(nobody.values()) == {401}
    assert {name for name, status in read.items() if status != 403} == looking
    assert {name for name, status in operate.items() if status != 403} == looking | operating
    assert set(admin.values()) <= {200, 201, 204, 404}


async def test_health_needs_no_key(house: SecureHouse) -> None:
    assert [(await house.stranger.get(path)).status_code for path in ("/healthz", "/readyz")] == [200] * 2


async def test_strangers_may_try_so_many_keys_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.identity.throttle._WINDOW_S", 1e9)  # in which no minute ends
    async with open_secure_house(tmp_path / "state", enrolments_per_minute=30) as house:
        asked: list[str] = []
        event.listen(
            house.coordinator.disk.storage._engine,  # type: ignore[attr-defined]
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: asked.append(statement),
        )
        wrong = [{"Authorization": f"Bearer bfk_{number}"} for number in range(6)]
        wrong += [{"Cookie": f"{COOKIE}={number}"} for number in range(6)]
        refused = [(await house.stranger.get("/api/v1/jobs", headers=headers)).status_code for headers in wrong]
        looked_for = [statement for statement in asked if "digest = " in statement]
        known = [(await house.admin.get("/api/v1/jobs")).status_code for _ in wrong]
        enrolled = await house.enrol("a")

    assert refused == [401] * 3 + [429] * 9
    assert len(looked_for) == 3
    assert set(known) == {200}
    assert enrolled.device_id == "a"


async def test_a_session_of_before_is_no_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.identity.throttle._WINDOW_S", 1e9)
    async with open_secure_house(tmp_path / "state") as house:
        login = await house.stranger.post("/login", data={"key": house.admin_key}, headers={"Origin": house.url})
        cookie = login.headers["set-cookie"].partition(";")[0]
    async with open_secure_house(tmp_path / "state", enrolments_per_minute=30) as house:
        for _ in range(4):
            house.trust.sessions.forget()  # as a replica does that was cut off
            assert (await house.stranger.get("/api/v1/jobs", headers={"Cookie": cookie})).status_code == 200


async def test_a_revoked_key_opens_nothing_and_its_name_is_free(house: SecureHouse) -> None:
    reader = await house.with_scope("read")
    (key,) = [key for key in (await house.admin.get("/api/v1/keys")).json() if key["name"] == "read"]
    taken = await house.admin.post("/api/v1/keys", json={"name": "read", "scope": "read"})

    await house.admin.delete(f"/api/v1/keys/{key['id']}")

    assert taken.status_code == 409
    assert (await reader.get("/api/v1/jobs")).status_code == 401
    assert (await house.admin.post("/api/v1/keys", json={"name": "read", "scope": "read"})).status_code == 201


async def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state") as house:
        first = house.admin_key
    async with open_secure_house(tmp_path / "state") as house:
        keys = (await house.admin.get("/api/v1/keys")).json()

    assert house.admin_key == first
    assert [(key["name"], key["scope"], key["key"]) for key in keys] == [("first", "admin", None)]
    assert (tmp_path / "state/identity/admin.key").stat().st_mode & 0o777 == 0o600


async def test_a_machine_without_a_living_admin_key_gets_one(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state") as house:
        first = house.admin_key
        (key,) = (await house.admin.get("/api/v1/keys")).json()
        await house.admin.delete(f"/api/v1/keys/{key['id']}")
    async with open_secure_house(tmp_path / "state") as house:
        second = house.admin_key
        assert (await house.admin.get("/api/v1/keys")).status_code == 200
    (tmp_path / "state/identity/admin.key").unlink()
    async with open_secure_house(tmp_path / "state", new_admin_key=True) as house:
        made = [entry["detail"] for entry in await house.audit() if entry["action"].startswith("make an admin key")]

    assert len({first, second, house.admin_key}) == 3
    assert made[0] == "first"
    assert all(name.startswith("machine-") for name in made[1:])


async def test_the_dashboards_cookie_may_look_at_the_api_and_nothing_else(house: SecureHouse) -> None:
    here = {"Origin": house.url}
    wrong = await house.stranger.post("/login", data={"key": "bfk_0_wrong"}, headers=here)
    right = await house.stranger.post("/login", data={"key": house.admin_key}, headers=here)
    looked = await house.stranger.get("/api/v1/jobs")
    changed = await house.stranger.post("/api/v1/jobs", json=JOB)
    (key,) = (await house.admin.get("/api/v1/keys")).json()
    await house.admin.post("/api/v1/keys", json={"name": "next", "scope": "admin"})
    await house.admin.delete(f"/api/v1/keys/{key['id']}")
    after = await house.stranger.get("/api/v1/jobs")

    assert (wrong.status_code, right.status_code, looked.status_code) == (401, 303, 200)
    assert changed.status_code == 401  # another site's page could have asked
    assert after.status_code == 401  # with its key


async def test_every_change_is_in_the_audit_log(house: SecureHouse) -> None:
    operator = await house.with_scope("operate")
    job = (await operator.post("/api/v1/jobs", json=JOB)).json()["id"]
    await operator.post(f"/api/v1/jobs/{job}/clone", json={"set": {"name": "another"}})
    await operator.post("/api/v1/jobs", json={**JOB, "rounds": 0})  # refused too
    token = await house.token(uses=2, labels={"site": "lab"})
    a = await house.enrol("a", token=token)
    await house.stranger.post("/api/v1/enrolments/renew", json={"csr": make_csr("a", a.key, "renew")})
    await house.stranger.post("/api/v1/enrolments/leave", json={"csr": make_csr("a", a.key, "leave")})
    await house.enrol("b", token=token)
    await house.admin.post("/api/v1/identities/b/revoke")
    await house.stranger.post("/api/v1/jobs", json=JOB)  # refused, so it changes nothing

    entries = await house.audit()

    assert [(entry["actor"], entry["action"]) for entry in entries] == [
        ("coordinator", "make an admin key for this machine"),
        ("key:first", "POST /api/v1/keys"),
        ("key:operate", "POST /api/v1/jobs"),
        ("key:operate", f"POST /api/v1/jobs/{job}/clone"),
        ("key:first", "POST /api/v1/tokens"),
        ("device:a", "enrol"),
        ("device:a", "renew"),
        ("device:a", "leave"),
        ("device:b", "enrol"),
        ("key:first", "POST /api/v1/identities/b/revoke"),
    ]
    assert {entry["origin"] for entry in entries[1:]} == {"127.0.0.1"}
    assert [entry["detail"] for entry in entries[2:4]] == [f"name={JOB['name']}", "name=another"]
    assert f"token={token.split('_')[1]}" in entries[5]["detail"]


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
async def test_the_database_refuses_to_rewrite_the_audit_log(house: SecureHouse, statement: str) -> None:
    engine = house.coordinator.disk.storage._engine  # type: ignore[attr-defined]

    with pytest.raises(DatabaseError, match="can only be appended to"), engine.begin() as connection:
        connection.execute(text(statement))


async def test_secrets_are_told_once_and_kept_as_digests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    state = tmp_path / "state"
    async with open_secure_house(state) as house:
        token = await house.token()
        created = await house.admin.post("/api/v1/keys", json={"name": "n", "scope": "read"})
        key = created.json()["key"]
        await house.enrol("a", token=token)
        await house.stranger.post("/api/v1/enrolments", json={"csr": make_csr("b", new_key(), "enrol"), "token": token})
        login = await house.stranger.post("/login", data={"key": key}, headers={"Origin": house.url})
        answers = [await house.admin.get(f"/api/v1/{path}") for path in ("tokens", "keys", "audit", "identities")]
        shown = [repr(house.trust.keys.list()), repr(house.trust.tls), repr(house.trust.devices.list())]

    secrets = [secret.split("_", 2)[2] for secret in (token, key, house.admin_key)]
    cookie = login.headers["set-cookie"].partition("=")[2].partition(";")[0]  # which httpx itself logs
    texts = [*(answer.text for answer in answers), *shown, caplog.text]
    kept = [path.read_bytes() for path in state.rglob("*") if path.is_file() and path.name != "admin.key"]
    assert [secret for secret in secrets if any(secret in text for text in texts)] == []
    assert [secret for secret in [*secrets, cookie] if any(secret.encode() in data for data in kept)] == []
    assert not any("PRIVATE KEY" in text for text in texts)
    for digest in re.findall(r"[0-9a-f]{64}", "".join(shown)):
        assert digest not in (hashed(secret) for secret in (token, key, house.admin_key))


def hashed(secret: str) -> str:
    import hashlib

    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("tokens", {"uses": 0}, "uses must be 1 to 10000, got 0"),
        ("tokens", {"expires_s": 1e9}, "may live up to 90 days"),
        ("tokens", {"labels": {"a b": "c"}}, "labels must be KEY=VALUE"),
        ("keys", {"name": "n", "scope": "root"}, "scope must be one of read, operate, admin, got 'root'"),
        ("keys", {"name": "a b", "scope": "read"}, "a key's name must be 1 to 64"),
    ],
)
async def test_what_makes_no_sense_is_refused(house: SecureHouse, path: str, body: Any, words: str) -> None:
    answer = await house.admin.post(f"/api/v1/{path}", json=body)

    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example"}]
)
async def test_without_keys_another_sites_page_is_refused(open_house: OpenHouse, headers: dict[str, str]) -> None:
    async with open_house() as house:
        refused = await house.http.post("/api/v1/jobs", json=JOB, headers=headers)
        looked = await house.http.get("/api/v1/jobs", headers=headers)
        allowed = await house.http.get("/api/v1/jobs", headers={"Sec-Fetch-Site": "same-origin"})

    assert (refused.status_code, looked.status_code, allowed.status_code) == (403, 403, 200)


async def test_without_keys_changes_are_written_down_too(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.http.post("/api/v1/jobs", json=JOB)
        entries = await house.get("/api/v1/audit")

    assert [(entry["actor"], entry["action"]) for entry in entries] == [("local", "POST /api/v1/jobs")]
