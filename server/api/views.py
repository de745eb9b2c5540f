"""The JSON objects that the REST API gives. Times are ISO 8601 in UTC, accuracies percent, sizes bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from server.api.privacy_view import PrivacyView
from server.api.view import View
from server.storage.base import DeviceRecord, JobRecord, RoundRecord, UpdateRecord, VersionRecord
from server.storage.pages import CommittedRound, JobSums, RoundSums

if TYPE_CHECKING:
    from server.coordinator.fleet_jobs import RunningExchange


class UpdateView(View):
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
    validation_examples: int
    validation_correct: int
    validation_loss: float | None
    exchange_step: str
    """The last step of the round's exchange that the device took; empty: none."""
    joules: float | None
    """Of its training: the whole board's, or the processor's, while it lasted; null: not known."""
    joules_source: str
    """Sensor (``rapl``, ``pmic``, ``ina219``, ``hwmon``), or ``model``: an estimate; empty: not known."""

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
            validation_examples=row.validation_examples,
            validation_correct=row.validation_correct,
            validation_loss=row.validation_loss,
            exchange_step=row.exchange_step,
            joules=row.joules,
            joules_source=row.joules_source,
        )


class ExchangeView(View):
    """The exchange in which a round's updates are added up under masks."""

    attempt: int
    """Counted from 1 in its round; each has new keys."""
    step: str | None
    """The one that is waited for: SHARES, MASKED or REVEAL; null while keys are collected, and at its end."""
    members: int
    """Devices whose keys were accepted."""
    lost_before_shares: int
    lost_before_masked: int
    """Members whose update is not in the sum, by the step that they did not take."""

    @classmethod
    def of(cls, record: RoundRecord, sums: RoundSums) -> ExchangeView | None:
        """Build the view of a record; None where updates are not masked."""
        if record.exchange == 0:
            return None
        return cls(
            attempt=record.exchange,
            step=record.exchange_step if record.state == "UNMASKING" else None,
            members=sums.lost + sums.accepted,
            lost_before_shares=sums.lost_before_shares,
            lost_before_masked=sums.lost_before_masked,
        )

    @classmethod
    def of_running(cls, exchange: RunningExchange) -> ExchangeView:
        """Build the view of one that is being played."""
        return cls(
            attempt=exchange.number,
            step=exchange.step,
            members=exchange.members,
            lost_before_shares=exchange.lost_before_shares,
            lost_before_masked=exchange.lost_before_masked,
        )


class RoundView(View):
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
    local_accuracy: float | None
    """Of the version that the round made, on the devices' own validation parts, as the rounds after it told."""
    local_loss: float | None
    local_examples: int
    down_bytes_per_device: int
    up_bytes_per_device: int
    device_seconds_max: float | None
    training_seconds_max: float | None
    joules_per_device: float | None
    """Mean over the accepted updates whose energy is known, measured or not; null: of none it is."""
    overhead_s: float | None
    """Of a committed round: its time without waiting for devices, less ``training_seconds_max``."""
    model_version: int | None
    weights_digest: str | None
    reason: str
    epsilon: float | None
    """What all rounds up to this one may have told of a device, at the job's delta; null without privacy, or before the
    round is committed."""
    exchange: ExchangeView | None
    """Null where updates are not added up under masks."""
    updates: list[UpdateView]

    @classmethod
    def of(
        cls, record: RoundRecord, sums: RoundSums, rows: Iterable[UpdateRecord], epsilon: float | None = None
    ) -> RoundView:
        """Build the view of a record, with those of its devices' rows that are to be shown."""
        count = max(1, sums.members)
        is_committed = record.state == "COMMITTED"
        return cls(
            round=record.round_number,
            state=record.state,
            attempt=record.attempt,
            opened_at=iso_time(record.opened_at),
            committed_at=None if record.committed_at is None else iso_time(record.committed_at),
            devices=len(record.cohort),
            accepted=sums.accepted,
            rejected=sums.rejected,
            accuracy=record.accuracy,
            loss=record.loss,
            local_accuracy=record.local_accuracy,
            local_loss=record.local_loss,
            local_examples=record.local_examples,
            down_bytes_per_device=round(sums.down_bytes / count),
            up_bytes_per_device=round(sums.up_bytes / count),
            device_seconds_max=sums.seconds_max,
            training_seconds_max=sums.training_seconds_max,
            joules_per_device=sums.joules,
            overhead_s=record.overhead_s,
            model_version=record.round_number if is_committed else None,
            weights_digest=record.weights_digest,
            reason=record.reason,
            epsilon=epsilon if is_committed else None,
            exchange=ExchangeView.of(record, sums),
            updates=[UpdateView.of(row) for row in rows],
        )


