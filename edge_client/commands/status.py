"""``bitfleet-client status``: this device, its last task, its pending update."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from bnncore.cli.output import format_bytes
from edge_client.best_model import read_best_model
from edge_client.commands.options import Commands, add_json, add_state, state_of
from edge_client.commands.output import show, utc
from edge_client.daily_use import DailyUse
from edge_client.machine import hottest_zone
from edge_client.policy import Policy

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser("status", help="show this device, its last task and its pending update")
    add_json(status)
    add_state(status)
    status.set_defaults(act=_status)


def _status(arguments: argparse.Namespace) -> int:
    state = state_of(arguments)
    dispatches = list(state.outbox.dispatches())
    identity = state.identity.read()
    pending = state.pending()
    pause = state.pause()
    budgets = state.budgets()
    last_task = state.last_task()
    degrees = hottest_zone()
    today = DailyUse(state.daily_use_file, Policy()).today
    best_models = [model for path in state.best_models.newest_first() if (model := read_best_model(path)) is not None]
    facts = {
        "state": str(state.root),
        "device_id": state.device_id(),
        "agent_pid": state.holder(),
        "enrolled_at": None if identity is None else identity.server,
        "certificate_ends_at": None if identity is None else utc(identity.not_after),
        "budgets": budgets,
        "temperature_c": degrees,
        "paused": pause,
        "last_task": last_task,
        "pending": None if pending is None else asdict(pending),
        "best_models": [{**asdict(model), "accuracy": model.accuracy} for model in best_models],
        "cached_models_bytes": sum(state.models.sizes().values()),
        "updates_sent": len(dispatches),
        "bytes_sent": sum(dispatch.bytes for dispatch in dispatches),
        "today": asdict(today),
    }
    shown = {
        "device": facts["device_id"] or "none yet: `bitfleet-client run` makes one",
        "state": facts["state"],
        "agent": f"running, PID {facts['agent_pid']}" if facts["agent_pid"] else "not running",
        "enrolled": "no"
        if identity is None
        else f"at {identity.server}, certificate until {facts['certificate_ends_at']}",
        "budgets": _budgets(budgets),
        "hottest": "no thermal zone" if degrees is None else f"{degrees:.1f} °C",
        "paused": "no"
        if pause is None
        else f"task {pause['task_id']} since {pause['at']}: {', '.join(pause['reasons'])}",
        "last task": "none" if last_task is None else "{task_id} {outcome} at {at} {reason}".format(**last_task),
        "energy": _energy(last_task),
        "pending": "none" if pending is None else f"round {pending.round_number}, {pending.total_bytes} bytes",
        "models": f"{facts['cached_models_bytes']} bytes cached",
        "sent": f"{facts['updates_sent']} updates, {facts['bytes_sent']} bytes",
        "today": f"{today.down} bytes down, {today.up} up, {today.written} written to the disk",
    }
    lines = [f"{name:<10} {value}" for name, value in shown.items()]
    lines += [
        f"{'best model':<10} of job {model.job_id}: {model.accuracy:.1f} % of {model.validation_examples} samples held "
        f"out here, round {model.round_number}, {model.path}"
        for model in best_models
    ]
    show(facts, "\n".join(lines), arguments.json)
    return 0


def _energy(last_task: dict[str, Any] | None) -> str:
    """Say what the last training took, and by what that is known."""
    task = last_task or {}
    joules, source, steps = task.get("joules"), task.get("joules_source"), task.get("steps")
    if not joules or not source or not steps:
        return "not known"
    how = "modelled" if source == "model" else f"measured: {source}"
    return f"{joules:.3g} J for the last task, {joules / steps:.3g} J a step ({how})"


def _budgets(told: dict[str, Any] | None) -> str:
    """Write what the agent, when it was last started, might take."""
    if told is None:
        return "not known: bitfleet-client run has not been started here"
    parts = [f"{format_bytes(told['memory_bytes'])} and {told['threads']} thread(s) of a trainer"]
    if told["cpu_share"] < 100:
        parts.append(f"{told['cpu_share']:g} % of the time")
    parts += [f"in the hours {hours}" for hours in told["hours"]]
    if told["max_temperature"] is not None:
        parts.append(f"up to {told['max_temperature']:g} °C")
    parts.append("on mains and battery" if told["on_battery"] else "on mains only")
    parts.append("over any network" if told["metered"] else "not over a metered network")
    parts += [f"{format_bytes(limit)} {name} a day" for name, limit in told["day"].items() if limit is not None]
    return ", ".join(parts)
