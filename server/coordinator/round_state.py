"""Where a round stands: the whole state of the machine in ``round.py``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.coordinator.events import Effect
from server.coordinator.rules import RoundRules


class Phase(StrEnum):
    """Where a round stands."""

    OPEN = "OPEN"
    COLLECTING = "COLLECTING"
    UNMASKING = "UNMASKING"
    AGGREGATING = "AGGREGATING"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"


Devices = frozenset[str]
NOBODY: Devices = frozenset()


@dataclass(frozen=True)
class Round:
    """A round's whole state."""

    rules: RoundRules
    phase: Phase = Phase.OPEN
    attempt: int = 1
    connected: Devices = NOBODY
    """Eligible devices with a live stream."""
    carried: Devices = NOBODY
    """Members that are still at the task of an earlier round."""
    last_call: Devices = NOBODY
    """Those of them that are stopped when this round ends without their update."""
    cohort: Devices = NOBODY
    accepted: Devices = NOBODY
    failed: Devices = NOBODY
    """Members whose task failed in this attempt; the next attempt asks them again."""
    refused: Devices = NOBODY
    """Members that declined or sent an invalid update; asked again only when there are not enough others."""
    gone: Devices = NOBODY
    """Members that have been silent for too long; they may still come back before the deadline."""
    queued: Devices = NOBODY
    """Members whose device is still at another job's task."""
    exchange: int = 1
    """Under secure aggregation the exchange that accepted keys are of, counted from 1."""
    trained: Devices = NOBODY
    """Members of an exchange that failed: they have an update, and are asked for new keys before others train."""
    spent: Devices = NOBODY
    """Members whose update has served in a sum: none that differs from it by one device may be opened."""
    wake_at: float | None = None
    """When time alone changes something: end of the settle time (OPEN) or the deadline (COLLECTING; None: it has
    passed, and only queued members hold the round open)."""
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more can happen to the round."""
        return self.phase in (Phase.COMMITTED, Phase.FAILED)

    @property
    def quorum(self) -> int:
        """Accepted updates that this cohort needs."""
        if self.rules.quorum is not None:
            return self.rules.quorum
        return len(self.cohort) if self.rules.enough is None else min(len(self.cohort), self.rules.enough)

    @property
    def waiting(self) -> Devices:
        """Members that may still deliver in this attempt."""
        return self.cohort - self.accepted - self.failed - self.refused

    @property
    def available(self) -> Devices:
        """Devices that a cohort may be chosen of: those that are there, and those of which an update was accepted."""
        return (self.connected | self.accepted) - self.spent

    @property
    def busy(self) -> Devices:
        """Members whose device is at the round's task: under secure aggregation until the sum is known."""
        in_exchange = self.rules.is_secure and self.phase in (Phase.OPEN, Phase.COLLECTING, Phase.UNMASKING)
        return self.waiting | self.accepted if in_exchange else self.waiting

    @property
    def is_held_open(self) -> bool:
        """Whether a member that is there could not begin yet, so that the deadline does not count."""
        return bool((self.queued & self.waiting) - self.gone)

    @property
    def late(self) -> Devices:
        """Members whose update may still come when this round ends without it."""
        return self.waiting - self.last_call - self.queued if self.rules.keeps_late else NOBODY


Step = tuple[Round, tuple[Effect, ...]]
"""A round after an event, and what is to be done, in order."""
