"""The commands that ask a running coordinator over HTTP: jobs, devices, models. ``--json`` prints what it answered."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bnncore.durable import replace_file
from bnncore.errors import BitfleetError, ConfigurationError, UnreachableError
from server.jobs import load_job

_TIMEOUT_S = 60.0


class RequestError(BitfleetError):
    """The coordinator answered with a problem."""


def create_job(arguments: argparse.Namespace) -> int:
    """Create a job from a file; it is validated here first, so that mistakes are told with the file's name."""
    config = load_job(Path(arguments.file))
    description = config.model_dump(mode="json")
    if arguments.start_checkpoint is not None:
        description["start"] = {"checkpoint": str(Path(arguments.start_checkpoint).resolve())}
    job = _ask(arguments, "POST", "/jobs", json=description)
    return _show(arguments, job, lambda: print(f"created job {job['id']}"))


def list_jobs(arguments: argparse.Namespace) -> int:
    """List all jobs."""
    jobs = _ask(arguments, "GET", "/jobs")
    rows = (
        [job["id"], job["state"], f"{job['rounds_committed']}/{job['rounds_total']}", _percent(job), job["created_at"]]
        for job in jobs
    )
    return _show(arguments, jobs, lambda: _print_table(["job", "state", "rounds", "accuracy", "created"], rows))


def show_job(arguments: argparse.Namespace) -> int:
    """Show a job and its rounds."""
    job = _ask(arguments, "GET", f"/jobs/{arguments.job}")
    rounds = _ask(arguments, "GET", f"/jobs/{arguments.job}/rounds")

    def print_job() -> None:
        print(f"{job['id']}  {job['state']}  {job['reason']}".rstrip())
        if job["best_version"] is not None:
            print(f"the best version is {job['best_version']}: bitfleet-server models export {job['id']} --best")
        if job["overhead_s"] is not None:
            print(f"a round costs {job['overhead_s']:.3f} s beside the slowest device's training (median)")
        columns = [
            "round",
            "state",
            "attempt",
            "accepted",
            "rejected",
            "accuracy",
            "down/device",
            "up/device",
            "slowest",
            "overhead",
        ]
        _print_table(columns, (_round_row(round_) for round_ in rounds))

    return _show(arguments, {**job, "rounds": rounds}, print_job)


def cancel_job(arguments: argparse.Namespace) -> int:
    """Cancel a pending or running job."""
    job = _ask(arguments, "POST", f"/jobs/{arguments.job}/cancel")
    return _show(arguments, job, lambda: print(f"job {job['id']} is {job['state']}"))


def pause_job(arguments: argparse.Namespace) -> int:
    """Stop a job where it stands."""
    job = _ask(arguments, "POST", f"/jobs/{arguments.job}/pause")
    return _show(arguments, job, lambda: print(f"job {job['id']} is {job['state']}"))


def resume_job(arguments: argparse.Namespace) -> int:
    """Let a paused job go on."""
    job = _ask(arguments, "POST", f"/jobs/{arguments.job}/resume")
    return _show(arguments, job, lambda: print(f"job {job['id']} is {job['state']}"))


def list_devices(arguments: argparse.Namespace) -> int:
    """List all devices that ever connected."""
    devices = _ask(arguments, "GET", "/devices")
    rows = (
        [d["device_id"], d["state"], d["last_seen"], d["num_examples"], d["isa"], _mib(d["pss_bytes"]), d["ineligible"]]
        for d in devices
    )
    columns = ["device", "state", "last seen", "examples", "isa", "memory", "ineligible"]
    return _show(arguments, devices, lambda: _print_table(columns, rows))


def list_models(arguments: argparse.Namespace) -> int:
    """List all models with their newest version."""
    models = _ask(arguments, "GET", "/models")
    rows = (
        [m["id"], m["latest"]["version"], _percent(m["latest"]), m["latest"]["weights_digest"][:16]] for m in models
    )
    return _show(arguments, models, lambda: _print_table(["model", "version", "accuracy", "weights"], rows))


def export_model(arguments: argparse.Namespace) -> int:
    """Write a model version to a checkpoint file, which appears complete or not at all."""
    version = arguments.model_version
    if arguments.best:
        version = _ask(arguments, "GET", f"/jobs/{arguments.model}")["best_version"]
        if version is None:
            raise RequestError(f"no version of model {arguments.model!r} was evaluated; leave --best out")
    if version is None:
        version = _ask(arguments, "GET", f"/models/{arguments.model}/versions")[-1]["version"]
    path = Path(arguments.output or f"{arguments.model}-v{version}.safetensors")
    response = _request(arguments, "GET", f"/models/{arguments.model}/versions/{version}/download")
    try:
        with replace_file(path) as file:
            file.write(response.content)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error}; choose another --output") from error
    result = {"model": arguments.model, "version": version, "path": str(path), "bytes": len(response.content)}
    return _show(arguments, result, lambda: print(f"wrote {path} ({len(response.content)} bytes)"))


def _ask(arguments: argparse.Namespace, method: str, path: str, **options: Any) -> Any:
    return _request(arguments, method, path, **options).json()


def _request(arguments: argparse.Namespace, method: str, path: str, **options: Any) -> httpx.Response:
    url = f"{arguments.server.rstrip('/')}/api/v1{path}"
    try:
        response = httpx.request(method, url, timeout=_TIMEOUT_S, **options)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigurationError(
            f"--server {arguments.server!r} must be a URL such as http://127.0.0.1:8080"
        ) from error
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"no answer from {arguments.server} ({error}); is the coordinator running, and is --server right?"
        ) from error
    if response.is_error:
        raise RequestError(_detail(response))
    return response


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code}; is it a bitfleet coordinator?"


def _show(arguments: argparse.Namespace, value: Any, print_readable: Any) -> int:
    if arguments.json:
        json.dump(value, sys.stdout, indent=2)
        print()
    else:
        print_readable()
    return 0


def _print_table(columns: list[str], rows: Iterable[list[Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    Console().print(table)


def _round_row(round_: dict[str, Any]) -> list[Any]:
    return [
        round_["round"],
        round_["state"],
        round_["attempt"],
        f"{round_['accepted']}/{round_['devices']}",
        round_["rejected"],
        _percent(round_),
        round_["down_bytes_per_device"],
        round_["up_bytes_per_device"],
        _seconds(round_["device_seconds_max"]),
        _seconds(round_["overhead_s"], 3),
    ]


def _percent(value: dict[str, Any]) -> str:
    return "-" if value["accuracy"] is None else f"{value['accuracy']:.2f} %"


def _seconds(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:.{digits}f} s"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes else "-"
