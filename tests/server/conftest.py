"""A coordinator of a test's own: real SQLite file, real folder of payloads, real gRPC and HTTP over loopback."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.app import create_app
from server.coordinator import Coordinator
from server.coordinator.events import TimePassed
from server.coordinator.round_runner import RoundRunner
from server.jobs import JobConfig, parse_job
from server.limits import ConnectionLimits, Limits
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from tests.patience import LIMIT_S
from tests.postgres_server import PostgresServer, why_no_postgres
from tests.server.databases import lay_database
from tests.server.scripted import CLASSES, SHAPE

DEADLINE_S = 900.0
"""Of the rounds of ``make_job``, and not a job's by itself: no machine is so slow."""


def patient_limits(**changes: Any) -> Limits:
    """Give limits under which nobody counts as gone, however slow this machine is; ``changes`` replace some."""
    patience = {"heartbeat_interval_s": LIMIT_S, "upload_idle_s": LIMIT_S}
    return Limits(**{"settle_s": 0.05, "max_chunk_bytes": 1024, **patience, **changes})


def patient_connections(**changes: Any) -> ConnectionLimits:
    """Give limits under which no connection is cut because this machine is slow; ``changes`` replace some."""
    return ConnectionLimits(**{"request_timeout_s": LIMIT_S, "idle_timeout_s": LIMIT_S, **changes})


def make_job(**changes: Any) -> JobConfig:
    """Build a small job; ``changes`` replace its keys."""
    job: dict[str, Any] = {
        "name": "stripes",
        "model": {"zoo": "mlp", "params": {"widths": [16]}},
        "classes": list(CLASSES),
        "input_shape": list(SHAPE),
        "rounds": 3,
        "local_steps": 4,
        "batch_size": 10,
        "min_devices": 2,
        "deadline_s": DEADLINE_S,
    }
    return parse_job({**job, **changes})


@dataclass
class MovableClock:
    """The monotonic clock, which a test can move forward."""

    offset_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset_s


@dataclass
class House:
    """A running coordinator with both of its doors."""

    coordinator: Coordinator
    address: str
    http: httpx.AsyncClient
    state: Path
    clock: MovableClock

    def pass_time(self, seconds: float) -> None:
        """Move the coordinator's clock and let the rounds see it, as if their timers had fired."""
        self.clock.offset_s += seconds
        assert self.coordinator.jobs.running
        for runner in self.coordinator.jobs.running.values():
            runner.post(TimePassed())

    def open_round(self) -> RoundRunner | None:
        """Return the round that is being played, by the only job that runs; None when there is none."""
        running = self.coordinator.jobs.running
        return None if not running else next(iter(running.values())).active

    async def get(self, path: str) -> Any:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def rounds(self, job_id: str) -> list[dict[str, Any]]:
        rounds: list[dict[str, Any]] = await self.get(f"/api/v1/jobs/{job_id}/rounds")
        return rounds


OpenHouse = Callable[..., contextlib.AbstractAsyncContextManager[House]]


def _when_asked(build: Callable[[], ASGIApp]) -> ASGIApp:
    """Build an application when the first request comes: it takes longer than most tests, and few ask."""
    built = functools.cache(build)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await built()(scope, receive, send)

    return app


@pytest.fixture
def open_house(tmp_path: Path) -> OpenHouse:
    """Open a coordinator over this test's folder; opening it again is a restart."""

    @contextlib.asynccontextmanager
    async def open_(**limits: Any) -> AsyncIterator[House]:
        clock = MovableClock()
        coordinator = Coordinator(
            open_storage(lay_database(tmp_path / "bitfleet.db")),
            LocalBlobs(tmp_path / "blobs"),
            limits=patient_limits(**limits),
            clock=clock,
        )
        server = create_server(FleetService(coordinator, version="0.1.0"), max_chunk_bytes=1024)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        transport = httpx.ASGITransport(_when_asked(lambda: create_app(coordinator, version="0.1.0")))
        try:
            await coordinator.lead()
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                yield House(coordinator, f"127.0.0.1:{port}", http, tmp_path, clock)
        finally:
            coordinator.dismiss_devices()
            await server.stop(1)
            await coordinator.stop()

    return open_


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, for all tests that ask; who stops it starts it again."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if problem := why_no_postgres():
        pytest.skip(problem)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """An empty database of it."""
    postgres.query("DROP SCHEMA public CASCADE")
    postgres.query("CREATE SCHEMA public")
    return postgres.url
