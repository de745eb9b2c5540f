"""The fleet's jobs, as people see and change them at whichever coordinator they ask.

Where there is one coordinator, it works on the jobs itself (``LocalJobs``). Where there are several, only one of them
does, and is asked (``server.replicas.distant_jobs``). What is written down about jobs is read from the database by
everyone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.coordinator.eligibility import problems_of
from server.coordinator.events import ExchangeStep
from server.coordinator.queue import JobQueue
from server.coordinator.runner import JobRunner
from server.coordinator.sessions import Fleet
from server.jobs import JobConfig

if TYPE_CHECKING:
    from server.coordinator.exchange import Exchange


@dataclass(frozen=True)
class RunningExchange:
    """Where the exchange stands in which a round's updates are added up under masks."""

    number: int
    """In its round, counted from 1."""
    step: str | None
    """The one that is waited for; None at its end."""
    members: int
    lost_before_shares: int
    lost_before_masked: int

    @classmethod
    def of(cls, exchange: Exchange) -> RunningExchange:
        """Look at an exchange now."""
        return cls(
            number=exchange.number,
            step=None if exchange.is_over else exchange.step,
            members=len(exchange.members),
            lost_before_shares=len(exchange.absent(ExchangeStep.SHARES)),
            lost_before_masked=len(exchange.absent(ExchangeStep.MASKED)),
        )


@dataclass(frozen=True)
class RunningJob:
    """A running job, and the round that it is at; what of it is not in the database."""

    job_id: str
    name: str
    rounds_committed: int
    rounds_total: int
    round_number: int | None = None
    """Of the open round; None between rounds."""
    phase: str | None = None
    devices: int = 0
    accepted: int = 0
    queued: int = 0
    """Members whose device is at another job's task first."""
    exchange: RunningExchange | None = None
    privacy_json: str | None = None
    """The job's choice of privacy."""
    waits_for: str = ""

    @classmethod
    def of(cls, runner: JobRunner) -> RunningJob:
        """Look at a job now."""
        active, config = runner.active, runner.config
        round_ = None if active is None else active.round
        exchange = None if active is None else active.exchange
        return cls(
            job_id=runner.job_id,
            name=config.name,
            rounds_committed=min(runner.rounds_committed, config.rounds),
            rounds_total=config.rounds,
            round_number=None if active is None else active.round_number,
            phase=None if round_ is None else round_.phase,
            devices=0 if round_ is None else len(round_.cohort),
            accepted=0 if round_ is None else len(round_.accepted),
            queued=0 if round_ is None else len(round_.queued & round_.waiting),
            exchange=None if exchange is None else RunningExchange.of(exchange),
            privacy_json=None if config.privacy is None else config.privacy.model_dump_json(),
            waits_for=runner.waits_for,
        )


class FleetJobs(Protocol):
    """What people ask of jobs. A method that changes one raises as ``JobQueue`` does, or NotReadyError: try again."""

    async def create(self, config: JobConfig, key: str | None = None) -> str:
        """Add a job at the end, unless there is the one of an earlier request with this key; returns its id."""

    async def ensure(self, config: JobConfig) -> None:
        """Add a job at the end, unless there is one with this very configuration."""

    async def cancel(self, job_id: str) -> None:
        """Cancel a pending or running job."""

    async def pause(self, job_id: str) -> None:
        """Stop a pending or running job where it stands."""

    async def resume(self, job_id: str) -> None:
        """Let a paused job go on."""

    async def wait_until_idle(self) -> None:
        """Wait until no job is pending or running."""

    async def running(self) -> list[RunningJob]:
        """Return the jobs that run, in the order in which they began; none when that cannot be known now."""

    async def problems(self, device_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """Say by device and running job why a connected device may not take part."""


class LocalJobs:
    """Jobs that are worked on here; see ``FleetJobs`` for the contract."""

    def __init__(self, queue: JobQueue, fleet: Fleet) -> None:
        self._queue = queue
        self._fleet = fleet

    async def create(self, config: JobConfig, key: str | None = None) -> str:
        return (await self._queue.create(config, key)).job_id

    async def ensure(self, config: JobConfig) -> None:
        await self._queue.ensure(config)

    async def cancel(self, job_id: str) -> None:
        await self._queue.cancel(job_id)

    async def pause(self, job_id: str) -> None:
        await self._queue.pause(job_id)

    async def resume(self, job_id: str) -> None:
        await self._queue.resume(job_id)

    async def wait_until_idle(self) -> None:
        await self._queue.wait_until_idle()

    async def running(self) -> list[RunningJob]:
        return [RunningJob.of(runner) for runner in self._queue.running.values()]

    async def problems(self, device_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        running = {job_id: runner.eligibility for job_id, runner in self._queue.running.items()}
        return problems_of(self._fleet, device_ids, running)
