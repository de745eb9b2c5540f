"""Lists in pages: what people and tools are shown, without reading a whole table for it.

A page begins after a cursor, which is the key of the last record of the page before: pages stay right while records are
added. Reading one costs what is on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from server.storage.base import DeviceRecord, JobRecord, RoundRecord, UpdateRecord, VersionRecord
from server.storage.trust import AuditRecord, IdentityRecord

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Page(Generic[_Record]):
    """Some of a list's records."""

    records: list[_Record]
    total: int
    """Records on all pages."""
    next: str | None
    """Cursor of the next page; None: there is none."""


@dataclass(frozen=True)
class CommittedRound:
    """What is shown of the round that made a version."""

    job_id: str
    round_number: int
    accuracy: float | None
    loss: float | None
    local_examples: int
    local_correct: int

    @property
    def local_accuracy(self) -> float | None:
        """Percent of the devices' own validation parts; None while nobody evaluated the version there."""
        return 100.0 * self.local_correct / self.local_examples if self.local_examples else None


@dataclass(frozen=True)
class JobSums:
    """What a job's summary takes of its committed rounds."""

    rounds: int = 0
    accuracy: float | None = None
    """The newest that is known, as the next two."""
    loss: float | None = None
    local_accuracy: float | None = None
    best: int | None = None
    """The round of the highest accuracy, the first of several."""
    local_best: int | None = None
    """The same of what devices found."""
    overhead_s: float | None = None
    """Median over those of which it is known."""


@dataclass(frozen=True)
class RoundSums:
    """What a round's summary takes of its devices' rows."""

    members: int = 0
    """Rows of the cohort; the two sums of bytes are over these, what follows is of all."""
    down_bytes: int = 0
    up_bytes: int = 0
    accepted: int = 0
    rejected: int = 0
    seconds_max: float | None = None
    """Of accepted updates, as the next two."""
    training_seconds_max: float | None = None
    joules: float | None = None
    """Mean over those of which they are known."""
    lost: int = 0
    """Members of the exchange whose update is not in its sum."""
    lost_before_shares: int = 0
    lost_before_masked: int = 0


@dataclass(frozen=True)
class ModelRecord:
    """A job's model."""

    job_id: str
    name: str
    num_versions: int
    latest: VersionRecord


class PageStore(Protocol):
    """Pages of the database's tables.

    ``limit`` is the most records of a page; ``after`` the ``next`` of the page before, None for the first. A cursor
    that no page gave raises InvalidCursorError. ``newest_first`` turns a list's order round.
    """

    def jobs(
        self,
        limit: int,
        after: str | None = None,
        *,
        state: str | None = None,
        name: str | None = None,
        newest_first: bool = False,
    ) -> Page[JobRecord]:
        """Return jobs in the order in which they were added, of one state or name."""

    def count_jobs(self) -> dict[str, int]:
        """Return how many jobs there are, by state."""

    def job_sums(self, job_ids: Collection[str]) -> dict[str, JobSums]:
        """Return what the jobs' committed rounds come to, by job."""

    def committed(self, job_ids: Collection[str], numbers: Collection[int]) -> list[CommittedRound]:
        """Return the jobs' committed rounds of some numbers, by number."""

    def rounds(
        self,
        job_id: str,
        limit: int,
        after: str | None = None,
        *,
        state: str | None = None,
        only: Collection[int] | None = None,
        newest_first: bool = False,
    ) -> Page[RoundRecord]:
        """Return a job's rounds by number, of one state or of some numbers."""

    def updates(
        self, job_id: str, round_numbers: Sequence[int], device_ids: Collection[str] | None = None
    ) -> list[UpdateRecord]:
        """Return the rows of these rounds, of some devices or of all, by (round, device)."""

    def round_sums(self, rounds: Sequence[RoundRecord]) -> dict[int, RoundSums]:
        """Return the sums over the rows of a job's rounds, by number; of those that have rows."""

    def models(self, limit: int, after: str | None = None, *, newest_first: bool = False) -> Page[ModelRecord]:
        """Return the models, in the order in which their jobs were added."""

    def versions(
        self, job_id: str, limit: int, after: str | None = None, *, newest_first: bool = False
    ) -> Page[VersionRecord]:
        """Return a model's versions by number."""

    def devices(
        self,
        limit: int,
        after: str | None = None,
        *,
        only: Collection[str] | None = None,
        without: Collection[str] = frozenset(),
        containing: str = "",
    ) -> Page[DeviceRecord]:
        """Return devices by id: of some ids, without some, or whose id has a part, in whatever case."""

    def count_devices(self) -> int:
        """Return how many devices ever connected."""

    def unseen(self, limit: int, after: str | None = None) -> Page[IdentityRecord]:
        """Return devices that may connect and never did, by id."""

    def labels(self, device_ids: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        """Return the labels of enrolled devices, of some ids or of all, by id."""

    def audit(
        self, limit: int, after: str | None = None, *, actor: str | None = None, action: str | None = None
    ) -> Page[AuditRecord]:
        """Return entries of the audit log, the newest first, of one actor, or of actions that begin so."""
