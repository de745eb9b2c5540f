"""The whole device client as an emulated ARM processor: the same job, the same bits as on this machine.

A coordinator runs here, natively, and two devices take part in a job of two rounds on the handwritten digits: once as
processes of this machine, then as 64-bit ARM under ``qemu-aarch64``, agent and trainer, for each processor asked for.
The digests of the committed models must be equal. Run it with

    make arm-client

which first makes what it needs; docs/arm.md says how. Emulation says what a processor computes, not how long it takes:
the seconds here are those of an emulator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from server.demo.fleet import Fleet
from server.demo.scenario import Scenario, lay_out
from server.demo.signals import end_on_signals
from server.demo.watch import JobWatch

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
"""The processors of the Raspberry Pi 3, 4 and 5."""

ROUNDS = 2
TIMEOUT_S = 600.0


def run_job(root: Path, python: str, local_steps: int, console: Console) -> dict[str, Any]:
    """Run the job with devices that ``python`` runs; give what came of it.

    Returns:
      digests: of the committed model of each round, the last being the job's.
      machines: what the devices said they are, without repetitions.
      accuracy: of the last model, in percent.
      seconds: from the first process to the end of the job.

    Raises:
      ChildFailedError: a process ended by itself.
      JobEndedError: the job failed or took longer than ``TIMEOUT_S``.
    """
    scenario = Scenario("digits", widths=(256, 256), rounds=ROUNDS, local_steps=local_steps, num_devices=2)
    job_file, folders = lay_out(scenario, None, root)
    started = time.monotonic()
    with Fleet(root, job_file, folders, device_python=python) as fleet:
        outcome = JobWatch(fleet.url, console, fleet.check).run(TIMEOUT_S)
        seconds = time.monotonic() - started
        devices = httpx.get(fleet.url + "/api/v1/devices", timeout=30, trust_env=False).json()
    return {
        "digests": [round_["weights_digest"] for round_ in outcome.rounds],
        "machines": sorted({device["machine"] for device in devices}),
        "accuracy": outcome.job["accuracy"],
        "seconds": round(seconds, 1),
    }


def instruction_set(python: str) -> str:
    """Ask a Python's engine which instruction set it chose."""
    command = [python, "-P", "-m", "bnncore.cli", "info", "--json", "-"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    return str(json.loads(done.stdout)["isa"])


def run_as(cpu: str | None, python: str, local_steps: int, console: Console) -> dict[str, Any]:
    """Run the job as one processor, None being this machine's own."""
    console.print(f"\n{cpu or 'this machine'}")
    if cpu is not None:
        os.environ["QEMU_CPU"] = cpu
    isa = instruction_set(python)
    with tempfile.TemporaryDirectory(prefix="bitfleet-arm-") as folder:
        result = run_job(Path(folder), python, local_steps, console)
    expected = os.uname().machine if cpu is None else "aarch64"
    if result["machines"] != [expected]:
        raise SystemExit(f"the devices are {result['machines']}, not {expected}")
    console.print(f"{result['seconds']} s, {isa}, {result['digests'][-1]}")
    return {"isa": isa, **result}


def report(native: dict[str, Any], emulated: dict[str, dict[str, Any]], local_steps: int) -> dict[str, Any]:
    """Put the runs side by side: the first processor's at the top, all of them below."""
    cpu, first = next(iter(emulated.items()))
    version = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "digest_arm": first["digests"][-1],
        "digest_x86": native["digests"][-1],
        "equal": all(run["digests"] == native["digests"] for run in emulated.values()),
        "rounds": ROUNDS,
        "local_steps": local_steps,
        "seconds": first["seconds"],
        "qemu_cpu": cpu,
        "qemu": version.splitlines()[0],
        "native": native,
        "emulated": emulated,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the job here and emulated; 0 when all digests are equal, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm_client", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, metavar="PATH", help="the emulated Python that .ci/arm-root made")
    parser.add_argument(
        "--cpus", default="cortex-a72", metavar="NAMES", help=f"of {','.join(CPUS)} (default: %(default)s)"
    )
    parser.add_argument("--local-steps", type=int, default=50, metavar="N", help="steps a round (default: 50)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the result")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    python = str(arguments.python if os.path.isabs(arguments.python) else Path.cwd() / arguments.python)
    with end_on_signals():
        native = run_as(None, sys.executable, arguments.local_steps, console)
        emulated = {cpu: run_as(cpu, python, arguments.local_steps, console) for cpu in arguments.cpus.split(",")}
    result = report(native, emulated, arguments.local_steps)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    console.print("\nall digests are equal" if result["equal"] else "\nTHE DIGESTS DIFFER")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
