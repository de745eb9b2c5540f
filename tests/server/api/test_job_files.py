"""A job as it was written, and copies of it, over the REST API and from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.cli import main
from server.job_files import parse_changes
from server.job_files.reading import parse_text
from tests.server.conftest import DEADLINE_S, OpenHouse, make_job
from tests.server.test_cli import serving


async def test_a_job_is_read_back_as_it_is_written_and_copied_with_changes(open_house: OpenHouse) -> None:
    asked = make_job(recipe="onebit", rounds=2, starts_at=datetime.now(UTC) + timedelta(hours=1))
    async with open_house() as house:
        job = await house.coordinator.jobs.create(asked)
        written = await house.get(f"/api/v1/jobs/{job.job_id}/file")
        copied = await house.http.post(
            f"/api/v1/jobs/{job.job_id}/clone", json={"set": {"rounds": 5, "model.params.widths": [8]}}
        )
        refused = [
            await house.http.post(f"/api/v1/jobs/{job_id}/clone", json=body)
            for job_id, body in (
                (job.job_id, {"set": {"round": 5}}),
                (job.job_id, {"set": {"rounds.x": 5}}),
                (job.job_id, {"sets": {}}),
                ("none", {}),
            )
        ]

    assert written == {
        "name": "stripes", "model": {"zoo": "mlp", "params": {"widths": [16]}}, "classes": asked.classes,
        "input_shape": asked.input_shape, "rounds": 2, "local_steps": 4, "batch_size": 10, "min_devices": 2,
        "deadline_s": DEADLINE_S, "recipe": "onebit", "starts_at": written["starts_at"],
    }  # fmt: skip
    assert copied.status_code == 201
    copy = copied.json()
    assert copied.headers["Location"] == f"/api/v1/jobs/{copy['id']}"
    assert (copy["config"]["rounds"], copy["config"]["up_codec"], copy["starts_at"]) == (5, "sign", None)
    assert copy["config"]["model"]["params"] == {"widths": [8]}
    assert [answer.status_code for answer in refused] == [422, 422, 422, 404]
    assert "round: there is no such key; did you mean rounds?" in refused[0].json()["detail"]


def test_jobs_are_created_from_files_and_templates_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = main(["jobs", *arguments])
        told = capsys.readouterr()
        return code, told.out + told.err

    template, text = run("templates", "digits")[1], run("templates")[1]
    (tmp_path / "mine.toml").write_text(template.replace("rounds = 15", "rounds = 3"))
    mine = str(tmp_path / "mine.toml")
    with serving(tmp_path / "state") as server:
        there = ("--server", server.http)
        later = "starts_at=2999-01-01T00:00:00+01:00"
        first = json.loads(run("create", "-f", mine, "--set", later, "--json", *there)[1])["id"]
        second = json.loads(run("create", "--template", "digits", "--set", later, "--json", *there)[1])["id"]
        copy = json.loads(run("clone", first, "--set", later, "--set", "rounds=15", "--json", *there)[1])["id"]
        same, differs = run("diff", second, copy, *there), run("diff", first, second, "--json", *there)
        against_file, of_templates = run("diff", mine, first, *there), run("diff", "digits", "mnist-onebit")
        listed, written = run("list", *there)[1], run("file", first, *there)[1]
        shown = run("show", first, *there)[1]
        mistakes = [
            run("create", *there),
            run("create", mine, "--template", "digits", *there),
            run("diff", "no-such", first, *there),
            run("create", mine, "--set", "rounds=0", *there),
        ]

    assert "har" in text
    assert "one device a person" in " ".join(text.split())
    assert (same[0], same[1].strip()) == (0, f"{second} and {copy} are the same job")
    assert (differs[0], json.loads(differs[1])) == (1, [{"key": "rounds", "first": 3, "second": 15}])
    assert (against_file[0], of_templates[0]) == (1, 1)
    assert "starts_at" in against_file[1]
    assert "rounds" not in against_file[1]
    assert "PENDING until" in " ".join(listed.split())
    assert f"{first}  PENDING until 2998-12-31T23:00Z" in shown
    again = parse_text("-", "yaml", written).validate(parse_changes(["starts_at="]))
    assert (again.name, again.rounds, again.spec.name) == ("digits", 3, "mlp")
    assert [code for code, _ in mistakes] == [3, 3, 1, 3]
    assert "exactly one of FILE, -f FILE and --template NAME" in mistakes[0][1]
    assert "'no-such' is no file, and no job here" in mistakes[2][1]
    assert "--set rounds: Input should be greater than or equal to 1 (got 0)" in mistakes[3][1]
