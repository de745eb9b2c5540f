"""The JSON objects that the REST API gives. Times are ISO 8601 in UTC, accuracies percent, sizes bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median
from typing import Any

from pydantic import BaseModel

from server.storage.base import DeviceRecord, JobRecord, RoundRecord, UpdateRecord, VersionRecord


class UpdateView(BaseModel):
    """What became of one device's task in a round."""

    device_id: str
    status: str
    reason: str
    num_examples: int
    bytes: int
    seconds: float | None
    training_seconds: float | None
    steps: int
    loss: float | None
    peak_pss_bytes: int
    down_bytes: int
    up_bytes: int

    @classmethod
    def of(cls, row: UpdateRecord) -> UpdateView:
        """Build the view of a record."""
        return cls(
            device_id=row.device_id,
            status=row.status,
            reason=row.reason,
            num_examples=row.num_examples,
            bytes=row.payload_bytes,
            seconds=row.seconds,
            training_seconds=row.training_seconds,
            steps=row.steps,
            loss=row.loss,
            peak_pss_bytes=row.peak_pss_bytes,
            down_bytes=row.down_bytes,
            up_bytes=row.up_bytes,
        )


class RoundView(BaseModel):
    """One round of a job."""

    round: int
    state: str
    attempt: int
    opened_at: str
    committed_at: str | None
    devices: int
    accepted: int
    rejected: int
    accuracy: float | None
    loss: float | None
    down_bytes_per_device: int
    up_bytes_per_device: int
    device_seconds_max: float | None
    training_seconds_max: float | None
    overhead_s: float | None
    """Of a committed round: its time without waiting for devices, less ``training_seconds_max``."""
    model_version: int | None
    weights_digest: str | None
    reason: str
    updates: list[UpdateView]

    @classmethod
    def of(cls, record: RoundRecord, rows: list[UpdateRecord]) -> RoundView:
        """Build the view of a record."""
        members = [row for row in rows if row.device_id in record.cohort]
        accepted = [row for row in rows if row.status == "ACCEPTED"]
        count = max(1, len(members))
        is_committed = record.state == "COMMITTED"
        return cls(
            round=record.round_number,
            state=record.state,
            attempt=record.attempt,
            opened_at=iso_time(record.opened_at),
            committed_at=None if record.committed_at is None else iso_time(record.committed_at),
            devices=len(record.cohort),
            accepted=len(accepted),
            rejected=sum(row.status == "REJECTED" for row in rows),
            accuracy=record.accuracy,
            loss=record.loss,
            down_bytes_per_device=round(sum(row.down_bytes for row in members) / count),
            up_bytes_per_device=round(sum(row.up_bytes for row in members) / count),
            device_seconds_max=max((row.seconds for row in accepted if row.seconds is not None), default=None),
            training_seconds_max=max(
                (row.training_seconds for row in accepted if row.training_seconds is not None), default=None
            ),
            overhead_s=record.overhead_s,
            model_version=record.round_number if is_committed else None,
            weights_digest=record.weights_digest,
            reason=record.reason,
            updates=[UpdateView.of(row) for row in rows],
        )


class JobView(BaseModel):
    """A job and how far it is."""

    id: str
    name: str
    state: str
    reason: str
    rounds_total: int
    rounds_committed: int
    accuracy: float | None
    best_version: int | None
    """The version of the highest accuracy, the first of several; null while none was evaluated."""
    overhead_s: float | None
    """Median over its committed rounds."""
    created_at: str
    finished_at: str | None
    spec: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def of(cls, job: JobRecord, rounds: list[RoundRecord]) -> JobView:
        """Build the view of a record."""
        config = json.loads(job.config_json)
        committed = [round_ for round_ in rounds if round_.state == "COMMITTED"]
        accuracies = [round_.accuracy for round_ in committed if round_.accuracy is not None]
        evaluated = ((round_.accuracy, -round_.round_number) for round_ in committed if round_.accuracy is not None)
        best = max(evaluated, default=None)
        return cls(
            id=job.job_id,
            name=job.name,
            state=job.state,
            reason=job.reason,
            rounds_total=config["rounds"],
            rounds_committed=min(len(committed), config["rounds"]),
            accuracy=accuracies[-1] if accuracies else None,
            best_version=None if best is None else -best[1],
            overhead_s=median_or_none(round_.overhead_s for round_ in committed),
            created_at=iso_time(job.created_at),
            finished_at=None if job.finished_at is None else iso_time(job.finished_at),
            spec=json.loads(job.spec_json),
            config=config,
        )


class DeviceView(BaseModel):
    """A device, as it was last heard of."""

    device_id: str
    state: str
    connected: bool
    last_seen: str
    first_seen: str
    client_version: str
    num_examples: int
    classes: list[str]
    input_shape: list[int]
    isa: str
    machine: str
    threads: int
    memory_bytes: int
    pss_bytes: int
    task_id: str
    step: int
    total_steps: int
    ineligible: str | None
    """Why it cannot work for the running job (data, memory, conditions); null when it can, or when none is running."""

    @classmethod
    def of(cls, record: DeviceRecord, **live: Any) -> DeviceView:
        """Build the view of a record."""
        values: dict[str, Any] = {
            "state": "OFFLINE",
            "connected": False,
            "last_seen": iso_time(record.last_seen),
            "pss_bytes": record.pss_bytes,
            "task_id": "",
            "step": 0,
            "total_steps": 0,
            "ineligible": None,
        }
        return cls(
            device_id=record.device_id,
            first_seen=iso_time(record.first_seen),
            client_version=record.client_version,
            num_examples=record.num_examples,
            classes=list(record.classes),
            input_shape=list(record.input_shape),
            isa=record.isa,
            machine=record.machine,
            threads=record.threads,
            memory_bytes=record.memory_bytes,
            **{**values, **live},
        )


class VersionView(BaseModel):
    """A version of a job's model."""

    id: str
    version: int
    created_at: str
    weights_digest: str
    codec: str
    payload_digest: str
    payload_bytes: int
    accuracy: float | None
    loss: float | None

    @classmethod
    def of(cls, record: VersionRecord, round_: RoundRecord | None) -> VersionView:
        """Build the view of a record."""
        return cls(
            id=record.job_id,
            version=record.version,
            created_at=iso_time(record.created_at),
            weights_digest=record.weights_digest,
            codec=record.codec,
            payload_digest=record.payload_digest,
            payload_bytes=record.payload_bytes,
            accuracy=None if round_ is None else round_.accuracy,
            loss=None if round_ is None else round_.loss,
        )


class ModelView(BaseModel):
    """A job's model and the newest of its versions."""

    id: str
    name: str
    versions: int
    latest: VersionView


class StatusView(BaseModel):
    """The coordinator at a glance."""

    version: str
    started_at: str
    now: str
    running_job: str | None
    jobs: dict[str, int]
    devices_connected: int
    devices_known: int
    down_bytes: int
    up_bytes: int
    round_overhead_s: float | None
    """Median over the latest rounds, of all jobs; see ``RoundView``."""


def median_or_none(values: Iterable[float | None]) -> float | None:
    """Return the median of those values that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def iso_time(seconds: float) -> str:
    """Tell a time (seconds since 1970) as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
