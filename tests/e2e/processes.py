"""Real processes for the end-to-end tests: a coordinator and devices that can be killed and started again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

_MARK = "BITFLEET_E2E_RUN"
_READY = re.compile(r"devices at (?P<grpc>\S+), people at (?P<http>http://\S+?)/?$", re.M)
_SERVER = ["-m", "server"]
_T = TypeVar("_T")


def wait_for(what: str, probe: Callable[[], _T | None], timeout_s: float = 45.0) -> _T:
    """Call ``probe`` until it gives something true; fail with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Process:
    """One process with its output in a file, marked by an environment variable that its children inherit."""

    def __init__(self, arguments: list[str], log: Path, mark: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {_MARK: mark},
            )
        self.pid = self._popen.pid

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def terminate(self, timeout_s: float) -> int:
        """Send SIGTERM and return the exit status; fails when the process does not end in time."""
        self._popen.terminate()
        return self._popen.wait(timeout_s)

    def is_alive(self) -> bool:
        return self._popen.poll() is None


class Fleet:
    """A coordinator and devices over one folder. ``close`` ends them and tells who outlived that."""

    def __init__(self, root: Path, job: dict[str, Any], data_folders: dict[str, Path]) -> None:
        self.root = root
        self.devices: dict[str, Process] = {}
        self.coordinator: Process
        self.url = ""
        self._grpc = self._http = "127.0.0.1:0"
        self._data_folders = data_folders
        self._mark = uuid.uuid4().hex
        self._started: list[Process] = []
        (root / "job.json").write_text(json.dumps(job))

    def start(self) -> None:
        self.start_coordinator()
        for name in self._data_folders:
            self.start_device(name)

    def start_coordinator(self) -> None:
        """Start it; a second time at the same addresses, over the same state."""
        log = self.root / f"coordinator-{len(self._started)}.log"
        self.coordinator = self._spawn(
            [
                *(*_SERVER, "serve", "--insecure", "--grpc", self._grpc, "--http", self._http),
                *("--state", str(self.root / "coordinator"), "--job", str(self.root / "job.json")),
                *("--heartbeat-interval", "0.1", "--settle", "0.1"),
            ],
            log,
        )

        def ready() -> re.Match[str] | None:
            assert self.coordinator.is_alive(), log.read_text()
            return _READY.search(log.read_text())

        addresses = wait_for("the coordinator to be ready", ready)
        self.url = addresses["http"]
        self._grpc, self._http = addresses["grpc"], self.url.removeprefix("http://")

    def start_device(self, name: str) -> None:
        self.devices[name] = self._spawn(
            [
                *("-m", "edge_client", "run", "--server", self._grpc, "--device-id", name),
                *("--data", str(self._data_folders[name]), "--state", str(self.state_folder(name))),
            ],
            self.root / f"{name}.log",
        )

    def state_folder(self, name: str) -> Path:
        return self.root / name

    def get(self, path: str) -> Any:
        response = httpx.get(self.url + path, timeout=10, trust_env=False)
        response.raise_for_status()
        return response.json()

    def job(self) -> dict[str, Any]:
        (job,) = self.get("/api/v1/jobs")
        return dict(job)

    def rounds(self) -> list[dict[str, Any]]:
        return list(self.get(f"/api/v1/jobs/{self.job()['id']}/rounds"))

    def digests(self) -> list[str]:
        return [round_["weights_digest"] for round_ in self.rounds() if round_["state"] == "COMMITTED"]

    def outbox(self, name: str) -> list[dict[str, Any]]:
        output = subprocess.run(
            [sys.executable, "-m", "edge_client", "outbox", "--json", "--state", str(self.state_folder(name))],
            capture_output=True,
            timeout=30,
            check=True,
        ).stdout
        return list(json.loads(output))

    def wait_until_training(self, name: str, round_number: int) -> int:
        """Wait until a device is in the middle of its steps of a round; return its trainer's PID."""

        def trainer() -> int | None:
            device = next((row for row in self.get("/api/v1/devices") if row["device_id"] == name), None)
            if device is None or device["step"] == 0 or self.job()["rounds_committed"] != round_number - 1:
                return None
            return self.trainer_pid(name)

        return wait_for(f"{name} to train in round {round_number}", trainer)

    def wait_until_committed(self, round_number: int) -> None:
        wait_for(f"round {round_number} to be committed", lambda: self.job()["rounds_committed"] >= round_number)

    def wait_until_completed(self) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job()
            return job if job["state"] not in ("PENDING", "RUNNING") else None

        job = wait_for("the job to end", ended, timeout_s=90)
        assert job["state"] == "COMPLETED", job["reason"]
        return job

    def trainer_pid(self, name: str) -> int | None:
        """Find the trainer that a device's agent has started; None when there is none now."""
        children = (pid for pid in self._marked() if _parent(pid) == self.devices[name].pid)
        return next((pid for pid in children if b"edge_client.trainer" in _read(pid, "cmdline")), None)

    def stop(self) -> list[int]:
        """End all processes in order by SIGTERM and return their exit statuses: devices, then the coordinator."""
        running = [*self.devices.values(), self.coordinator]
        return [process.terminate(timeout_s=10) for process in running if process.is_alive()]

    def leftovers(self) -> list[str]:
        """List the command lines of processes that are, or descend from, processes of this fleet and still live."""
        return [_read(pid, "cmdline").replace(b"\0", b" ").decode() for pid in self._marked()]

    def close(self) -> None:
        """Kill whatever still lives."""
        for pid in self._marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()

    def _spawn(self, arguments: list[str], log: Path) -> Process:
        process = Process(arguments, log, self._mark)
        self._started.append(process)
        return process

    def _marked(self) -> Iterator[int]:
        mark = f"{_MARK}={self._mark}".encode()
        for name in os.listdir("/proc"):
            if name.isdecimal() and mark in _read(int(name), "environ").split(b"\0"):
                yield int(name)


def _read(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0
