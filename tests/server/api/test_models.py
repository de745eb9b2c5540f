"""Model versions over the REST API: where they come from, how they differ, which is promoted, exports that predict."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.checkpoint import load_checkpoint
from bnncore.codec import PayloadKind, get_state_codec
from bnncore.data import open_dataset
from bnncore.export.interpreter import logits_of
from bnncore.export.packed import unpack
from bnncore.predictor import Predictor
from bnncore.spec import ModelSpec
from bnncore.training import evaluate
from server.cli import main
from server.client import FleetClient
from tests.patience import patiently
from tests.server.conftest import OpenHouse, make_job
from tests.server.holder import Holder, observe
from tests.server.scripted import CLASSES, connected, train_task, write_held_out_set
from tests.server.test_cli import serving

onnxruntime = pytest.importorskip("onnxruntime")


async def test_versions_are_traced_compared_promoted_and_rolled_back(open_house: OpenHouse, tmp_path: Path) -> None:
    write_held_out_set(tmp_path / "held-out")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        jobs = house.coordinator.jobs
        first = await jobs.create(make_job(rounds=2, evaluation=evaluation))
        await asyncio.gather(*(device.work(2) for device in devices))
        await patiently(jobs.wait_until_idle())
        second = await jobs.create(make_job(rounds=1, start={"model": first.job_id, "version": 2}))
        await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(jobs.wait_until_idle())
        model = f"/api/v1/models/{first.job_id}"
        traced = [await house.get(f"{model}/versions/{number}/lineage") for number in (0, 2)]
        started = await house.get(f"/api/v1/models/{second.job_id}/versions/0/lineage")
        compared, same = [await house.get(f"{model}/compare?a={a}&b=2") for a in (0, 2)]
        versions = {view["version"]: view for view in await house.get(f"{model}/versions")}
        answers = [
            await house.http.post(f"{model}/{what}", json=body)
            for what, body in (
                ("promote", {"version": 1}), ("promote", {"version": 2}), ("promote", {"version": 2}),
                ("rollback", None), ("rollback", None), ("promote", {"version": 9}), ("promote", {}),
            )
        ]  # fmt: skip
        promoted = await house.get(f"{model}/promotions")
        listed = await house.get("/api/v1/models")
        again = (await house.get(f"{model}/versions/1/lineage"))["promotions"]

    assert (traced[0]["made_by"], traced[0]["parent"], traced[0]["accepted"]) == ("start", None, 0)
    assert traced[1]["parent"] == {
        "id": first.job_id, "version": 1, "weights_digest": versions[1]["weights_digest"]
    }  # fmt: skip
    assert (traced[1]["made_by"], traced[1]["round"], traced[1]["cohort"], traced[1]["accepted"]) == (
        "training",
        2,
        2,
        2,
    )
    assert traced[1]["examples"] == 80
    assert started["parent"] == {
        "id": first.job_id, "version": 2, "weights_digest": versions[2]["weights_digest"]
    }  # fmt: skip
    weights = [tensor for tensor in compared["tensors"] if tensor["role"] == "weight"]
    assert compared["changed_signs"] == sum(tensor["changed_signs"] for tensor in weights) > 0
    assert compared["distance"] > 0
    assert compared["b"]["accuracy"] == versions[2]["accuracy"] is not None
    assert (same["changed_signs"], same["distance"]) == (0, 0)
    assert (compared["accuracy_difference"], same["accuracy_difference"]) == (None, 0)
    assert [answer.status_code for answer in answers] == [200, 200, 409, 200, 409, 404, 422]
    assert [answer.json()["promoted_version"] for answer in (answers[0], answers[1], answers[3])] == [1, 2, 1]
    assert promoted["promoted_version"] == 1
    assert [(entry["version"], entry["withdrawn_by"]) for entry in promoted["history"]] == [(1, None), (2, "local")]
    assert [view["promoted_version"] for view in listed] == [1, None]
    assert [entry["promoted_by"] for entry in again] == ["local"]


async def test_every_format_of_a_download_predicts_the_same(open_house: OpenHouse, tmp_path: Path) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(make_job(rounds=1))
        await asyncio.gather(*(device.work(1) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        path = f"/api/v1/models/{job.job_id}/versions/1/download"
        files = {
            kind: await house.http.get(path, params={"format": kind}) for kind in ("safetensors", "onnx", "packed")
        }
        other = await house.http.get(path, params={"format": "pickle"})

    (tmp_path / "m.safetensors").write_bytes(files["safetensors"].content)
    checkpoint, packed = load_checkpoint(tmp_path / "m.safetensors"), unpack(files["packed"].content)
    samples = np.random.default_rng(0).integers(0, 256, (50, *checkpoint.spec.input_shape)).astype(np.uint8)
    predictor = Predictor(checkpoint.spec, checkpoint.state, batch_size=50)
    predictor.input[:] = samples.reshape(50, -1)
    session = onnxruntime.InferenceSession(files["onnx"].content, providers=["CPUExecutionProvider"])
    logits, labels = session.run(["logits", "label"], {"samples": samples})

    assert np.array_equal(labels, predictor.predict_batch(50))
    assert np.array_equal(logits, logits_of(packed.folded, samples))
    assert packed.classes == CLASSES
    assert packed.weights_digest == checkpoint.weights_digest
    assert 'filename="' + job.job_id + '-v1.onnx"' in files["onnx"].headers["content-disposition"]
    assert other.status_code == 422


@pytest.mark.parametrize("settings", [{"recipe": "onebit"}, {"down_codec": "float32", "up_codec": "float32"}])
async def test_a_version_out_of_the_middle_predicts_as_it_was_judged(
    open_house: OpenHouse, tmp_path: Path, settings: dict[str, Any]
) -> None:
    write_held_out_set(tmp_path / "held-out")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    async with open_house() as house, connected(house.address, "a", "b") as devices:
        job = await house.coordinator.jobs.create(
            make_job(rounds=3, statistics_batches=2, local_steps=12, evaluation=evaluation, **settings)
        )
        work = Holder.work if settings.get("recipe") else work_with_statistics
        await asyncio.gather(*(work(Holder(device), 4) for device in devices))
        await patiently(house.coordinator.jobs.wait_until_idle())
        versions = (await house.get(f"/api/v1/models/{job.job_id}/versions"))[1:]
        files = [await house.http.get(f"/api/v1/models/{job.job_id}/versions/{n}/download") for n in range(1, 5)]

    path = tmp_path / "model.safetensors"
    found = []
    for file in files:
        path.write_bytes(file.content)
        checkpoint = load_checkpoint(path)
        with open_dataset("idx", tmp_path / "held-out", split="test") as held_out:
            predictor = Predictor(checkpoint.spec, checkpoint.state, batch_size=50)
            found.append(evaluate(predictor, held_out))
    judged = [(version["accuracy"], version["loss"]) for version in versions[:3]]
    assert [(one.accuracy, pytest.approx(one.loss)) for one in found[:3]] == judged
    assert len(set(judged)) == 3
    assert found[3] == found[2]  # the closing exchange brought the last round's statistics, and nothing else


async def work_with_statistics(holder: Holder, rounds: int) -> None:
    """As ``Holder.work``, where the whole model travels."""
    device = holder.device
    for _ in range(rounds):
        task = await device.next_task()
        spec, model = ModelSpec.from_json(task.spec_json), await device.download(task.model_digest)
        state = observe(task, device.device_id, spec, model, task.down_codec)
        kind: PayloadKind = "statistics"
        if task.training.local_steps:
            state, kind = train_task(task, device.device_id, model) | state, "update"
        answer = await device.submit(task, get_state_codec(task.up_codec).encode(spec, state, kind=kind))
        assert answer.status == pb.SUBMIT_STATUS_ACCEPTED, answer.reason


async def test_models_are_managed_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.json"
    job.write_text(make_job(rounds=1, min_devices=1).to_json())

    def run(server: str, *arguments: str) -> tuple[int, str]:
        code = main(["models", *arguments, "--server", server])
        told = capsys.readouterr()
        return code, told.out + told.err

    with serving(tmp_path / "state", "--job", str(job)) as server:
        async with connected(server.grpc, "a") as (device,):
            await device.work(1)
        while True:
            (_, listed) = await asyncio.to_thread(run, server.http, "list")
            model = listed.splitlines()[1].split()[0] if len(listed.splitlines()) > 1 else ""
            if " 1 " in listed:
                break
        none = run(server.http, "export", model, "--promoted")
        told = [
            run(server.http, *arguments)[1]
            for arguments in (
                ("promote", model, "--model-version", "0"), ("promote", model), ("rollback", model),
                ("lineage", model), ("compare", model, "0", "1"),
                ("export", model, "--promoted", "--format", "packed", "--output", str(tmp_path / "m.bfpk")),
            )
        ]  # fmt: skip
        refused = run(server.http, "rollback", model)
        with FleetClient(server.http) as fleet:
            client = [
                fleet.models.promote(model, 1), fleet.models.roll_back(model), fleet.models.promotions(model)
            ]  # fmt: skip
            lineage, comparison = fleet.models.lineage(model, 1), fleet.models.compare(model, 0, 1)
            copy = fleet.jobs.clone(model, {"rounds": 7, "starts_at": "2999-01-01T00:00:00Z"})
            written = fleet.jobs.file(copy.id)

    assert (none[0], "was promoted; leave --promoted out" in none[1]) == (1, True)
    assert [text.split(": ")[1].strip() for text in told[:3]] == [
        f"version {number} is promoted" for number in (0, 1, 0)
    ]
    assert "1 of 1 devices, trained on 40 samples" in told[3]
    assert "binary weights have another sign" in told[4]
    assert unpack((tmp_path / "m.bfpk").read_bytes()).classes == CLASSES
    assert [view.promoted_version for view in client] == [1, 0, 0]
    assert (lineage.accepted, comparison.b.version) == (1, 1)
    assert (copy.state, written["rounds"], written["name"]) == ("PENDING", 7, "stripes")
    assert (refused[0], "no earlier version to roll back to" in refused[1]) == (1, True)
