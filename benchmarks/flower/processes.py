"""Both sides' processes: started as their users start them, waited for, and gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from benchmarks.flower.wire import free_port
from server.demo.fleet import Child
from server.demo.memory import process_tree

APP = Path(__file__).parent / "app"
TORCH = "torch==2.13.0"
_READY = re.compile(r"^bitfleet-server ready: devices at (?P<grpc>\S+), people at (?P<http>http://\S+?)/?$", re.M)
_T = TypeVar("_T")


def make_flower_venv(folder: Path, *, simulation: bool = False) -> Path:
    """Install the newest Flower and PyTorch, unless they are there; return the environment's folder.

    Args:
      folder: of the environment.
      simulation: whether Flower is to simulate, for which it needs Ray.
    """
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CONSTRAINT")}
    if not (folder / "bin" / "flower-superlink").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, TORCH], check=True, env=environment)
        subprocess.run([*pip, "flwr"], check=True, env=environment)
    if simulation and not (folder / "bin" / "ray").exists():
        subprocess.run([*pip, "flwr[simulation]"], check=True, env=environment)
    return folder


def versions(venv: Path) -> dict[str, str]:
    """Tell the versions of Flower, PyTorch and Ray, where it is there, in an environment."""
    code = (
        "import importlib.metadata as m, json\n"
        "found = {d.name: d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in ('flwr', 'torch', 'ray') if n in found}))"
    )
    output = subprocess.run([str(venv / "bin" / "python"), "-c", code], check=True, capture_output=True).stdout
    return dict(json.loads(output))


class Processes:
    """A group of processes; leaving the block kills them and all that they started.

    Args:
      root: folder for their logs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            # Parents first, so that nobody starts another one meanwhile.
            for pid in process_tree(child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.reap(time.monotonic())

    def start(self, name: str, arguments: list[str], **options: Any) -> Child:
        """Start a Python with some arguments; see ``Child``."""
        self._children.append(Child(name, arguments, self.root / f"{name}.log", **options))
        return self._children[-1]

    def wait_for(self, what: str, probe: Callable[[], _T | None], timeout_s: float) -> _T:
        """Call ``probe`` until it gives something.

        Raises:
          ChildFailedError: a process ended meanwhile.
          SystemExit: it took too long.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := probe()) is not None:
                return found
            for child in self._children:
                child.check()
            time.sleep(0.2)
        raise SystemExit(f"waited {timeout_s:.0f} s for {what}; logs are in {self.root}")


class FlowerServer:
    """A SuperLink, started as its documentation says; it starts SuperExec and the server's app itself."""

    def __init__(self, processes: Processes, venv: Path) -> None:
        self._processes = processes
        self.venv = venv
        self.port = free_port()
        self.python = str(venv / "bin" / "python")
        home = processes.root / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.variables = {
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        arguments = ["--insecure", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        self.process = self.start("superlink", "flower-superlink", *arguments)
        processes.wait_for("the SuperLink", lambda: "Uvicorn running" in self.process.output() or None, 60)

    def start(self, name: str, command: str, *arguments: str) -> Child:
        """Start one of Flower's commands."""
        words = [str(self.venv / "bin" / command), *arguments]
        return self._processes.start(name, words, python=self.python, variables=self.variables)

    def run(self, **config: str | int) -> None:
        """Submit the app with its configuration."""
        overrides = " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in config.items())
        command = [str(self.venv / "bin" / "flwr"), "run", str(APP), "here", "--run-config", overrides]
        subprocess.run(command, check=True, env=os.environ | self.variables, capture_output=True)

    def wait_for_report(self, path: Path, timeout_s: float) -> dict[str, Any]:
        """Wait until the server's app has written its report."""

        def report() -> dict[str, Any] | None:
            return dict(json.loads(path.read_text())) if path.exists() else None

        return self._processes.wait_for("Flower's rounds", report, timeout_s)


class FleetServer:
    """``bitfleet-server serve`` with one job."""

    def __init__(self, processes: Processes, job: dict[str, Any]) -> None:
        self._processes = processes
        job_file = processes.root / "job.json"
        job_file.write_text(json.dumps(job))
        words = ["-m", "server", "serve", "--insecure", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        state = ["--state", str(processes.root / "coordinator"), "--job", str(job_file)]
        self.process = processes.start("coordinator", [*words, *state])
        ready = processes.wait_for("the coordinator", lambda: _READY.search(self.process.output()), 60)
        self.address, self._url = ready["grpc"], ready["http"]

    def get(self, path: str) -> Any:
        """Ask the REST API."""
        response = httpx.get(self._url + path, timeout=30, trust_env=False)
        response.raise_for_status()
        return response.json()

    def wait_until_completed(self, timeout_s: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait for the job's end; return it and its rounds."""

        def ended() -> dict[str, Any] | None:
            (job,) = self.get("/api/v1/jobs")
            return None if job["state"] in ("PENDING", "RUNNING") else dict(job)

        job = self._processes.wait_for("the job", ended, timeout_s)
        if job["state"] != "COMPLETED":
            raise SystemExit(f"the job ended as {job['state']}: {job['reason']}")
        return job, self.get(f"/api/v1/jobs/{job['id']}/rounds")

    def wait_until_committed(self, rounds: int, timeout_s: float) -> None:
        """Wait until so many rounds are committed."""
        self._processes.wait_for(
            "the rounds", lambda: self.get("/api/v1/jobs")[0]["rounds_committed"] >= rounds or None, timeout_s
        )
