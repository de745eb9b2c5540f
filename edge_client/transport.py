"""The wire: one channel to the coordinator, its stream, downloads that resume, uploads from the disk.

Every wait has an end, and every failure is one of four kinds: ``LinkError`` (try again), ``ProtocolError`` (the two
sides do not fit), ``IdentityRefusedError`` (this device may not speak), ``TaskFailedError`` (the coordinator refuses
this one request).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import grpc
import grpc.aio

from bitfleet.v1 import fleet_pb2 as wire
from bitfleet.v1 import fleet_pb2_grpc
from bnncore.errors import ProtocolError
from edge_client.errors import IdentityRefusedError, LinkError, TaskFailedError
from edge_client.identity import Credentials
from edge_client.outbox import Talk

__all__ = ["PROTOCOL_MAX", "PROTOCOL_MIN", "FleetStream", "Transport"]

PROTOCOL_MIN = 1
"""Oldest protocol number that this client speaks."""

PROTOCOL_MAX = 1
"""Newest protocol number that this client speaks."""

ANSWER_TIMEOUT_S = 20.0
"""Longest wait for one message of the coordinator that is due, and for one of ours to leave."""

SLOWEST_LINK_BYTES_PER_S = 2048
"""An upload slower than this counts as broken."""

_CLOSE_TIMEOUT_S = 1.0
_CHUNK_BYTES_DEFAULT = 1 << 16
_CHUNK_BYTES_MIN = 1 << 10
_CHUNK_BYTES_MAX = 1 << 20

HEARTBEAT_INTERVAL_S = 5.0
"""When the coordinator names none."""

_HEARTBEAT_INTERVALS_S = (0.1, 600.0)
"""Whatever the coordinator names: a device neither does nothing but tell how it is, nor is silent for good."""

KEEPALIVE_S = 20.0
"""A link that has been silent for so long is tested, and is dead when half as long brings no answer: the other end lost
its power, or a router forgot the connection, without a word."""

_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}
_COORDINATORS_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}

_T = TypeVar("_T")
_Connect = grpc.aio.StreamStreamCall[wire.ConnectRequest, wire.ConnectResponse]


class FleetStream:
    """The long-lived stream, after the coordinator's welcome.

    Attributes:
      welcome: what the coordinator asked for.
    """

    def __init__(self, call: _Connect, welcome: wire.Welcome, talk: Talk) -> None:
        self.welcome = welcome
        self._call = call
        self._talk = talk
        self._writing = asyncio.Lock()

    @property
    def chunk_bytes(self) -> int:
        """Bytes of payload in one chunk of an upload."""
        wanted = self.welcome.max_chunk_bytes or _CHUNK_BYTES_DEFAULT
        return max(_CHUNK_BYTES_MIN, min(wanted, _CHUNK_BYTES_MAX))

    @property
    def heartbeat_interval_s(self) -> float:
        """Seconds between heartbeats."""
        wanted = self.welcome.heartbeat_interval_s
        least, most = _HEARTBEAT_INTERVALS_S
        return min(max(wanted, least), most) if wanted > 0 else HEARTBEAT_INTERVAL_S

    async def send(self, event: wire.ConnectRequest) -> None:
        """Send one event. A report stands in the ledger by itself, others are counted here.

        Raises:
          LinkError: the stream has ended, or the coordinator does not read.
        """
        async with self._writing:
            with _link_errors("the stream"):
                await _in_time(self._call.write(event))
        kind = event.WhichOneof("event") or "empty"
        if kind != "report":
            self._talk.add(kind, event.ByteSize())

    async def receive(self) -> wire.ConnectResponse:
        """Wait for the coordinator's next event; there may be none for hours.

        Raises:
          LinkError: the stream has ended; why it did may be good for long, so the next attempt's answer counts.
        """
        with _link_errors("the stream"):
            return await _read(self._call)

    def abort(self) -> None:
        """End the stream at once; ``receive`` raises LinkError then."""
        self._call.cancel()

    async def leave(self) -> None:
        """Say that no more comes, and wait for the coordinator to end the stream: then it has heard everything.

        Raises:
          LinkError: the stream had ended.
        """
        with _link_errors("the stream"):
            await self._call.done_writing()
            await self._call.code()


class Transport:
    """One channel to one coordinator. It may be made while the coordinator is away.

    Args:
      address: ``HOST:PORT``.
      credentials: what is shown and asked for; None speaks in the clear, to this machine alone.
      keepalive_s: silence, in seconds, after which the link is tested.

    Attributes:
      talk: counts what leaves and is no payload and no report.
    """

    def __init__(
        self, address: str, credentials: Credentials | None = None, *, keepalive_s: float = KEEPALIVE_S
    ) -> None:
        self.address = address
        self.talk = Talk()
        self._in_clear = credentials is None
        self._options = [
            # The agent's own backoff decides when to try again; the channel must not hold back for longer.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(keepalive_s * 500)),
            ("grpc.http2.ping_timeout_ms", round(keepalive_s * 500)),  # a minute otherwise, whatever is above
            ("grpc.enable_http_proxy", 0),
        ]
        self._open(credentials)

    def _open(self, credentials: Credentials | None) -> None:
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=self._options)
        else:
            shown = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
            # Connections of the process are shared by address otherwise, and with them an old certificate.
            options = [*self._options, ("grpc.use_local_subchannel_pool", 1)]
            self._channel = grpc.aio.secure_channel(self.address, shown, options=options)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]

    async def show(self, credentials: Credentials) -> None:
        """Connect anew with a new certificate; what runs on the old channel ends with LinkError, to be done again."""
        old = self._channel
        self._open(credentials)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(old.close(), _CLOSE_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def connect(self, hello: wire.Hello) -> AsyncIterator[FleetStream]:
        """Open the stream and be welcomed. At the block's end the stream is ended at once, unless it was left before.

        Raises:
          LinkError: nobody answers.
          IdentityRefusedError: the coordinator does not take this device.
          ProtocolError: the coordinator is no bitfleet coordinator, or shares no protocol number with this client.
        """
        call: _Connect = self._stub.Connect()
        try:
            with _link_errors("connecting", refusal=ProtocolError):
                first = wire.ConnectRequest(hello=hello)
                await _in_time(call.write(first))
                self.talk.add("hello", first.ByteSize())
                answer = await _in_time(_read(call))
            chosen = answer.welcome.protocol
            if answer.WhichOneof("event") != "welcome" or not PROTOCOL_MIN <= chosen <= PROTOCOL_MAX:
                raise ProtocolError(
                    f"the coordinator at {self.address} must welcome this device to a protocol from {PROTOCOL_MIN} to "
                    f"{PROTOCOL_MAX}, it answered {answer.WhichOneof('event')} (protocol {chosen}); "
                    "upgrade the older of the two sides"
                )
            yield FleetStream(call, answer.welcome, self.talk)
        finally:
            call.cancel()

    async def download(self, device_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Give a model's payload from an offset on, piece by piece.

        Raises:
          LinkError: the link broke; what was given so far is good.
          TaskFailedError: the coordinator has no such model, or answers out of order.
        """
        request = wire.DownloadModelRequest(device_id=device_id, model_digest=digest, offset=offset)
        call = self._stub.DownloadModel(request)
        self.talk.add("request", request.ByteSize())
        try:
            while True:
                with _link_errors("the download", refusal=TaskFailedError):
                    piece = await _in_time(call.read())
                if piece is grpc.aio.EOF:
                    return
                if piece.offset != offset:
                    raise TaskFailedError(f"the coordinator sent bytes from {piece.offset} on, {offset} was next")
                offset += len(piece.data)
                yield piece.data
        finally:
            call.cancel()

    def read_url(self, url: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Give the payload at a task's URL from an offset on, piece by piece; see ``url_pieces``."""
        from edge_client.url_download import url_pieces  # a few MiB, which only such fleets need

        def count(num_bytes: int) -> None:
            self.talk.add("request", num_bytes)

        return url_pieces(url, offset, in_clear=self._in_clear, count=count)

    async def submit(self, header: wire.UpdateHeader, path: Path, chunk_bytes: int) -> wire.SubmitUpdateResponse:
        """Send an update from a file, holding one chunk in memory.

        Raises:
          LinkError: the link broke; the same update may be sent again.
          TaskFailedError: the coordinator takes this for malformed.
        """
        timeout = ANSWER_TIMEOUT_S + header.total_bytes / SLOWEST_LINK_BYTES_PER_S
        # Reading a chunk of a local file takes less time than handing it to a thread.
        with path.open("rb") as file, _link_errors("the upload", refusal=TaskFailedError):
            answer: wire.SubmitUpdateResponse = await self._stub.SubmitUpdate(
                self._parts(header, file, chunk_bytes), timeout=timeout
            )
        return answer

    async def _parts(
        self, header: wire.UpdateHeader, file: BinaryIO, chunk_bytes: int
    ) -> AsyncIterator[wire.SubmitUpdateRequest]:
        first = wire.SubmitUpdateRequest(header=header)
        self.talk.add("header", first.ByteSize())
        yield first
        offset = 0
        while data := file.read(chunk_bytes):
            part = wire.SubmitUpdateRequest(chunk=wire.UpdateChunk(offset=offset, data=data))
            self.talk.add("header", part.ByteSize() - len(data), messages=0)  # the data are in the ledger themselves
            yield part
            offset += len(data)

    async def close(self) -> None:
        """Close the channel and whatever still runs on it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._channel.close(), _CLOSE_TIMEOUT_S)


async def _read(call: _Connect) -> wire.ConnectResponse:
    answer = await call.read()
    if answer is grpc.aio.EOF:
        raise LinkError("the coordinator ended the stream")
    return answer  # type: ignore[return-value]


async def _in_time(awaitable: Awaitable[_T]) -> _T:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await awaitable


@contextlib.contextmanager
def _link_errors(what: str, *, refusal: type[Exception] = LinkError) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LinkError(f"{what}: no answer within {ANSWER_TIMEOUT_S:.0f} s") from error
    except asyncio.InvalidStateError as error:
        raise LinkError(f"{what} has ended") from error
    except asyncio.CancelledError:
        # gRPC reports a call that ended on this side in the same way as our own task being cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise LinkError(f"{what} was ended on this side") from None
    except grpc.aio.AioRpcError as error:
        text = error.details() or error.code().name
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            raise IdentityRefusedError(text) from error
        if error.code() in _REFUSALS:
            raise refusal(text) from error
        raise LinkError(
            f"{what}: {text} ({error.code().name})", is_coordinators_fault=error.code() in _COORDINATORS_FAULTS
        ) from error
