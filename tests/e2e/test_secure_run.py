"""Secure sums with real processes over TLS: devices that die in the middle change nothing but who is in the sum."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client.outbox import UNANSWERED, Dispatch
from edge_client.state_dir import StateDir
from tests.e2e.processes import Fleet, asking, split_digits
from tests.patience import LIMIT_S, wait_for

DEVICES = ("device-1", "device-2", "device-3", "device-4")
ROUNDS = 2

_READY = re.compile(r"people at (https://\S+?)/\s*$", re.M)
_KNOWN = re.compile(r"known by (\S+)")


class TlsFleet(Fleet):
    """A fleet with certificates: devices enrol when they are started first."""

    def __init__(self, root: Path, job: dict[str, Any], data_folders: dict[str, Path]) -> None:
        super().__init__(root, [job], data_folders)
        self._state = root / "coordinator"
        self._fingerprint = ""

    def start_coordinator(self) -> None:
        log = self.root / f"coordinator-{len(self._started)}.log"
        arguments = ["-m", "server", "serve", "--grpc", self.grpc, "--http", self._http, "--state", str(self._state)]
        arguments += ["--job", str(self._job_files[0]), "--heartbeat-interval", "60", "--settle", "0.1"]
        self.coordinator = self._spawn(arguments, log)
        wait_for("the coordinator", lambda: _KNOWN.search(log.read_text()))
        ready, known = _READY.search(log.read_text()), _KNOWN.search(log.read_text())
        assert ready
        assert known
        self.url, self._fingerprint = ready[1], known[1]
        trust = ssl.create_default_context(cafile=self._state / "identity" / "ca.pem")
        key = (self._state / "identity" / "admin.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        self._asking = asking(verify=trust, headers=headers)

    def start_device(self, name: str) -> None:
        state = self.state_folder(name)
        if not state.exists():
            token = json.loads(self._run("server", "token", "create", "--json", "--state", str(self._state)))["token"]
            at = ("--server", self.url, "--ca-fingerprint", self._fingerprint, "--token", token, "--device-id", name)
            self._run("edge_client", "enroll", *at, "--state", str(state))
        run = ["-m", "edge_client", "run", "--data", str(self._data_folders[name]), "--state", str(state)]
        self.devices[name] = self._spawn(run, self.root / f"{name}.log")

    def sent(self, name: str, kind: str) -> list[Dispatch]:
        """What a device has sent of one kind, so far as it was answered."""
        rows = StateDir(self.state_folder(name)).outbox.dispatches()
        return [row for row in rows if row.kind == kind and row.status != UNANSWERED]

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def data_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return split_digits(tmp_path_factory.mktemp("shards"), DEVICES)


@pytest.fixture
def make_fleet(tmp_path: Path, data_folders: dict[str, Path]) -> Iterator[Any]:
    fleets: list[TlsFleet] = []

    def make(job: dict[str, Any]) -> TlsFleet:
        fleets.append(TlsFleet(tmp_path, job, data_folders))
        fleets[-1].start()
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def job_of(**keys: Any) -> dict[str, Any]:
    return {
        "name": "secure",
        "model": {"zoo": "mlp", "params": {"widths": [128]}},
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [8, 8],
        "rounds": ROUNDS,
        "min_devices": len(DEVICES),
        "quorum": 3,
        "deadline_s": 600.0,
        "local_steps": 1500,
        "evaluation": {"dataset": "digits"},
        "secure_aggregation": {"min_members": 3, "phase_s": 20},
        **keys,
    }


@pytest.mark.parametrize(
    "recipe", [{"recipe": "onebit"}, {"strategy": "fedavg", "up_codec": "int8", "down_codec": "int8"}], ids=str
)
def test_a_secure_job_ends_whoever_dies_in_the_middle(make_fleet: Any, recipe: dict[str, Any]) -> None:
    fleet: TlsFleet = make_fleet(job_of(**recipe))
    silent, killed, last = "device-4", "device-3", "device-1"

    wait_for("a task", lambda: "task begins" in fleet.devices[last].log.read_text())
    os.kill(fleet.devices[last].pid, signal.SIGSTOP)  # so that the keys of this one come last
    wait_for("the keys of the silent one", lambda: fleet.sent(silent, "keys"))
    fleet.devices[silent].kill()
    os.kill(fleet.devices[last].pid, signal.SIGCONT)
    wait_for("a masked update", lambda: fleet.sent(killed, "masked"))
    fleet.devices[killed].kill()
    fleet.start_device(killed)
    wait_for("the first round", lambda: fleet.job()["rounds_committed"] >= 1)
    fleet.start_device(silent)
    fleet.wait_until_completed()

    assert fleet.job()["rounds_committed"] == ROUNDS
    assert len(fleet.digests()) >= ROUNDS  # a last exchange of statistics may follow
    assert min(row.round_number for row in fleet.sent(silent, "keys")) == 1
    assert min(row.round_number for row in fleet.sent(silent, "shares")) == 2
    for name in DEVICES:
        rows = fleet.outbox(name)
        assert {row["kind"] for row in rows} <= {"keys", "shares", "masked", "reveal"}
        masked = [row for row in rows if row["kind"] == "masked" and row["status"] == "ACCEPTED"]
        assert len({(row["round"], row["attempt"]) for row in masked}) == len(masked)
        assert fleet.verify(name)["intact"]
