"""The agent under a service manager: a real socket, the real process, a loop that is stuck."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator
from tests.patience import LIMIT_S

SILENT_S = 1.0
"""Five times as long as a service manager's watchdog has patience."""


async def test_the_agent_tells_that_it_lives_until_it_is_stuck(
    coordinator: Coordinator, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")

        async def told() -> str:
            return (await asyncio.to_thread(manager.recv, 100)).decode()

        device = start(coordinator.port)
        assert {await told() for _ in range(4)} == {"READY=1", "WATCHDOG=1"}
        device.signal(signal.SIGSTOP)  # a loop that does not turn
        manager.settimeout(SILENT_S)
        with pytest.raises(TimeoutError):
            while True:
                await told()
        manager.settimeout(LIMIT_S)
        device.signal(signal.SIGCONT)
        assert await told() == "WATCHDOG=1"
        device.signal(signal.SIGTERM)
        while (last := await told()) == "WATCHDOG=1":
            pass

        assert last == "STOPPING=1"
        assert await device.ended() == 0
