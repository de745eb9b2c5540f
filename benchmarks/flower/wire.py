"""Counts what really crosses a device's connections: a TCP proxy between a device and its coordinator."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

BUFFER_BYTES = 1 << 18


class CountingProxy:
    """Passes connections on to one address and counts their payload; leaving the block ends them.

    Args:
      host: where the coordinator listens.
      port: its port.

    Attributes:
      address: where the device connects, HOST:PORT.
      up_bytes: TCP payload that has come from the device so far.
      down_bytes: TCP payload that has gone to the device so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.up_bytes = 0
        self.down_bytes = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for end in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                coordinator = socket.create_connection(self._target)
            except OSError:  # the device will try again, as it would without a proxy
                device.close()
                continue
            with self._lock:
                self._sockets += [device, coordinator]
            for end in (device, coordinator):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass_on, args=(device, coordinator, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(coordinator, device, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                with self._lock:
                    if is_up:
                        self.up_bytes += len(data)
                    else:
                        self.down_bytes += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """Find a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
