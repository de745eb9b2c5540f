"""From ``git clone`` to a learning curve in the browser: how long one command takes on a machine without bitfleet.

    python -m benchmarks.first_curve

Clones this repository into an empty folder, runs ``make demo`` there and asks the dashboard's coordinator until two
rounds have an accuracy, which is a curve; then the demo is interrupted and the folder removed. Nothing that was built
before is used, but pip's cache is; ``--no-cache`` downloads all anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
CURVE_ROUNDS = 2
TIMEOUT_S = 1800.0
_DASHBOARD = re.compile(r"^dashboard (http://\S+?)/ ", re.M)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure once and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-cache", action="store_true", help="without pip's cache")
    parser.add_argument("--json", metavar="PATH", help="leave the result here")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as folder:
        measured = measure(Path(folder), use_cache=not arguments.no_cache)
    for name, value in measured.items():
        print(f"{name:<24} {value}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measured, indent=2) + "\n")
    return 0


def measure(folder: Path, *, use_cache: bool) -> dict[str, Any]:
    """Clone, run and watch; returns seconds since the clone began, and what the page then had to show."""
    # A virtual environment that is active here would not be on that machine.
    away = {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in away}
    if not use_cache:
        environment["PIP_NO_CACHE_DIR"] = "1"
    log = folder / "demo.log"
    started = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder / "bitfleet"], check=True)
    cloned_s = time.monotonic() - started
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["make", "demo"],
            cwd=folder / "bitfleet",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as demo,
    ):
        try:
            url = _wait_for_dashboard(demo, log, started)
            dashboard_s = time.monotonic() - started
            accuracies = _wait_for_curve(url, demo, log, started)
            curve_s = time.monotonic() - started
        finally:
            os.killpg(demo.pid, signal.SIGINT)
            demo.wait()
    return {
        "clone_s": round(cloned_s, 1),
        "dashboard_s": round(dashboard_s, 1),
        "curve_s": round(curve_s, 1),
        "accuracies": accuracies,
    }


def _wait_for_dashboard(demo: subprocess.Popen[bytes], log: Path, started: float) -> str:
    while True:
        if found := _DASHBOARD.search(log.read_text(errors="replace")):
            return found[1]
        _check(demo, log, started)


def _wait_for_curve(url: str, demo: subprocess.Popen[bytes], log: Path, started: float) -> list[float]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        client.get("/").raise_for_status()
        job = client.get("/api/v1/jobs").raise_for_status().json()[0]["id"]
        while True:
            rounds = client.get(f"/api/v1/jobs/{job}/rounds").raise_for_status().json()
            accuracies = [float(row["accuracy"]) for row in rounds if row["accuracy"] is not None]
            if len(accuracies) >= CURVE_ROUNDS:
                return accuracies
            _check(demo, log, started)


def _check(demo: subprocess.Popen[bytes], log: Path, started: float) -> None:
    if demo.poll() is not None or time.monotonic() - started > TIMEOUT_S:
        raise SystemExit(f"the demo did not come so far; the end of its output:\n{log.read_text()[-2000:]}")
    time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
