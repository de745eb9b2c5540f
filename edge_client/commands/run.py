"""``bitfleet-client run``: take tasks from a coordinator and train on this device's data."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from edge_client.commands.options import Commands, add_data, add_policy, add_state, state_of
from edge_client.errors import SettingsError
from edge_client.pss import use_one_heap
from edge_client.settings import KEEP_TRAINER_S, WATCH_S, ClientSettings

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    run = commands.add_parser("run", help="take tasks from a coordinator and train on this device's data")
    run.add_argument("--server", metavar="HOST:PORT", help="the coordinator (default: where this device enrolled)")
    run.add_argument(
        "--insecure", action="store_const", const="yes", help="in the clear, to a coordinator on this machine"
    )
    add_data(run)
    run.add_argument("--device-id", metavar="ID", help="this device's name (default: made once and kept)")
    run.add_argument("--threads", metavar="N", help="threads of a trainer (default: 1)")
    run.add_argument("--memory-budget", metavar="SIZE", help="memory for a trainer, e.g. 64MiB (default: any)")
    run.add_argument(
        "--keep-trainer",
        metavar="SECONDS",
        help=f"keep a task's trainer so long for the next one; 0 = not at all (default: {KEEP_TRAINER_S:g})",
    )
    run.add_argument(
        "--watch",
        metavar="SECONDS",
        help=f"look so often whether the data folder has changed; 0 = never (default: {WATCH_S:g})",
    )
    for flag, text in (
        ("--allow-battery", "train on battery too"),
        ("--metered", "the network is metered (a mobile modem is noticed without this)"),
        ("--allow-metered", "take part over a metered network too"),
    ):
        run.add_argument(flag, action="store_const", const="yes", help=text)
    for flag, metavar, text in (
        ("--max-temperature", "CELSIUS", "pause while hotter than this (default: any)"),
        ("--hours", "FROM-TO,...", "train in these hours of the day alone, e.g. 22:00-06:00 (default: all)"),
        ("--cpu-share", "PERCENT", "of the time that a trainer runs (default: 100)"),
    ):
        run.add_argument(flag, metavar=metavar, help=text)
    run.add_argument("--max-retries", metavar="N", help="give up after so many attempts in a row (default: never)")
    run.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)")
    add_policy(run)
    add_state(run)
    run.set_defaults(act=_run)


def _run(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "act")}
    state = state_of(arguments)
    identity = state.identity.read()
    settings = ClientSettings.resolve(given, os.environ, None if identity is None else identity.server)
    if identity is None and not settings.insecure:
        raise SettingsError(
            f"this device is not enrolled (nothing in {state.identity.root}): run bitfleet-client enroll, or add "
            "--insecure for a coordinator on this machine that is served so"
        )
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own lines on standard error say the same less clearly
    use_one_heap()
    from edge_client.agent import run_agent  # after the two lines above, and not for every command: gRPC is 20 MB

    return asyncio.run(run_agent(settings))
