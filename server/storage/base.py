"""What the coordinator asks of its database: records, and a protocol; of the store of payloads: ``payloads.py``.

The database holds what happened; payloads are files named by their SHA-256. The rule that makes ``kill -9`` harmless:
a row that names a payload is committed only after the payload is on disk, and a payload is deleted only after no row
names it. What a crash leaves behind is at worst a file without a row, removed at the next start.

Times are seconds since 1970 (UTC). Every method is synchronous and safe to call from one thread at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from server.storage.promotions import PromotionStore
from server.storage.trust import TrustStore

if TYPE_CHECKING:  # which has pages of the records below
    from server.storage.pages import PageStore


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
    starts_at: float | None = None
    """Before which it waits; None: it may begin at once."""
    idempotency_key: str | None = None
    """By which the request that asked for it is known when it is sent again; None: by nothing."""


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
    local_examples: int = 0
    """On which devices evaluated the version that the round made, in the rounds after it: see ``ScoreRecord``."""
    local_correct: int = 0
    local_loss_sum: float = 0.0
    exchange: int = 0
    """Under secure aggregation the exchange that the round is in, or that made its model, counted from 1; 0: none."""
    exchange_step: str = ""
    """The step of it that is waited for: SHARES, MASKED or REVEAL; empty while devices send their keys."""

    @property
    def local_accuracy(self) -> float | None:
        """Percent of the devices' own validation parts; None while nobody evaluated the version there."""
        return 100.0 * self.local_correct / self.local_examples if self.local_examples else None

    @property
    def local_loss(self) -> float | None:
        """Mean loss over the same examples, nats."""
        return self.local_loss_sum / self.local_examples if self.local_examples else None


@dataclass(frozen=True)
class UpdateRecord:
    """What became of one device's task in one round."""

    job_id: str
    round_number: int
    device_id: str
    status: str
    """ASSIGNED, ACCEPTED, REJECTED, LATE, DECLINED, FAILED, ABANDONED, MISSED, CARRIED (on to the next round), or LOST:
    a member of an exchange whose update is in no sum, and can be in none any more."""
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
    validation_examples: int = 0
    """Of the device, on which it evaluated the version that it started from; 0: it did not."""
    validation_correct: int = 0
    validation_loss: float | None = None
    """Mean over those, nats."""
    exchange_step: str = ""
    """Under secure aggregation the last step that the device took in the exchange: KEYS, SHARES, MASKED or REVEAL."""
    joules: float | None = None
    """Of its training, as it measured or modelled them; None: not known."""
    joules_source: str = ""
    """``rapl``, ``pmic``, ``ina219`` or ``hwmon``: a sensor; ``model``: an estimate; empty where they are not known."""
    folded_by: str | None = None
    """Of an accepted update, the replica in whose partial sum it is; None: in none, the lead folds it itself."""


@dataclass(frozen=True)
class StepRecord:
    """A step of an exchange after KEYS, taken in from a device; that of KEYS is its update."""

    job_id: str
    round_number: int
    exchange: int
    step: str
    """SHARES, MASKED or REVEAL."""
    device_id: str
    digest: str
    num_bytes: int
    received_at: float


