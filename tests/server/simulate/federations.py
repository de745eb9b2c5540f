"""Small federations on the digits that ship with scikit-learn."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from server.storage.sql import open_storage
from tests.logs import logs_as_before
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = ("--dataset", "digits", "--widths", "32", "--devices", "6", "--cohort", "4", "--rounds", "3")
STEPS = ("--local-steps", "8", "--batch-size", "20")
SAME = (
    *("accuracy", "accuracy_by_round", "local_accuracy_by_round", "digest"),
    *("bits_per_weight_up", "bits_per_weight_down", "updates"),
)


def start(*options: str, json_path: Path) -> subprocess.Popen[bytes]:
    """Start ``bitfleet-server simulate`` as a process of its own.

    It hears Ctrl-C, even where the tests run in the background of a shell, which lets its children ignore that. It says
    so itself: a function between fork and exec would run while threads of gRPC, from other tests, are halfway.
    """
    simulate = ["simulate", *SMALL, *STEPS, *options, "--json", str(json_path)]
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{hearing}; from server.cli import main; raise SystemExit(main())", *simulate]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)


def run(folder: Path, *options: str) -> dict[str, Any]:
    """Run a simulation to its end, in this process; later options win over those of ``SMALL``."""
    path = folder / "result.json"
    with logs_as_before():  # also where a fixture of many tests runs it
        assert main(["simulate", *SMALL, *STEPS, *options, "--json", str(path)]) == 0
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def run_apart(folder: Path, *options: str) -> dict[str, Any]:
    """Run a simulation to its end in a process of its own, whose memory is nobody else's."""
    path = folder / "result.json"
    process = start(*options, json_path=path)
    _, complaints = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, complaints.decode()
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return what a simulation says, in this process, of options that it refuses."""
    assert main(["simulate", *SMALL, *STEPS, *options, "--json", str(folder / "never.json")]) == 3
    return capsys.readouterr().err


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on anything but the options."""
    return {name: result[name] for name in SAME}


def wait_for(state: Path, *, rounds: int, lines: int) -> None:
    """Wait until a simulation has committed so many rounds and sent so many updates."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        time.sleep(0.005)
        traffic = state / "traffic.jsonl"
        if not traffic.exists() or traffic.read_bytes().count(b"\n") < max(lines, 1):
            continue
        if rounds == 0:
            return
        storage = open_storage(f"sqlite:///{state / 'simulation.db'}")
        try:
            (job,) = storage.list_jobs()
            committed = [r for r in storage.list_rounds(job.job_id) if r.state == "COMMITTED"]
        finally:
            storage.close()
        if len(committed) >= rounds:
            return
    raise AssertionError("the simulation made no progress")
