"""Two ``bitfleet-server serve`` over one PostgreSQL and one object store, to which happens what happens to machines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from server.coordinator.job_state import JobState
from tests.e2e.processes import Process
from tests.patience import LIMIT_S, wait_for
from tests.postgres_server import PostgresServer
from tests.s3_server import S3Server
from tests.server.conftest import make_job
from tests.server.scripted import ScriptedDevice, connected

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

_READY = re.compile(r"devices at (?P<grpc>\S+), people at (?P<http>http://\S+?)/?$", re.M)
_NAME = re.compile(r"event=replica replica=(\S+)")
_T = TypeVar("_T")

DOOR_S = 20.0
"""How long a device waits for a door before it tries another one."""


class ReplicaProcess:
    """One of them, with a state folder of its own."""

    def __init__(self, folder: Path, database: str, blobs: str, job: Path, *options: str) -> None:
        folder.mkdir()
        self.log = folder / "log"
        command = ["-m", "server", "serve", "--insecure", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        command += ["--state", str(folder / "state"), "--database", database, "--blobs", blobs, "--job", str(job)]
        command += ["--heartbeat-interval", "60", "--settle", "0.1", "--drain", "1", *options]
        self.process = Process(command, self.log, "")

    def wait(self) -> None:
        addresses = self.find("its addresses", _READY.search)
        self.address, self.url = addresses["grpc"], addresses["http"]
        self.name = self.find("its name", _NAME.search)[1]

    def find(self, what: str, search: Callable[[str], _T | None]) -> _T:
        """Wait until its log has something."""

        def look() -> _T | None:
            assert self.process.is_alive(), self.log.read_text()
            return search(self.log.read_text())

        return wait_for(f"{what} in the log of {self.log.parent.name}", look)


@pytest.fixture
def start(tmp_path: Path, postgres_url: str, s3_server: S3Server) -> Iterator[Callable[..., ReplicaProcess]]:
    job = tmp_path / "job.json"
    job.write_text(make_job(rounds=4).to_json())
    with contextlib.ExitStack() as stack:

        def start_(name: str, *options: str) -> ReplicaProcess:
            replica = ReplicaProcess(tmp_path / name, postgres_url, s3_server.url_of("processes"), job, *options)
            stack.callback(replica.process.kill)
            return replica

        yield start_


async def heard(event: Awaitable[_T]) -> _T:
    """Await what a door says; raises TimeoutError where a device looks for another one."""
    return await asyncio.wait_for(event, DOOR_S)


async def insist(device: ScriptedDevice, task: pb.Task, payload: bytes) -> None:
    """Submit until that is answered, as a device does."""
    answer: pb.SubmitUpdateResponse | None = None
    while answer is None:
        try:
            answer = await heard(device.submit(task, payload))
        except TimeoutError:
            continue
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.2)
    assert answer.status in (pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE), answer


async def take_round(number: int, device_id: str, *addresses: str) -> None:
    """Take part in a round, by whichever door lets the device in."""
    doors, is_done = itertools.cycle(addresses), False
    async with asyncio.timeout(2 * LIMIT_S):
        while not is_done:
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError, AssertionError):
                async with ScriptedDevice(next(doors), device_id) as device:
                    await heard(device.connect())
                    while (task := await heard(device.next_task())).round_number < number:
                        pass
                    await insist(device, task, await device.train(task))
                    is_done = True
            await asyncio.sleep(0.2)


async def test_all_rounds_are_played_whatever_happens_to_replicas_and_their_database(
    start: Callable[..., ReplicaProcess], postgres: PostgresServer
) -> None:
    def holds(*found: object, statement: str) -> None:
        wait_for(f"{statement} to find {found}", lambda: postgres.query(statement) == [found])

    async def committed(count: int) -> None:
        rounds = "SELECT count(*) FROM rounds WHERE state = 'COMMITTED'"
        await asyncio.to_thread(holds, count, statement=rounds)

    def lead_and_door(*replicas: ReplicaProcess) -> tuple[ReplicaProcess, ReplicaProcess]:
        ((holder,),) = postgres.query("SELECT holder FROM leases")
        lead, door = sorted(replicas, key=lambda replica: replica.name != holder)
        assert lead.name == holder
        return lead, door

    a, b = start("a"), start("b")
    await asyncio.to_thread(a.wait)
    await asyncio.to_thread(b.wait)
    lead, door = lead_and_door(a, b)
    await asyncio.gather(take_round(1, "x", lead.address), take_round(1, "y", door.address))
    await committed(1)

    # The lead is killed; what it had acknowledged counts.
    async with connected(door.address, "y") as (y,):
        await take_round(2, "x", lead.address)
        lead.process.kill()
        await insist(y, task := await y.next_task(), await y.train(task))
    await committed(2)
    assert lead_and_door(door, lead)[0] is door
    lead, door = door, start("c")
    await asyncio.to_thread(door.wait)

    # The lead is stopped, and keeps its connections until the other one ends them.
    os.kill(lead.process.pid, signal.SIGSTOP)
    await asyncio.gather(take_round(3, "x", door.address), take_round(3, "y", door.address))
    await committed(3)
    os.kill(lead.process.pid, signal.SIGCONT)
    await asyncio.to_thread(lead.find, "that its lease has ended", re.compile("event=lease_ended").search)
    lead, door = door, lead

    # PostgreSQL crashes and comes again; streams stay.
    async with connected(lead.address, "x") as (x,), connected(door.address, "y") as (y,):
        tasks = [await x.next_task(), await y.next_task()]
        payloads = [await x.train(tasks[0]), await y.train(tasks[1])]
        await asyncio.to_thread(postgres.stop, "immediate")
        await asyncio.to_thread(postgres.start)
        await asyncio.gather(insist(x, tasks[0], payloads[0]), insist(y, tasks[1], payloads[1]))
        await committed(4)
        assert not x.stream.done()
        assert not y.stream.done()

    await asyncio.to_thread(holds, JobState.COMPLETED, statement="SELECT state FROM jobs")
    assert await asyncio.to_thread(start("d", "--exit-when-done").process.wait) == 0  # it never leads
    counted = postgres.query("SELECT round_number, device_id, status FROM updates ORDER BY 1, 2")
    assert counted == [(number, name, "ACCEPTED") for number in (1, 2, 3, 4) for name in ("x", "y")]
    assert [await asyncio.to_thread(one.process.terminate) for one in (lead, door)] == [0, 0]
    assert [one.log.parent.name for one in (a, b, lead, door) if "Traceback" in one.log.read_text()] == []