@dataclass(frozen=True)
class ScoreRecord:
    """How devices judged a model version, each on examples of its own that it does not train on: sums over all."""

    examples: int
    correct: int
    loss_sum: float
    """Nats."""

    @classmethod
    def of(cls, rows: Iterable[UpdateRecord]) -> ScoreRecord:
        """Sum up. No order enters: counts are integers, and the losses' sum is rounded once."""
        judged = [row for row in rows if row.validation_loss is not None]
        return cls(
            examples=sum(row.validation_examples for row in judged),
            correct=sum(row.validation_correct for row in judged),
            loss_sum=math.fsum(row.validation_examples * (row.validation_loss or 0.0) for row in judged),
        )


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
    is_kept: bool = True
    """Whether its payload and its full state are still there; see ``server.coordinator.retention``."""
    is_step_kept: bool = True
    """Whether the step's payload is."""


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
    """The database. A method returns only after its change is on disk; each is one transaction.

    What is written of jobs, rounds, updates and model versions is the lead's to write where there are several replicas;
    elsewhere these methods raise LeaseLostError.
    """

    @property
    def pages(self) -> PageStore:
        """Lists a page at a time, for people and tools."""

    @property
    def trust(self) -> TrustStore:
        """Who may do what."""

    @property
    def promotions(self) -> PromotionStore:
        """Which version of each model is the one to use."""

    def add_job(self, job: JobRecord) -> None:
        """Add a job; raises ConflictError when the id exists."""

    def get_job(self, job_id: str) -> JobRecord | None:
        """Return a job, or None."""

    def find_job(self, idempotency_key: str) -> JobRecord | None:
        """Return the job that a request with this key made, or None."""

    def list_jobs(self) -> list[JobRecord]:
        """Return all jobs in the order in which they were added."""

    def set_job_state(self, job_id: str, state: str, *, finished_at: float | None = None, reason: str = "") -> None:
        """Say where a job stands."""

    def save_round(self, round_: RoundRecord, assigned: Iterable[UpdateRecord] = ()) -> None:
        """Insert or replace a round, with the rows of devices that were given its task, in one transaction.

        Steps of an exchange that it is not in (any more) are forgotten, and all when it is over.
        """

    def get_round(self, job_id: str, round_number: int) -> RoundRecord | None:
        """Return a round, or None."""

    def list_rounds(self, job_id: str) -> list[RoundRecord]:
        """Return the job's rounds by number."""

    def recent_overheads(self, limit: int, job_id: str | None = None) -> list[float]:
        """Return ``overhead_s`` of the rounds committed last, of one job or of all, the newest first."""

    def commit_round(
        self,
        round_: RoundRecord,
        version: VersionRecord,
        updates: Iterable[UpdateRecord] = (),
        scores: Mapping[int, ScoreRecord] = MappingProxyType({}),
    ) -> None:
        """Commit a round and the model version that it made, with the last word on its updates, in one transaction.

        ``scores``, by version, are added to those of the earlier rounds that made these versions. The steps of its
        exchanges are forgotten.
        """

    def set_evaluation(self, job_id: str, round_number: int, *, accuracy: float, loss: float) -> None:
        """Add a round's evaluation."""

    def record_updates(self, updates: Iterable[UpdateRecord]) -> None:
        """Insert or replace what became of devices' tasks in a round, in one transaction."""

    def record_steps(self, steps: Iterable[StepRecord]) -> None:
        """Insert or replace steps of an exchange, in one transaction."""

    def list_steps(self, job_id: str, round_number: int) -> list[StepRecord]:
        """Return what is kept of the round's exchange, by (step, device)."""

    def get_update(self, job_id: str, round_number: int, device_id: str) -> UpdateRecord | None:
        """Return a device's row in a round, or None."""

    def list_updates(self, job_id: str, round_number: int | None = None) -> list[UpdateRecord]:
        """Return the rows of one round, or of all the job's rounds, by (round, device)."""

    def measured_steps(self, job_id: str, before_round: int) -> dict[str, tuple[int, float]]:
        """Return (steps, their seconds) by device: of its latest accepted update before a round that measured them."""

    def add_version(self, version: VersionRecord) -> None:
        """Add a model version that no round made; adding the same again changes nothing."""

    def replace_versions(self, versions: Iterable[VersionRecord]) -> None:
        """Replace model versions, in one transaction; what is promoted stays kept, whatever is asked for."""

    def get_version(self, job_id: str, version: int) -> VersionRecord | None:
        """Return a model version, or None."""

    def list_versions(self, job_id: str) -> list[VersionRecord]:
        """Return a job's model versions by number."""

    def versions_before(self, job_id: str, version: int, limit: int) -> list[VersionRecord]:
        """Return the last ``limit`` of a job's model versions before a number, by number."""

    def forget_versions(self, job_id: str, after: int) -> None:
        """Forget a job's model versions beyond a number, with what made them and with their promotions."""

    def find_payload(self, digest: str, device_id: str) -> int | None:
        """Return the size in bytes of a payload that a task of the device leads to, or None.

        A task of round n leads to model version n - 1 and to the steps up to it, as far as they are kept.
        """

    def save_device(self, device: DeviceRecord) -> None:
        """Insert or replace a device; ``first_seen`` of an existing one is kept."""

    def list_devices(self) -> list[DeviceRecord]:
        """Return all devices by id."""

    def referenced_digests(self) -> set[str]:
        """Return the digests that are needed; from any thread.

        They are of model versions and steps that are kept, of the memory of each job's newest version, and of updates
        accepted in open rounds and what their exchanges need.
        """

    def check(self) -> None:
        """Ask the database for as little as possible, from any thread; raises what its driver does."""

    def may_delete(self) -> contextlib.AbstractContextManager[bool]:
        """Say whether payloads may be deleted from an object store; for the block, no backup of it begins.

        Whoever deletes asks inside of it, after that, which payloads are referenced.
        """

    def close(self) -> None:
        """Close the database."""
