"""Runs the coordinator: gRPC and HTTP on one event loop in one process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn

import bnncore
from bnncore.errors import ConfigurationError
from server.api import create_app
from server.app.lock import locked
from server.coordinator import Coordinator, JobState, Limits
from server.jobs import JobConfig
from server.rpc import FleetService, create_server
from server.settings import Address, Settings
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage

_GRACE_S = 2.0
"""Seconds that calls in flight get to end when the coordinator stops."""


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has one owner of signals, and it is not this."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, jobs: list[JobConfig], announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT, or until all jobs are done when the settings say so.

    Args:
      settings: addresses, folders and limits.
      jobs: to be created unless they exist.
      announce: told one line with both addresses when devices and people can connect.

    Returns:
      0; 1 when it ended because all jobs were done and one of them had failed.

    Raises:
      ConfigurationError: a port is in use, or the state folder or the database cannot be used.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with locked(settings.state), _listening(settings.http) as http_socket:
        storage = await asyncio.to_thread(open_storage, settings.database_url)
        coordinator = Coordinator(
            storage,
            LocalBlobs(settings.state / "blobs"),
            limits=Limits(
                heartbeat_interval_s=settings.heartbeat_interval_s,
                settle_s=settings.settle_s,
                upload_idle_s=settings.upload_idle_s,
                max_chunk_bytes=settings.max_chunk_bytes,
                max_update_bytes=settings.max_update_bytes,
            ),
        )
        try:
            async with _grpc(coordinator, settings) as grpc_address, _http(coordinator, http_socket):
                for job in jobs:
                    await coordinator.jobs.ensure(job)
                await coordinator.start()
                host, port = http_socket.getsockname()[:2]
                announce(f"bitfleet-server ready: devices at {grpc_address}, people at http://{Address(host, port)}/")
                if await _wait(stop, coordinator if settings.exit_when_done else None):
                    return 0
                ended = await coordinator.disk.run(storage.list_jobs)
                return int(any(job.state == JobState.FAILED for job in ended))
        finally:
            await coordinator.stop()


async def _wait(stop: asyncio.Event, coordinator: Coordinator | None) -> bool:
    """Wait for a signal, or until all jobs are done when a coordinator is given; returns whether it was a signal."""
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
    if coordinator is not None:
        waits.append(asyncio.ensure_future(coordinator.jobs.wait_until_idle()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return stop.is_set()


@contextlib.asynccontextmanager
async def _grpc(coordinator: Coordinator, settings: Settings) -> AsyncIterator[Address]:
    service = FleetService(coordinator, version=bnncore.__version__)
    server = create_server(service, max_chunk_bytes=settings.max_chunk_bytes)
    try:
        port = server.add_insecure_port(str(settings.grpc))
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on --grpc {settings.grpc}: the port is in use; stop what uses it or choose another"
        ) from error
    await server.start()
    try:
        yield Address(settings.grpc.host, port)
    finally:
        coordinator.dismiss_devices()
        await server.stop(_GRACE_S)


@contextlib.asynccontextmanager
async def _http(coordinator: Coordinator, listener: socket.socket) -> AsyncIterator[None]:
    app = create_app(coordinator, version=bnncore.__version__)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=int(_GRACE_S)
    )
    server = _HttpServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(128)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on --http {address}: {error.strerror}; stop what uses the port or choose another"
            ) from error
        yield listener
