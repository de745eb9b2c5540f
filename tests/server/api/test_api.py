"""The REST API over a real coordinator: jobs, problems, models, health, metrics."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from bnncore.checkpoint import load_checkpoint
from bnncore.codec import get_state_codec
from bnncore.engine import Engine
from server.api.description import operations
from server.api.examples import EXAMPLES, JOB_EXAMPLE
from server.api.problems import RefusalsAsProblems
from server.coordinator.disk import Disk
from server.coordinator.readiness import Readiness
from server.jobs import parse_job
from server.storage.blobs import LocalBlobs
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import House, OpenHouse, make_job
from tests.server.identity.house import SecureHouse
from tests.server.scripted import CLASSES, connected, samples_of, write_held_out_set


def job_object(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(make_job(**changes).to_json())
    return value


async def finish(house: House) -> None:
    await patiently(house.coordinator.jobs.wait_until_idle())


async def test_a_job_is_created_shown_and_listed(open_house: OpenHouse) -> None:
    async with open_house() as house:
        response = await house.http.post("/api/v1/jobs", json=job_object(name="stripes"))
        created = response.json()
        await until(lambda: bool(house.coordinator.jobs.running))
        shown = await house.get(response.headers["Location"])
        listed = await house.get("/api/v1/jobs")

    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/v1/jobs/{created['id']}"
    assert re.fullmatch(r"stripes-[0-9a-f]{8}", created["id"])
    assert (shown["state"], shown["rounds_total"], shown["rounds_committed"], shown["accuracy"]) == (
        "RUNNING", 3, 0, None
    )  # fmt: skip
    assert shown["config"]["local_steps"] == 4
    assert shown["spec"]["input_shape"] == [4, 4]
    assert [job["id"] for job in listed] == [created["id"]]


async def problem_of(house: House, method: str, path: str, **options: Any) -> tuple[int, str]:
    response = await house.http.request(method, path, **options)
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert set(body) == {"type", "title", "status", "detail"}
    return response.status_code, body["detail"]


async def test_a_request_that_is_sent_again_makes_one_job(open_house: OpenHouse) -> None:
    async def send(key: str, path: str = "", **changes: Any) -> httpx.Response:
        body = {"set": changes} if path else job_object(**changes)
        return await house.http.post(f"/api/v1/jobs{path}", json=body, headers={"Idempotency-Key": key})

    async with open_house() as house:
        both = await asyncio.gather(send("a"), send("a"))
    async with open_house() as house:
        later = await send('"a"')  # in quotes, as the draft has it
        first = both[0].json()["id"]
        clones = [await send("b", f"/{first}/clone", seed=9) for _ in range(2)]
        other = await send("a", seed=3)
        wrong = await send("a b")
        listed = await house.get("/api/v1/jobs")

    answers = [*both, later]
    assert {answer.status_code for answer in (*answers, *clones)} == {201}
    assert {answer.json()["id"] for answer in answers} == {first}
    assert [job["id"] for job in listed] == [first, clones[0].json()["id"]] == [first, clones[1].json()["id"]]
    assert (other.status_code, wrong.status_code) == (422, 422)
    assert first in other.json()["detail"]
    assert "idempotency-key" in wrong.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour: there is no such key"),
        ({"rounds": 0}, "rounds:"),
        ({"optimizer": "sdg"}, "there is no optimizer 'sdg'"),
        ({"preset": "tiny"}, "there is no preset 'tiny'"),
        ({"evaluation": {"dataset": "idx", "data": "/no/such/folder"}}, "/no/such/folder"),
        ({"strategy": "fedprox", "optimizer": "bop"}, "pulls latent weights, of which 'bop' under preset 'bitfleet'"),
        (
            {"evaluation": {"dataset": "digits"}},
            "the evaluation set does not fit the job: its samples have shape [8, 8], the job needs [4, 4]",
        ),
    ],
)
async def test_a_job_that_cannot_run_is_a_problem(open_house: OpenHouse, changes: dict[str, Any], words: str) -> None:
    async with open_house() as house:
        status, detail = await problem_of(house, "POST", "/api/v1/jobs", json={**job_object(), **changes})
        jobs = await house.get("/api/v1/jobs")

    assert status == 422
    assert words in detail
    assert jobs == []


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/api/v1/jobs/nope", {}, 404),
        ("GET", "/api/v1/jobs/nope/rounds", {}, 404),
        ("POST", "/api/v1/jobs/nope/cancel", {}, 404),
        ("POST", "/api/v1/jobs/nope/pause", {}, 404),
        ("POST", "/api/v1/jobs/nope/resume", {}, 404),
        ("GET", "/api/v1/models/nope/versions", {}, 404),
        ("GET", "/api/v1/models/nope/versions/0", {}, 404),
        ("GET", "/api/v1/models/nope/versions/0/download", {}, 404),
        ("GET", "/api/v1/models/nope/versions/x", {}, 422),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/api/v1/jobs", {}, 405),
        ("POST", "/api/v1/jobs", {"content": b"{"}, 422),
        ("POST", "/api/v1/jobs", {"json": [1]}, 422),
    ],
)
async def test_every_error_is_a_problem(
    open_house: OpenHouse, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    async with open_house() as house:
        assert (await problem_of(house, method, path, **options))[0] == status


async def test_a_full_disk_is_a_problem_and_no_path_writes_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(RefusalsAsProblems(full)), base_url="http://h") as http:
        answer = await http.get("/jobs%0Aevent=forged")

    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert "event=disk_refuses path='/jobs\\nevent=forged'" in caplog.text


async def test_a_job_is_cancelled_once(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job())
        await until(lambda: bool(house.coordinator.jobs.running))
        first = await house.http.post(f"/api/v1/jobs/{job.job_id}/cancel")
        second = await problem_of(house, "POST", f"/api/v1/jobs/{job.job_id}/cancel")
        await finish(house)

    assert first.json()["state"] == "CANCELLED"
    assert second[0] == 409
    assert "is CANCELLED" in second[1]


async def test_a_pending_job_is_cancelled_before_it_runs(open_house: OpenHouse) -> None:
    async with open_house() as house:
        first = await house.coordinator.jobs.create(make_job())
        second = await house.coordinator.jobs.create(make_job())
        await house.http.post(f"/api/v1/jobs/{second.job_id}/cancel")
        await house.http.post(f"/api/v1/jobs/{first.job_id}/cancel")
        await finish(house)
        jobs = await house.get("/api/v1/jobs")

    assert [job["state"] for job in jobs] == ["CANCELLED", "CANCELLED"]
    assert [job["rounds_committed"] for job in jobs] == [0, 0]


async def test_every_committed_version_is_evaluated_as_devices_receive_it(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    write_held_out_set(tmp_path / "held-out")
    config = make_job(rounds=3, evaluation={"dataset": "idx", "data": str(tmp_path / "held-out")}, local_steps=8)
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(config)
        await asyncio.gather(*(device.work(3) for device in devices))
        await finish(house)
        rounds = await house.rounds(job.job_id)
        view = await house.get(f"/api/v1/jobs/{job.job_id}")
        version = await house.get(f"/api/v1/models/{job.job_id}/versions/3")
        payload = house.coordinator.disk.blobs.get(version["payload_digest"])
        export = await house.http.get(f"/api/v1/models/{job.job_id}/versions/3/download")

    # the same by hand: the payload's weights and beta with the exported statistics, classified by the engine
    (tmp_path / "v3.safetensors").write_bytes(export.content)
    exported = load_checkpoint(tmp_path / "v3.safetensors")
    deployed = get_state_codec("int8").decode(config.spec, payload, kind="model")
    engine = Engine(config.spec, batch_size=150)
    engine.load_state({name: deployed.get(name, array) for name, array in exported.state.items()})
    images, labels = samples_of("held-out", 150)
    engine.input[:], engine.labels[:] = images, labels
    expected = engine.evaluate_batch(150)
    assert rounds[-1]["accuracy"] == pytest.approx(100 * expected.correct / 150)
    assert rounds[-1]["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert view["accuracy"] == rounds[-1]["accuracy"] == version["accuracy"] == exported.extra["accuracy"]
    assert all(round_["accuracy"] is not None for round_ in rounds)
    assert view["best_version"] == max(rounds, key=lambda round_: round_["accuracy"])["round"]  # the first of several
    assert rounds[-1]["accuracy"] > 50  # three classes; it has learned something


async def test_a_model_version_is_exported_as_a_checkpoint(open_house: OpenHouse, tmp_path: Path) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.gather(*(device.work(1) for device in devices))
        await finish(house)
        models = await house.get("/api/v1/models")
        versions = await house.get(f"/api/v1/models/{job.job_id}/versions")
        response = await house.http.get(f"/api/v1/models/{job.job_id}/versions/1/download")

    (tmp_path / "model.safetensors").write_bytes(response.content)
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert [(model["id"], model["versions"], model["latest"]["version"]) for model in models] == [(job.job_id, 2, 1)]
    assert [version["version"] for version in versions] == [0, 1]
    assert checkpoint.weights_digest == versions[1]["weights_digest"]
    assert checkpoint.spec == make_job().spec
    assert checkpoint.extra == {"job_id": job.job_id, "job_name": "stripes", "version": 1}
    assert f"{job.job_id}-v1.safetensors" in response.headers["content-disposition"]


async def test_status_counts_jobs_and_devices(open_house: OpenHouse) -> None:
    async with open_house() as house:
        async with connected(house.address, "a"):
            pass
        await until(lambda: len(house.coordinator.fleet) == 0)
        async with connected(house.address, "b"):
            job = await house.coordinator.jobs.create(make_job())
            await until(lambda: bool(house.coordinator.jobs.running))
            status = await house.get("/api/v1/status")
            devices = await house.get("/api/v1/devices")

    assert (status["version"], status["jobs"]) == ("0.1.0", {"RUNNING": 1})
    assert [(running["id"], running["rounds_total"], running["accepted"]) for running in status["running"]] == [
        (job.job_id, 3, 0)
    ]
    assert (status["devices_connected"], status["devices_known"], status["device_states"]) == (1, 2, {"IDLE": 1})
    assert [(d["device_id"], d["connected"], d["state"]) for d in devices] == [
        ("a", False, "OFFLINE"), ("b", True, "IDLE")
    ]  # fmt: skip
    assert devices[1]["classes"] == list(CLASSES)


async def test_health_and_readiness(open_house: OpenHouse) -> None:
    async with open_house() as house:
        health, ready = await house.http.get("/healthz"), await house.http.get("/readyz")
        await house.coordinator.jobs.stop()
        stopped = await house.http.get("/readyz")

    assert (health.status_code, health.text, ready.status_code) == (200, "ok", 200)
    checks = ready.json()["checks"]
    assert ready.json()["ready"]
    assert checks == {name: {"ok": True, "reason": ""} for name in ("database", "lead", "life", "store")}
    assert (stopped.status_code, stopped.json()["title"]) == (503, "Service Unavailable")
    assert [name for name, check in stopped.json()["checks"].items() if not check["ok"]] == ["lead"]
    assert "lead: jobs are not worked on" in stopped.json()["detail"]


class HangingBlobs(LocalBlobs):
    """On a disk that does not come back, for a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.was_asked, self.goes_on = threading.Event(), threading.Event()
        self.num_asked = 0

    def check(self) -> None:
        self.num_asked += 1
        self.was_asked.set()
        self.goes_on.wait()


