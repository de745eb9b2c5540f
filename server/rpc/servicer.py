"""The gRPC service: translates ``bitfleet.v1.Fleet`` to the coordinator and its errors to status codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from server.coordinator.coordinator import Coordinator
from server.coordinator.intake import Chunk
from server.coordinator.messages import CancelOrder, Order, TaskOrder
from server.coordinator.sessions import MISSED_HEARTBEATS, Session
from server.errors import InvalidRequestError, ServerError, SlowDeviceError, status_of
from server.rpc import convert
from server.rpc.protocol import choose_protocol

_log = logging.getLogger(__name__)

_MESSAGE_ROOM_BYTES = 64 * 1024
"""Bytes that a message may have beyond its chunk of payload."""

_LINGER_S = 1.0
_LINGER_BYTES = 4 << 20
"""How long, and for how much, an upload is read after its answer is known."""

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class FleetService(pb_grpc.FleetServicer):
    """``bitfleet.v1.Fleet`` over a coordinator."""

    def __init__(self, coordinator: Coordinator, *, version: str) -> None:
        self._coordinator = coordinator
        self._version = version

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: _Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        """Welcome a device, then pass orders on until its stream or its session ends."""
        limits = self._coordinator.limits
        silence_s = MISSED_HEARTBEATS * limits.heartbeat_interval_s
        requests = aiter(request_iterator)
        async with _errors_as_status(context):
            first = await _next(requests, silence_s, "a Hello")
            if first is None or first.WhichOneof("event") != "hello":
                raise InvalidRequestError("the first event of a stream must be a Hello")
            protocol = choose_protocol(first.hello.protocol_min, first.hello.protocol_max, server_version=self._version)
            session = await self._coordinator.connect(convert.hello_of(first.hello))
            reader = asyncio.create_task(self._read(session, requests, silence_s))
            try:
                yield pb.ConnectResponse(
                    welcome=pb.Welcome(
                        protocol=protocol,
                        server_version=self._version,
                        heartbeat_interval_s=limits.heartbeat_interval_s,
                        max_chunk_bytes=limits.max_chunk_bytes,
                        max_update_bytes=limits.max_update_bytes,
                    )
                )
                async for order in _orders(session, reader):
                    yield self._message_for(session, order)
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await reader
                await self._coordinator.disconnect(session)

    async def DownloadModel(  # noqa: N802 - named by the protocol
        self, request: pb.DownloadModelRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        """Send a model's payload from an offset on."""
        async with _errors_as_status(context):
            convert.check_device_id(request.device_id)
            size, pieces = await self._coordinator.download(request.model_digest, request.offset)
            async for offset, data in pieces:
                message = pb.DownloadModelResponse(offset=offset, data=data, total_bytes=size)
                self._coordinator.count_download(request.device_id, request.model_digest, message.ByteSize())
                yield message

    async def SubmitUpdate(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: _Context
    ) -> pb.SubmitUpdateResponse:
        """Take one update in."""
        requests = aiter(request_iterator)
        async with _errors_as_status(context), _heard_out(requests):
            idle_s = self._coordinator.limits.upload_idle_s
            first = await _next(requests, idle_s, "an update's header")
            if first is None or first.WhichOneof("part") != "header":
                raise InvalidRequestError("the first part of an update must be its header")
            header = convert.header_of(first.header)
            answer = await self._coordinator.submit(header, first.ByteSize(), _chunks(requests, idle_s))
            return convert.answer_message(answer)
        raise AssertionError("unreachable: an aborted call does not go on")

    async def _read(self, session: Session, requests: AsyncIterator[pb.ConnectRequest], silence_s: float) -> None:
        """Take a device's events until it ends its stream; raises when it is silent or malformed."""
        while True:
            request = await _next(requests, silence_s, "a heartbeat")
            if request is None:
                return
            match request.WhichOneof("event"):
                case "heartbeat":
                    self._coordinator.heartbeat(session, convert.heartbeat_of(request.heartbeat))
                case "report":
                    self._coordinator.report(session, *convert.report_of(request.report))
                case "hello":
                    raise InvalidRequestError("only the first event of a stream is a Hello")
                case _:
                    pass  # an event of a newer protocol: fields are only ever added

    def _message_for(self, session: Session, order: Order) -> pb.ConnectResponse:
        match order:
            case TaskOrder():
                message = convert.task_message(order, now=self._coordinator.clock())
                self._coordinator.count_task(order, session.device_id, message.ByteSize())
                return message
            case CancelOrder(task_id, reason):
                return pb.ConnectResponse(cancel=pb.CancelTask(task_id=task_id, reason=reason))


def create_server(service: FleetService, *, max_chunk_bytes: int) -> grpc.aio.Server:
    """Build a gRPC server for the service; the caller adds a port and starts it."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server beside the first
            ("grpc.max_receive_message_length", max_chunk_bytes + _MESSAGE_ROOM_BYTES),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            # Without it a window of 64 KiB stays one: it would grow to hold whole updates of every device that sends,
            # while the coordinator takes them one after the other (100 that send 1.5 MiB at once: 188 MiB, not 301).
            ("grpc.http2.bdp_probe", 0),
        ]
    )
    pb_grpc.add_FleetServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated
    return server


async def _next(requests: AsyncIterator[_T], timeout_s: float, what: str) -> _T | None:
    """Return the next request, or None at the end of the stream.

    Raises:
      SlowDeviceError: nothing came in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests, None)
    except TimeoutError:
        raise SlowDeviceError(f"{what} was expected within {timeout_s:g} s, nothing came; connect again") from None


async def _chunks(requests: AsyncIterator[pb.SubmitUpdateRequest], idle_s: float) -> AsyncIterator[Chunk]:
    while (request := await _next(requests, idle_s, "the next chunk")) is not None:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequestError("after the header every part of an update must be a chunk")
        yield Chunk(request.chunk.offset, request.chunk.data, request.ByteSize())


@contextlib.asynccontextmanager
async def _heard_out(requests: AsyncIterator[pb.SubmitUpdateRequest]) -> AsyncIterator[None]:
    """Read on for a moment before an early answer, and drop what comes.

    A peer whose write meets the end of its call reports that write's failure in place of the answer
    (https://github.com/grpc/grpc/issues/36066), so a refusal would look like a broken link.
    """
    try:
        yield
    finally:
        left = _LINGER_BYTES
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and (request := await anext(requests, None)) is not None:
                    left -= request.ByteSize()


async def _orders(session: Session, reader: asyncio.Task[None]) -> AsyncIterator[Order]:
    """Yield a session's orders until the device ends its stream; raises what ended it otherwise."""
    while True:
        order = asyncio.ensure_future(session.next_order())
        try:
            await asyncio.wait((order, reader), return_when=asyncio.FIRST_COMPLETED)
            if order.done():
                yield order.result()
            else:
                reader.result()
                return
        finally:
            order.cancel()


@contextlib.asynccontextmanager
async def _errors_as_status(context: _Context) -> AsyncIterator[None]:
    try:
        yield
    except ServerError as error:
        await context.abort(grpc.StatusCode[status_of(error)[1]], str(error))
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - a device gets an answer whatever happens
        _log.exception("event=call_failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"the coordinator failed: {type(error).__name__}; see its log")
