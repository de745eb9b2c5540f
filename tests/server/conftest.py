"""A coordinator of a test's own: real SQLite file, real folder of payloads, real gRPC and HTTP over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api import create_app
from server.coordinator import Coordinator, Limits
from server.coordinator.events import TimePassed
from server.jobs import JobConfig, parse_job
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from tests.server.scripted import CLASSES, SHAPE


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
        "deadline_s": 60.0,
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
        """Move the coordinator's clock and let the round see it, as if its timer had fired."""
        self.clock.offset_s += seconds
        assert self.coordinator.running_job is not None
        self.coordinator.running_job.post(TimePassed())

    async def get(self, path: str) -> Any:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def rounds(self, job_id: str) -> list[dict[str, Any]]:
        rounds: list[dict[str, Any]] = await self.get(f"/api/v1/jobs/{job_id}/rounds")
        return rounds


OpenHouse = Callable[..., contextlib.AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house(tmp_path: Path) -> OpenHouse:
    """Open a coordinator over this test's folder; opening it again is a restart."""

    @contextlib.asynccontextmanager
    async def open_(**limits: Any) -> AsyncIterator[House]:
        defaults = {"heartbeat_interval_s": 5.0, "settle_s": 0.05, "max_chunk_bytes": 1024}
        clock = MovableClock()
        coordinator = Coordinator(
            open_storage(f"sqlite:///{tmp_path / 'bitfleet.db'}"),
            LocalBlobs(tmp_path / "blobs"),
            limits=Limits(**{**defaults, **limits}),
            clock=clock,
        )
        server = create_server(FleetService(coordinator, version="0.1.0"), max_chunk_bytes=1024)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        transport = httpx.ASGITransport(create_app(coordinator, version="0.1.0"))
        try:
            await coordinator.start()
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield House(coordinator, f"127.0.0.1:{port}", http, tmp_path, clock)
        finally:
            coordinator.dismiss_devices()
            await server.stop(1)
            await coordinator.stop()

    return open_


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait until a condition holds; how long it takes does not matter."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions here have no event to wait for
            await asyncio.sleep(0.01)