async def test_what_does_not_answer_is_named_and_its_words_are_for_the_log(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        with sqlite3.connect(house.state / "bitfleet.db") as database:
            database.execute("ALTER TABLE jobs RENAME TO gone")
        (house.state / "blobs" / "tmp").rmdir()
        answers = [await house.http.get("/readyz") for _ in range(2)]
        with sqlite3.connect(house.state / "bitfleet.db") as database:
            database.execute("ALTER TABLE gone RENAME TO jobs")
        (house.state / "blobs" / "tmp").mkdir()
        mended = await Readiness(house.coordinator.disk, timeout_s=LIMIT_S).look()

        hang = threading.Event()
        busy = asyncio.create_task(house.coordinator.disk.run(hang.wait))  # with what it writes: that is no reason
        at_work = await Readiness(house.coordinator.disk, timeout_s=LIMIT_S).look()
        hanging = HangingBlobs(house.state / "blobs")
        readiness = Readiness(Disk(house.coordinator.disk.storage, hanging), timeout_s=0.05)
        reasons = [await readiness.look() for _ in range(2)]
        await asyncio.to_thread(hanging.was_asked.wait)
        hanging.goes_on.set()
        hang.set()
        await busy

    for answer in answers:
        checks = answer.json()["checks"]
        assert (answer.status_code, checks["lead"]["ok"]) == (503, True)
        assert checks["database"]["reason"] == "it does not answer (OperationalError); see the coordinator's log"
        assert checks["store"]["reason"] == "it does not answer (FileNotFoundError); see the coordinator's log"
        assert "jobs" not in answer.text
    assert caplog.text.count("event=no_answer of=database error='(sqlite3.OperationalError) no such table: jobs") == 1
    assert mended == {"database": "", "store": ""}
    assert at_work == {"database": "", "store": ""}
    assert [reason["store"] for reason in reasons] == ["no answer within 0.05 s"] * 2
    assert hanging.num_asked == 1


async def test_metrics_count_what_happened(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        await house.coordinator.jobs.create(make_job(rounds=2))
        await asyncio.gather(*(device.work(2) for device in devices))
        await finish(house)
        response = await house.http.get("/metrics")

    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain")
    assert "bitfleet_devices_connected 2.0" in lines
    assert 'bitfleet_updates_total{status="accepted"} 4.0' in lines
    up = sum(device.up_bytes for device in devices)
    down = sum(device.down_bytes for device in devices)
    assert f'bitfleet_message_bytes_total{{direction="up"}} {float(up)}' in lines
    assert f'bitfleet_message_bytes_total{{direction="down"}} {float(down)}' in lines


async def test_metrics_tell_each_running_jobs_round_and_what_rounds_cost(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=2))
        await asyncio.gather(*(device.work(1) for device in devices))
        await devices[0].next_task()
        rounds = await house.rounds(job.job_id)
        response = await house.http.get("/metrics")

    lines = response.text.splitlines()
    assert "bitfleet_jobs_running 1.0" in lines
    assert f'bitfleet_round_number{{job="{job.job_id}"}} 2.0' in lines
    assert f'bitfleet_round_overhead_seconds_count{{job="{job.job_id}"}} 1.0' in lines
    assert f'bitfleet_round_overhead_seconds_sum{{job="{job.job_id}"}} {rounds[0]["overhead_s"]}' in lines


async def test_two_coordinators_have_two_registries(open_house: OpenHouse) -> None:
    from server.api.app import create_app

    async with open_house() as house:
        create_app(house.coordinator, version="0.1.0")  # a global registry would refuse the same names again


async def test_the_api_describes_itself_with_examples(house: SecureHouse) -> None:
    document = (await house.stranger.get("/openapi.json")).json()

    described = dict(operations(document))
    assert {f"GET /api/v1{path}" for path in ("/status", "/jobs", "/jobs/{job_id}/rounds/{number}", "/events")} <= set(
        described
    )
    for name, operation in described.items():
        assert operation["summary"], name
        assert len(operation["description"]) > 10, name
        assert "example" in operation["responses"]["default"]["content"]["application/problem+json"], name
        for status, answer in operation["responses"].items():
            for kind, media in answer.get("content", {}).items():
                assert kind == "application/octet-stream" or "example" in media, f"{name} {status} {kind}"
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            has_one = "example" in media or "examples" in media["schema"]
            assert has_one, f"{name} takes {kind}"


def _views(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in kind.__subclasses__():
        yield below
        yield from _views(below)


def test_every_example_is_one_of_its_class() -> None:
    classes = {kind.__name__: kind for kind in _views(BaseModel) if kind.__module__.startswith("server.api.")}

    assert {name for name in classes if name.endswith("View") and name != "View"} <= set(EXAMPLES)
    for name, example in EXAMPLES.items():
        kind = classes[name]
        kind.model_validate(example, extra="forbid")
        assert set(example) == set(kind.model_fields), f"server/api/examples.py: {name}"
    parse_job(JOB_EXAMPLE)
