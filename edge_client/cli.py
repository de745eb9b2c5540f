"""The command ``bitfleet-client``: run the agent, and let the device's owner see what it did and what left."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnncore.errors import BitfleetError, ConfigurationError
from edge_client.outbox import UNANSWERED
from edge_client.pss import use_one_heap
from edge_client.settings import ClientSettings, default_state_dir
from edge_client.state_dir import StateDir

__all__ = ["main"]

_EPILOG = "Every flag of `run` may be given as a variable: BITFLEET_CLIENT_SERVER, BITFLEET_CLIENT_DATA, ..."


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "run":
            return _run(arguments)
        state = StateDir(_state_dir(arguments, os.environ))
        facts, text = _status(state) if arguments.command == "status" else _outbox(state)
        _show(facts, text, arguments.json)
    except BitfleetError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return ConfigurationError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bitfleet-client", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="take tasks from a coordinator and train on this device's data")
    run.add_argument("--server", metavar="HOST:PORT", help="the coordinator's gRPC address")
    run.add_argument("--data", metavar="DIR", help="folder with this device's data; nothing in it ever leaves")
    run.add_argument("--dataset", metavar="NAME", help="layout of the data (default: detected)")
    run.add_argument("--device-id", metavar="ID", help="this device's name (default: made once and kept)")
    run.add_argument("--threads", metavar="N", help="threads of a trainer (default: 1)")
    run.add_argument("--memory-budget", metavar="SIZE", help="memory for a trainer, e.g. 64MiB (default: any)")
    for flag, text in (
        ("--allow-battery", "train on battery too"),
        ("--metered", "the network is metered (a mobile modem is noticed without this)"),
        ("--allow-metered", "take part over a metered network too"),
    ):
        run.add_argument(flag, action="store_const", const="yes", help=text)
    run.add_argument("--max-temperature", metavar="CELSIUS", help="take no task while hotter than this (default: any)")
    run.add_argument("--max-retries", metavar="N", help="give up after so many attempts in a row (default: never)")
    run.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)")
    status = commands.add_parser("status", help="show this device, its last task and its pending update")
    outbox = commands.add_parser("outbox", help="list every update that left this device")
    for command in (status, outbox):
        command.add_argument(
            "--json", nargs="?", const="-", metavar="PATH", help="write JSON to PATH (default: standard output)"
        )
    for command in (run, status, outbox):
        command.add_argument("--state", metavar="DIR", help="state folder (default: ~/.local/state/bitfleet)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    settings = ClientSettings.resolve(given, os.environ)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own lines on standard error say the same less clearly
    use_one_heap()
    from edge_client.agent import run_agent  # after the two lines above, and not for every command: gRPC is 20 MB

    return asyncio.run(run_agent(settings))


def _state_dir(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    given = arguments.state or environ.get("BITFLEET_CLIENT_STATE")
    return Path(given) if given else default_state_dir(environ)


def _status(state: StateDir) -> tuple[dict[str, Any], str]:
    dispatches = list(state.outbox.dispatches())
    pending = state.pending()
    last_task = state.last_task()
    facts = {
        "state": str(state.root),
        "device_id": state.device_id(),
        "agent_pid": state.holder(),
        "last_task": last_task,
        "pending": None if pending is None else asdict(pending),
        "cached_models_bytes": sum(state.models.sizes().values()),
        "updates_sent": len(dispatches),
        "bytes_sent": sum(dispatch.bytes for dispatch in dispatches),
    }
    shown = {
        "device": facts["device_id"] or "none yet: `bitfleet-client run` makes one",
        "state": facts["state"],
        "agent": f"running, PID {facts['agent_pid']}" if facts["agent_pid"] else "not running",
        "last task": "none" if last_task is None else "{task_id} {outcome} at {at} {reason}".format(**last_task),
        "pending": "none" if pending is None else f"round {pending.round_number}, {pending.total_bytes} bytes",
        "models": f"{facts['cached_models_bytes']} bytes cached",
        "sent": f"{facts['updates_sent']} updates, {facts['bytes_sent']} bytes",
    }
    return facts, "\n".join(f"{name:<10} {value}" for name, value in shown.items())


def _outbox(state: StateDir) -> tuple[list[dict[str, Any]], str]:
    rows: list[dict[str, Any]] = [
        {
            "at": dispatch.at,
            "job_id": dispatch.job_id,
            "round": dispatch.round_number,
            "task_id": dispatch.task_id,
            "bytes": dispatch.bytes,
            "digest": dispatch.digest,
            "status": dispatch.status,
            "reason": dispatch.reason,
        }
        for dispatch in state.outbox.dispatches()
    ]
    lines = [f"{'at':<25} {'bytes':>10} {'status':<10} {'round':>5}  {'digest':<12}  job"]
    lines += ["{at:<25} {bytes:>10} {status:<10} {round:>5}  {digest:.12}  {job_id}".format(**row) for row in rows]
    lines.append(f"{sum(row['bytes'] for row in rows)} bytes in {len(rows)} updates")
    if any(row["status"] == UNANSWERED for row in rows):
        lines.append(f"{UNANSWERED}: no answer came, so some or all of the bytes left")
    return rows, "\n".join(lines)


def _show(facts: Any, text: str, json_path: str | None) -> None:
    if json_path is None:
        print(text)
    elif json_path == "-":
        print(json.dumps(facts, indent=2))
    else:
        Path(json_path).write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
