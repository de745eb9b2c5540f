"""Stands between devices and their coordinator, hands every message on as it is, and keeps those of the devices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio

from bitfleet.v1 import fleet_pb2 as pb
from tests.patience import LIMIT_S

_SERVICE = "/bitfleet.v1.Fleet/"
_READ: dict[str, Any] = {
    "Connect": pb.ConnectRequest,
    "DownloadModel": pb.DownloadModelRequest,
    "SubmitUpdate": pb.SubmitUpdateRequest,
}


class Relay:
    """A gRPC server that knows no message of its own.

    Args:
      target: ``HOST:PORT`` of the coordinator.

    Attributes:
      address: where devices connect.
      messages: what devices sent, as it was serialised: the call's name and number, and the bytes.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.messages: list[tuple[str, int, bytes]] = []
        self._target = target
        self._calls = 0
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    def payloads(self) -> list[tuple[pb.UpdateHeader, bytes]]:
        """What was submitted, put together again."""
        parts: dict[int, tuple[pb.UpdateHeader, bytes]] = {}
        for method, call, data in self.messages:
            if method != "SubmitUpdate":
                continue
            message = pb.SubmitUpdateRequest.FromString(data)
            if message.WhichOneof("part") == "header":
                parts[call] = (message.header, b"")
            else:
                header, before = parts[call]
                parts[call] = (header, before + message.chunk.data)
        return list(parts.values())

    def num_bytes(self) -> int:
        """Bytes of all messages, without what frames them."""
        return sum(len(data) for _, _, data in self.messages)

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        server = grpc.aio.server()
        async with grpc.aio.insecure_channel(self._target) as channel:
            server.add_generic_rpc_handlers((_Handler(self, channel),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            self.address = f"127.0.0.1:{port}"
            self._ready.set()
            await self._ended.wait()
            await server.stop(None)

    def note(self, method: str, call: int, data: bytes) -> None:
        """Keep a message, which must be one of the protocol."""
        _READ[method].FromString(data)
        self.messages.append((method, call, data))

    def new_call(self) -> int:
        """Number a call."""
        self._calls += 1
        return self._calls


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, relay: Relay, channel: grpc.aio.Channel) -> None:
        self._relay = relay
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        called = handler_call_details.method
        method = called.removeprefix(_SERVICE)
        onward: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(called)

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            number = self._relay.new_call()

            async def noted() -> AsyncIterator[bytes]:
                async for data in requests:
                    self._relay.note(method, number, data)
                    yield data

            call = onward(noted())
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            finally:
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(forward)
