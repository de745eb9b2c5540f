"""What is made and ended in the browser: tokens, jobs, keys, and a device's part in the fleet."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.patience import LIMIT_S
from tests.server.browsing import browsing
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, open_secure_house
from tests.server.storage.test_contract import DEVICE as STORED_DEVICE

JOB = make_job().model_dump(mode="json")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as opened:
        yield opened


async def test_a_token_is_made_shown_once_and_deleted(house: SecureHouse) -> None:
    async with browsing(house) as browser:
        made = await browser.send("/enrol", uses="2", hours="1.5", labels="site=lab room=b-1")
        found = re.search(
            r"BITFLEET_TOKEN=(bft_\S+) bitfleet-client enroll --server (\S+) --ca-fingerprint (sha256:\w+)", made.text
        )
        assert found
        secret, server, fingerprint = found.groups()
        enrolled = await house.enrol("a", token=secret)
        listed = (await browser.http.get("/enrol")).text
        token_id = secret.split("_")[1]
        deleted = await browser.send(f"/enrol/{token_id}/delete")
        tokens = (await house.admin.get("/api/v1/tokens")).json()
        wrong = [
            await browser.send("/enrol", uses="0", hours="1"),
            await browser.send("/enrol", uses="many", hours="1"),
            await browser.send("/enrol", uses="1", hours="1", labels="site"),
            await browser.send("/enrol", uses="1", hours="nan"),
        ]

    assert made.headers["cache-control"] == "no-store"
    assert "<svg" in made.text
    assert (server, fingerprint) == (house.url, house.trust.tls.fingerprint)
    assert enrolled.device_id == "a"
    assert token_id in listed
    assert secret not in listed
    assert (deleted.status_code, tokens) == (303, [])
    assert [answer.status_code for answer in wrong] == [400] * 4
    made_entry = next(entry for entry in await house.audit() if entry["action"] == "POST /enrol")
    assert made_entry["detail"] == f"id={token_id} uses=2 labels: site=lab room=b-1"


async def test_a_job_is_made_like_another_one_from_a_template_or_a_file(house: SecureHouse) -> None:
    other = (await house.admin.post("/api/v1/jobs", json={**JOB, "starts_at": "2099-01-01T00:00:00Z"})).json()["id"]

    def fields(page: str) -> dict[str, str]:
        """What the form holds, as a browser sends it."""
        text = re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.S)[0]
        once = re.findall(r'name="once" value="([^"]+)"', page)[0]
        kind = re.findall(r'<option value="([^"]+)" selected', page)[0]
        lines = html.unescape(text).replace("\r\n", "\n")
        return {"text": lines.replace("\n", "\r\n"), "kind": kind, "once": once}

    async with browsing(house, "operate") as operator, browsing(house, "read") as reader:
        assert f'href="/jobs/new?job={other}"' in (await operator.http.get(f"/jobs/{other}")).text
        form = fields((await operator.http.get("/jobs/new", params={"job": other})).text)
        changed = {**form, "text": form["text"].replace("name: stripes", "name: spots")}
        made = [await operator.send("/jobs/new", **changed) for _ in range(2)]
        wrong = await operator.send("/jobs/new", **{**form, "text": form["text"] + "round: 3\r\n"})
        again = fields(wrong.text)
        broken = await operator.send("/jobs/new", **{**form, "text": "name: [", "kind": "yaml"})
        template = fields((await operator.http.get("/jobs/new?template=digits")).text)
        from_template = await operator.send("/jobs/new", **template)
        strange = [
            await operator.send("/jobs/new", **{**form, "kind": "exe"}),
            await operator.http.get("/jobs/new?template=none"),
            await operator.http.get("/jobs/new?job=none"),
            await reader.send("/jobs/new", **form),
        ]
        looked = (await reader.http.get("/jobs/new")).text
    jobs = {job["id"]: job for job in (await house.admin.get("/api/v1/jobs")).json()}
    (spots,) = [job for job in jobs.values() if job["name"] == "spots"]

    assert [answer.headers["location"] for answer in made] == [f"/jobs/{spots['id']}"] * 2  # once, however often sent
    assert spots["config"] == {**jobs[other]["config"], "name": "spots", "starts_at": None}
    assert wrong.status_code == 422
    assert re.search(r"the text:\d+: round: there is no such key; did you mean rounds", wrong.text)
    assert again["text"] == form["text"] + "round: 3\r\n"
    assert again["once"] != form["once"]
    assert (broken.status_code, "cannot read" in broken.text) == (422, True)
    assert jobs[from_template.headers["location"].removeprefix("/jobs/")]["name"] == "digits"
    assert [answer.status_code for answer in strange] == [400, 404, 404, 403]
    assert "<textarea" not in looked
    entries = [entry for entry in await house.audit() if entry["action"] == "POST /jobs/new"]
    assert {(entry["actor"], entry["detail"]) for entry in entries} == {
        ("key:operate", "name=spots"), ("key:operate", "name=digits")
    }  # fmt: skip


async def test_a_device_that_never_connected_is_seen_and_revoked_by_an_administrator(house: SecureHouse) -> None:
    await house.enrol("new", token=await house.token(labels={"site": "lab"}))
    async with browsing(house) as admin, browsing(house, "operate") as operator:
        hidden = [await operator.http.get(path) for path in ("/devices", "/devices/new")]
        listed, page = await admin.http.get("/devices"), await admin.http.get("/devices/new")
        revoked = await admin.send("/devices/new/revoke")
        after = [await admin.http.get(path) for path in ("/devices", str(revoked.headers["location"]))]
        unknown = await admin.http.get("/devices/none")

    assert ([answer.status_code for answer in hidden], "never connected" in hidden[0].text) == ([200, 404], False)
    assert 'href="/devices/new"' in listed.text
    assert "site=lab" in listed.text
    assert "It never connected" in page.text
    assert "Revoke the device" in page.text
    assert 'href="/devices/new"' not in after[0].text
    assert after[1].status_code == 200
    assert "revoked" in after[1].text
    assert "Revoke the device" not in after[1].text
    assert unknown.status_code == 404


async def test_a_device_is_revoked_and_keys_are_made_and_revoked_by_an_administrator(house: SecureHouse) -> None:
    await house.enrol("a")
    await house.coordinator.disk.run(house.coordinator.disk.storage.save_device, STORED_DEVICE)
    async with browsing(house) as admin, browsing(house, "operate") as operator:
        shown = [await browser.http.get("/devices/a") for browser in (admin, operator)]
        refused = [
            await operator.send("/devices/a/revoke"),
            await operator.send("/keys", name="x", scope="admin"),
            await operator.http.get("/keys"),
        ]
        revoked = [await admin.send(f"/devices/{name}/revoke") for name in ("a", "a", "none")]
        after = await admin.http.get("/devices/a")
        (identity,) = (await house.admin.get("/api/v1/identities")).json()
        made = await admin.send("/keys", name="grafana", scope="read")
        (secret,) = set(re.findall(r"bfk_[\w-]+", made.text))
        wrong = [await admin.send("/keys", name="x", scope="root"), await admin.send("/keys", name="", scope="read")]
        listed = (await admin.http.get("/keys")).text
        keys = {key["name"]: key["id"] for key in (await house.admin.get("/api/v1/keys")).json()}
        async with httpx.AsyncClient(
            base_url=house.url, verify=house.context(), trust_env=False, timeout=LIMIT_S
        ) as tool:
            bearer = {"Authorization": f"Bearer {secret}"}
            opens = await tool.get("/api/v1/status", headers=bearer)
            ended = await admin.send(f"/keys/{keys['grafana']}/revoke")
            opens_no_more = await tool.get("/api/v1/status", headers=bearer)

    assert ["Revoke the device" in page.text for page in (*shown, after)] == [True, False, False]
    assert [answer.status_code for answer in refused] == [403] * 3
    assert [answer.status_code for answer in revoked] == [303, 409, 404]
    assert identity["state"] == "REVOKED"
    assert (made.status_code, made.headers["cache-control"]) == (200, "no-store")
    assert [answer.status_code for answer in wrong] == [400, 400]
    assert secret not in listed
    assert keys["grafana"] in listed
    assert (opens.status_code, ended.status_code, opens_no_more.status_code) == (200, 303, 401)
    done = [(entry["action"], entry["detail"]) for entry in await house.audit()]
    assert ("POST /devices/a/revoke", "") in done
    assert ("POST /keys", f"name=grafana scope=read id={keys['grafana']}") in done
    assert (f"POST /keys/{keys['grafana']}/revoke", "") in done
