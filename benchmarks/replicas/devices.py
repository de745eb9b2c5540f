"""Virtual devices: enrolled, over mutual TLS, with everything of a device but training.

    python -m benchmarks.replicas.devices PLAN.json

One process, which tells what it sees on its standard output, a JSON object a line, and takes words on its input. A
device has a connection of its own for its stream, its downloads and its uploads, so that behind a balancer it is at
three replicas at once. What it sends follows from (seed, round, device); what it was told of it goes into a ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from benchmarks.idle_fleet import enrol
from benchmarks.replicas.updates import device_name, examples_of, payload_of
from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.codec import payload_digest
from bnncore.spec import ModelSpec

CHUNK_BYTES = 256 * 1024
FINAL = ("ACCEPTED", "DUPLICATE", "LATE", "REJECTED")
"""What ends a device's tries."""

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
_CALL_S = 60.0
_ENROL_AT_ONCE = 8


@dataclass(frozen=True)
class Plan:
    """What the devices of one process do.

    Attributes:
      grpc: ``HOST:PORT``.
      url: where they enrol.
      ca_pem: what they know the coordinator by.
      token: for all of them.
      first: number of the first.
      count: how many.
      ledger: file of what they were told.
      seed: of updates and of times.
      training_s: least and most seconds between a task and its update.
      mischief: part of the updates whose first try ends unheard, and of those that are sent twice at the same time.
      downloads: whether they download the model of a task, and check it.
      waits: they send a round's updates only when told to, all at once.
      sends: whether they send updates at all.
      heartbeat_s: seconds between heartbeats.
    """

    grpc: str
    url: str
    ca_pem: str
    token: str
    first: int
    count: int
    ledger: str
    seed: int = 0
    training_s: tuple[float, float] = (0.0, 0.0)
    mischief: float = 0.0
    downloads: bool = True
    waits: bool = False
    sends: bool = True
    heartbeat_s: float = 5.0

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Ledger:
    """What devices were told, a line each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self.errors: Counter[str] = Counter()
        """Calls that ended with a status, by that."""

    def note(self, number: int, task: pb.Task, digest: str, answer: pb.SubmitUpdateResponse) -> str:
        """Append an answer; gives its status."""
        status = pb.SubmitStatus.Name(answer.status).removeprefix("SUBMIT_STATUS_")
        line = {"job": task.job_id, "round": task.round_number, "device": device_name(number), "digest": digest}
        self._file.write(json.dumps({**line, "status": status, "reason": answer.reason}) + "\n")
        return status


@dataclass
class Gate:
    """Holds a round's updates until all devices have theirs ready and the word is given."""

    count: int
    ready: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Of each job's rounds, how many have theirs ready."""
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    began: float = 0.0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, task: pb.Task) -> None:
        of = (task.job_id, task.round_number)
        self.ready[of] += 1
        if self.ready[of] < self.count:
            await self._open.wait()
        elif self.ready[of] == self.count:  # else it was opened, and an update is asked for again
            say(ready=task.round_number)
            await asyncio.to_thread(sys.stdin.readline)
            self.began = time.monotonic()
            self._open.set()
            self._open = asyncio.Event()

    def note_sent(self, task: pb.Task) -> None:
        of = (task.job_id, task.round_number)
        self.sent[of] += 1
        if self.sent[of] == self.count:
            say(sent=task.round_number, began=self.began, ended=time.monotonic())


