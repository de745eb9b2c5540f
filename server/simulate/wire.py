"""A wire of memory: calls the gRPC service's own methods with messages that were serialised and parsed again.

What is counted is what gRPC would have carried: the bytes of every message, either way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, NoReturn, TypeVar, cast

import grpc
from google.protobuf.message import Message

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.errors import BitfleetError
from server.rpc import FleetService

_M = TypeVar("_M", bound=Message)


class CallAborted(BitfleetError):
    """The coordinator ended a call with a status, as gRPC would have told the device.

    Attributes:
      code: the status.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class _Context:
    """As much of gRPC's context as the service uses."""

    def __init__(self) -> None:
        self._written: asyncio.Queue[Message] = asyncio.Queue(1)

    def peer(self) -> str:
        return "memory"

    async def write(self, message: Message) -> None:
        await self._written.put(carried(message))

    async def responses(self, call: Coroutine[Any, Any, None]) -> AsyncIterator[Any]:
        """Yield what a call writes, until it has ended."""
        running = asyncio.create_task(call)
        try:
            while True:
                written = asyncio.ensure_future(self._written.get())
                await asyncio.wait((written, running), return_when=asyncio.FIRST_COMPLETED)
                if not written.done():
                    written.cancel()
                    await running
                    return
                yield written.result()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, CallAborted):
                await running

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: object = ()) -> NoReturn:
        raise CallAborted(code, details)


class Wire:
    """Carries one fleet's messages to one service.

    Args:
      service: the coordinator's.
      chunk_bytes: payload in one message of an update.
    """

    def __init__(self, service: FleetService, *, chunk_bytes: int) -> None:
        self._service = service
        self._chunk_bytes = chunk_bytes

    async def connect(self, said: asyncio.Queue[pb.ConnectRequest]) -> AsyncIterator[pb.ConnectResponse]:
        """Hold a device's stream: what it puts into ``said`` goes up, what the coordinator says is yielded."""

        async def requests() -> AsyncIterator[pb.ConnectRequest]:
            while True:
                yield carried(await said.get())

        context = _Context()
        async for response in context.responses(self._service.Connect(requests(), cast(Any, context))):
            yield response

    async def download(self, device_id: str, digest: str) -> tuple[bytes, int]:
        """Download a model; returns its payload and the serialised bytes of its messages."""
        request = carried(pb.DownloadModelRequest(device_id=device_id, model_digest=digest))
        context = _Context()
        pieces, num_bytes = [], 0
        async for response in context.responses(self._service.DownloadModel(request, cast(Any, context))):
            num_bytes += response.ByteSize()
            pieces.append(response.data)
        return b"".join(pieces), num_bytes

    async def submit(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitUpdateResponse:
        """Send an update; returns the coordinator's word."""

        async def requests() -> AsyncIterator[pb.SubmitUpdateRequest]:
            for part in self._parts(header, payload):
                yield carried(part)

        return carried(await self._service.SubmitUpdate(requests(), cast(Any, _Context())))

    def update_bytes(self, header: pb.UpdateHeader) -> int:
        """Count the serialised bytes of an update's messages."""
        return sum(part.ByteSize() for part in self._parts(header, bytes(header.total_bytes)))

    def _parts(self, header: pb.UpdateHeader, payload: bytes) -> Iterator[pb.SubmitUpdateRequest]:
        yield pb.SubmitUpdateRequest(header=header)
        for offset in range(0, len(payload), self._chunk_bytes):
            chunk = pb.UpdateChunk(offset=offset, data=payload[offset : offset + self._chunk_bytes])
            yield pb.SubmitUpdateRequest(chunk=chunk)


def carried(message: _M) -> _M:
    """Give a message as it arrives at the other end."""
    return type(message).FromString(message.SerializeToString())
