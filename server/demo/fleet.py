"""The demo's processes: started, looked after, and gone when the demo ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bnncore.errors import BitfleetError
from server.demo.memory import process_tree
from server.demo.signals import uninterrupted

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 8.0
_READY = re.compile(r"^bitfleet-server ready: devices at (?P<grpc>\S+), people at (?P<http>http://\S+?)/?$", re.M)
_LOG_LINES = 15
_SERVER = ["-m", "server"]
_CLIENT = ["-m", "edge_client"]


class ChildFailedError(BitfleetError):
    """A process of the demo ended by itself; the message holds the end of its log."""


class Child:
    """One process of a Python, its output in a log file.

    Args:
      name: what it is, for people.
      arguments: of the Python.
      log: where its output goes.
      python: which Python.
      variables: environment variables that it has beside this process's.

    Attributes:
      name: what it is, for people.
      pid: its process id.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log: Path,
        *,
        python: str = sys.executable,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            # In a session of its own, Ctrl-C reaches the demo alone, which then ends its children in order.
            self._process = subprocess.Popen(
                [python, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The installed packages, whatever lies in the working folder.
                env=os.environ | {"PYTHONSAFEPATH": "1"} | dict(variables or {}),
            )
        self.pid = self._process.pid

    def output(self) -> str:
        """Return what the process has written so far."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Check that the process lives.

        Raises:
          ChildFailedError: it has ended.
        """
        status = self._process.poll()
        if status is not None:
            lines = "\n  ".join(self.output().splitlines()[-_LOG_LINES:])
            raise ChildFailedError(
                f"the {self.name} ended with status {status}. The end of its log, {self._log}:\n  {lines}"
            )

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def reap(self, deadline: float) -> None:
        """Wait until ``deadline`` (monotonic seconds), then kill it and whatever it started."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            for pid in process_tree(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


class Fleet:
    """A coordinator and its devices; leaving the ``with`` block ends them all.

    Args:
      root: folder for their state and logs.
      job_file: what they learn.
      data_folders: one a device; the device is named after the folder's parent.
      device_python: what runs the devices, for one that pretends to be another processor.

    Attributes:
      coordinator: the coordinator's process.
      devices: the devices' agents, by device id.
      url: where people reach the coordinator, without a slash at the end.
    """

    def __init__(
        self, root: Path, job_file: Path, data_folders: list[Path], *, device_python: str = sys.executable
    ) -> None:
        self._root = root
        self._device_python = device_python
        self._job_file = job_file
        self._data_folders = data_folders
        self.devices: dict[str, Child] = {}
        self.coordinator: Child
        self.url = ""
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def check(self) -> None:
        """Check that every process lives.

        Raises:
          ChildFailedError: one has ended.
        """
        for child in self._children:
            child.check()

    def _start(self) -> None:
        state = self._root / "coordinator"
        addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        job = ["--insecure", "--state", str(state), "--job", str(self._job_file)]
        self.coordinator = self._spawn("coordinator", [*_SERVER, "serve", *addresses, *job])
        grpc_address, self.url = self._wait_until_ready()
        for folder in self._data_folders:
            device = folder.parent
            where = ["--insecure", "--server", grpc_address, "--data", str(folder), "--dataset", "idx"]
            who = ["--device-id", device.name, "--state", str(device / "state")]
            self.devices[device.name] = self._spawn(device.name, [*_CLIENT, "run", *where, *who], self._device_python)

    def _spawn(self, name: str, arguments: list[str], python: str = sys.executable) -> Child:
        with uninterrupted():
            child = Child(name, arguments, self._root / f"{name}.log", python=python)
            self._children.append(child)
        return child

    def _wait_until_ready(self) -> tuple[str, str]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            ready = _READY.search(self.coordinator.output())
            if ready:
                return ready["grpc"], ready["http"]
            self.coordinator.check()
            time.sleep(0.05)
        raise ChildFailedError(f"the coordinator was not ready within {START_TIMEOUT_S:.0f} s")

    def _stop(self) -> None:
        # Devices first: they would otherwise look for their coordinator.
        with uninterrupted():
            for children in (self._children[1:], self._children[:1]):
                for child in children:
                    child.terminate()
                deadline = time.monotonic() + STOP_TIMEOUT_S
                for child in children:
                    child.reap(deadline)
