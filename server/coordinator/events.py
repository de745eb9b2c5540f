"""What can happen to a round (events) and what a round asks for (effects).

Both are plain values: the state machine in ``round.py`` takes an event and returns effects, the runner in
``runner.py`` carries them out. No clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SubmitStatus(StrEnum):
    """The answer to a submitted update; the names are those of the wire protocol."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    LATE = "LATE"
    REJECTED = "REJECTED"


class ExchangeStep(StrEnum):
    """What a device sends in an exchange, in its order; the names are those of the wire protocol."""

    KEYS = "KEYS"
    SHARES = "SHARES"
    MASKED = "MASKED"
    REVEAL = "REVEAL"


class TaskOutcome(StrEnum):
    """How a task ended on a device without an update."""

    DECLINED = "DECLINED"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


# Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimePassed:
    """A timer fired: the settle time or the deadline may be over."""


@dataclass(frozen=True)
class DeviceConnected:
    """An eligible device has a live stream (again)."""

    device_id: str


@dataclass(frozen=True)
class DeviceDisconnected:
    """The device's stream ended, or it may not work now; it may come back."""

    device_id: str


@dataclass(frozen=True)
class DeviceGone:
    """The device has missed three heartbeats: nobody waits for it before the deadline any more."""

    device_id: str


@dataclass(frozen=True)
class TaskQueued:
    """The device is at another job's task and gets this round's afterwards."""

    device_id: str


@dataclass(frozen=True)
class TaskBegun:
    """The device was at another job's task and has been given this round's now."""

    device_id: str


@dataclass(frozen=True)
class TaskEnded:
    """The device says that it will not send an update for its task."""

    device_id: str
    outcome: TaskOutcome
    reason: str = ""


@dataclass(frozen=True)
class UpdateOffered:
    """A valid update of this round is at the door."""

    device_id: str


@dataclass(frozen=True)
class UpdateRefused:
    """An update of the device was found invalid."""

    device_id: str


@dataclass(frozen=True)
class ExchangeDone:
    """The masks are off the sum of the accepted updates."""


@dataclass(frozen=True)
class ExchangeMissed:
    """The accepted updates could not be added up: too many of their devices were lost on the way."""

    reason: str
    declined: frozenset[str] = frozenset()
    """Members that do not want to, or sent what is not valid; asked again when there are not enough others."""
    spent: frozenset[str] = frozenset()
    """Members whose update has served in a sum that was, or may have been, opened; never asked again in the round."""


@dataclass(frozen=True)
class Committed:
    """The next model version is on disk."""


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled."""

    reason: str


Event = (
    TimePassed
    | DeviceConnected
    | DeviceDisconnected
    | DeviceGone
    | TaskQueued
    | TaskBegun
    | TaskEnded
    | UpdateOffered
    | UpdateRefused
    | ExchangeDone
    | ExchangeMissed
    | Committed
    | Cancelled
)


# Effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartCollecting:
    """Write down the cohort: it is chosen, the deadline runs."""


@dataclass(frozen=True)
class SendTask:
    """Send the round's task to a member of the cohort."""

    device_id: str


@dataclass(frozen=True)
class CancelTasks:
    """Tell these devices that the round no longer waits for them."""

    device_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class AnswerUpdate:
    """Answer the offered update; when ACCEPTED, make it durable and fold it in first."""

    device_id: str
    status: SubmitStatus
    reason: str = ""


@dataclass(frozen=True)
class StartUnmasking:
    """Add the accepted updates up under their masks."""


@dataclass(frozen=True)
class Aggregate:
    """Turn the accepted updates into the next model version and commit it."""


@dataclass(frozen=True)
class Reopen:
    """Write down that the attempt has failed and that another one begins."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """Write down that the round is over without a model."""

    reason: str


Effect = StartCollecting | SendTask | CancelTasks | AnswerUpdate | StartUnmasking | Aggregate | Reopen | Fail
