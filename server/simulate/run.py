"""Plays a job in one process: opens the coordinator over a work folder, lets devices live until the job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bnncore
from bnncore.cli.output import rss_peak_bytes
from bnncore.data import open_dataset
from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from bnncore.state import State
from server.coordinator import Coordinator, JobState
from server.coordinator.evaluation import OpenEvaluation, open_evaluation
from server.coordinator.round import Phase
from server.coordinator.versions import read_exported_state
from server.jobs import JobConfig
from server.limits import Limits
from server.rpc import FleetService
from server.simulate.cast import Cast, Share, split
from server.simulate.errors import SimulationError
from server.simulate.fleet import SimulatedFleet
from server.simulate.ledger import Ledger, Traffic
from server.simulate.plain_sum import PlainArithmetic
from server.simulate.report import RoundResult, SimulationResult, make_result, round_result
from server.simulate.scenario import Scenario
from server.simulate.together import Together
from server.simulate.trainers import OpenTrainer, Trainer
from server.simulate.wire import Wire
from server.storage.base import JobRecord, UpdateRecord
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage

_MANY = 10**9
_LIMITS = Limits(
    heartbeat_interval_s=1e6,
    settle_s=0.0,
    upload_idle_s=1e6,
    max_streams=_MANY,
    max_streams_per_device=_MANY,
    max_transfers=_MANY,
    max_transfers_per_device=_MANY,
    max_requests_per_minute=_MANY,
    max_neighbours=_MANY,
)
"""Devices of a simulation are never silent, slow or too many: only the machine may be."""

_LOOK_S = 0.25
"""Between two looks at how far the job is."""

OnRounds = Callable[[Sequence[RoundResult]], None]
"""Told of all committed rounds, the closing one left out, when there is one more or more is known of one."""

__all__ = ["OnRounds", "Played", "SimulationError", "play", "simulate"]


@dataclass(frozen=True)
class Played:
    """A job that was completed.

    Attributes:
      rounds: of it, without a closing one.
      state: of the last model, statistics included.
      digest: of its weights.
      traffic: of all of it.
      epsilon: what its models may have told of a device; None without privacy.
    """

    rounds: tuple[RoundResult, ...]
    state: State
    digest: str
    traffic: Traffic
    epsilon: float | None


async def simulate(
    scenario: Scenario,
    state: Path,
    *,
    open_trainer: OpenTrainer,
    shuffle: int | None = None,
    on_rounds: OnRounds | None = None,
) -> SimulationResult:
    """Run a scenario, or go on with it where an earlier run in the same work folder was stopped.

    The caller owns the folder (``server.storage.state_folder.owned``).

    Args:
      scenario: what to run.
      state: the work folder.
      open_trainer: of who trains the devices; it never changes the result.
      shuffle: decides the order in which the tasks of a round are done, which does not change the result either.
      on_rounds: told how far it is.

    Raises:
      ConfigurationError: the folder is of another scenario, or the data cannot be used.
      SimulationError: the job or a device failed.
    """
    began = time.monotonic()
    job = scenario.job()
    _claim(state, scenario)
    with open_dataset(scenario.dataset, scenario.data, split="train") as dataset:
        shares = split(dataset, scenario.devices, scenario.alpha, scenario.seed)
        with open_trainer(job, dataset) as trainer:
            played = await play(job, scenario, shares, state, trainer=trainer, shuffle=shuffle, on_rounds=on_rounds)
    return make_result(
        scenario,
        played.rounds,
        played.traffic,
        digest=played.digest,
        epsilon=played.epsilon,
        rss_peak=rss_peak_bytes(),
        seconds=time.monotonic() - began,
    )


async def play(
    job: JobConfig,
    cast: Cast,
    shares: Sequence[Share],
    state: Path,
    *,
    trainer: Trainer,
    shuffle: int | None = None,
    open_evaluation: OpenEvaluation = open_evaluation,
    on_rounds: OnRounds | None = None,
) -> Played:
    """Have devices work for a job until it is completed; ``simulate`` says what the other arguments are.

    Args:
      job: from ``timeless_job``.
      cast: the devices.
      shares: their samples, which all of them fit the job with.
      state: the work folder.
      trainer: who trains them.
      shuffle: see ``simulate``.
      open_evaluation: opens the evaluation set that the job names.
      on_rounds: see ``simulate``.

    Raises:
      SimulationError: the job or a device failed.
    """
    storage = await asyncio.to_thread(open_storage, f"sqlite:///{state / 'simulation.db'}")
    blobs, ledger = LocalBlobs(state / "blobs"), Ledger(state / "traffic.jsonl")
    arithmetic = None if cast.has_masks else PlainArithmetic()
    coordinator = Coordinator(storage, blobs, limits=_LIMITS, arithmetic=arithmetic, open_evaluation=open_evaluation)
    try:
        service = FleetService(coordinator, version=bnncore.__version__)
        wire = Wire(service, chunk_bytes=coordinator.limits.max_chunk_bytes)
        memories = state / "devices"
        memories.mkdir(exist_ok=True)
        together = None
        if Together.fits(job, trainer, has_attackers=cast.attackers > 0):
            together = Together(coordinator, job, trainer, wire, ledger, state)
        fleet = SimulatedFleet(
            *(cast, shares, job, wire, ledger, memories, blobs), trainer=trainer, together=together, shuffle=shuffle
        )
        record = await coordinator.jobs.ensure(job)
        watch = _Watch(coordinator, record, job.rounds, ledger)
        await coordinator.lead()
        async with fleet.working() as devices:
            try:
                record = await watch.until_over(devices, on_rounds or _ignore)
            finally:
                await coordinator.jobs.stop()  # before the devices: nothing they break off is then taken in
        if record.state != JobState.COMPLETED:
            raise SimulationError(f"the job is {record.state}: {record.reason}")
        rounds = await watch.look()
        disk, releases = coordinator.disk, watch.num_committed
        version = await disk.run(disk.storage.get_version, record.job_id, releases)
        if version is None:
            raise SimulationError(f"version {releases} of the model is not there any more")
        return Played(
            rounds,
            state=await asyncio.to_thread(read_exported_state, blobs, job.spec, version, job.down_codec),
            digest=version.weights_digest,
            traffic=ledger.total(),
            epsilon=None if job.privacy is None else job.privacy.spent(releases),
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


class _Watch:
    """Looks at how far a job is.

    Attributes:
      num_committed: rounds, a closing one included, at the last look.
    """

    def __init__(self, coordinator: Coordinator, job: JobRecord, num_rounds: int, ledger: Ledger) -> None:
        self._coordinator = coordinator
        self._job = job
        self._num_rounds = num_rounds
        self._ledger = ledger
        self._rows: dict[int, list[UpdateRecord]] = {}
        self.num_committed = 0

    async def until_over(self, devices: asyncio.Task[None], on_rounds: OnRounds) -> JobRecord:
        """Wait until the job has ended; raises what the devices end with, should they end first."""
        told: tuple[RoundResult, ...] = ()
        while True:
            job = await self._coordinator.jobs.get(self._job.job_id)
            rounds = await self.look()  # after the state: at the end all is told
            if rounds != told:
                on_rounds(rounds)
                told = rounds
            if JobState(job.state).is_over:
                return job
            await asyncio.wait({devices}, timeout=_LOOK_S)
            if devices.done():
                try:
                    await devices
                except ExceptionGroup as group:
                    error = group.exceptions[0]
                    raise SimulationError(f"a device failed: {error}") from error

    async def look(self) -> tuple[RoundResult, ...]:
        """Read what is known of the committed rounds, without a closing one."""
        disk, job_id = self._coordinator.disk, self._job.job_id
        records = await disk.run(disk.storage.list_rounds, job_id)
        committed = [record for record in records if record.state == Phase.COMMITTED]
        self.num_committed = len(committed)
        results = []
        for record in committed[: self._num_rounds]:
            number = record.round_number
            if number not in self._rows:  # they do not change after the commit
                self._rows[number] = await disk.run(disk.storage.list_updates, job_id, number)
            results.append(round_result(record, self._rows[number], self._ledger.by_round.get(number, Traffic())))
        return tuple(results)


def _ignore(rounds: Sequence[RoundResult]) -> None:
    del rounds
