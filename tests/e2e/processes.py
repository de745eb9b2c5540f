"""Real processes for the end-to-end tests: a coordinator and devices that can be killed and started again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from bnncore.data import open_dataset
from server.demo.scenario import write_shards
from tests.patience import LIMIT_S, wait_for

_MARK = "BITFLEET_E2E_RUN"
_READY = re.compile(r"devices at (?P<grpc>\S+), people at (?P<http>http://\S+?)/?$", re.M)
_SERVER = ["-m", "server"]
_T = TypeVar("_T")


def split_digits(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Split the digits unevenly over devices; give each one's data folder."""
    folders = {name: root / name for name in names}
    with open_dataset("digits", None, split="train") as dataset:
        write_shards(dataset, list(folders.values()))
    return folders


def asking(**options: Any) -> httpx.Client:
    """A client that connects for each request, as whoever is asked may have been killed since the last one."""
    return httpx.Client(timeout=LIMIT_S, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0), **options)


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

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status; fails when the process does not end."""
        self._popen.terminate()
        return self.wait()

    def wait(self) -> int:
        """Return the exit status; fails when the process does not end."""
        return self._popen.wait(LIMIT_S)

    def is_alive(self) -> bool:
        return self._popen.poll() is None


class Fleet:
    """A coordinator and devices over one folder. ``close`` ends them and tells who outlived that."""

    def __init__(
        self, root: Path, jobs: Sequence[dict[str, Any]], data_folders: dict[str, Path], *options: str
    ) -> None:
        self.root = root
        self.devices: dict[str, Process] = {}
        self.coordinator: Process
        self.url = ""
        self.grpc = self._http = "127.0.0.1:0"
        self._data_folders = data_folders
        self._options = options
        self._device_options: tuple[str, ...] = ()
        self._mark = uuid.uuid4().hex
        self._started: list[Process] = []
        # One for all requests: who asks ten times a second would otherwise read the system's certificates each time.
        self._asking = asking()
        self._job_files = [root / f"job-{number}.json" for number in range(len(jobs))]
        for path, job in zip(self._job_files, jobs, strict=True):
            path.write_text(json.dumps(job))

    def start(self) -> None:
        self.start_coordinator()
        for name in self._data_folders:
            self.start_device(name)

    def start_held(self) -> None:
        """Start with three devices, and hold all jobs in their second rounds.

        These stay open until ``let_go``: they need all devices, and the second one's trainer was stopped before they
        began. That it was in time does not depend on how fast anything is: the first device is stopped until the others
        have nothing to do but to wait for it.
        """
        self._options += ("--heartbeat-interval", "60")  # who is stopped is not gone
        self._device_options = ("--keep-trainer", "3600")
        first, *others = self._data_folders
        self.start_coordinator()
        self.start_device(first)
        wait_for(f"{first} to connect", lambda: any(row["connected"] for row in self.get("/api/v1/devices")))
        os.kill(self.devices[first].pid, signal.SIGSTOP)
        for name in others:
            self.start_device(name)
        self.wait_until_accepted(1, len(others))
        self._held = self.trainer_of(others[0])
        os.kill(self._held, signal.SIGSTOP)
        self._worked_ticks = _ticks(self.trainer_of(others[-1]))
        os.kill(self.devices[first].pid, signal.SIGCONT)
        for job in self.jobs():
            self.wait_until_committed(1, job["id"])

    def let_go(self) -> None:
        """End what ``start_held`` began."""
        os.kill(self._held, signal.SIGCONT)

    def start_coordinator(self) -> None:
        """Start it; a second time at the same addresses, over the same state."""
        log = self.root / f"coordinator-{len(self._started)}.log"
        self.coordinator = self._spawn(
            [
                *(*_SERVER, "serve", "--insecure", "--grpc", self.grpc, "--http", self._http),
                *("--state", str(self.root / "coordinator")),
                *(word for path in self._job_files for word in ("--job", str(path))),
                *("--heartbeat-interval", "0.5", "--settle", "0.1"),
                *self._options,
            ],
            log,
        )

        def ready() -> re.Match[str] | None:
            assert self.coordinator.is_alive(), log.read_text()
            return _READY.search(log.read_text())

        addresses = wait_for("the coordinator to be ready", ready)
        self.url = addresses["http"]
        self.grpc, self._http = addresses["grpc"], self.url.removeprefix("http://")

    def start_device(self, name: str) -> None:
        self.devices[name] = self._spawn(
            [
                *("-m", "edge_client", "run", "--insecure", "--server", self.grpc, "--device-id", name),
                *("--data", str(self._data_folders[name]), "--state", str(self.state_folder(name))),
                *self._device_options,
            ],
            self.root / f"{name}.log",
        )

    def state_folder(self, name: str) -> Path:
        return self.root / name

    def get(self, path: str) -> Any:
        response = self._asking.get(self.url + path)
        response.raise_for_status()
        return response.json()

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.get("/api/v1/jobs"))

    def job(self) -> dict[str, Any]:
        """Return the only job."""
        (job,) = self.jobs()
        return job

    def rounds(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """Return the rounds of a job, or of the only one."""
        return list(self.get(f"/api/v1/jobs/{job_id or self.job()['id']}/rounds"))

    def digests(self, job_id: str | None = None) -> list[str]:
        return [round_["weights_digest"] for round_ in self.rounds(job_id) if round_["state"] == "COMMITTED"]

    def outbox(self, name: str) -> list[dict[str, Any]]:
        """Every time that a payload left a device."""
        return list(self.ledger(name)["payloads"])

    def verify(self, name: str) -> dict[str, Any]:
        """Whether the ledger of a device is as it was written."""
        return self.ledger(name, "--verify")

    def ledger(self, name: str, *options: str) -> dict[str, Any]:
        output = subprocess.run(
            [
                sys.executable,
                "-m",
                "edge_client",
                "outbox",
                *options,
                "--json",
                "--state",
                str(self.state_folder(name)),
            ],
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
        ).stdout
        return dict(json.loads(output))

    def wait_until_at_work(self) -> tuple[str, int]:
        """Wait until the last device of a fleet that is held is in the middle of its steps, or past them.

        Returns:
          Its name, and its trainer's PID.
        """
        name = list(self._data_folders)[-1]
        trainer, enough = self.trainer_of(name), self._worked_ticks + 0.3 * os.sysconf("SC_CLK_TCK")

        def is_at_work() -> bool:
            updates = self.rounds()[1]["updates"]
            is_past = any((row["device_id"], row["status"]) == (name, "ACCEPTED") for row in updates)
            return _ticks(trainer) > enough or is_past

        wait_for(f"{name} to train", is_at_work)
        return name, trainer

    def wait_until_accepted(self, round_number: int, count: int) -> None:
        """Wait until so many updates are in every job's round; they must not be enough to close it."""

        def are_accepted() -> bool:
            rounds = [self.rounds(job["id"]) for job in self.jobs()]
            return all(len(its) >= round_number and its[round_number - 1]["accepted"] == count for its in rounds)

        wait_for(f"{count} updates of round {round_number}", are_accepted)

    def wait_until_committed(self, round_number: int, job_id: str | None = None) -> None:
        path = f"/api/v1/jobs/{job_id or self.job()['id']}"
        wait_for(f"round {round_number} to be committed", lambda: self.get(path)["rounds_committed"] >= round_number)

    def wait_until_completed(self) -> list[dict[str, Any]]:
        def ended() -> list[dict[str, Any]] | None:
            jobs = self.jobs()
            return None if any(job["state"] in ("PENDING", "RUNNING") for job in jobs) else jobs

        jobs = wait_for("the jobs to end", ended)
        assert [(job["state"], job["reason"]) for job in jobs] == [("COMPLETED", "")] * len(jobs)
        return jobs

    def trainer_of(self, name: str) -> int:
        """Find the trainer that a device's agent has started."""
        children = (pid for pid in self._marked() if _parent(pid) == self.devices[name].pid)
        return next(pid for pid in children if b"edge_client.trainer" in _read(pid, "cmdline"))

    def stop(self) -> list[int]:
        """End all processes in order by SIGTERM and return their exit statuses: devices, then the coordinator."""
        running = [*self.devices.values(), self.coordinator]
        return [process.terminate() for process in running if process.is_alive()]

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
        self._asking.close()

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


def _ticks(pid: int) -> int:
    """Clock ticks that a process has worked, 0 when it is gone."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0
