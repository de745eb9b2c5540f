"""Runs the coordinator: gRPC and HTTP on one event loop in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import bnncore
from bnncore.supervision import ServiceManager
from server.api.app import create_app
from server.app.doors import devices_door, listening, peoples_door
from server.app.http import Listener
from server.app.identity import enrol_url, open_trust, people_url, write_endpoint
from server.app.tracing import traced
from server.coordinator import Coordinator, JobState
from server.errors import NotReadyError
from server.identity.trust import ADMIN_KEY_FILE, Trust
from server.jobs import JobConfig
from server.replicas.names import application_name, new_replica_id
from server.rpc import FleetService
from server.rpc.payload_urls import PayloadUrls
from server.settings import Address, Settings
from server.storage.blob_stores import open_blobs
from server.storage.sql import SqlStorage, open_storage
from server.storage.state_folder import IDENTITY_FOLDER, owned

if TYPE_CHECKING:
    from server.replicas.replica import Replica

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PAUSE_S = 1.0
"""Between two tries to have the lead create a job."""


async def serve(settings: Settings, jobs: list[JobConfig], announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT, or until all jobs are done when the settings say so.

    After a signal what is under way may come to its end, for ``drain_s`` seconds or until a second signal. Before it is
    ready nothing is under way: it ends at once, whatever it waits for.

    Args:
      settings: addresses, folders and limits.
      jobs: to be created unless they exist.
      announce: told one line with both addresses when devices and people can connect, then by what they are known; or
        one line that a signal came before that.

    Returns:
      0; 1 when it ended because all jobs were done and one of them had failed.

    Raises:
      ConfigurationError: a port is in use, or the state folder, the database or a certificate cannot be used.
    """
    stop, hurry, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(_serve(settings, jobs, announce, stop, hurry, ready))

    def on_signal() -> None:
        if not stop.is_set() and not ready.is_set():
            work.cancel()
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        return await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        announce("bitfleet-server was stopped before it was ready")
        return 0


async def _serve(
    settings: Settings,
    jobs: list[JobConfig],
    announce: Callable[[str], None],
    stop: asyncio.Event,
    hurry: asyncio.Event,
    ready: asyncio.Event,
) -> int:
    manager = ServiceManager()
    pulse = asyncio.create_task(manager.keep_informed())
    with owned(settings.state), listening(settings.http, settings) as http_socket:
        replica_id = new_replica_id()
        blobs = await _apart(open_blobs, settings)
        storage = await _apart(open_storage, settings.database_url, application_name(replica_id))
        coordinator = Coordinator(storage, blobs, limits=settings)
        replica = _replica(coordinator, storage, replica_id, settings) if storage.is_shared else None
        try:
            trust, new_key = None, None
            if not settings.insecure:
                trust = await open_trust(settings, coordinator)
                folder = settings.state / IDENTITY_FOLDER
                new_key = await trust.machines_key(folder, is_lost=settings.new_admin_key)
                if replica is not None:
                    replica.share_trust(trust, trust.authority)
            async with (
                _doors(coordinator, trust, replica, http_socket, settings) as (grpc_address, http_address),
                _by_itself(coordinator, jobs) if replica is None else _among_others(coordinator, replica, jobs),
            ):
                ready.set()
                write_endpoint(settings, http_address, trust)
                url = people_url(settings, http_address, trust)
                announce(f"bitfleet-server ready: devices at {grpc_address}, people at {url}/")
                manager.ready()
                if trust is not None:
                    _introduce(trust, new_key, settings.state / IDENTITY_FOLDER / ADMIN_KEY_FILE, announce)
                if await _wait(stop, coordinator if settings.exit_when_done else None):
                    await _drain(coordinator, settings.drain_s, hurry)
                    return 0
                ended = await coordinator.disk.run(storage.list_jobs)
                return int(any(job.state == JobState.FAILED for job in ended))
        finally:
            manager.stopping()
            await coordinator.stop()
            pulse.cancel()


