"""``kill -9`` at every window between two steps to the disk: the same models come out, nothing is counted twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bitfleet.v1 import fleet_pb2 as pb
from server.storage.base import Storage
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from tests.patience import patiently
from tests.server.crashing import DEVICES, ROUNDS
from tests.server.databases import lay_database
from tests.server.member import KEYS, Member
from tests.server.scripted import ScriptedDevice

REPOSITORY = Path(__file__).resolve().parents[2]

# A run without a crash calls: put 2 (version 0), then in each round save_round 2 (open, collecting), keep and
# record_updates with 2 updates (together or each alone), put 3 and commit_round 1 (what the strategy remembers, the
# version), delete 2 (the updates' payloads; in round 2 also what was remembered before).
POINTS = [
    "before:add_version:1",
    "after:put:1",
    "after:add_version:1",
    "after:save_round:1",
    "after:save_round:2",
    "before:keep:1",
    "before:record_updates:1",
    "after:record_updates:1",
    "before:record_updates:2",
    "after:record_updates:2",
    "after:put:3",
    "after:put:4",
    "before:commit_round:1",
    "after:commit_round:1",
    "after:delete:1",
    "before:delete:5",
    "after:record_updates:4",
    "before:commit_round:2",
    "after:commit_round:2",
    "before:set_job_state:2",
]


# With secure aggregation, three devices and a closing exchange, a round calls: save_round 5 (open, collecting, and one
# for each step of its exchange), record_updates 3 (keys), record_steps 9.
SECURE_POINTS = [
    "before:record_updates:1",
    "before:save_round:3",
    "after:save_round:3",
    "before:record_steps:1",
    "after:record_steps:3",
    "before:save_round:4",
    "after:save_round:4",
    "after:record_steps:4",
    "after:record_steps:6",
    "before:save_round:5",
    "after:save_round:5",
    "after:record_steps:9",
    "before:commit_round:1",
    "after:commit_round:1",
    "after:record_steps:23",
]


class Host:
    """The process that forks coordinators; see ``crashing.py``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> Host:
        environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'proto'}"}
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.server.crashing", cwd=REPOSITORY, env=environment,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
        )  # fmt: skip

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await patiently(self._process.wait())

    async def begin(self, state: Path, port: int, point: str | None, kind: str) -> None:
        assert self._process.stdin is not None
        order = {"state": str(state), "port": port, "point": point, "kind": kind}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def say(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = await patiently(self._process.stdout.readline())
        said: dict[str, int] = json.loads(line)
        return said


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def host() -> AsyncIterator[Host]:
    host = await Host.start()
    yield host
    await host.stop()


async def persist(address: str, device_id: str, kind: str) -> None:
    """Be a device that never gives up: connect, do tasks, and connect again whenever the coordinator is gone."""
    member = Member(ScriptedDevice(address, device_id))
    while True:
        try:
            async with ScriptedDevice(address, device_id) as device:
                device.channel.get_state(try_to_connect=True)
                await device.connect()
                member.device = device
                while True:
                    if kind == "secure":
                        answer = await take_part(member)
                    else:
                        task = await device.next_task()
                        answer = await device.submit(task, await device.train(task))
                    assert answer.status in (pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE), answer
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError, AssertionError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr] # whatever gRPC has made of that
                raise
            await asyncio.sleep(0.02)


async def take_part(member: Member) -> pb.SubmitUpdateResponse:
    """Do what is asked next: the same as before, where that is asked again."""
    response = await member.device.next_event()
    assert response.WhichOneof("event") in ("task", "exchange"), response
    if response.HasField("exchange"):
        order = response.exchange
        return await member.send(order.step, member.payload(order), attempt=order.attempt)
    if response.task == member.task or response.task.task_id == member.task.task_id:
        return await member.send(KEYS, member.participant.keys)
    return await member.join(response.task)


async def run_to_the_end(host: Host, state: Path, point: str | None, kind: str = "plain") -> tuple[list[int], Storage]:
    """Run the job with real devices until it ends, starting the coordinator again after a crash."""
    ends: list[int] = []
    port = 0
    devices: list[asyncio.Task[None]] = []
    url = lay_database(state / "bitfleet.db")
    try:
        while not ends or (ends[-1] != 0 and len(ends) < 3):
            await host.begin(state, port, None if ends else point, kind)
            said: dict[str, Any] = await host.say()
            if "port" in said:
                port = said["port"]
                if not devices:
                    devices = [asyncio.create_task(persist(f"127.0.0.1:{port}", name, kind)) for name in DEVICES[kind]]
                said = await host.say()
            ends.append(said["ended"])
    finally:
        for device in devices:
            device.cancel()
        await asyncio.gather(*devices, return_exceptions=True)
    return ends, open_storage(url)


def digests(storage: Storage, num_rounds: int = ROUNDS) -> list[str | None]:
    (job,) = storage.list_jobs()
    assert job.state == "COMPLETED"
    rounds = storage.list_rounds(job.job_id)
    assert [round_.state for round_ in rounds] == ["COMMITTED"] * num_rounds
    assert [version.version for version in storage.list_versions(job.job_id)] == list(range(num_rounds + 1))
    return [round_.weights_digest for round_ in rounds]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def undisturbed(host: Host, tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """The digests of a run in which nothing goes wrong."""
    ends, storage = await run_to_the_end(host, tmp_path_factory.mktemp("undisturbed"), None)
    found = digests(storage)
    storage.close()
    assert ends == [0]
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_window_loses_nothing(
    host: Host, undisturbed: list[str | None], tmp_path: Path, point: str
) -> None:
    ends, storage = await run_to_the_end(host, tmp_path, point)

    assert ends == [-signal.SIGKILL, 0]  # the point was reached, and one restart was enough
    assert digests(storage) == undisturbed
    (job,) = storage.list_jobs()
    rows = storage.list_updates(job.job_id)
    assert [(row.round_number, row.device_id, row.status) for row in rows] == [
        (number, device_id, "ACCEPTED") for number in range(1, ROUNDS + 1) for device_id in DEVICES["plain"]
    ]
    blobs = LocalBlobs(tmp_path / "blobs")
    assert blobs.digests() == storage.referenced_digests()
    storage.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def undisturbed_sums(host: Host, tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """The digests of a run with secure aggregation in which nothing goes wrong."""
    ends, storage = await run_to_the_end(host, tmp_path_factory.mktemp("sums"), None, "secure")
    found = digests(storage, ROUNDS + 1)
    storage.close()
    assert ends == [0]
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("point", SECURE_POINTS)
async def test_a_kill_between_any_two_steps_of_an_exchange_loses_nothing(
    host: Host, undisturbed_sums: list[str | None], tmp_path: Path, point: str
) -> None:
    ends, storage = await run_to_the_end(host, tmp_path, point, "secure")

    assert ends == [-signal.SIGKILL, 0]
    assert digests(storage, ROUNDS + 1) == undisturbed_sums
    (job,) = storage.list_jobs()
    assert {row.status for row in storage.list_updates(job.job_id)} == {"ACCEPTED"}
    assert [round_.exchange for round_ in storage.list_rounds(job.job_id)] == [1] * (ROUNDS + 1)  # no step was lost
    assert LocalBlobs(tmp_path / "blobs").digests() == storage.referenced_digests()
    storage.close()
