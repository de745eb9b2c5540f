"""What an update costs on its way in, by who pays, and what that predicts for more processors than there are here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.fleet import NotRecoveredError
from benchmarks.replicas.fleet import Devices
from benchmarks.replicas.processes import processor_s
from benchmarks.replicas.site import LIMIT_S, Site, small_job

_STATEMENTS = """
    SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
    WHERE query !~* '^\\s*(begin|commit|rollback|savepoint|release)' AND query !~ 'pg_stat_statements'
"""
_WATCH_S = 10.0
_OUTSIDE = ("devices", "balancer")
"""Who stands on other machines, where there are some."""


@dataclass(frozen=True)
class Reading:
    """Counters at one time."""

    at: float
    processor_s: Mapping[str, float]
    """By role."""
    statements: int

    @classmethod
    def take(cls, site: Site, roles: Mapping[str, list[int]]) -> Reading:
        used = {role: processor_s(pids) for role, pids in roles.items()}
        return cls(time.monotonic(), used, int(site.postgres.query(_STATEMENTS)[0][0]))


def measure(
    root: Path, replicas: int, cohorts: Sequence[int], model: Mapping[str, Any], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Have all devices of a cohort send at once, one cohort after the other over the same replicas."""
    runs: list[dict[str, Any]] = []
    with Site(root, replicas, counts_statements=True) as site:
        for cohort in cohorts:
            first = sum(run["devices"] for run in runs)  # new names: an earlier cohort may be missed for a while yet
            with Devices(site, cohort, say, first=first, waits=True, downloads=False) as devices:
                runs.append(_measure_cohort(site, devices, model))
                say(describe(runs[-1]))
    return runs


def describe(run: Mapping[str, Any]) -> str:
    """Say a run in a line."""
    used = run["processor_s_per_update"]
    return (
        f"{run['replicas']} replicas, {run['devices']} devices: {run['updates_per_s']:.1f} updates a second, "
        f"{run['statements_per_update']:.2f} statements each, processor time "
        + ", ".join(f"{role} {1e3 * seconds:.1f} ms" for role, seconds in used.items())
    )


def _measure_cohort(site: Site, devices: Devices, model: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the second round of a job; the first one warms everything."""
    count = devices.plan.count
    devices.hear("enrolled")
    job_id = site.create_job(small_job("intake", 2, count, **model))
    devices.tell()
    devices.hear("ready")
    devices.tell()
    devices.hear("sent")
    site.await_round(job_id, 1, LIMIT_S)
    devices.hear("ready")
    lead = site.lead()
    roles = {
        "lead": [lead.pid],
        "doors": [replica.pid for replica in site.replicas if replica is not lead],
        "postgresql": [site.postgres.pid],
        "store": [site.store.pid],
        "balancer": [site.balancer.pid],
        "devices": [devices.pid],
    }
    quiet = Reading.take(site, roles)
    time.sleep(_WATCH_S)
    before = Reading.take(site, roles)
    devices.tell()
    sent = devices.hear("sent")
    after = Reading.take(site, roles)
    site.await_round(job_id, 2, LIMIT_S)
    committed = Reading.take(site, roles)
    if site.ask("GET", f"/api/v1/jobs/{job_id}")["state"] == "RUNNING":
        site.ask("POST", f"/api/v1/jobs/{job_id}/cancel")  # its round of statistics would take the next cohort
    ((accepted, spread, payload_bytes),) = site.postgres.query(
        "SELECT count(*), count(DISTINCT folded_by), max(payload_bytes) FROM updates "
        "WHERE job_id = %s AND round_number = 2 AND status = 'ACCEPTED'",
        job_id,
    )
    if accepted != count or devices.problems:
        raise NotRecoveredError(f"{count} updates were sent, {accepted} counted; {devices.problems}")
    idle_s = before.at - quiet.at
    idle = {role: (before.processor_s[role] - quiet.processor_s[role]) / idle_s for role in roles}
    idle_statements = (before.statements - quiet.statements) / idle_s
    while_sent = after.statements - before.statements - idle_statements * (after.at - before.at)
    return {
        "replicas": len(site.replicas),
        "devices": count,
        "payload_bytes": payload_bytes,
        "folded_at": spread,
        "updates_per_s": count / (sent["ended"] - sent["began"]),
        "processor_s_per_update": _per_update(before, after, idle, count),
        "processor_s_per_update_with_commit": _per_update(before, committed, idle, count),
        "statements_per_update": while_sent / count,
        "idle_statements_per_s": idle_statements,
        "idle_processor_share": idle,
    }


def _per_update(before: Reading, after: Reading, idle: Mapping[str, float], devices: int) -> dict[str, float]:
    seconds = after.at - before.at
    return {
        role: max(0.0, used - before.processor_s[role] - idle[role] * seconds) / devices
        for role, used in after.processor_s.items()
    }


def predict(run: Mapping[str, Any], cores: list[int]) -> dict[str, Any]:
    """Predict updates a second on machines with so many processors in all (modelled: Amdahl's law).

    With k replicas behind a balancer the lead is one of k doors, too. So of what it uses, what each of the others uses
    is its part as a door, which more replicas share, and the rest is what one event loop must do for the whole fleet.

    Args:
      run: of at least two replicas.
      cores: all processors of replicas, PostgreSQL and object store together.
    """
    used: Mapping[str, float] = run["processor_s_per_update_with_commit"]
    as_door = used["doors"] / (run["replicas"] - 1)
    serial = max(0.0, used["lead"] - as_door)
    total = sum(seconds for role, seconds in used.items() if role not in _OUTSIDE)
    return {
        "serial_s_per_update": serial,
        "total_s_per_update": total,
        "most_updates_per_s": 1 / serial if serial else None,
        "updates_per_s_by_cores": {str(n): 1 / (serial + (total - serial) / n) for n in cores},
    }
