"""The HTTP server of people's port: uvicorn, with an end to everything that a peer may drag out.

uvicorn bounds the size of headers and the time between requests. Here are the number of connections, counted from the
moment they are accepted, so that one whose TLS handshake never ends has its place too, and the times of a handshake, of
a request and of an answer that nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.problems import problem
from server.coordinator.admission import Places
from server.errors import NotReadyError
from server.identity.tls import ServerTls
from server.limits import ConnectionLimits


class Listener(socket.socket):
    """A listening socket that accepts so many connections, in all and from one address, and closes the others."""

    def __init__(self, family: int, limits: ConnectionLimits) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._places = Places("connections", in_all=limits.max_connections, of_one=limits.max_connections_per_address)

    @property
    def num_connections(self) -> int:
        """Connections that are open now."""
        return self._places.num_taken

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection that has a place; raises as ``socket.accept``."""
        while True:
            accepted, address = super().accept()
            with accepted:
                try:
                    self._places.take(address[0])
                except NotReadyError:
                    continue
                return _Connection(accepted.detach(), self._places, address[0]), address


class _Connection(socket.socket):
    """A connection; its place is free again when it is closed, by whomever."""

    def __init__(self, descriptor: int, places: Places, address: str) -> None:
        super().__init__(fileno=descriptor)
        self._places: Places | None = places
        self._address = address

    def close(self) -> None:
        """Close it and give its place back."""
        super().close()
        if self._places is not None:
            self._places.give_back(self._address)
            self._places = None


class HttpServer(uvicorn.Server):
    """uvicorn over one listener, without its own signal handlers: the process has one owner of signals, not this."""

    def __init__(self, app: FastAPI, tls: ServerTls | None, limits: ConnectionLimits, *, grace_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,  # where a request came from is in the audit log: not by the peer's own word
                server_header=False,
                h11_max_incomplete_event_size=limits.max_header_bytes,
                timeout_keep_alive=max(1, round(limits.idle_timeout_s)),
                timeout_graceful_shutdown=int(grace_s),
                ssl_context_factory=None if tls is None else lambda config, default: tls.http_context(),
            )
        )
        self._limits = limits

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen as uvicorn does, with an end to handshakes, for which it has no option."""
        await self.lifespan.startup()
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        handshake_s = None if tls is None else self._limits.request_timeout_s
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=listener,
                ssl=tls,
                ssl_handshake_timeout=handshake_s,
            )
            for listener in sockets or []
        ]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        return _HttpProtocol(self.config, self.server_state, self.lifespan.state, self._limits.request_timeout_s)


class _HttpProtocol(H11Protocol):
    """A connection whose requests come, and whose answers are read, within a time."""

    def __init__(self, config: uvicorn.Config, server_state: Any, app_state: dict[str, Any], timeout_s: float) -> None:
        super().__init__(config, server_state, app_state)
        self._request = _Alarm(timeout_s)
        self._answer = _Alarm(timeout_s)
        self._acknowledged = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._request.set(transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._request.set(self.transport.abort)
        else:
            self._request.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._acknowledged = _acknowledged_bytes(self.transport)
        self._answer.set(self._look_for_progress)

    def _look_for_progress(self) -> None:
        """End a connection whose peer has read nothing since the last look."""
        self._answer.cancel()
        before, self._acknowledged = self._acknowledged, _acknowledged_bytes(self.transport)
        if self._acknowledged > before:
            self._answer.set(self._look_for_progress)
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._answer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._request.cancel()
        self._answer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request of HTTP/1.1, or has headers that are too large."""
        answer = problem(400, f"{msg} Its headers may have {self.config.h11_max_incomplete_event_size} bytes at most.")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _acknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how much the peer's system says it has received; that is little more than its owner has read.

    The transport's own buffer tells nothing: what TLS has encrypted leaves it in large pieces.
    """
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    return int.from_bytes(info[120:128], sys.byteorder)  # tcpi_bytes_acked, in linux/tcp.h


class _Alarm:
    """Something that happens after a time, unless it is called off."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def set(self, what: Callable[[], None]) -> None:
        """Let it happen; an alarm that is set stays as it is."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, what)

    def cancel(self) -> None:
        """Call it off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
