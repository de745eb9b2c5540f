"""Runs a scenario: opens the coordinator over a work folder, lets the devices live until its job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import bnncore
from bnncore.cli.output import rss_peak_bytes
from bnncore.data import dirichlet_shards, open_dataset
from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from server.coordinator import Coordinator, JobState, Limits
from server.coordinator.round import Phase
from server.rpc import FleetService
from server.simulate.fleet import SimulatedFleet, SimulationError
from server.simulate.ledger import Ledger
from server.simulate.report import SimulationResult, make_result
from server.simulate.scenario import Scenario
from server.simulate.wire import Wire
from server.storage.base import JobRecord, RoundRecord
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage

_LIMITS = Limits(heartbeat_interval_s=1e6, settle_s=0.0, upload_idle_s=1e6)
"""Devices of a simulation are never silent and never slow: only the machine may be."""

_LOOK_S = 0.25
"""Between two looks at how far the job is."""

OnRound = Callable[[int, float | None], None]
"""Told (rounds committed, accuracy in percent of the last evaluated one) when either has changed."""

__all__ = ["SimulationError", "simulate"]


async def simulate(
    scenario: Scenario, state: Path, *, threads: int, shuffle: int | None = None, on_round: OnRound | None = None
) -> SimulationResult:
    """Run a scenario, or go on with it where an earlier run in the same work folder was stopped.

    The caller owns the folder (``server.app.lock.locked``).

    Args:
      scenario: what to run.
      state: the work folder.
      threads: devices that train at once; they never change the result.
      shuffle: decides the order in which the tasks of a round are done, which does not change the result either.
      on_round: told how far it is.

    Raises:
      ConfigurationError: the folder is of another scenario, or the data cannot be used.
      SimulationError: the job or a device failed.
    """
    began = time.monotonic()
    job = scenario.job()
    _claim(state, scenario)
    storage = await asyncio.to_thread(open_storage, f"sqlite:///{state / 'simulation.db'}")
    coordinator = Coordinator(storage, LocalBlobs(state / "blobs"), limits=_LIMITS)
    ledger = Ledger(state / "traffic.jsonl")
    try:
        with open_dataset(scenario.dataset, scenario.data, split="train") as dataset:
            shards = dirichlet_shards(dataset.labels, scenario.devices, scenario.alpha, scenario.seed)
            wire = Wire(
                FleetService(coordinator, version=bnncore.__version__), chunk_bytes=coordinator.limits.max_chunk_bytes
            )
            memories = state / "devices"
            memories.mkdir(exist_ok=True)
            fleet = SimulatedFleet(
                *(scenario, dataset, shards, wire, ledger, memories, coordinator.disk.blobs),
                threads=threads,
                shuffle=shuffle,
            )
            record = await coordinator.jobs.ensure(job)
            await coordinator.start()
            async with fleet.working() as devices:
                try:
                    record = await _until_over(coordinator, record, devices, on_round or _ignore)
                finally:
                    await coordinator.jobs.stop()  # before the devices: nothing they break off is then taken in
        if record.state != JobState.COMPLETED:
            raise SimulationError(f"the job is {record.state}: {record.reason}")
        rounds = await _committed(coordinator, record)
        return make_result(
            scenario,
            [round_.accuracy for round_ in rounds[: scenario.rounds] if round_.accuracy is not None],
            ledger.total(),
            digest=rounds[-1].weights_digest or "",
            rss_peak=rss_peak_bytes(),
            seconds=time.monotonic() - began,
        )
    finally:
        ledger.close()
        await coordinator.stop()


def _claim(state: Path, scenario: Scenario) -> None:
    """Write down what a work folder is of, or find that it is of the same scenario."""
    description, path = scenario.to_json(), state / "scenario.json"
    if not path.exists():
        with replace_file(path) as file:
            file.write(description.encode())
    elif path.read_text(encoding="utf-8") != description:
        raise ConfigurationError(
            f"--state {state} holds a simulation of other options ({path.name} there says which); "
            "give the same options to go on with it, or another folder"
        )


async def _until_over(
    coordinator: Coordinator, job: JobRecord, devices: asyncio.Task[None], on_round: OnRound
) -> JobRecord:
    told: tuple[int, float | None] = (0, None)
    while True:
        rounds = await _committed(coordinator, job)
        now = len(rounds), next((r.accuracy for r in reversed(rounds) if r.accuracy is not None), None)
        if now != told:
            on_round(*now)
            told = now
        job = await coordinator.jobs.get(job.job_id)
        if JobState(job.state).is_over:
            return job
        await asyncio.wait({devices}, timeout=_LOOK_S)
        if devices.done():
            await devices


async def _committed(coordinator: Coordinator, job: JobRecord) -> list[RoundRecord]:
    rounds = await coordinator.disk.run(coordinator.disk.storage.list_rounds, job.job_id)
    return [round_ for round_ in rounds if round_.state == Phase.COMMITTED]


def _ignore(committed: int, accuracy: float | None) -> None:
    del committed, accuracy
