"""Small federations on the digits that ship with scikit-learn."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = ("--dataset", "digits", "--widths", "32", "--devices", "6", "--cohort", "4", "--rounds", "3")
STEPS = ("--local-steps", "8", "--batch-size", "20")
LIMIT_S = 100


def start(*options: str, json_path: Path) -> subprocess.Popen[bytes]:
    """Start ``bitfleet-server simulate`` as a process of its own."""
    command = [sys.executable, "-m", "server", "simulate", *SMALL, *STEPS, *options, "--json", str(json_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)


def run(folder: Path, *options: str) -> dict[str, Any]:
    """Run a simulation to its end; later options win over those of ``SMALL``."""
    path = folder / "result.json"
    process = start(*options, json_path=path)
    _, complaints = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, complaints.decode()
    result: dict[str, Any] = json.loads(path.read_text())
    return result
