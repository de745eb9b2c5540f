"""Replicas in one process: real PostgreSQL, a folder of payloads that they share, real gRPC over loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.coordinator import Coordinator
from server.replicas.names import application_name
from server.replicas.replica import Replica
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import SqlStorage, open_storage
from tests.patience import LIMIT_S, wait_for
from tests.postgres_server import PostgresServer
from tests.server.conftest import patient_limits


@dataclass
class Door:
    """One replica and its port for devices."""

    replica: Replica
    coordinator: Coordinator
    storage: SqlStorage
    address: str

    @property
    def leads(self) -> bool:
        return self.coordinator.jobs.is_working


OpenDoor = Callable[..., contextlib.AbstractAsyncContextManager[Door]]


_WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND NOT granted AND application_name = %s
"""


async def waits_for_lease(postgres: PostgresServer, *names: str) -> None:
    """Wait until these replicas stand in line for the lease: one that loses it then cannot get it again at once."""
    for name in names:

        def is_waiting(name: str = name) -> bool:
            return postgres.query(_WAITING, application_name(name)) == [(1,)]

        await asyncio.to_thread(wait_for, f"{name} to wait for the lease", is_waiting)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replicas wait for each other on a machine that stalls; of one that is gone the database tells."""
    for limit in ("bus._HANGS_S", "members.HELD_S"):
        monkeypatch.setattr(f"server.replicas.{limit}", 600.0)
    for limit in ("members.SILENT_S", "updates._GIVE_S", "partials._SETTLE_S", "distant_jobs._LOOK_S"):
        monkeypatch.setattr(f"server.replicas.{limit}", LIMIT_S)


@pytest.fixture
def open_door(postgres_url: str, tmp_path: Path) -> OpenDoor:
    """Open a replica over this test's database and folder."""

    @contextlib.asynccontextmanager
    async def open_(name: str, *, store: str = "shared", **limits: Any) -> AsyncIterator[Door]:
        storage = open_storage(postgres_url, application_name(name))
        coordinator = Coordinator(
            storage,
            LocalBlobs(tmp_path / "blobs"),
            limits=patient_limits(**limits),
        )
        replica = Replica(coordinator, storage, name, postgres_url, store=store, version="0.1.0")
        server = create_server(FleetService(coordinator, version="0.1.0"), max_chunk_bytes=1024)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with replica:
                yield Door(replica, coordinator, storage, f"127.0.0.1:{port}")
                coordinator.dismiss_devices()
        finally:
            await server.stop(1)
            await coordinator.stop()

    return open_