class VirtualDevice:
    """One device; ``live`` goes on until it is cancelled."""

    def __init__(
        self, plan: Plan, number: int, credentials: grpc.ChannelCredentials, ledger: Ledger, gate: Gate | None
    ) -> None:
        self.number = number
        self.arrivals: dict[int, float] = {}
        """When each round's task came first, seconds since 1970."""
        self.is_connected = asyncio.Event()
        self._plan = plan
        self._name = device_name(number)
        self._credentials = credentials
        self._ledger = ledger
        self._gate = gate
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        self._random = random.Random(plan.seed * 1_000_003 + number)

    async def live(self) -> None:
        """Keep a stream and do what is asked on it."""
        try:
            while True:
                try:
                    await self._follow_stream()
                except grpc.aio.AioRpcError as error:
                    self._note_error("Connect", error)
                self.is_connected.clear()
                await asyncio.sleep(self._random.uniform(0.1, 0.5))
        finally:
            for work in self._work.values():
                work.cancel()
            for channel in self._channels.values():
                await channel.close()

    def _stub(self, use: str) -> Any:
        """The service, over the connection that the device has for this use."""
        if use not in self._channels:
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ]
            self._channels[use] = grpc.aio.secure_channel(self._plan.grpc, self._credentials, options=options)
        return pb_grpc.FleetStub(self._channels[use])  # type: ignore[no-untyped-call]

    def _note_error(self, call: str, error: grpc.aio.AioRpcError) -> None:
        self._ledger.errors[f"{call} {error.code().name}"] += 1
        is_broken_link = error.details() == "Internal error from Core"  # what grpc says of a write that met the end
        if not is_broken_link and error.code() not in (*_AGAIN, grpc.StatusCode.CANCELLED):
            say(problem=f"{self._name}: {call}: {error.code().name}: {error.details()}")

    async def _follow_stream(self) -> None:
        stream: Any = self._stub("stream").Connect()
        data = pb.DataSummary(
            classes=[str(digit) for digit in range(10)], input_shape=[8, 8], any_image_shape=True,
            num_examples=examples_of(self.number),
        )  # fmt: skip
        hello = pb.Hello(protocol_min=1, protocol_max=1, client_version="0", device_id=self._name, data=data)
        beats = None
        try:
            await stream.write(pb.ConnectRequest(hello=hello))
            while (response := await stream.read()) is not grpc.aio.EOF:
                match response.WhichOneof("event"):
                    case "welcome":
                        self.is_connected.set()
                        beats = asyncio.ensure_future(self._beat(stream))
                    case "task":
                        self._take(response.task)
                    case "cancel":
                        if work := self._work.pop(response.cancel.task_id, None):
                            work.cancel()
            self._ledger.errors[f"Connect {(await stream.code()).name}"] += 1
        finally:
            if beats is not None:
                beats.cancel()
            stream.cancel()

    async def _beat(self, stream: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(self._plan.heartbeat_s)
                await stream.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(state=pb.DEVICE_STATE_IDLE)))

    def _take(self, task: pb.Task) -> None:
        self.arrivals.setdefault(task.round_number, time.time())
        running = self._work.get(task.task_id)
        if self._plan.sends and (running is None or running.done()):
            self._work[task.task_id] = asyncio.ensure_future(self._do(task))

    async def _do(self, task: pb.Task) -> None:
        plan = self._plan
        rng = random.Random(f"{plan.seed}/{task.round_number}/{self.number}")
        if plan.downloads:
            await self._insist("DownloadModel", lambda: self._download(task))
        spec = await asyncio.to_thread(ModelSpec.from_json, task.spec_json)
        payload = await asyncio.to_thread(payload_of, spec, task.up_codec, plan.seed, task.round_number, self.number)
        header = self._header(task, payload)
        if self._gate is not None:
            await self._gate.wait(task)
        await asyncio.sleep(rng.uniform(*plan.training_s))
        if rng.random() < plan.mischief:  # its answer is lost on the way
            lost = asyncio.ensure_future(self._send("upload", header, payload))
            await asyncio.wait([lost], timeout=rng.uniform(0, 0.3))
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
        calls: list[Awaitable[str]] = [self._submit("upload", task, header, payload)]
        if rng.random() < plan.mischief:  # at two replicas at once
            calls.append(self._submit("download", task, header, payload))
        await asyncio.gather(*calls)
        if self._gate is not None:
            self._gate.note_sent(task)

    async def _submit(self, use: str, task: pb.Task, header: pb.UpdateHeader, payload: bytes) -> str:
        answer = await self._insist("SubmitUpdate", lambda: self._send(use, header, payload))
        return self._ledger.note(self.number, task, header.update_digest, answer)

    async def _insist(self, call: str, attempt: Any) -> Any:
        """Try until there is an answer."""
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as error:
                self._note_error(call, error)
            await asyncio.sleep(self._random.uniform(0.2, 1.0))

    async def _download(self, task: pb.Task) -> None:
        request = pb.DownloadModelRequest(device_id=self._name, model_digest=task.model_digest)
        digest = hashlib.sha256()
        async for part in self._stub("download").DownloadModel(request, timeout=_CALL_S):
            digest.update(part.data)
        if digest.hexdigest() != task.model_digest:
            say(problem=f"{self._name}: the model of round {task.round_number} is damaged")

    async def _send(self, use: str, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitUpdateResponse:
        async def parts() -> AsyncIterator[pb.SubmitUpdateRequest]:
            yield pb.SubmitUpdateRequest(header=header)
            for start in range(0, len(payload), CHUNK_BYTES):
                chunk = pb.UpdateChunk(offset=start, data=payload[start : start + CHUNK_BYTES])
                yield pb.SubmitUpdateRequest(chunk=chunk)

        return await self._stub(use).SubmitUpdate(parts(), timeout=_CALL_S)  # type: ignore[no-any-return]

    def _header(self, task: pb.Task, payload: bytes) -> pb.UpdateHeader:
        return pb.UpdateHeader(
            device_id=self._name,
            task_id=task.task_id,
            job_id=task.job_id,
            round_number=task.round_number,
            model_digest=task.model_digest,
            update_digest=payload_digest(payload),
            total_bytes=len(payload),
            num_examples=examples_of(self.number),
            codec=task.up_codec,
        )


async def enrol_all(plan: Plan) -> list[grpc.ChannelCredentials]:
    """Get every device its certificate, some at a time, each try at whichever replica answers."""
    context = ssl.create_default_context(cadata=plan.ca_pem)
    places = asyncio.Semaphore(_ENROL_AT_ONCE)
    async with httpx.AsyncClient(base_url=plan.url, verify=context, trust_env=False, timeout=60) as client:

        async def one(number: int) -> grpc.ChannelCredentials:
            async with places:
                while True:
                    try:
                        key, certificate = await enrol(client, plan.token, device_name(number))
                    except httpx.HTTPError as error:
                        say(note=f"{device_name(number)} could not enrol, and tries again: {error}")
                        await asyncio.sleep(0.5)
                        continue
                    return grpc.ssl_channel_credentials(plan.ca_pem.encode(), key, certificate)

        return list(await asyncio.gather(*(one(plan.first + i) for i in range(plan.count))))


async def run(plan: Plan) -> None:
    """Enrol, connect, and do what is asked until standard input ends."""
    ledger = Ledger(Path(plan.ledger))
    gate = Gate(plan.count) if plan.waits else None
    devices = [
        VirtualDevice(plan, plan.first + i, shown, ledger, gate) for i, shown in enumerate(await enrol_all(plan))
    ]
    say(enrolled=plan.count)
    await asyncio.to_thread(sys.stdin.readline)
    lives = []
    for start in range(0, plan.count, 50):  # not all handshakes at once
        batch = devices[start : start + 50]
        lives += [asyncio.create_task(device.live()) for device in batch]
        await asyncio.gather(*(device.is_connected.wait() for device in batch))
    say(connected=plan.count)
    if not plan.waits:
        while round_number := int(await asyncio.to_thread(sys.stdin.readline) or 0):
            while any(round_number not in device.arrivals for device in devices):  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(0.2)
            say(arrivals=sorted(device.arrivals[round_number] for device in devices))
    else:
        await asyncio.Event().wait()
    say(errors=ledger.errors)
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(run(Plan(**json.loads(Path(sys.argv[1]).read_text()))))
