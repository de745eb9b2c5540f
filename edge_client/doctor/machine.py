"""Checks of the machine: Python, memory, disk, clock, and what keeps it from work now."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bnncore.cli.output import format_bytes
from edge_client.budgets import Budgets
from edge_client.conditions import Surroundings, obstacles
from edge_client.doctor.checks import Check, Mark
from edge_client.machine import memory_bytes, read_text, usable_cores
from edge_client.policy import read_policy
from edge_client.settings import ClientSettings, find_policy

__all__ = ["check_clock", "check_conditions", "check_disk", "check_memory", "check_python"]

LEAST_PYTHON = (3, 11)
LEAST_MEMORY = 64 << 20
"""Below this the agent and a small trainer hardly fit."""
LEAST_DISK = 100 << 20
SLOW_SYNC_S = 0.25

_TIME_ERROR = 5
"""What adjtimex returns of a clock that nothing has set."""


def check_python() -> Check:
    """The interpreter."""
    version = platform.python_version()
    text = f"Python {version} on {platform.machine()}, {platform.system()} {platform.release()}"
    facts = {"python": version, "machine": platform.machine()}
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Check("python", Mark.WRONG, text, f"install Python {least} or newer", facts)
    return Check("python", Mark.OK, text, "", facts)


def check_memory(budget: int) -> Check:
    """What may be taken, and what is free now."""
    limit = memory_bytes()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _available_bytes()
    taken = min(limit, budget or limit)
    facts = {"limit_bytes": limit, "available_bytes": available, "budget_bytes": taken, "cores": usable_cores()}
    text = f"{format_bytes(limit)}, {format_bytes(available)} free now, {usable_cores()} core(s)"
    if limit < machine:
        text += f" (a control group holds it below the machine's {format_bytes(machine)})"
    if min(available, taken) < LEAST_MEMORY:
        advice = f"end other programs: {format_bytes(LEAST_MEMORY)} are wanted for the agent and a small trainer"
        return Check("memory", Mark.NOTE, text, advice, facts)
    return Check("memory", Mark.OK, text, "", facts)


def _available_bytes() -> int:
    for line in read_text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def check_disk(folder: Path) -> Check:
    """Room and speed where the state folder is, or will be."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    try:
        seconds = _sync_seconds(place)
    except OSError as error:
        advice = f"let this user write to {place}, or name another folder with --state"
        return Check("disk", Mark.WRONG, f"{place} cannot be written: {error}", advice, {"free_bytes": free})
    facts = {"free_bytes": free, "sync_seconds": seconds}
    text = f"{format_bytes(free)} free at {place}, {1e3 * seconds:.1f} ms to write a block durably"
    if free < LEAST_DISK:
        return Check("disk", Mark.WRONG, text, f"make room: {format_bytes(LEAST_DISK)} are wanted", facts)
    if seconds > SLOW_SYNC_S:
        return Check("disk", Mark.NOTE, text, "a worn or slow card; put the state folder on another disk", facts)
    return Check("disk", Mark.OK, text, "", facts)


def _sync_seconds(place: Path) -> float:
    """Median of some durable writes of a block."""
    times = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(5):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[2]


def check_clock() -> Check:
    """Whether something sets the clock; how right it is, the coordinator tells."""
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))
    facts = {"is_synchronised": None if state < 0 else state != _TIME_ERROR}
    if state == _TIME_ERROR and not Path("/run/systemd/timesync/synchronized").exists():
        advice = "switch on time over the network: sudo timedatectl set-ntp true"
        return Check("clock", Mark.NOTE, f"{text}; nothing seems to set it", advice, facts)
    return Check("clock", Mark.OK, text, "", facts)


def check_conditions(environ: Mapping[str, str], state: Path, policy_file: str | None) -> Check:
    """What would keep the agent from work now, by the variables of the environment and the owner's policy."""
    path = find_policy(policy_file or environ.get("BITFLEET_CLIENT_POLICY"), environ)
    policy = read_policy(path)
    given = {"server": "localhost:1", "state": str(state), "dataset": "digits"}
    settings = ClientSettings.resolve(given, environ)
    here = Surroundings(settings, Budgets.of(settings, policy))
    reasons, degrees = obstacles(here.read()), here.temperature()
    warmth = "no thermal zone" if degrees is None else f"{degrees:.1f} °C"
    facts = {"obstacles": reasons, "temperature_c": degrees, "policy": None if path is None else str(path)}
    if reasons:
        advice = "it waits; the flags of bitfleet-client run and the policy allow more"
        return Check("conditions", Mark.NOTE, f"{', '.join(reasons)}; {warmth}", advice, facts)
    return Check("conditions", Mark.OK, f"nothing keeps it from work; {warmth}", "", facts)
