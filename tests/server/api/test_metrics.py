"""Metrics that a dashboard is made of, and the example dashboard, which asks for none that there is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.patience import until
from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import connected, write_held_out_set

DASHBOARD = Path(__file__).resolve().parents[3] / "docs" / "grafana" / "bitfleet.json"


async def test_metrics_tell_how_jobs_learn_and_what_state_the_fleet_is_in(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    write_held_out_set(tmp_path / "held-out")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    async with open_house() as house:
        async with connected(house.address, "gone"):
            pass
        await until(lambda: len(house.coordinator.fleet) == 0)
        async with connected(house.address, "a", "b") as (a, b):
            job = await house.coordinator.jobs.create(make_job(rounds=2, evaluation=evaluation))
            for device in (a, b):
                await device.submit(task := await device.next_task(), await device.train(task))
            task = await a.next_task()
            await a.submit(task, await a.train(task))
            storage = house.coordinator.disk.storage
            await until(lambda: any(round_.accuracy for round_ in storage.list_rounds(job.job_id)))
            (first, _) = await house.rounds(job.job_id)
            text = (await house.http.get("/metrics")).text

    lines, label = text.splitlines(), f'{{job="{job.job_id}"}}'
    assert f"bitfleet_job_rounds{label} 2.0" in lines
    assert f"bitfleet_job_rounds_committed{label} 1.0" in lines
    assert f"bitfleet_job_accuracy_ratio{label} {first['accuracy'] / 100}" in lines
    assert f"bitfleet_job_loss{label} {first['loss']}" in lines
    assert f"bitfleet_round_members{label} 2.0" in lines
    assert f"bitfleet_round_accepted{label} 1.0" in lines
    assert 'bitfleet_devices{state="offline"} 1.0' in lines
    assert 'bitfleet_devices{state="idle"} 2.0' in lines
    assert 'bitfleet_jobs{state="running"} 1.0' in lines

    kinds = dict(re.findall(r"# TYPE (\w+) (\w+)", text))
    summaries = {f"{name}_{part}" for name, kind in kinds.items() if kind == "summary" for part in ("sum", "count")}
    names = metrics_asked_for()
    of_replicas = {name for name in names if name.startswith("bitfleet_replica")}  # replicas/test_people.py
    assert len(names) > 20
    assert names - of_replicas <= kinds.keys() | summaries


def metrics_asked_for() -> set[str]:
    """Return the names of the metrics that the example dashboard asks for."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    return {name for expression in asked for name in re.findall(r"bitfleet_\w+", expression)}
