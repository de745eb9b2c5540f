"""Which version of a model is the one to use: records, and the protocol of their part of the database.

Promotions of a model are a stack that keeps what is taken off it: the version promoted last stands, rolling back
withdraws it, and the one that was promoted before stands again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PromotionRecord:
    """A version of a job's model, declared to be the one to use. Times are seconds since 1970 (UTC)."""

    job_id: str
    version: int
    promoted_at: float
    promoted_by: str
    """Who, as in the audit log."""
    withdrawn_at: float | None = None
    """When it was rolled back."""
    withdrawn_by: str | None = None


class PromotionStore(Protocol):
    """The promotions of all models. A method returns only after its change is on disk."""

    def add(self, promotion: PromotionRecord) -> None:
        """Promote a version.

        Raises:
          NotFoundError: the model has no such version, or its payload is no longer kept.
          ConflictError: it is the promoted one already.
        """

    def withdraw(self, job_id: str, at: float, by: str) -> PromotionRecord:
        """Withdraw the promotion that stands, so that the one before it does; returns what stands now.

        Raises:
          ConflictError: there is none before it.
        """

    def history(self, job_id: str) -> list[PromotionRecord]:
        """Return a model's promotions, the oldest first."""

    def standing(self) -> dict[str, list[int]]:
        """Return by job the versions whose promotion was not withdrawn; the last of each is the promoted one."""