async def _apart(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call what may wait for another machine, on a thread that this process does not wait for when it ends."""
    answer: Future[_T] = Future()
    answer.set_running_or_notify_cancel()  # whoever waits may go; the answer may come all the same

    def call() -> None:
        try:
            answer.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=call, name=function.__name__, daemon=True).start()
    return await asyncio.wrap_future(answer)


def _replica(coordinator: Coordinator, storage: SqlStorage, replica_id: str, settings: Settings) -> Replica:
    """Make what lets the coordinator work beside others over the same database."""
    from server.replicas.replica import Replica  # with a driver that nobody else needs

    return Replica(
        *(coordinator, storage, replica_id, settings.database_url), store=settings.store, version=bnncore.__version__
    )


@contextlib.asynccontextmanager
async def _among_others(coordinator: Coordinator, replica: Replica, jobs: list[JobConfig]) -> AsyncIterator[None]:
    """Work on jobs with others, or wait to be the one that does."""
    async with replica:
        for job in jobs:
            await _ensure(coordinator, job)
        yield


async def _ensure(coordinator: Coordinator, job: JobConfig) -> None:
    """Have the lead create a job unless it exists; tries until there is a lead."""
    while True:
        try:
            await coordinator.fleet_jobs.ensure(job)
            return
        except NotReadyError as error:
            _log.warning("event=job_waits_for_lead job=%s reason=%r", job.name, str(error))
            await asyncio.sleep(_PAUSE_S)


@contextlib.asynccontextmanager
async def _by_itself(coordinator: Coordinator, jobs: list[JobConfig]) -> AsyncIterator[None]:
    """Work on jobs; ``Coordinator.stop`` ends that."""
    for job in jobs:
        await coordinator.jobs.ensure(job)
    await coordinator.lead()
    yield


@contextlib.asynccontextmanager
async def _doors(
    coordinator: Coordinator,
    trust: Trust | None,
    replica: Replica | None,
    http_socket: Listener,
    settings: Settings,
) -> AsyncIterator[tuple[Address, Address]]:
    version = bnncore.__version__
    tls, devices = (None, None) if trust is None else (trust.tls, trust.devices)
    urls = PayloadUrls(coordinator.disk.blobs) if settings.presigned_downloads else None
    service = FleetService(coordinator, version=version, devices=devices, urls=urls)
    async with devices_door(coordinator, service, settings.grpc, tls, settings) as grpc_address:
        http_address = Address(*http_socket.getsockname()[:2])
        app = create_app(
            coordinator,
            version=version,
            trust=trust,
            replica=replica,
            grpc_port=grpc_address.port,
            enrol_url=enrol_url(settings, http_address, trust),
            public_origin=settings.public_origin,
            limits=settings,
        )
        async with (
            traced(app, coordinator.disk, os.environ, version=version),
            peoples_door(coordinator, app, http_socket, tls, settings),
        ):
            yield grpc_address, http_address


def _introduce(trust: Trust, new_key: str | None, key_file: Path, announce: Callable[[str], None]) -> None:
    """Tell by what devices know this coordinator, and a key that was made, the latter where only a person sees it."""
    announce(f"known by {trust.tls.fingerprint} (bitfleet-client enroll --ca-fingerprint)")
    if new_key is not None:
        announce(f"an admin key is in {key_file}, where this machine's bitfleet-server finds it")
        if sys.stdout.isatty():  # elsewhere it would stay in a log
            announce(f"it is told this once: {new_key}")


async def _drain(coordinator: Coordinator, seconds: float, hurry: asyncio.Event) -> None:
    """Let what is under way come to its end, for so long and not after a second signal."""
    _log.info("event=draining at_most_s=%g", seconds)
    is_complete = await _comes_first(coordinator.drain(), hurry.wait(), timeout_s=seconds)
    _log.info("event=drained complete=%s", is_complete)


async def _wait(stop: asyncio.Event, coordinator: Coordinator | None) -> bool:
    """Wait for a signal, or until all jobs are done when a coordinator is given; returns whether it was a signal."""
    return await _comes_first(stop.wait(), *([] if coordinator is None else [coordinator.fleet_jobs.wait_until_idle()]))


async def _comes_first(
    one: Coroutine[Any, Any, Any], *others: Coroutine[Any, Any, Any], timeout_s: float | None = None
) -> bool:
    """Wait until any of them is done, or for so long; returns whether ``one`` is. The rest is cancelled."""
    waits = [asyncio.ensure_future(wait) for wait in (one, *others)]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return waits[0] in done
    finally:
        for wait in waits:
            wait.cancel()
