"""The dashboard over real TLS: what each page shows, who may change what, and that nothing foreign is ever markup."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from server.dashboard.assets import asset, names
from server.jobs import JobConfig
from server.storage import tables
from tests.patience import until
from tests.server.browsing import Browser, browsing
from tests.server.conftest import OpenHouse, make_job
from tests.server.identity.house import SecureHouse, open_secure_house
from tests.server.scripted import connected
from tests.server.storage.test_contract import DEVICE as STORED_DEVICE
from tests.server.storage.test_contract import JOB as STORED_JOB
from tests.server.storage.test_contract import ROUND as STORED_ROUND

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>{{7*7}}"
PAGES = ["/", "/devices", "/models", "/enrol", "/audit"]
JOB = make_job().model_dump(mode="json")


def stored(job: JobConfig) -> dict[str, Any]:
    """What of a job stands in its row."""
    return {"config_json": job.to_json(), "spec_json": job.spec.to_json()}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as opened:
        yield opened


async def test_a_stranger_is_led_to_the_login_and_from_there_to_the_page_asked_for(house: SecureHouse) -> None:
    led = {path: (await house.stranger.get(path)).headers.get("location") for path in [*PAGES, "/jobs/none"]}
    browser = Browser(house)
    async with browser.http:
        page = await browser.http.get("/login", params={"next": "/devices?name=pi"})
        wrong = await browser.log_in("bfk_0_wrong", next="/devices?name=pi")
        right = await browser.log_in(house.admin_key, next="/devices?name=pi")
        shown = [(await browser.http.get(path)).status_code for path in PAGES]
        elsewhere = [
            await browser.log_in(house.admin_key, next=to) for to in ("//evil.example", "/\\evil", "https://e")
        ]
        ended = await browser.send("/logout")
        after = await browser.http.get("/")

    assert led["/"] == "/login"
    assert led["/jobs/none"] == "/login?next=%2Fjobs%2Fnone"
    assert 'value="/devices?name=pi"' in page.text
    assert wrong.status_code == 401
    assert ">The API key is not known here, or was revoked.<" in wrong.text
    assert (right.status_code, right.headers["location"]) == (303, "/devices?name=pi")
    assert shown == [200] * len(PAGES)
    assert [answer.headers["location"] for answer in elsewhere] == ["/"] * 3
    cookie = right.headers["set-cookie"].lower()
    assert all(
        word in cookie for word in ("__host-", "httponly", "secure", "samesite=strict", "max-age=43200", "path=/")
    )
    assert house.admin_key not in cookie
    assert ended.headers["location"] == after.headers["location"] == "/login"


async def test_buttons_change_what_the_keys_scope_allows_and_it_is_written_down(house: SecureHouse) -> None:
    job_id = (await house.admin.post("/api/v1/jobs", json=JOB)).json()["id"]
    async with browsing(house, "operate") as operator, browsing(house, "read") as reader:
        page = (await reader.http.get(f"/jobs/{job_id}")).text
        refused = [await reader.send(f"/jobs/{job_id}/pause"), await operator.send("/enrol", uses="1", hours="1")]
        states = []
        for change in ("pause", "resume", "cancel"):
            answer = await operator.send(f"/jobs/{job_id}/{change}")
            assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}"), answer.text
            states.append((await house.admin.get(f"/api/v1/jobs/{job_id}")).json()["state"])
        again = await operator.send(f"/jobs/{job_id}/pause")
        nothing = await operator.send(f"/jobs/{job_id}/explode")

    assert "Pause" not in page  # a button that would be refused is not shown
    assert [answer.status_code for answer in refused] == [403, 403]
    assert states[0] == "PAUSED"
    assert states[1] in ("PENDING", "RUNNING")
    assert states[2] == "CANCELLED"
    assert again.status_code == 409
    assert "only a pending or running job can be paused" in again.text
    assert nothing.status_code == 404
    changes = [(entry["actor"], entry["action"]) for entry in await house.audit() if job_id in entry["action"]]
    assert changes[:3] == [("key:operate", f"POST /jobs/{job_id}/{change}") for change in ("pause", "resume", "cancel")]
    assert all(actor == "key:operate" for actor, _ in changes)


async def test_a_page_that_is_not_there_is_told_as_a_page_to_people_alone(house: SecureHouse) -> None:
    looking = {"Accept": "text/html,*/*;q=0.8"}
    async with browsing(house, "read") as reader:
        person = await reader.http.get("/nothing/<b>", headers=looking)
        tool = await reader.http.get("/nothing")
        of_the_api = await reader.http.get("/api/v1/nothing", headers=looking)
    stranger = await house.stranger.get("/nothing", headers=looking)

    assert [answer.status_code for answer in (person, tool, of_the_api, stranger)] == [404] * 4
    assert "There is no page &#39;/nothing/&lt;b&gt;&#39;." in person.text
    assert "Log out" in person.text
    assert "There is no page" in stranger.text
    assert tool.json()["detail"] == "GET /nothing: Not Found"
    assert of_the_api.json()["status"] == 404


async def test_a_form_that_no_page_of_the_session_sent_changes_nothing(house: SecureHouse) -> None:
    job_id = (await house.admin.post("/api/v1/jobs", json=JOB)).json()["id"]
    pause = f"/jobs/{job_id}/pause"
    async with browsing(house, "operate") as other, browsing(house) as browser:
        form, here = {"form_token": browser.form_token}, browser.origin
        told = [
            await browser.http.post(pause, data=form, headers=here | {"Origin": "https://evil.example"}),
            await browser.http.post(pause, data=form, headers=here | {"Origin": "null"}),
            await browser.http.post(pause, data=form, headers=here | {"Sec-Fetch-Site": "cross-site"}),
            await browser.http.post(pause, data=form, headers=here | {"Sec-Fetch-Site": "same-site"}),
            await browser.http.post(pause, data=form),  # no origin at all
            await browser.http.post(pause, data={"other": "field"}, headers=here),
            await browser.http.post(pause, data={"form_token": other.form_token}, headers=here),
            await browser.http.post("/enrol", data={"uses": "1", "hours": "1"}, headers=here),
            await browser.http.post(f"/models/{job_id}/promote", data={"version": "0"}, headers=here),
            await browser.http.post(f"/models/{job_id}/rollback", data={"version": "0"}, headers=here),
            await browser.http.post("/jobs/new", data={"text": "name: x"}, headers=here),
            await browser.http.post("/devices/a/revoke", data={"other": "field"}, headers=here),
            await browser.http.post("/keys", data={"name": "x", "scope": "admin"}, headers=here),
            await browser.http.post("/keys/1/revoke", data={"other": "field"}, headers=here),
            await browser.http.post("/logout", data={"other": "field"}, headers=here),
            await browser.http.post(
                "/login", data={"key": house.admin_key}, headers=here | {"Origin": "https://e.vil"}
            ),
        ]
        cookie_on_rest = await browser.http.post(f"/api/v1{pause}", headers=here)
        not_a_form = await browser.http.post(pause, json=form, headers=here)
        without_cookie = await house.stranger.post(pause, data=form, headers=here)
        still_in = await browser.http.get("/")
        (key,) = [key for key in (await house.admin.get("/api/v1/keys")).json() if key["name"] == "operate"]
        await house.admin.delete(f"/api/v1/keys/{key['id']}")
        revoked = await other.send(pause)

    assert [answer.status_code for answer in told] == [403] * len(told)
    assert cookie_on_rest.status_code == 401
    assert not_a_form.status_code == 400
    assert without_cookie.headers["location"] == "/login"
    assert still_in.status_code == 200
    assert revoked.headers["location"] == "/login"
    assert (await house.admin.get(f"/api/v1/jobs/{job_id}")).json()["state"] != "PAUSED"
    assert [entry for entry in await house.audit() if pause in entry["action"]] == []


@pytest.mark.parametrize("public_url", ["", "https://Fleet.example:443/"])
async def test_forms_that_come_by_a_proxy_are_taken_where_it_is_named(tmp_path: Path, public_url: str) -> None:
    async with open_secure_house(tmp_path / "state", public_url=public_url) as house:
        job_id = (await house.admin.post("/api/v1/jobs", json=JOB)).json()["id"]
        async with browsing(house, "operate") as browser:
            by_proxy = {"Origin": "https://fleet.example", "Sec-Fetch-Site": "same-origin"}
            form = {"form_token": browser.form_token}
            evil = [
                await browser.http.post(f"/jobs/{job_id}/pause", data=form, headers=by_proxy | changed)
                for changed in (
                    {"Origin": "https://fleet.example.evil"},
                    {"Origin": "http://fleet.example"},
                    {"Sec-Fetch-Site": "same-site"},
                    {"Origin": "null"},
                )
            ]
            unknown = await browser.http.post(f"/jobs/{job_id}/pause", data={"form_token": "x"}, headers=by_proxy)
            paused = await browser.http.post(f"/jobs/{job_id}/pause", data=form, headers=by_proxy)
            direct = await browser.send(f"/jobs/{job_id}/cancel")

    assert [answer.status_code for answer in (*evil, unknown)] == [403] * 5
    assert (paused.status_code, direct.status_code) == ((303 if public_url else 403), 303)
    assert public_url or "--public-url URL" in paused.text


async def test_without_keys_pages_need_no_login_and_forms_are_checked_all_the_same(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job_id = (await house.http.post("/api/v1/jobs", json=JOB)).json()["id"]
        page = await house.http.get(f"/jobs/{job_id}")
        found = re.search(r'name="form_token" value="([^"]+)"', page.text)
        assert found
        form, origin = {"form_token": found[1]}, {"Origin": "http://localhost"}
        refused = [
            await house.http.post(f"/jobs/{job_id}/pause", data={"other": "field"}, headers=origin),
            await house.http.post(f"/jobs/{job_id}/pause", data=form, headers={"Origin": "http://evil.example"}),
            await house.http.post(f"/jobs/{job_id}/pause", data=form, headers=origin | {"Host": "evil.example"}),
            await house.http.get(f"/jobs/{job_id}", headers={"Host": "evil.example"}),
        ]
        paused = await house.http.post(f"/jobs/{job_id}/pause", data=form, headers=origin)
        state = (await house.get(f"/api/v1/jobs/{job_id}"))["state"]
        enrol, login = await house.http.get("/enrol"), await house.http.get("/login")

    assert [answer.status_code for answer in refused] == [403] * 4
    assert (paused.status_code, state) == (303, "PAUSED")
    assert "bitfleet-client run --insecure" in enrol.text
    assert login.headers["location"] == "/"


async def test_what_devices_and_job_files_say_is_text(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = {**JOB, "classes": [HOSTILE, "b", "c"], "min_devices": 1}
        job_id = (await house.http.post("/api/v1/jobs", json=job)).json()["id"]
        async with connected(house.address, "a", classes=(HOSTILE, "b", "c")):
            await until(lambda: bool(house.coordinator.fleet))
            texts = {
                path: (await house.http.get(path)).text
                for path in [
                    "/",
                    "/devices/a",
                    f"/jobs/{job_id}",
                    f"/models/{job_id}",
                    f"/devices?name={HOSTILE}",
                    "/jobs/<b>x",
                ]
            }
    everything = "".join(texts.values())

    assert "<img" not in everything
    assert "alert(1)" in everything  # it is there, as text
    assert not re.search(r"<script(?! src=\"/static/)", everything)
    assert "{{7*7}}" in texts[f"/jobs/{job_id}"]  # nor is it a template
    assert "&lt;b&gt;x" in texts["/jobs/<b>x"]


async def test_a_round_and_a_device_tell_the_same_of_an_update(open_house: OpenHouse) -> None:
    job = {**JOB, "min_devices": 1, "rounds": 1}
    async with open_house() as house, connected(house.address, "a") as (device,):
        job_id = (await house.http.post("/api/v1/jobs", json=job)).json()["id"]
        await device.work(1)
        (told,) = (await house.rounds(job_id))[0]["updates"]
        pages = [(await house.http.get(path)).text for path in (f"/jobs/{job_id}/rounds/1", "/devices/a")]
    tables = [re.findall(r"<thead>.*</tbody>", page, re.S)[0] for page in pages]
    heads = [re.findall(r"<th scope=\"col\"[^>]*>([^<]*)<", table) for table in tables]
    cells = [re.findall(r"<td class=\"num\"[^>]*>([^<]*)<", table) for table in tables]

    assert heads[0][0] == "device"
    assert heads[1][:2] == ["job", "round"]
    assert heads[0][1:] == heads[1][2:]
    assert {"steps", "local accuracy", "energy", "peak memory"} < set(heads[0])
    assert cells[0] == cells[1][-len(cells[0]) :]
    assert str(told["num_examples"]) == cells[0][0]


async def test_lists_are_shown_a_page_at_a_time_and_a_long_job_is_drawn_thinned(open_house: OpenHouse) -> None:
    played = 450
    async with open_house() as house:
        storage = house.coordinator.disk.storage
        job = replace(
            STORED_JOB,
            job_id="long",
            state="COMPLETED",
            **stored(make_job(rounds=played, evaluation={"dataset": "digits"})),
        )
        rounds = [
            replace(STORED_ROUND, job_id="long", round_number=number, state="COMMITTED", accuracy=50.0 + (number == 8))
            for number in range(1, played + 1)
        ]

        def fill() -> None:
            with storage._engine.begin() as connection:  # type: ignore[attr-defined]
                jobs = [job, *(replace(job, job_id=f"j{number}") for number in range(100))]
                connection.execute(tables.jobs.insert(), [asdict(record) for record in jobs])
                connection.execute(tables.rounds.insert(), [asdict(record) for record in rounds])
                names = [f"pi-{number:03}" for number in range(101)] + ["other"]
                records = [asdict(replace(STORED_DEVICE, device_id=name)) for name in names]
                connection.execute(tables.devices.insert(), records)

        await house.coordinator.disk.run(fill)

        async def parts(path: str) -> list[list[str]]:
            """Follow a list through its pages; gives the keys of the rows of each."""
            found = []
            url: str | None = path
            while url is not None:
                page = await house.http.get(url)
                assert page.status_code == 200, page.text
                found.append(re.findall(r'<tr data-key="([^"]+)"', page.text))
                link = re.search(r'rel="next" href="([^"]+)"', page.text)
                url = None if link is None else path.partition("?")[0] + html.unescape(link[1])
            return found

        jobs, devices, of_job = await parts("/"), await parts("/devices?name=PI-"), await parts("/jobs/long")
        page = html.unescape((await house.http.get("/jobs/long")).text)
        nonsense = await house.http.get("/jobs/long?after=nonsense")
    chart = json.loads(re.findall(r'data-chart="({.*?})"', page)[0])

    assert jobs == [[f"j{number}" for number in reversed(range(100))], ["long"]]
    assert devices == [[f"pi-{number:03}" for number in range(100)], ["pi-100"]]
    assert [len(part) for part in of_job] == [100, 100, 100, 100, 50]
    assert [key for part in of_job for key in part] == [str(number) for number in range(played, 0, -1)]
    assert chart["rounds"] == sorted({*range(1, played + 1, 8), 8, played})
    assert max(chart["series"][0]["values"]) == 51.0
    assert "best 51.00 %" in page
    assert "the table has them all" in page
    assert nonsense.status_code == 422


async def test_without_the_charting_library_a_job_is_told_in_words(
    house: SecureHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = (await house.admin.post("/api/v1/jobs", json=JOB)).json()["id"]
    files = [asset("page.css").url, asset("bokeh.min.js").url]
    monkeypatch.setitem(sys.modules, "bokeh", None)  # as where it is not installed
    async with browsing(house) as browser:
        page = await browser.http.get(f"/jobs/{job_id}")
        asked_for = [await browser.http.get(path) for path in files]

    assert page.status_code == 200
    assert "pip install &#39;bitfleet[server]&#39;" in page.text
    assert re.findall(r'src="/static/(\w+)', page.text) == ["theme", "morph", "page", "live"]
    assert [answer.status_code for answer in asked_for] == [200, 404]


async def test_pages_allow_nothing_from_elsewhere_and_are_sent_again_only_when_they_changed(house: SecureHouse) -> None:
    job_id = (await house.admin.post("/api/v1/jobs", json=JOB)).json()["id"]
    async with browsing(house) as browser:
        page = await browser.http.get("/enrol")
        again = await browser.http.get("/enrol", headers={"If-None-Match": page.headers["etag"]})
        missing = await browser.http.get("/jobs/none")
        rounds = [await browser.http.get(f"/jobs/{job_id}/rounds/{number}") for number in ("one", "99", "9" * 20)]
    policy = page.headers["content-security-policy"]

    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "same-origin")
    assert set(re.findall(r'(?:src|href)="(?!/)([^"]*)"', page.text)) <= {"#main"}
    assert not re.search(r"<[^>]* (?:on\w+|style)=", page.text)
    assert again.status_code == 304
    assert [answer.status_code for answer in (missing, *rounds)] == [404] * 4
    assert "bitfleet-server jobs list" in missing.text


async def test_files_are_served_under_their_digest_and_kept_for_good(house: SecureHouse) -> None:
    for name in names():
        plain = await house.stranger.get(asset(name).url, headers={"Accept-Encoding": "identity"})
        packed = await house.stranger.get(asset(name).url, headers={"Accept-Encoding": "gzip"})

        assert plain.status_code == 200
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert plain.content == packed.content == asset(name).path.read_bytes()
        assert "immutable" in plain.headers["cache-control"]
    for path in ("page.css", "page.0000000000000000.css", "..%2Fpage.py"):
        assert (await house.stranger.get(f"/static/{path}")).status_code == 404
