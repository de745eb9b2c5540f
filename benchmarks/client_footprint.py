"""What a device gives for being in a fleet: room on the disk, seconds until it polls, memory while it waits.

    python -m benchmarks.client_footprint --json build/client-footprint.json

Builds a wheel (or takes ``--wheel FILE``), installs it with its dependencies and nothing else into a fresh virtual
environment under build/, and starts the agent of that environment against a coordinator of this one. Room is counted
by package as the files that its wheel brings; the bytecode that pip adds is counted apart. The first poll is when the
coordinator has welcomed the agent, which has looked at its data before (in a child); ``first_poll_processor_s`` is
the processor time of both until then, which other programs do not lengthen; ``import_s`` is what its imports take.
Memory is read some seconds later, without a job: of the agent, which is then the only process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnncore.cli.output import check_destination, write_json
from edge_client.pss import process_tree, pss_bytes

__all__ = ["installed_sizes", "main", "measure"]

REPOSITORY = Path(__file__).resolve().parent.parent
STARTS = 3
IDLE_S = 10.0
LIMIT_S = 120.0
LIMITS = {"installed_bytes": 100_000_000, "first_poll_s": 2.0, "idle_rss_bytes": 50_000_000}
"""What is asked: 100 MB on the disk, 2 s, 50 MB of resident memory."""

_READY = re.compile(r"devices at (\S+), people at")
_SIZES = """
import importlib.metadata, json, sys
sizes, names = {}, sys.argv[1:]
every = map(importlib.metadata.distribution, names) if names else importlib.metadata.distributions()
for distribution in every:
    files = [file.locate() for file in distribution.files or () if file.locate().is_file()]
    code = [file for file in files if file.suffix == ".pyc"]
    total = sum(file.stat().st_size for file in files)
    sizes[distribution.name] = [total - sum(file.stat().st_size for file in code), sum(f.stat().st_size for f in code)]
print(json.dumps(sizes))
"""
_IMPORTS = "import time; began = time.perf_counter(); import edge_client.agent; print(time.perf_counter() - began)"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure once and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="a wheel that was built already")
    parser.add_argument("--json", metavar="PATH", help="leave the result here")
    arguments = parser.parse_args(argv)
    check_destination(arguments.json, "--json")
    folder = REPOSITORY / "build" / "client-footprint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = install((arguments.wheel or build_wheel(folder)).resolve(), folder / "venv")
    measured = measure(python, folder)
    for name, value in measured.items():
        print(f"{name:<20} {value}")
    write_json(measured, arguments.json)
    return 0


def build_wheel(folder: Path) -> Path:
    """Build the wheel as a release does."""
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY)
    return next(folder.glob("*.whl"))


def install(wheel: Path, venv: Path) -> Path:
    """Install a wheel and what it needs into a new environment; returns its Python."""
    _run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "-c", constraints, wheel)
    return python


def measure(python: Path, folder: Path) -> dict[str, Any]:
    """Measure an installed client."""
    sizes = installed_sizes(python)
    imports = statistics.median(float(_run(python, "-c", _IMPORTS)) for _ in range(STARTS))
    data = folder / "data"
    write_data(data)
    with _coordinator(folder) as address:
        starts = [_start_agent(python, address, data, folder, wait_s=0.0) for _ in range(STARTS)]
        idle = _start_agent(python, address, data, folder, wait_s=IDLE_S)
    result: dict[str, Any] = {
        "python": sys.version.split()[0],
        "machine": os.uname().machine,
        "installed_bytes": sum(size for size, _ in sizes.values()),
        "bytecode_bytes": sum(code for _, code in sizes.values()),
        "packages": {name: size for name, (size, _) in sorted(sizes.items(), key=lambda item: -item[1][0])},
        "import_s": round(imports, 3),
        **{name: round(statistics.median(start[name] for start in starts), 3) for name in starts[0]},
        **{name: value for name, value in idle.items() if name not in starts[0]},
    }
    result["limits"] = LIMITS
    result["is_met"] = {name: result[name] <= limit for name, limit in LIMITS.items()}
    return result


def installed_sizes(python: Path, *names: str) -> dict[str, tuple[int, int]]:
    """Bytes of distributions in an environment, of all where none is named: of the files, and of the bytecode."""
    found = json.loads(_run(python, "-c", _SIZES, *names))
    return {name: (size, code) for name, (size, code) in found.items()}


def write_data(folder: Path) -> None:
    """Write a small data set."""
    import numpy as np

    from bnncore.data import write_idx

    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    write_idx(folder, images, np.arange(200, dtype=np.uint8) % 4, "train", classes=list("abcd"))


@contextmanager
def _coordinator(folder: Path) -> Iterator[str]:
    """Run a coordinator; gives the address where devices connect."""
    command = [sys.executable, "-m", "server", "serve", "--insecure", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--state", str(folder / "server")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as server:
        assert server.stdout is not None
        try:
            found = next((match for line in server.stdout if (match := _READY.search(line))), None)
            if found is None:
                raise SystemExit("the coordinator did not start")
            yield found[1]
        finally:
            server.terminate()


def _start_agent(python: Path, address: str, data: Path, folder: Path, *, wait_s: float) -> dict[str, float]:
    """Start the agent and end it; gives the seconds until it was welcomed, and its memory when it is waited for."""
    log = folder / "agent.log"
    command: list[str | Path] = [python.with_name("bitfleet-client"), "run", "--insecure", "--server", address]
    with log.open("wb") as output:
        began = time.monotonic()
        agent = subprocess.Popen(
            [*command, "--data", data, "--state", folder / "client"], stdout=output, stderr=output, cwd=folder
        )
    try:
        while b"welcomed" not in log.read_bytes():
            if agent.poll() is not None or time.monotonic() - began > LIMIT_S:
                raise SystemExit(f"the agent was not welcomed:\n{log.read_text()}")
            time.sleep(0.005)
        seconds = time.monotonic() - began
        began_at = {"first_poll_s": seconds, "first_poll_processor_s": _processor_s(agent.pid)}
        if wait_s == 0:
            return began_at
        time.sleep(wait_s)
        processes = process_tree(agent.pid)
        return began_at | {
            "idle_rss_bytes": sum(_rss_bytes(pid) for pid in processes),
            "idle_pss_bytes": sum(pss_bytes(pid) for pid in processes),
            "idle_processes": len(processes),
        }
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(LIMIT_S)


def _processor_s(pid: int) -> float:
    """User and system time of a process and of the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _run(*command: object, check: bool = True) -> str:
    return subprocess.run([*map(str, command)], check=check, stdout=subprocess.PIPE, text=True, cwd="/").stdout


if __name__ == "__main__":
    sys.exit(main())
