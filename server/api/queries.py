"""Answers questions about jobs, rounds, devices and models from storage and from the fleet as it is now."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from server.api.paging import EVERYTHING, Paging
from server.api.privacy_view import PrivacyView
from server.api.status_views import DiskView, ReplicaView, RunningJobView, StatusView
from server.api.views import (
    DeviceView,
    ExchangeView,
    JobView,
    ModelView,
    RoundView,
    VersionView,
    iso_time,
    median_or_none,
)
from server.coordinator import Coordinator
from server.coordinator.fleet_jobs import RunningJob
from server.errors import NotFoundError
from server.privacy import PrivacyChoice, privacy_of
from server.storage.base import DeviceRecord, JobRecord, RoundRecord, VersionRecord
from server.storage.pages import JobSums, RoundSums

if TYPE_CHECKING:
    from server.replicas.replica import Replica

_OVERHEADS_SHOWN = 20
"""Latest rounds of which the status gives the median overhead."""


class Queries:
    """Read-only views of a coordinator."""

    def __init__(self, coordinator: Coordinator, *, version: str, replica: Replica | None = None) -> None:
        self._coordinator = coordinator
        self._replica = replica
        self._disk = coordinator.disk
        self._storage = coordinator.disk.storage
        self._pages = coordinator.disk.storage.pages
        self._version = version

    async def status(self) -> StatusView:
        """Return the coordinator at a glance."""
        coordinator = self._coordinator
        jobs = await self._disk.run(self._pages.count_jobs)
        devices_known = await self._disk.run(self._pages.count_devices)
        overheads = await self._disk.run(self._storage.recent_overheads, _OVERHEADS_SHOWN)
        running = [await self._running_view(job) for job in await coordinator.fleet_jobs.running()]
        return StatusView(
            version=self._version,
            started_at=iso_time(coordinator.started_at),
            now=iso_time(time.time()),
            running=running,
            jobs=jobs,
            devices_connected=len(coordinator.fleet),
            devices_known=devices_known,
            device_states=dict(Counter(session.heartbeat.state for session in coordinator.fleet)),
            down_bytes=coordinator.traffic.down_bytes,
            up_bytes=coordinator.traffic.up_bytes,
            round_overhead_s=median_or_none(overheads),
            disk=DiskView(
                used_bytes=coordinator.space.used_bytes,
                held_bytes=coordinator.space.held_bytes,
                quota_bytes=coordinator.space.quota_bytes or None,
                free_bytes=coordinator.space.free_bytes(),
                refusals=coordinator.space.refusals,
            ),
            replica=None if self._replica is None else ReplicaView.of(self._replica),
        )

    async def _running_view(self, job: RunningJob) -> RunningJobView:
        overheads = await self._disk.run(self._storage.recent_overheads, _OVERHEADS_SHOWN, job.job_id)
        choice = None if job.privacy_json is None else PrivacyChoice.model_validate_json(job.privacy_json)
        return RunningJobView(
            id=job.job_id,
            name=job.name,
            rounds_committed=job.rounds_committed,
            rounds_total=job.rounds_total,
            round=job.round_number,
            state=job.phase,
            devices=job.devices,
            accepted=job.accepted,
            queued=job.queued,
            exchange=None if job.exchange is None else ExchangeView.of_running(job.exchange),
            overhead_s=median_or_none(overheads),
            privacy=await _privacy_view(choice, job.rounds_committed),
            waits_for=job.waits_for,
        )

    async def jobs(
        self,
        paging: Paging = EVERYTHING,
        state: str | None = None,
        name: str | None = None,
        *,
        newest_first: bool = False,
    ) -> list[JobView]:
        """Return a page of jobs in order of creation."""
        read = functools.partial(self._pages.jobs, state=state, name=name, newest_first=newest_first)
        page = await self._disk.run(read, paging.limit, paging.after)
        paging.tell(page)
        return await self._job_views(page.records)

    async def job(self, job_id: str) -> JobView:
        """Return one job."""
        (view,) = await self._job_views([await self._coordinator.jobs.get(job_id)])
        return view

    async def rounds(
        self,
        job_id: str,
        paging: Paging = EVERYTHING,
        state: str | None = None,
        *,
        only: Collection[int] | None = None,
        has_updates: bool = True,
        newest_first: bool = False,
    ) -> list[RoundView]:
        """Return a page of a job's rounds, or of those of some numbers, with their updates where wanted."""
        job = await self._coordinator.jobs.get(job_id)
        read = functools.partial(self._pages.rounds, state=state, only=only, newest_first=newest_first)
        page = await self._disk.run(read, job_id, paging.limit, paging.after)
        paging.tell(page)
        return await self._round_views(job, page.records, has_updates=has_updates)

    async def round(self, job_id: str, number: int) -> RoundView:
        """Return one round with its updates."""
        job = await self._coordinator.jobs.get(job_id)
        record = await self._disk.run(self._storage.get_round, job_id, number)
        if record is None:
            raise NotFoundError(f"job {job_id!r} has no round {number} (yet)")
        (view,) = await self._round_views(job, [record])
        return view

    async def devices(
        self,
        paging: Paging = EVERYTHING,
        state: str | None = None,
        label: tuple[str, str] | None = None,
        *,
        is_connected: bool | None = None,
        name: str = "",
    ) -> list[DeviceView]:
        """Return a page of the devices that ever connected, of one state or label, or with a part of a name."""
        states = {session.device_id: session.heartbeat.state for session in self._coordinator.fleet}
        only, without = None, frozenset[str]()
        if state not in (None, "OFFLINE") or is_connected:
            only = {name for name, its in states.items() if state in (None, its)}
        if state == "OFFLINE" or is_connected is False:
            without = frozenset(states)
        if label is not None:
            key, value = label
            labels = await self._disk.run(self._pages.labels)
            labelled = {name for name, its in labels.items() if its.get(key) == value}
            only = labelled if only is None else only & labelled
        read = functools.partial(self._pages.devices, only=only, without=without, containing=name)
        page = await self._disk.run(read, paging.limit, paging.after)
        paging.tell(page)
        return await self._device_views(page.records)

    async def device(self, device_id: str) -> DeviceView:
        """Return one device."""
        page = await self._disk.run(self._pages.devices, 1, only={device_id})
        if not page.records:
            raise NotFoundError(f"no device {device_id!r} ever connected; list them with: bitfleet-server devices")
        (view,) = await self._device_views(page.records)
        return view

    async def hindered(self) -> dict[str, Mapping[str, str]]:
        """Say why connected devices cannot work for running jobs, by device and job; both in order."""
        names = sorted(session.device_id for session in self._coordinator.fleet)
        problems = await self._coordinator.fleet_jobs.problems(names)
        return {name: problems[name] for name in names if problems.get(name)}

    async def models(self, paging: Paging = EVERYTHING, *, newest_first: bool = False) -> list[ModelView]:
        """Return a page of models, each with its newest version."""
        page = await self._disk.run(self._pages.models, paging.limit, paging.after, newest_first=newest_first)
        paging.tell(page)
        newest = {record.job_id: record.latest.version for record in page.records}
        promoted = await self._disk.run(self._storage.promotions.standing)
        committed = await self._disk.run(self._pages.committed, list(newest), set(newest.values()))
        rounds = {(round_.job_id, round_.round_number): round_ for round_ in committed}
        return [
            ModelView(
                id=record.job_id,
                name=record.name,
                versions=record.num_versions,
                latest=VersionView.of(record.latest, rounds.get((record.job_id, record.latest.version))),
                promoted_version=promoted[record.job_id][-1] if record.job_id in promoted else None,
            )
            for record in page.records
        ]

    async def versions(
        self, job_id: str, paging: Paging = EVERYTHING, *, newest_first: bool = False
    ) -> list[VersionView]:
        """Return a page of a model's versions."""
        await self._coordinator.jobs.get(job_id)
        read = functools.partial(self._pages.versions, newest_first=newest_first)
        page = await self._disk.run(read, job_id, paging.limit, paging.after)
        paging.tell(page)
        numbers = [record.version for record in page.records]
        committed = await self._disk.run(self._pages.committed, [job_id], numbers)
        rounds = {round_.round_number: round_ for round_ in committed}
        return [VersionView.of(record, rounds.get(record.version)) for record in page.records]

    async def version(self, job_id: str, version: int) -> VersionView:
        """Return one version of a model."""
        record = await self._version_record(job_id, version)
        return VersionView.of(record, await self._disk.run(self._storage.get_round, job_id, version))

    async def _version_record(self, job_id: str, version: int) -> VersionRecord:
        record = await self._disk.run(self._storage.get_version, job_id, version)
        if record is None:
            raise NotFoundError(
                f"model {job_id!r} has no version {version}; list them with: bitfleet-server models list"
            )
        return record

    async def _job_views(self, jobs: list[JobRecord]) -> list[JobView]:
        sums = await self._disk.run(self._pages.job_sums, [job.job_id for job in jobs])
        found = [(job, sums.get(job.job_id, JobSums())) for job in jobs]
        return [JobView.of(job, its, await _privacy_view(privacy_of(job), its.rounds)) for job, its in found]

    async def _round_views(
        self, job: JobRecord, records: list[RoundRecord], *, has_updates: bool = True
    ) -> list[RoundView]:
        choice, numbers = privacy_of(job), [record.round_number for record in records]
        sums = await self._disk.run(self._pages.round_sums, records)
        rows = defaultdict(list)
        for row in await self._disk.run(self._pages.updates, job.job_id, numbers) if has_updates else ():
            rows[row.round_number].append(row)
        spent: list[float | None] = [None] * len(records)
        if choice is not None:  # the first time its library is loaded, which takes a second
            spent = await asyncio.to_thread(lambda: [choice.spent(number) for number in numbers])
        return [
            RoundView.of(record, sums.get(record.round_number, RoundSums()), rows[record.round_number], epsilon)
            for record, epsilon in zip(records, spent, strict=True)
        ]

    async def _device_views(self, records: list[DeviceRecord]) -> list[DeviceView]:
        names = [record.device_id for record in records]
        labels = await self._disk.run(self._pages.labels, names)
        fleet = self._coordinator.fleet
        problems = await self._coordinator.fleet_jobs.problems([name for name in names if fleet.get(name) is not None])
        return [
            self._device_view(record, labels.get(record.device_id, {}), problems.get(record.device_id, {}))
            for record in records
        ]

    def _device_view(self, record: DeviceRecord, labels: dict[str, str], problems: Mapping[str, str]) -> DeviceView:
        session = self._coordinator.fleet.get(record.device_id)
        if session is None:
            return DeviceView.of(record, labels=labels)
        beat = session.heartbeat
        silent_s = self._coordinator.clock() - session.last_seen
        return DeviceView.of(
            record,
            state=beat.state,
            connected=True,
            labels=dict(session.hello.labels),
            last_seen=iso_time(time.time() - silent_s),
            pss_bytes=beat.pss_bytes,
            task_id=beat.task_id,
            step=beat.step,
            total_steps=beat.total_steps,
            paused_by=beat.paused_by,
            temperature_c=beat.temperature_c,
            ineligible=dict(problems),
        )


async def _privacy_view(choice: PrivacyChoice | None, sums_seen: int) -> PrivacyView | None:
    return None if choice is None else await asyncio.to_thread(PrivacyView.of, choice, sums_seen)
