"""Answers questions about jobs, rounds, devices and models from storage and from the fleet as it is now."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from bnncore.checkpoint import save_checkpoint
from bnncore.spec import ModelSpec
from server.api.views import (
    DeviceView,
    JobView,
    ModelView,
    RoundView,
    StatusView,
    VersionView,
    iso_time,
    median_or_none,
)
from server.coordinator import Coordinator
from server.coordinator.versions import read_exported_state
from server.errors import NotFoundError
from server.storage.base import DeviceRecord, JobRecord, VersionRecord

_OVERHEADS_SHOWN = 100
"""Latest rounds of which the status gives the median overhead."""


class Queries:
    """Read-only views of a coordinator."""

    def __init__(self, coordinator: Coordinator, *, version: str) -> None:
        self._coordinator = coordinator
        self._disk = coordinator.disk
        self._storage = coordinator.disk.storage
        self._version = version

    async def status(self) -> StatusView:
        """Return the coordinator at a glance."""
        coordinator = self._coordinator
        jobs = await self._disk.run(self._storage.list_jobs)
        devices = await self._disk.run(self._storage.list_devices)
        overheads = await self._disk.run(self._storage.recent_overheads, _OVERHEADS_SHOWN)
        runner = coordinator.running_job
        return StatusView(
            version=self._version,
            started_at=iso_time(coordinator.started_at),
            now=iso_time(time.time()),
            running_job=None if runner is None else runner.job_id,
            jobs=dict(Counter(job.state for job in jobs)),
            devices_connected=len(coordinator.fleet),
            devices_known=len(devices),
            down_bytes=coordinator.traffic.down_bytes,
            up_bytes=coordinator.traffic.up_bytes,
            round_overhead_s=median_or_none(overheads),
        )

    async def jobs(self) -> list[JobView]:
        """Return all jobs in order of creation."""
        return [await self._job_view(job) for job in await self._disk.run(self._storage.list_jobs)]

    async def job(self, job_id: str) -> JobView:
        """Return one job."""
        return await self._job_view(await self._coordinator.jobs.get(job_id))

    async def rounds(self, job_id: str) -> list[RoundView]:
        """Return a job's rounds with their updates."""
        await self._coordinator.jobs.get(job_id)
        rounds = await self._disk.run(self._storage.list_rounds, job_id)
        rows = await self._disk.run(self._storage.list_updates, job_id)
        return [
            RoundView.of(record, [row for row in rows if row.round_number == record.round_number]) for record in rounds
        ]

    async def devices(self) -> list[DeviceView]:
        """Return all devices that ever connected."""
        return [self._device_view(record) for record in await self._disk.run(self._storage.list_devices)]

    async def models(self) -> list[ModelView]:
        """Return every model with its newest version."""
        views = []
        for job in await self._disk.run(self._storage.list_jobs):
            versions = await self.versions(job.job_id)
            if versions:
                views.append(ModelView(id=job.job_id, name=job.name, versions=len(versions), latest=versions[-1]))
        return views

    async def versions(self, job_id: str) -> list[VersionView]:
        """Return all versions of a model."""
        await self._coordinator.jobs.get(job_id)
        rounds = {record.round_number: record for record in await self._disk.run(self._storage.list_rounds, job_id)}
        versions = await self._disk.run(self._storage.list_versions, job_id)
        return [VersionView.of(record, rounds.get(record.version)) for record in versions]

    async def version(self, job_id: str, version: int) -> VersionView:
        """Return one version of a model."""
        record = await self._version_record(job_id, version)
        return VersionView.of(record, await self._disk.run(self._storage.get_round, job_id, version))

    async def checkpoint(self, job_id: str, version: int) -> Path:
        """Write a version as a checkpoint into a temporary file, which the caller removes."""
        job = await self._coordinator.jobs.get(job_id)
        record = await self._version_record(job_id, version)
        round_ = await self._disk.run(self._storage.get_round, job_id, version)
        extra = {"job_id": job_id, "job_name": job.name, "version": version}
        if round_ is not None and round_.accuracy is not None:
            extra["accuracy"] = round_.accuracy
        return await asyncio.to_thread(self._write_checkpoint, job, record, extra)

    def _write_checkpoint(self, job: JobRecord, record: VersionRecord, extra: dict[str, object]) -> Path:
        spec = ModelSpec.from_json(job.spec_json)
        down_codec = str(json.loads(job.config_json)["down_codec"])
        state = read_exported_state(self._disk.blobs, spec, record, down_codec)
        descriptor, name = tempfile.mkstemp(prefix="bitfleet-", suffix=".safetensors")
        os.close(descriptor)
        save_checkpoint(Path(name), spec, state, extra=extra)
        return Path(name)

    async def _version_record(self, job_id: str, version: int) -> VersionRecord:
        record = await self._disk.run(self._storage.get_version, job_id, version)
        if record is None:
            raise NotFoundError(
                f"model {job_id!r} has no version {version}; list them with: bitfleet-server models list"
            )
        return record

    async def _job_view(self, job: JobRecord) -> JobView:
        return JobView.of(job, await self._disk.run(self._storage.list_rounds, job.job_id))

    def _device_view(self, record: DeviceRecord) -> DeviceView:
        session = self._coordinator.fleet.get(record.device_id)
        if session is None:
            return DeviceView.of(record)
        runner, beat = self._coordinator.running_job, session.heartbeat
        silent_s = self._coordinator.clock() - session.last_seen
        return DeviceView.of(
            record,
            state=beat.state,
            connected=True,
            last_seen=iso_time(time.time() - silent_s),
            pss_bytes=beat.pss_bytes,
            task_id=beat.task_id,
            step=beat.step,
            total_steps=beat.total_steps,
            ineligible=None if runner is None else runner.why_ineligible(session),
        )
