"""The other end of the wire: a real gRPC coordinator over loopback that does as a test says, and a TCP link to cut."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sized
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc
from bnncore.codec import get_codec
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from bnncore.zoo import mlp
from tests.patience import LIMIT_S

CHUNK_BYTES = 8192

_Context = grpc.aio.ServicerContext[Any, Any]


class Coordinator(fleet_pb2_grpc.FleetServicer):
    """Remembers all it hears. A task is sent to every new stream until an update for it was accepted."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.hellos: list[pb.Hello] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.reports: list[pb.TaskReport] = []
        self.updates: list[tuple[pb.UpdateHeader, bytes]] = []
        self.downloads: list[pb.DownloadModelRequest] = []
        self.tasks: dict[str, pb.Task] = {}
        self.orders: dict[str, pb.ExchangeOrder] = {}
        """By task: the step of a secure sum that is wanted, now and on each new stream."""
        self.models: dict[str, bytes] = {}
        self.streams = 0
        self.welcome = pb.Welcome(
            protocol=1, server_version="test", heartbeat_interval_s=0.1, max_chunk_bytes=CHUNK_BYTES
        )
        self.pieces: Callable[[bytes, int], Iterable[tuple[int, bytes]]] = pieces_of
        """Cuts a model into (offset, piece) from an offset on."""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        """Answers every Hello, when set."""
        self.answer: Callable[[pb.UpdateHeader], pb.SubmitUpdateResponse] = self.accept
        self.answers_to_lose = 0
        """So many updates are counted, and their answer lost."""
        self.download_gate = asyncio.Event()
        """Downloads stop in the middle while it is closed."""
        self.download_gate.set()
        self._outgoing: asyncio.Queue[pb.ConnectResponse] = asyncio.Queue()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]  # generated
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Go away without a word; a second time is fine."""
        await self._server.stop(None)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that devices bring about."""
        async with asyncio.timeout(LIMIT_S), self._changed:
            await self._changed.wait_for(condition)

    async def until_count(self, told: Sized, count: int) -> None:
        """Wait until devices have brought about so many of something."""
        await self.until(lambda: len(told) >= count)

    async def until_reported(self, task: pb.Task) -> None:
        """Wait until a device has told that it does not do a task."""
        await self.until(lambda: any(report.task_id == task.task_id for report in self.reports))

    async def give(self, task: pb.Task, *, model: bytes | None = None) -> pb.Task:
        """Hand a task to the device, now and on each new stream."""
        if model is not None:
            self.models[task.model_digest] = model
        self.tasks[task.task_id] = task
        await self._outgoing.put(pb.ConnectResponse(task=task))
        return task

    async def say(self, event: pb.ConnectResponse) -> None:
        """Say anything on the device's stream."""
        await self._outgoing.put(event)

    async def order(self, order: pb.ExchangeOrder) -> None:
        """Ask for a step of a secure sum, now and on each new stream until it was accepted."""
        self.orders[order.task_id] = order
        await self._outgoing.put(pb.ConnectResponse(exchange=order))

    def steps(self, step: pb.ExchangeStep, attempt: int = 1) -> list[bytes]:
        """The payloads of a step that came."""
        return [data for header, data in self.updates if (header.step, header.attempt) == (step, attempt)]

    async def cancel(self, task: pb.Task) -> None:
        self.tasks.pop(task.task_id, None)
        await self._outgoing.put(pb.ConnectResponse(cancel=pb.CancelTask(task_id=task.task_id, reason="over")))

    def accept(self, header: pb.UpdateHeader) -> pb.SubmitUpdateResponse:
        named = (header.task_id, header.step, header.attempt)
        counted = sum((other.task_id, other.step, other.attempt) == named for other, _ in self.updates)
        self.tasks.pop(header.task_id, None)
        if (order := self.orders.get(header.task_id)) is not None and order.step == header.step:
            del self.orders[header.task_id]
        status = pb.SUBMIT_STATUS_ACCEPTED if counted == 1 else pb.SUBMIT_STATUS_DUPLICATE
        return pb.SubmitUpdateResponse(status=status)

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: _Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        hello = (await anext(aiter(request_iterator))).hello
        await self._note(self.hellos, hello)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        yield pb.ConnectResponse(welcome=self.welcome)
        outgoing: asyncio.Queue[pb.ConnectResponse] = asyncio.Queue()
        self._outgoing = outgoing
        for task in self.tasks.values():
            outgoing.put_nowait(pb.ConnectResponse(task=task))
        for order in self.orders.values():
            outgoing.put_nowait(pb.ConnectResponse(exchange=order))
        listener = asyncio.create_task(self._listen(request_iterator))
        await self._count_streams(1)
        try:
            while True:
                getter = asyncio.create_task(outgoing.get())
                await asyncio.wait({getter, listener}, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    getter.cancel()
                    return
                yield getter.result()
        finally:
            listener.cancel()
            await asyncio.wait({listener})
            await self._count_streams(-1)

    async def DownloadModel(  # noqa: N802 - named by the protocol
        self, request: pb.DownloadModelRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        await self._note(self.downloads, request)
        model = self.models.get(request.model_digest)
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        for offset, data in self.pieces(model, request.offset):
            if offset > len(model) // 2:
                await self.download_gate.wait()
            yield pb.DownloadModelResponse(offset=offset, data=data, total_bytes=len(model))

    async def SubmitUpdate(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: _Context
    ) -> pb.SubmitUpdateResponse:
        requests = aiter(request_iterator)
        header = (await anext(requests)).header
        payload = b""
        async for request in requests:
            assert request.chunk.offset == len(payload)
            assert len(request.chunk.data) <= CHUNK_BYTES
            payload += request.chunk.data
        if len(payload) < header.total_bytes:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        assert hashlib.sha256(payload).hexdigest() == header.update_digest
        await self._note(self.updates, (header, payload))
        answer = self.answer(header)
        if self.answers_to_lose > 0:
            self.answers_to_lose -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return answer

    async def _listen(self, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        with suppress(grpc.aio.AbortError, asyncio.CancelledError):
            async for request in requests:
                if request.WhichOneof("event") == "report":
                    await self._note(self.reports, request.report)
                else:
                    await self._note(self.heartbeats, request.heartbeat)

    async def _note(self, memory: list[Any], item: Any) -> None:
        memory.append(item)
        async with self._changed:
            self._changed.notify_all()

    async def _count_streams(self, change: int) -> None:
        self.streams += change
        async with self._changed:
            self._changed.notify_all()


def pieces_of(model: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    """Cut a model as an honest coordinator does."""
    for offset in range(first, len(model), CHUNK_BYTES):
        yield offset, model[offset : offset + CHUNK_BYTES]


class Wire:
    """Forwards TCP to a port of this machine, and can be cut in the middle of anything.

    Args:
      target: the port.
      delay_s: seconds from one end to the other; each piece takes half as long to one and a half times as long, and
        none overtakes another.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0) -> None:
        self._target = target
        self._delay_s = delay_s
        self._random = random.Random(0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._bytes_left: int | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        self._flows.set()
        self.cut()

    def cut(self) -> None:
        """End every connection at once; new ones are taken."""
        self.cuts += 1
        self._bytes_left = None
        for writer in self._writers:
            writer.transport.abort()

    def cut_after(self, num_bytes: int) -> None:
        """Cut once so many more bytes have passed, either way."""
        self._bytes_left = num_bytes

    def stall(self) -> None:
        """Let nothing through any more, and say nothing about it: a cable that was pulled."""
        self._flows.clear()

    def resume(self) -> None:
        """Plug the cable in again; what was under way arrives late."""
        self._flows.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _arrivals(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Yield what was read when it is due at the other end; reading goes on meanwhile."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        now = asyncio.get_running_loop().time

        async def read() -> None:
            data = b"-"
            while data:
                with suppress(OSError):
                    data = b""
                    data = await reader.read(1024)
                pieces.put_nowait((now() + self._delay_s * self._random.uniform(0.5, 1.5), data))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - now()))
                if not data:
                    return
                yield data
        finally:
            reading.cancel()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            async for data in self._arrivals(reader):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
                if self._bytes_left is not None:
                    self._bytes_left -= len(data)
                    if self._bytes_left <= 0:
                        self.cut()
        writer.close()


def make_task(
    number: int = 1,
    *,
    steps: int = 20,
    widths: tuple[int, ...] = (16,),
    optimizer: str = "latent8m",
    from_seed: bool = True,
    deadline_s: float = 600,
    classes: tuple[str, ...] = ("c", "a", "b"),
    input_shape: tuple[int, ...] = (8, 8),
    job_id: str = "job",
) -> tuple[pb.Task, bytes]:
    """A task for ``data_dir``, and the payload of its model (weights from seed 7)."""
    spec = mlp(input_shape=input_shape, widths=widths, classes=len(classes))
    engine = Engine(spec, batch_size=1, preset=resolve_preset("bitfleet", optimizer))
    engine.initialise(7)
    model = get_codec("int8").encode(spec, engine.state(), kind="model")
    task = pb.Task(
        task_id=f"{job_id}-{number}",
        job_id=job_id,
        round_number=number,
        model_digest=hashlib.sha256(model).hexdigest(),
        model_bytes=len(model),
        spec_json=spec.to_json(),
        training=pb.TrainingConfig(
            preset="bitfleet", optimizer=optimizer, batch_size=10, local_steps=steps, step_scale=1.0, seed=3
        ),
        down_codec="int8",
        up_codec="int8",
        classes=classes,
        deadline_s=deadline_s,
    )
    if from_seed:
        task.initial_seed = 7
    return task, model
