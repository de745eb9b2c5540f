"""``bitfleet-client doctor``: whether this device is fit to take part, and what to do about it."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from bnncore.amounts import read_bytes
from edge_client.commands.options import Commands, add_data, add_json, add_policy, add_state, data_of, state_of
from edge_client.commands.output import show
from edge_client.errors import SettingsError

if TYPE_CHECKING:
    from edge_client.doctor.checks import Check

__all__ = ["add_parsers"]

_LIMIT_S = 30.0
"""Of a check that has no limit of its own."""

_WIDTH = 100
_SIGNS = {"ok": "[ok]", "note": "[ ! ]", "wrong": "[ X ]", "skipped": "[ - ]"}


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="check whether this device is fit to take part, and say what to do")
    add_data(doctor)
    doctor.add_argument("--memory-budget", metavar="SIZE", help="memory for a trainer, e.g. 64MiB (default: any)")
    doctor.add_argument("--threads", metavar="N", default="1", help="threads of a trainer (default: 1)")
    doctor.add_argument("--no-benchmark", action="store_true", help="leave out what takes seconds of training")
    add_policy(doctor)
    add_json(doctor)
    add_state(doctor)
    doctor.set_defaults(act=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    is_text = arguments.json is None
    checks = []
    for check in _checks(arguments):
        checks.append(check)
        if is_text:
            print(_lines(check), flush=True)
    is_fit = all(check.mark != "wrong" for check in checks)
    facts = {"is_fit": is_fit, "checks": [asdict(check) for check in checks]}
    show(facts, "this device can take part" if is_fit else "this device cannot take part like this", arguments.json)
    return 0 if is_fit else 1


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from edge_client.doctor import fleet, learning, machine
    from edge_client.doctor.checks import Check, Mark, run_check
    from edge_client.machine import memory_bytes

    state = state_of(arguments)
    try:
        budget = read_bytes(arguments.memory_budget or os.environ.get("BITFLEET_CLIENT_MEMORY_BUDGET") or "0")
        threads = int(arguments.threads)
    except ValueError as error:
        raise SettingsError(f"--memory-budget and --threads must be amounts: {error}") from None
    checks: dict[str, tuple[float, Callable[[], Check]]] = {
        "python": (_LIMIT_S, machine.check_python),
        "memory": (_LIMIT_S, lambda: machine.check_memory(budget)),
        "disk": (_LIMIT_S, lambda: machine.check_disk(state.root)),
        "clock": (_LIMIT_S, machine.check_clock),
        "network": (_LIMIT_S, lambda: fleet.check_network(state)),
        "certificate": (_LIMIT_S, lambda: fleet.check_certificate(state)),
        "conditions": (_LIMIT_S, lambda: machine.check_conditions(os.environ, state.root, arguments.policy)),
    }
    for name, (limit_s, look) in checks.items():
        yield run_check(name, look, limit_s)
    dataset, data = arguments.dataset or os.environ.get("BITFLEET_CLIENT_DATASET"), data_of(arguments)
    if dataset or data or "BITFLEET_DATA" in os.environ:
        yield run_check("data", lambda: learning.check_data(dataset, data), learning.DATA_S + 5)
    else:
        yield Check("data", Mark.SKIPPED, "no data are named", "name them: --data DIR")
    if arguments.no_benchmark:
        return
    networks: dict[str, object] = {}

    def measure() -> Check:
        check, found = learning.measure_engine(threads)
        networks.update(found)
        return check

    yield run_check("engine", measure, learning.ENGINE_S + 5)
    if networks:
        memory = min(memory_bytes(), budget or memory_bytes())
        yield run_check("networks", lambda: learning.check_networks(networks, memory), _LIMIT_S)


def _lines(check: Check) -> str:
    first = f"{_SIGNS[check.mark]:<6}{check.name:<12} "
    margin = " " * len(first)
    lines = [textwrap.fill(line, _WIDTH - len(margin)) for line in check.text.splitlines()]
    if check.advice:
        lines.append("-> " + textwrap.fill(check.advice, _WIDTH - len(margin) - 3, subsequent_indent="   "))
    return first + textwrap.indent("\n".join(lines), margin).removeprefix(margin)
