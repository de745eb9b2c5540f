"""The two ports of the coordinator: gRPC for devices, HTTP for people and tools."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI

from bnncore.errors import ConfigurationError
from server.app.http import HttpServer, Listener
from server.coordinator import Coordinator
from server.identity.tls import ServerTls
from server.limits import ConnectionLimits
from server.rpc import FleetService, create_server, listen
from server.settings import Address

GRACE_S = 2.0
"""Seconds that calls in flight get to end when the coordinator stops."""


@contextlib.asynccontextmanager
async def devices_door(
    coordinator: Coordinator,
    service: FleetService,
    address: Address,
    tls: ServerTls | None,
    limits: ConnectionLimits | None = None,
) -> AsyncIterator[Address]:
    """Serve devices for the block; gives the address, with its port.

    Raises:
      ConfigurationError: the port is in use.
    """
    server = create_server(service, max_chunk_bytes=coordinator.limits.max_chunk_bytes, connections=limits)
    port = listen(server, str(address), tls)
    await server.start()
    try:
        yield Address(address.host, port)
    finally:
        coordinator.dismiss_devices()
        await server.stop(GRACE_S)


@contextlib.asynccontextmanager
async def peoples_door(
    coordinator: Coordinator,
    app: FastAPI,
    listener: Listener,
    tls: ServerTls | None,
    limits: ConnectionLimits | None = None,
) -> AsyncIterator[None]:
    """Serve people and tools for the block; streams of events end with it."""
    server = HttpServer(app, tls, limits or ConnectionLimits(), grace_s=GRACE_S)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield
    finally:
        coordinator.disk.feed.close()
        server.should_exit = True
        await task


@contextlib.contextmanager
def listening(address: Address, limits: ConnectionLimits | None = None) -> Iterator[Listener]:
    """Hold the HTTP port for the block.

    Raises:
      ConfigurationError: the port is in use.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with Listener(family, limits or ConnectionLimits()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(128)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on --http {address}: {error.strerror}; stop what uses the port or choose another"
            ) from error
        yield listener