class JobView(View):
    """A job and how far it is."""

    id: str
    name: str
    state: str
    reason: str
    rounds_total: int
    rounds_committed: int
    accuracy: float | None
    local_accuracy: float | None
    best_version: int | None
    """The version of the highest accuracy, of the highest local one where the job has no held-out set or tensors that
    stay on devices; null while none has any."""
    overhead_s: float | None
    """Median over its committed rounds."""
    privacy: PrivacyView | None
    """Null where it asks for none."""
    created_at: str
    starts_at: str | None
    """Before which a pending job waits; null: it begins as soon as there is room."""
    finished_at: str | None
    spec: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def of(cls, job: JobRecord, sums: JobSums, privacy: PrivacyView | None = None) -> JobView:
        """Build the view of a record."""
        config = json.loads(job.config_json)
        is_judged_by_devices = config["evaluation"] is None or config.get("local_tensors")
        return cls(
            id=job.job_id,
            name=job.name,
            state=job.state,
            reason=job.reason,
            rounds_total=config["rounds"],
            rounds_committed=min(sums.rounds, config["rounds"]),
            accuracy=sums.accuracy,
            local_accuracy=sums.local_accuracy,
            best_version=sums.local_best if is_judged_by_devices else sums.best,
            overhead_s=sums.overhead_s,
            privacy=privacy,
            created_at=iso_time(job.created_at),
            starts_at=None if job.starts_at is None else iso_time(job.starts_at),
            finished_at=None if job.finished_at is None else iso_time(job.finished_at),
            spec=json.loads(job.spec_json),
            config=config,
        )


class DeviceView(View):
    """A device, as it was last heard of."""

    device_id: str
    state: str
    connected: bool
    labels: dict[str, str]
    """Of the token that it enrolled with."""
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
    paused_by: str | None
    """What holds its trainer in the middle of a task, by its owner's rules; null: nothing."""
    temperature_c: float | None
    """Of its hottest thermal zone; null where it has none or is not connected."""
    ineligible: dict[str, str]
    """Running jobs that it cannot work for, by id, and why: its data, its memory, its conditions."""

    @classmethod
    def of(cls, record: DeviceRecord, **live: Any) -> DeviceView:
        """Build the view of a record."""
        values: dict[str, Any] = {
            "state": "OFFLINE",
            "connected": False,
            "labels": {},
            "last_seen": iso_time(record.last_seen),
            "pss_bytes": record.pss_bytes,
            "task_id": "",
            "step": 0,
            "total_steps": 0,
            "paused_by": None,
            "temperature_c": None,
            "ineligible": {},
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


class VersionView(View):
    """A version of a job's model."""

    id: str
    version: int
    created_at: str
    weights_digest: str
    codec: str
    payload_digest: str
    payload_bytes: int
    is_kept: bool
    """Whether it can still be downloaded; old versions go when the disk's room is needed."""
    accuracy: float | None
    loss: float | None

    @classmethod
    def of(cls, record: VersionRecord, round_: RoundRecord | CommittedRound | None) -> VersionView:
        """Build the view of a record."""
        return cls(
            id=record.job_id,
            version=record.version,
            created_at=iso_time(record.created_at),
            weights_digest=record.weights_digest,
            codec=record.codec,
            payload_digest=record.payload_digest,
            payload_bytes=record.payload_bytes,
            is_kept=record.is_kept,
            accuracy=None if round_ is None else round_.accuracy,
            loss=None if round_ is None else round_.loss,
        )


class ModelView(View):
    """A job's model and the newest of its versions."""

    id: str
    name: str
    versions: int
    latest: VersionView
    promoted_version: int | None
    """The version that is the one to use; null: none was promoted."""


def median_or_none(values: Iterable[float | None]) -> float | None:
    """Return the median of those values that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def iso_time(seconds: float) -> str:
    """Tell a time (seconds since 1970) as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
