"""``bitfleet-server top``: once on any output, and live on a terminal of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.cli.main import main
from server.top.picture import sparkline
from tests.patience import LIMIT_S
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, open_secure_house
from tests.server.scripted import ScriptedDevice, write_held_out_set

COLUMNS = 80


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as running:
        yield running


@contextlib.asynccontextmanager
async def device(house: SecureHouse, name: str) -> AsyncIterator[ScriptedDevice]:
    enrolled = await house.enrol(name)
    async with ScriptedDevice(str(house.grpc), name, credentials=house.credentials(enrolled)) as connected:
        await connected.connect()
        yield connected


def test_a_sparkline_goes_from_the_smallest_to_the_largest() -> None:
    assert sparkline([10.0, 20.0, 80.0]) == "▁▂█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""
    assert len(sparkline([float(number) for number in range(99)], width=16)) == 16


async def test_it_is_printed_once_in_80_columns_where_there_is_no_terminal(
    house: SecureHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    write_held_out_set(tmp_path / "held-out")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    command = ["top", "--state", str(house.state)]
    empty = await asyncio.to_thread(main, [*command, "--once"])
    assert (empty, capsys.readouterr().out.count("no job runs")) == (0, 1)

    config = make_job(name="a-name-as-long-as-names-may-be", rounds=2, evaluation=evaluation, quorum=1)
    async with device(house, "pi-with-a-long-name-in-the-kitchen") as kitchen, device(house, "shed") as shed:
        job = await house.coordinator.jobs.create(config)
        await kitchen.work(1)
        refused = await shed.next_task()
        await shed.report(refused, pb.TASK_OUTCOME_DECLINED, "too hot in here, and a reason that is long " * 4)
        async with asyncio.timeout(LIMIT_S):
            while (await house.admin.get(f"/api/v1/jobs/{job.job_id}")).json()["accuracy"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        code = await asyncio.to_thread(main, [*command, "--once"])
    live = main(command)

    out, err = capsys.readouterr()
    assert code == 0
    assert max(map(len, out.splitlines())) <= COLUMNS
    for words in ("2 of 2 devices", "1/2", " %", "shed", "declined", "too hot", "40"):
        assert words in out, out
    assert (live, "top needs a terminal to draw in; --once" in err) == (3, True)


async def test_it_follows_on_a_terminal_and_ends_with_q(house: SecureHouse) -> None:
    shown = bytearray()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-m", "server", "top", "--state", str(house.state)],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    asyncio.get_running_loop().add_reader(ours, lambda: shown.extend(read(ours)))

    async def until_shown(words: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            while words not in shown:  # noqa: ASYNC110 - what another process draws
                await asyncio.sleep(0.05)
        shown.clear()

    try:
        await until_shown(b"no job runs")
        await house.coordinator.jobs.create(make_job(name="live"))
        await until_shown(b"live-")
        async with device(house, "shed"):
            await until_shown(b"shed")
        os.write(ours, b"q")
        assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        process.kill()
        process.wait()
        os.close(ours)


def read(descriptor: int) -> bytes:
    """Read what a terminal shows; nothing once its other end is closed."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
