"""What a service manager is told, on a real socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnncore.supervision import ServiceManager
from tests.patience import LIMIT_S


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(LIMIT_S)
        yield listening


def told(manager: socket.socket) -> str:
    return manager.recv(100).decode()


async def test_signs_of_life_come_while_the_loop_turns(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    us = ServiceManager(environ)

    us.ready()
    pulse = asyncio.create_task(us.keep_informed())
    assert told(manager) == "READY=1"
    assert [await asyncio.to_thread(told, manager) for _ in range(3)] == ["WATCHDOG=1"] * 3
    pulse.cancel()
    await asyncio.wait({pulse})
    us.stopping()
    left = told(manager)
    while left == "WATCHDOG=1":
        left = told(manager)

    assert left == "STOPPING=1"


async def test_nothing_is_told_where_nobody_listens_or_another_is_meant(
    manager: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = manager.getsockname()
    await ServiceManager({}).keep_informed()
    await ServiceManager({"NOTIFY_SOCKET": address}).keep_informed()
    await ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}).keep_informed()
    ServiceManager({}).ready()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)

    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "cannot be told READY=1" in caplog.text


def test_an_abstract_socket_is_understood() -> None:
    name = f"bitfleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()

        assert told(listening) == "READY=1"
