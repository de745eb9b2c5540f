"""The agent as a real process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_client.pss import process_tree
from edge_client.state_dir import StateDir
from tests.patience import LIMIT_S


class Device:
    """One ``bitfleet-client run``; its log goes to ``log`` beside its state folder."""

    def __init__(self, port: int, data: Path, state: Path, arguments: tuple[str, ...] = ()) -> None:
        self.state = StateDir(state)
        self.log_path = state.with_suffix(".log")
        command = [
            "run",
            "--insecure",
            "--server",
            f"127.0.0.1:{port}",
            "--data",
            str(data),
            "--state",
            str(state),
            *arguments,
        ]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "edge_client", *command], stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def children(self) -> list[int]:
        return process_tree(self.pid)[1:]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for its end, and give its exit code."""
        return await asyncio.to_thread(self._process.wait, LIMIT_S)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that shows in the device's files or processes."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                assert self._process.poll() is None, self.log
                await asyncio.sleep(0.02)

    def trainers(self) -> list[int]:
        """PIDs of all trainers ever started, from the log: a look at the processes can come between two of them."""
        return [int(pid) for pid in re.findall(r"trainer started pid=(\d+)", self.log)]

    async def trainer(self, count: int = 1) -> int:
        """Wait for the count-th trainer to be started, and give its PID."""
        await self.until(lambda: len(self.trainers()) >= count)
        return self.trainers()[count - 1]

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait(LIMIT_S)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(LIMIT_S)

    def outbox(self) -> list[dict[str, Any]]:
        """Every time that a payload left, as the ledger says."""
        return list(self.ask("outbox")["payloads"])

    def ask(self, command: str) -> Any:
        """The JSON answer of ``bitfleet-client status|outbox``."""
        done = subprocess.run(
            [sys.executable, "-m", "edge_client", command, "--json", "--state", str(self.state.root)],
            capture_output=True,
            check=True,
            timeout=LIMIT_S,
        )
        return json.loads(done.stdout)
