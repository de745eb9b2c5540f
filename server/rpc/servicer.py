"""The gRPC service: translates ``bitfleet.v1.Fleet`` to the coordinator and its errors to status codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from bitfleet.v1 import fleet_pb2 as pb
from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from server.coordinator.admission import Places
from server.coordinator.coordinator import Coordinator
from server.coordinator.intake import Chunk
from server.coordinator.messages import CancelOrder, ExchangeOrder, Order, TaskOrder
from server.coordinator.sessions import MISSED_HEARTBEATS, LocalSession, Session
from server.errors import InvalidRequestError, ServerError, SlowDeviceError, status_of
from server.identity.devices import Devices
from server.identity.throttle import Throttle
from server.rpc import convert
from server.rpc.patience import Pace, next_request
from server.rpc.payload_urls import PayloadUrls
from server.rpc.protocol import choose_protocol
from server.rpc.speaker import Speaker, speaker_of
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

_LINGER_S = 1.0
_LINGER_BYTES = 4 << 20
"""How long, and for how much, an upload is read after its answer is known."""

_Context = grpc.aio.ServicerContext[Any, Any]


class FleetService(pb_grpc.FleetServicer):
    """``bitfleet.v1.Fleet`` over a coordinator.

    Args:
      coordinator: what the calls are passed on to.
      version: of the bitfleet package, for people.
      devices: who may speak, and under which name; None believes everyone (loopback).
      urls: of payloads that tasks name, to be read past the coordinator; None gives none.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        version: str,
        devices: Devices | None = None,
        urls: PayloadUrls | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._version = version
        self._devices = devices
        self._urls = urls
        self._limits = limits = coordinator.limits
        self._streams = Places("streams", in_all=limits.max_streams, of_one=limits.max_streams_per_device)
        self._transfers = Places(
            "uploads and downloads", in_all=limits.max_transfers, of_one=limits.max_transfers_per_device
        )
        self._throttle = Throttle(per_origin=limits.max_requests_per_minute)

    @property
    def max_streams(self) -> int:
        """Devices' streams that may be open at the same time."""
        return self._limits.max_streams

    @property
    def max_calls_per_device(self) -> int:
        """Calls that a device may have open at the same time."""
        return self._limits.max_streams_per_device + self._limits.max_transfers_per_device

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: _Context
    ) -> None:
        """Welcome a device, then pass orders on until its stream or its session ends."""
        silence_s = MISSED_HEARTBEATS * self._limits.heartbeat_interval_s
        async with _errors_as_status(context):
            speaker = await self._admit(context)
            with self._streams.hold(speaker.name):
                requests = aiter(request_iterator)
                first = await next_request(requests, silence_s, "a Hello")
                if first is None or first.WhichOneof("event") != "hello":
                    raise InvalidRequestError("the first event of a stream must be a Hello")
                speaker.check(first.hello.device_id)
                protocol = choose_protocol(
                    first.hello.protocol_min, first.hello.protocol_max, server_version=self._version
                )
                session = await self._coordinator.connect(convert.hello_of(first.hello, labels=speaker.labels))
                reader = asyncio.create_task(self._read(session, speaker, requests, silence_s))
                try:
                    await _send(context, self._welcome(protocol), silence_s)
                    async for order in _orders(session, reader):
                        await _send(context, await self._message_for(session, order), silence_s)
                finally:
                    reader.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await reader
                    await self._coordinator.disconnect(session)

    async def DownloadModel(  # noqa: N802 - named by the protocol
        self, request: pb.DownloadModelRequest, context: _Context
    ) -> None:
        """Send a model's payload from an offset on."""
        async with _errors_as_status(context):
            convert.check_device_id(request.device_id)
            speaker = await self._admit(context)
            speaker.check(request.device_id)
            with self._transfers.hold(speaker.name):
                size, pieces = await self._coordinator.download(request.device_id, request.model_digest, request.offset)
                async for offset, data in pieces:
                    speaker.check(request.device_id)
                    message = pb.DownloadModelResponse(offset=offset, data=data, total_bytes=size)
                    self._coordinator.count_download(request.device_id, request.model_digest, message.ByteSize())
                    await _send(context, message, self._limits.upload_idle_s)

    async def SubmitUpdate(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: _Context
    ) -> pb.SubmitUpdateResponse:
        """Take one update in."""
        requests = aiter(request_iterator)
        async with _errors_as_status(context), _heard_out(requests):
            speaker = await self._admit(context)
            with self._transfers.hold(speaker.name):
                first = await next_request(requests, self._limits.upload_idle_s, "an update's header")
                if first is None or first.WhichOneof("part") != "header":
                    raise InvalidRequestError("the first part of an update must be its header")
                header = convert.header_of(first.header, key_digest=speaker.key_digest)
                speaker.check(header.device_id)
                pace = Pace(self._limits.upload_idle_s, self._limits.min_upload_rate)
                chunks = _chunks(requests, pace, lambda: speaker.check(header.device_id))
                answer = await self._coordinator.submit(header, first.ByteSize(), chunks)
                return convert.answer_message(answer)
        raise AssertionError("unreachable: an aborted call does not go on")

    async def _admit(self, context: _Context) -> Speaker:
        """Find out who begins a call, and count it."""
        speaker = await speaker_of(context, self._devices)
        self._throttle.admit(speaker.name)
        return speaker

    def _welcome(self, protocol: int) -> pb.ConnectResponse:
        return pb.ConnectResponse(
            welcome=pb.Welcome(
                protocol=protocol,
                server_version=self._version,
                heartbeat_interval_s=self._limits.heartbeat_interval_s,
                max_chunk_bytes=self._limits.max_chunk_bytes,
                max_update_bytes=self._limits.max_update_bytes,
            )
        )

    async def _read(
        self, session: Session, speaker: Speaker, requests: AsyncIterator[pb.ConnectRequest], silence_s: float
    ) -> None:
        """Take a device's events until it ends its stream; raises when it is silent, malformed, or shut out."""
        while True:
            request = await next_request(requests, silence_s, "a heartbeat")
            if request is None:
                return
            speaker.check(session.device_id)
            self._throttle.admit(speaker.name)
            match request.WhichOneof("event"):
                case "heartbeat":
                    self._coordinator.heartbeat(session, convert.heartbeat_of(request.heartbeat))
                case "report":
                    self._coordinator.report(session, *convert.report_of(request.report))
                case "hello":
                    raise InvalidRequestError("only the first event of a stream is a Hello")
                case _:
                    pass  # an event of a newer protocol: fields are only ever added

    async def _message_for(self, session: Session, order: Order) -> pb.ConnectResponse:
        match order:
            case TaskOrder():
                urls = {} if self._urls is None else await self._urls.of_task(order)
                message = convert.task_message(order, now=self._coordinator.clock(), urls=urls)
                self._coordinator.count_order(order.task_id, session.device_id, message.ByteSize())
                return message
            case CancelOrder(task_id, reason):
                return pb.ConnectResponse(cancel=pb.CancelTask(task_id=task_id, reason=reason))
            case ExchangeOrder():
                message = convert.exchange_message(order)
                self._coordinator.count_order(order.task_id, session.device_id, message.ByteSize())
                return message


async def _send(context: _Context, message: pb.ConnectResponse | pb.DownloadModelResponse, timeout_s: float) -> None:
    """Send a message.

    Raises:
      SlowDeviceError: the device has not read what was sent before it.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await context.write(message)
    except TimeoutError:
        raise SlowDeviceError(f"what was sent was not read within {timeout_s:g} s; connect again") from None


async def _chunks(
    requests: AsyncIterator[pb.SubmitUpdateRequest], pace: Pace, check: Callable[[], None]
) -> AsyncIterator[Chunk]:
    while (request := await pace.next(requests)) is not None:
        check()
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


async def _orders(session: LocalSession, reader: asyncio.Task[None]) -> AsyncIterator[Order]:
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
        if is_refusal(error):
            _log.error("event=disk_refuses reason=%r", str(error))
            reason = "the coordinator's disk or database takes nothing now; try again in a moment"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)
        _log.exception("event=call_failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"the coordinator failed: {type(error).__name__}; see its log")
