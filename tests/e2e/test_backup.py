"""A backup of a coordinator at work, put back on another disk after the first one was lost: the fleet goes on."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROUNDS
from tests.e2e.processes import Fleet
from tests.patience import LIMIT_S


def server(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stderr.decode()


def test_a_fleet_goes_on_from_a_backup(held: Fleet, undisturbed: Fleet, tmp_path: Path) -> None:
    state, file = held.root / "coordinator", tmp_path / "fleet.tar"
    held.wait_until_at_work()

    said = server("backup", "--state", state, file)
    assert said.startswith("bitfleet: 1 jobs and ")
    assert file.stat().st_mode & 0o777 == 0o600
    held.let_go()
    held.wait_until_committed(ROUNDS)  # what the backup does not know
    held.coordinator.kill()
    shutil.rmtree(state)
    server("restore", "--state", state, file)
    held.start_coordinator()

    (job,) = held.wait_until_completed()
    assert job["rounds_committed"] == ROUNDS
    assert held.digests() == undisturbed.digests()
