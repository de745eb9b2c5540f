"""The REST API over a real coordinator: jobs, problems, models, health, metrics, the page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bnncore.checkpoint import load_checkpoint
from bnncore.codec import get_codec
from bnncore.engine import Engine
from tests.server.conftest import House, OpenHouse, make_job, until
from tests.server.scripted import CLASSES, connected, samples_of, write_held_out_set


def job_object(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(make_job(**changes).to_json())
    return value


async def finish(house: House) -> None:
    await asyncio.wait_for(house.coordinator.jobs.wait_until_idle(), 30)


async def test_a_job_is_created_shown_and_listed(open_house: OpenHouse) -> None:
    async with open_house() as house:
        response = await house.http.post("/api/v1/jobs", json=job_object(name="stripes"))
        created = response.json()
        await until(lambda: house.coordinator.running_job is not None)
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
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


async def test_a_job_is_cancelled_once(open_house: OpenHouse) -> None:
    async with open_house() as house:
        job = await house.coordinator.jobs.create(make_job())
        await until(lambda: house.coordinator.running_job is not None)
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
        payload = await devices[0].download(version["payload_digest"])
        export = await house.http.get(f"/api/v1/models/{job.job_id}/versions/3/download")

    # the same by hand: the payload's weights and beta with the exported statistics, classified by the engine
    (tmp_path / "v3.safetensors").write_bytes(export.content)
    exported = load_checkpoint(tmp_path / "v3.safetensors")
    deployed = get_codec("int8").decode(config.spec, payload, kind="model")
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
            await until(lambda: house.coordinator.running_job is not None)
            status = await house.get("/api/v1/status")
            devices = await house.get("/api/v1/devices")

    assert (status["version"], status["running_job"], status["jobs"]) == ("0.1.0", job.job_id, {"RUNNING": 1})
    assert (status["devices_connected"], status["devices_known"]) == (1, 2)
    assert [(d["device_id"], d["connected"], d["state"]) for d in devices] == [
        ("a", False, "OFFLINE"), ("b", True, "IDLE")
    ]  # fmt: skip
    assert devices[1]["classes"] == list(CLASSES)


async def test_health_and_readiness(open_house: OpenHouse) -> None:
    async with open_house() as house:
        health, ready = await house.http.get("/healthz"), await house.http.get("/readyz")
        await house.coordinator.stop()
        stopped = await house.http.get("/readyz")

    assert (health.status_code, health.text, ready.status_code) == (200, "ok", 200)
    assert stopped.status_code == 503


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


async def test_two_coordinators_have_two_registries(open_house: OpenHouse) -> None:
    from server.api import create_app

    async with open_house() as house:
        create_app(house.coordinator, version="0.1.0")  # a global registry would refuse the same names again


async def test_the_page_needs_nothing_from_elsewhere(open_house: OpenHouse) -> None:
    async with open_house() as house:
        response = await house.http.get("/")

    assert response.headers["content-type"].startswith("text/html")
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", response.text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name space, not an address to load from
    assert "innerHTML" not in response.text  # what a device says about itself is text, never markup
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_the_api_describes_itself(open_house: OpenHouse) -> None:
    async with open_house() as house:
        document = await house.get("/openapi.json")

    paths = {"/status", "/jobs", "/jobs/{job_id}", "/jobs/{job_id}/rounds", "/devices"}
    assert {f"/api/v1{path}" for path in paths} <= set(document["paths"])
