"""What the coordinator asks of its storage: records, and two protocols.

The database holds what happened; payloads are files named by their SHA-256. The rule that makes ``kill -9`` harmless:
a row that names a payload is committed only after the payload is on disk, and a payload is deleted only after no row
names it. What a crash leaves behind is at worst a file without a row, removed at the next start.

Times are seconds since 1970 (UTC). Every method is synchronous and safe to call from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class JobRecord:
    """A job as it was asked for, and where it stands."""

    job_id: str
    name: str
    state: str
    config_json: str
    spec_json: str
    created_at: float
    finished_at: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RoundRecord:
    """A round; ``round_number`` counts from 1 and makes model version ``round_number``."""

    job_id: str
    round_number: int
    state: str
    attempt: int
    opened_at: float
    committed_at: float | None = None
    cohort: tuple[str, ...] = ()
    weights_digest: str | None = None
    accuracy: float | None = None
    """Percent of the held-out set."""
    loss: float | None = None
    reason: str = ""
    collecting_since: float | None = None
    """When the present attempt began to collect; None while it waits for devices."""
    collected_s: float = 0.0
    """Seconds that earlier attempts collected."""
    overhead_s: float | None = None
    """Of a committed round: its seconds, without waiting for devices and without the slowest device's training."""


@dataclass(frozen=True)
class UpdateRecord:
    """What became of one device's task in one round."""

    job_id: str
    round_number: int
    device_id: str
    status: str
    """ASSIGNED, ACCEPTED, REJECTED, LATE, DECLINED, FAILED, ABANDONED, MISSED, or CARRIED: on to the next round."""
    reason: str = ""
    update_digest: str | None = None
    num_examples: int = 0
    payload_bytes: int = 0
    seconds: float | None = None
    training_seconds: float | None = None
    steps: int = 0
    loss: float | None = None
    peak_pss_bytes: int = 0
    down_bytes: int = 0
    up_bytes: int = 0
    received_at: float | None = None


@dataclass(frozen=True)
class VersionRecord:
    """A model version: the payload that devices download, and the full float32 state behind it."""

    job_id: str
    version: int
    codec: str
    payload_digest: str
    payload_bytes: int
    state_digest: str
    weights_digest: str
    created_at: float
    memory_digest: str | None = None
    """The payload of what the strategy remembers for the next round; only the newest version's is kept."""
    step_digest: str | None = None
    """The payload of the step from the version before it, where devices are sent steps."""
    step_bytes: int = 0


@dataclass(frozen=True)
class DeviceRecord:
    """What a device last said about itself."""

    device_id: str
    first_seen: float
    last_seen: float
    client_version: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_examples: int
    isa: str
    machine: str
    threads: int
    memory_bytes: int
    pss_bytes: int = 0


class Storage(Protocol):
    """The database. A method returns only after its change is on disk; each is one transaction."""

    def add_job(self, job: JobRecord) -> None:
        """Add a job; raises ConflictError when the id exists."""

    def get_job(self, job_id: str) -> JobRecord | None:
        """Return a job, or None."""

    def list_jobs(self) -> list[JobRecord]:
        """Return all jobs in the order in which they were added."""

    def set_job_state(self, job_id: str, state: str, *, finished_at: float | None = None, reason: str = "") -> None:
        """Say where a job stands."""

    def save_round(self, round_: RoundRecord, assigned: Iterable[UpdateRecord] = ()) -> None:
        """Insert or replace a round, with the rows of devices that were given its task, in one transaction."""

    def get_round(self, job_id: str, round_number: int) -> RoundRecord | None:
        """Return a round, or None."""

    def list_rounds(self, job_id: str) -> list[RoundRecord]:
        """Return the job's rounds by number."""

    def recent_overheads(self, limit: int) -> list[float]:
        """Return ``overhead_s`` of the rounds committed last, of whatever job, the newest first."""

    def commit_round(self, round_: RoundRecord, version: VersionRecord, updates: Iterable[UpdateRecord] = ()) -> None:
        """Commit a round and the model version that it made, with the last word on its updates, in one transaction."""

    def set_evaluation(self, job_id: str, round_number: int, *, accuracy: float, loss: float) -> None:
        """Add a round's evaluation."""

    def record_updates(self, updates: Iterable[UpdateRecord]) -> None:
        """Insert or replace what became of devices' tasks in a round, in one transaction."""

    def get_update(self, job_id: str, round_number: int, device_id: str) -> UpdateRecord | None:
        """Return a device's row in a round, or None."""

    def list_updates(self, job_id: str, round_number: int | None = None) -> list[UpdateRecord]:
        """Return the rows of one round, or of all the job's rounds, by (round, device)."""

    def measured_steps(self, job_id: str, before_round: int) -> dict[str, tuple[int, float]]:
        """Return (steps, their seconds) by device: of its latest accepted update before a round that measured them."""

    def add_version(self, version: VersionRecord) -> None:
        """Add a model version that no round made; adding the same again changes nothing."""

    def get_version(self, job_id: str, version: int) -> VersionRecord | None:
        """Return a model version, or None."""

    def list_versions(self, job_id: str) -> list[VersionRecord]:
        """Return a job's model versions by number."""

    def find_payload(self, digest: str) -> int | None:
        """Return the size in bytes of a model's or a step's payload, or None when no version has it."""

    def save_device(self, device: DeviceRecord) -> None:
        """Insert or replace a device; ``first_seen`` of an existing one is kept."""

    def list_devices(self) -> list[DeviceRecord]:
        """Return all devices by id."""

    def referenced_digests(self) -> set[str]:
        """Return the digests that are needed.

        They are of model versions, of the memory of each job's newest version, and of updates accepted in open rounds.
        """

    def close(self) -> None:
        """Close the database."""


class BlobWriter(Protocol):
    """A payload being written; it appears in the store only when it is kept."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> str:
        """SHA-256 in lower-case hex of what was written so far."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def read(self) -> memoryview:
        """Return what was written so far, at least a byte; it stays readable whatever becomes of the payload."""

    def flush(self) -> None:
        """Put what was written so far on the disk, so that ``BlobStore.keep`` has less to do."""

    def discard(self) -> None:
        """Forget the payload; does nothing when it was kept or discarded before."""


class BlobStore(Protocol):
    """Payloads by digest."""

    def writer(self) -> BlobWriter:
        """Begin a payload."""

    def keep(self, writers: Sequence[BlobWriter]) -> None:
        """Make payloads durable under their digests, together; raises ValueError for one kept or discarded before."""

    def put(self, data: bytes) -> str:
        """Make a payload durable and return its digest; putting the same again changes nothing."""

    def get(self, digest: str) -> bytes:
        """Return a payload after checking its digest; raises NotFoundError when it is missing or damaged."""

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset`` on; raises NotFoundError when it is missing."""

    def temporary_file(self) -> BinaryIO:
        """Open an unnamed local file for writing and reading; it is gone when it is closed, or by a crash."""

    def delete(self, digest: str) -> None:
        """Remove a payload; does nothing when there is none."""

    def digests(self) -> set[str]:
        """Return the digests of all payloads."""

    def remove_leftovers(self) -> None:
        """Remove what a crash left half written."""
