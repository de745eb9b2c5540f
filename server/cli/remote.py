"""The commands that ask a running coordinator over HTTP. ``--json`` prints what it answered."""

from __future__ import annotations

import argparse
from typing import Any

from server.cli.asking import ask, ask_all, connect, print_table, show
from server.client.connection import path_of


def show_status(arguments: argparse.Namespace) -> int:
    """Show the coordinator at a glance."""
    status = ask(arguments, "GET", "/status")
    states = "".join(f", {count} {state.lower()}" for state, count in sorted(status["device_states"].items()))
    jobs = ", ".join(f"{count} {state.lower()}" for state, count in sorted(status["jobs"].items())) or "none"
    overhead = status["round_overhead_s"]
    facts = {
        "coordinator": f"version {status['version']}, up since {status['started_at']}",
        "devices": f"{status['devices_connected']} of {status['devices_known']} connected{states}",
        "jobs": jobs,
        "sent": f"{_mib(status['down_bytes'])} to devices, {_mib(status['up_bytes'])} from them",
        "disk": _disk(status["disk"]),
        "overhead": "not measured yet" if overhead is None else f"{overhead:.3f} s a round (median of the latest)",
    }
    if (replica := status.get("replica")) is not None:
        leads = f"{replica['lead']} leads" if replica["lead"] else "none leads at the moment"
        facts["replicas"] = f"{len(replica['alive'])} there, {leads}; {replica['id']} answers"
    columns = ["running job", "rounds", "round", "state", "accepted", "queued", "overhead"]
    rows = (
        [
            job["id"],
            f"{job['rounds_committed']}/{job['rounds_total']}",
            job["round"],
            _phase(job),
            f"{job['accepted']}/{job['devices']}",
            job["queued"],
            _seconds(job["overhead_s"], 3),
        ]
        for job in status["running"]
    )

    facts |= {f"{job['id']} waits": job["waits_for"] for job in status["running"] if job["waits_for"]}

    def print_status() -> None:
        for name, value in facts.items():
            print(f"{name:<12} {value}")
        if status["running"]:
            print_table(columns, rows)

    return show(arguments, status, print_status)


def _disk(disk: dict[str, Any]) -> str:
    quota = "" if disk["quota_bytes"] is None else f" of {disk['quota_bytes'] / 2**20:.1f}"
    free = "" if disk["free_bytes"] is None else f", {disk['free_bytes'] / 2**20:.1f} MiB free"
    return f"{disk['used_bytes'] / 2**20:.1f}{quota} MiB used by payloads{free}"


def list_jobs(arguments: argparse.Namespace) -> int:
    """List all jobs."""
    jobs = ask_all(arguments, "/jobs")
    rows = (
        [
            job["id"],
            _state(job),
            f"{job['rounds_committed']}/{job['rounds_total']}",
            percent(job),
            _seconds(job["overhead_s"], 3),
            job["created_at"],
        ]
        for job in jobs
    )
    columns = ["job", "state", "rounds", "accuracy", "overhead", "created"]
    return show(arguments, jobs, lambda: print_table(columns, rows))


def show_job(arguments: argparse.Namespace) -> int:
    """Show a job and its rounds."""
    job = ask(arguments, "GET", path_of("jobs", arguments.job))
    rounds = ask_all(arguments, path_of("jobs", arguments.job, "rounds"))

    def print_job() -> None:
        print(f"{job['id']}  {_state(job)}  {job['reason']}".rstrip())
        if job["best_version"] is not None:
            print(f"the best version is {job['best_version']}: bitfleet-server models export {job['id']} --best")
        if job["overhead_s"] is not None:
            print(f"a round costs {job['overhead_s']:.3f} s beside the slowest device's training (median)")
        if (privacy := job["privacy"]) is not None:
            spent = f"{privacy['epsilon']:.3f} of {privacy['epsilon_budget']:g} at delta {privacy['delta']:g}"
            print(f"epsilon is {spent}: what the models may have told of a device ({privacy['mechanism']} noise)")
        columns = [
            "round",
            "state",
            "attempt",
            "accepted",
            "rejected",
            "accuracy",
            "local",
            "down",
            "up",
            "slowest",
            "overhead",
        ]
        usual = {"attempt": "1", "rejected": "0", "local": "-"}
        print_table(columns, (_round_row(round_) for round_ in rounds), usual=usual)

    return show(arguments, {**job, "rounds": rounds}, print_job)


def cancel_job(arguments: argparse.Namespace) -> int:
    """Cancel a pending or running job."""
    return _change_job(arguments, "cancel")


def pause_job(arguments: argparse.Namespace) -> int:
    """Stop a job where it stands."""
    return _change_job(arguments, "pause")


def resume_job(arguments: argparse.Namespace) -> int:
    """Let a paused job go on."""
    return _change_job(arguments, "resume")


def _change_job(arguments: argparse.Namespace, change: str) -> int:
    with connect(arguments) as connection:
        job = connection.change_job(arguments.job, change)
    return show(arguments, job, lambda: print(f"job {job['id']} is {job['state']}"))


def list_devices(arguments: argparse.Namespace) -> int:
    """List all devices that ever connected."""
    devices = ask_all(arguments, "/devices")
    rows = (
        [d["device_id"], d["state"], d["last_seen"], d["num_examples"], d["isa"], _mib(d["pss_bytes"]), _ineligible(d)]
        for d in devices
    )
    columns = ["device", "state", "last seen", "examples", "isa", "memory", "ineligible"]
    return show(arguments, devices, lambda: print_table(columns, rows))


def _round_row(round_: dict[str, Any]) -> list[Any]:
    return [
        round_["round"],
        _phase(round_),
        round_["attempt"],
        f"{round_['accepted']}/{round_['devices']}",
        round_["rejected"],
        percent(round_),
        percent(round_, "local_accuracy"),
        _kb(round_["down_bytes_per_device"]),
        _kb(round_["up_bytes_per_device"]),
        _seconds(round_["device_seconds_max"]),
        _seconds(round_["overhead_s"], 3),
    ]


def _ineligible(device: dict[str, Any]) -> str | None:
    """Say which running jobs a device cannot work for, and why."""
    reasons = device["ineligible"]
    return "; ".join(f"{job}: {reason}" for job, reason in reasons.items()) or None


def _state(job: dict[str, Any]) -> str:
    """Say where a job stands, and when it is to begin if it waits for that."""
    waits = job["state"] in ("PENDING", "PAUSED") and job["starts_at"] is not None
    return f"{job['state']} until {job['starts_at'][:16]}Z" if waits else str(job["state"])


def percent(value: dict[str, Any], name: str = "accuracy") -> str:
    """Tell an accuracy, which may not be known."""
    return "-" if value[name] is None else f"{value[name]:.2f} %"


def _seconds(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:.{digits}f} s"


def _phase(row: dict[str, Any]) -> str | None:
    """Say where a round stands, and under secure aggregation at which step of its exchange."""
    exchange, state = row["exchange"], row["state"]
    return f"{state} ({exchange['step']})" if exchange is not None and exchange["step"] is not None else state


def _kb(num_bytes: float | None) -> str | None:
    return None if num_bytes is None else f"{num_bytes / 1000:.1f} kB"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes else "-"
