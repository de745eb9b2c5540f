"""The life of one round, as a pure state machine: ``advance(round, event, now) -> (round, effects)``.

::

    OPEN ──(enough devices, settled)──> COLLECTING ──(quorum)──> AGGREGATING ──> COMMITTED
      ^                                     │
      └──────(quorum missed, attempts left)─┴──(none left, or cancelled)──> FAILED

An update is a function of (model, data, round, device), whatever the attempt: so what was accepted in one attempt
stays accepted in the next, and a device that is still training goes on. A further attempt is a new deadline and a
cohort chosen anew among the devices that are there, not a new start.

Where a job's strategy takes late updates, a member that is still training when its round ends is *carried* into the
next one: a member there too, with the task that it has.

``now`` is any monotonic clock in seconds; only differences matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from server.coordinator.cohort import select_cohort
from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    Cancelled,
    CancelTasks,
    Committed,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Effect,
    Event,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
    TimePassed,
    UpdateOffered,
    UpdateRefused,
)
from server.coordinator.rules import RoundRules


class Phase(StrEnum):
    """Where a round stands."""

    OPEN = "OPEN"
    COLLECTING = "COLLECTING"
    AGGREGATING = "AGGREGATING"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"


_Devices = frozenset[str]
_NOBODY: _Devices = frozenset()


@dataclass(frozen=True)
class Round:
    """A round's whole state."""

    rules: RoundRules
    phase: Phase = Phase.OPEN
    attempt: int = 1
    connected: _Devices = _NOBODY
    """Eligible devices with a live stream."""
    carried: _Devices = _NOBODY
    """Members that are still at the task of an earlier round."""
    last_call: _Devices = _NOBODY
    """Those of them that are stopped when this round ends without their update."""
    cohort: _Devices = _NOBODY
    accepted: _Devices = _NOBODY
    failed: _Devices = _NOBODY
    """Members whose task failed in this attempt; the next attempt asks them again."""
    refused: _Devices = _NOBODY
    """Members that declined or sent an invalid update; asked again only when there are not enough others."""
    gone: _Devices = _NOBODY
    """Members that have been silent for too long; they may still come back before the deadline."""
    wake_at: float | None = None
    """When time alone changes something: end of the settle time (OPEN) or the deadline (COLLECTING)."""
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
    def waiting(self) -> _Devices:
        """Members that may still deliver in this attempt."""
        return self.cohort - self.accepted - self.failed - self.refused

    @property
    def late(self) -> _Devices:
        """Members whose update may still come when this round ends without it."""
        return self.waiting - self.last_call if self.rules.keeps_late else _NOBODY


Step = tuple[Round, tuple[Effect, ...]]


def open_round(
    rules: RoundRules,
    *,
    now: float,
    connected: frozenset[str] = _NOBODY,
    quiet_since: float | None = None,
    attempt: int = 1,
    cohort: frozenset[str] = _NOBODY,
    accepted: frozenset[str] = _NOBODY,
    refused: frozenset[str] = _NOBODY,
    carried: frozenset[str] = _NOBODY,
    last_call: frozenset[str] = _NOBODY,
) -> Step:
    """Open a round.

    Args:
      rules: the job's rules for it.
      now: clock.
      connected: eligible devices with a live stream.
      quiet_since: when the last of them connected; a fleet that has been quiet for the settle time need not settle.
      attempt: of a round that is taken up again.
      cohort: the previous attempt's, of a round that is taken up again: its members' updates still count.
      accepted: devices whose update was accepted in an earlier attempt.
      refused: devices that declined or were rejected in an earlier attempt.
      carried: devices that are still at the task of an earlier round.
      last_call: those of them that are stopped when this round ends.
    """
    carried -= accepted | refused
    round_ = Round(
        rules,
        attempt=attempt,
        connected=connected,
        carried=carried,
        last_call=last_call,
        cohort=cohort | accepted | carried,
        accepted=accepted,
        refused=refused,
    )
    settled_at = now if quiet_since is None else max(now, quiet_since + rules.settle_s)
    return _consider_opening(round_, now, settled_at)


def resume_round(
    rules: RoundRules,
    *,
    now: float,
    attempt: int,
    cohort: frozenset[str],
    accepted: frozenset[str],
    refused: frozenset[str],
    carried: frozenset[str] = _NOBODY,
    last_call: frozenset[str] = _NOBODY,
) -> Step:
    """Take up a round that was collecting when the coordinator stopped.

    The deadline starts anew: devices should not pay for the coordinator's absence. Nobody counts as gone yet.
    """
    round_ = Round(
        rules,
        phase=Phase.COLLECTING,
        attempt=attempt,
        carried=(carried & cohort) - accepted - refused,
        last_call=last_call,
        cohort=cohort,
        accepted=accepted,
        refused=refused,
        wake_at=now + rules.deadline_s,
    )
    return _consider_closing(round_, now)


def advance(round_: Round, event: Event, now: float) -> Step:
    """Apply one event.

    Time comes first: an event that arrives after the deadline finds the deadline applied, whether or not the timer
    has fired yet.

    Returns:
      The round after the event and what is to be done, in order.
    """
    effects: tuple[Effect, ...] = ()
    if round_.wake_at is not None and now >= round_.wake_at:
        round_, effects = _expire(round_, now)
    round_, more = _apply(round_, event, now)
    return round_, effects + more


def _apply(round_: Round, event: Event, now: float) -> Step:
    match event:
        case TimePassed():
            return round_, ()
        case Cancelled(reason):
            return (round_, ()) if round_.is_over else _fail(round_, reason)
        case Committed():
            return replace(round_, phase=Phase.COMMITTED), ()
        case DeviceConnected(device_id):
            return _connect(round_, device_id, now)
        case DeviceDisconnected(device_id):
            return _disconnect(round_, device_id)
        case DeviceGone(device_id):
            if device_id in round_.connected:
                return round_, ()
            return _consider_closing(replace(round_, gone=round_.gone | {device_id}), now)
        case TaskEnded(device_id, outcome, _):
            return _end_task(round_, device_id, outcome, now)
        case UpdateOffered(device_id):
            return _judge_update(round_, device_id, now)
        case UpdateRefused(device_id):
            if device_id not in round_.waiting:
                return round_, ()
            round_ = replace(round_, refused=round_.refused | {device_id}, carried=round_.carried - {device_id})
            return _consider_closing(round_, now)


def _expire(round_: Round, now: float) -> Step:
    if round_.phase is Phase.OPEN:
        return _choose_cohort(round_, now)
    if round_.phase is Phase.COLLECTING:
        if len(round_.accepted) >= round_.quorum:
            return _aggregate(round_)
        return _miss_quorum(round_, f"deadline of {round_.rules.deadline_s:g} s passed", now)
    return replace(round_, wake_at=None), ()


def _connect(round_: Round, device_id: str, now: float) -> Step:
    round_ = replace(round_, connected=round_.connected | {device_id}, gone=round_.gone - {device_id})
    if round_.phase is Phase.OPEN:
        return _consider_opening(round_, now, now + round_.rules.settle_s)
    if round_.phase is Phase.COLLECTING and device_id in round_.waiting:
        return round_, (SendTask(device_id),)
    return round_, ()


def _disconnect(round_: Round, device_id: str) -> Step:
    round_ = replace(round_, connected=round_.connected - {device_id})
    if round_.phase is Phase.OPEN and len(round_.connected | round_.accepted) < round_.rules.needed:
        round_ = replace(round_, wake_at=None)
    return round_, ()


def _end_task(round_: Round, device_id: str, outcome: TaskOutcome, now: float) -> Step:
    if device_id not in round_.waiting:
        return round_, ()
    match outcome:
        case TaskOutcome.DECLINED:
            round_ = replace(round_, refused=round_.refused | {device_id}, carried=round_.carried - {device_id})
        case TaskOutcome.FAILED:
            round_ = replace(round_, failed=round_.failed | {device_id}, carried=round_.carried - {device_id})
        case TaskOutcome.ABANDONED:
            # It was told to stop; when it is started again it connects again and gets its task again.
            round_ = replace(round_, gone=round_.gone | {device_id})
    return _consider_closing(round_, now)


def _judge_update(round_: Round, device_id: str, now: float) -> Step:
    number = round_.rules.round_number
    if device_id in round_.accepted:
        return round_, (AnswerUpdate(device_id, SubmitStatus.DUPLICATE),)
    if round_.phase not in (Phase.OPEN, Phase.COLLECTING):
        if device_id in round_.late:
            return round_, ()  # the next round will judge it
        return round_, (AnswerUpdate(device_id, SubmitStatus.LATE, f"round {number} has closed"),)
    if device_id not in round_.cohort:
        reason = f"device {device_id} is not in the cohort of round {number}"
        return round_, (AnswerUpdate(device_id, SubmitStatus.REJECTED, reason),)
    round_ = replace(
        round_,
        accepted=round_.accepted | {device_id},
        carried=round_.carried - {device_id},
        failed=round_.failed - {device_id},
        refused=round_.refused - {device_id},
    )
    if round_.phase is Phase.OPEN:
        round_, effects = _consider_opening(round_, now, now)
    else:
        round_, effects = _consider_closing(round_, now)
    return round_, (AnswerUpdate(device_id, SubmitStatus.ACCEPTED), *effects)


def _consider_opening(round_: Round, now: float, settled_at: float) -> Step:
    """Start the settle time when there are enough devices; choose at once when it is over already."""
    if len(round_.connected | round_.accepted) < round_.rules.needed:
        return round_, ()
    wake_at = settled_at if round_.wake_at is None else min(round_.wake_at, settled_at)
    round_ = replace(round_, wake_at=wake_at)
    return _choose_cohort(round_, now) if now >= wake_at else (round_, ())


def _choose_cohort(round_: Round, now: float) -> Step:
    rules = round_.rules
    busy = round_.accepted | round_.carried
    candidates = round_.connected - busy - round_.refused
    if len(candidates) + len(busy) < rules.needed:
        candidates = round_.connected - busy
    if rules.cohort_size == 0:
        fresh = select_cohort(candidates, 0, rules.seed, rules.round_number)
    else:
        room = max(0, rules.asked - len(busy))
        fresh = select_cohort(candidates, room, rules.seed, rules.round_number) if room else ()
    dropped = round_.waiting - round_.carried - frozenset(fresh)
    round_ = replace(
        round_,
        phase=Phase.COLLECTING,
        cohort=busy | frozenset(fresh),
        failed=_NOBODY,
        refused=round_.refused - frozenset(fresh),
        gone=_NOBODY,
        wake_at=now + rules.deadline_s,
        reason="",
    )
    told = sorted(frozenset(fresh) | (round_.carried & round_.connected))  # who is at it already is not disturbed
    effects: tuple[Effect, ...] = (StartCollecting(), *(SendTask(device_id) for device_id in told))
    if dropped:
        effects += (CancelTasks(tuple(sorted(dropped)), "another cohort was chosen"),)
    round_, more = _consider_closing(round_, now)
    return round_, effects + more


def _consider_closing(round_: Round, now: float) -> Step:
    """Close early when there are enough updates, or nobody who is there can still deliver."""
    if round_.phase is not Phase.COLLECTING:
        return round_, ()
    if round_.rules.enough is not None and len(round_.accepted) >= max(round_.rules.enough, round_.quorum):
        return _aggregate(round_)
    if round_.waiting - round_.gone:
        return round_, ()
    if len(round_.accepted) >= round_.quorum:
        return _aggregate(round_)
    if round_.waiting:
        return round_, ()  # devices that are gone may come back before the deadline, and the quorum needs them
    return _miss_quorum(round_, "no device is left that could deliver", now)


def _aggregate(round_: Round) -> Step:
    effects: tuple[Effect, ...] = (Aggregate(),)
    stopped = round_.waiting - round_.late
    if stopped:
        effects = (CancelTasks(tuple(sorted(stopped)), f"round {round_.rules.round_number} has closed"), *effects)
    return replace(round_, phase=Phase.AGGREGATING, wake_at=None), effects


def _miss_quorum(round_: Round, why: str, now: float) -> Step:
    reason = (
        f"attempt {round_.attempt} of {round_.rules.max_attempts}: {why}, "
        f"{len(round_.accepted)} of the {round_.quorum} updates needed were accepted"
    )
    if round_.attempt >= round_.rules.max_attempts:
        return _fail(round_, reason)
    round_ = replace(round_, phase=Phase.OPEN, attempt=round_.attempt + 1, failed=_NOBODY, wake_at=None, reason=reason)
    round_, effects = _consider_opening(round_, now, now)
    return round_, (Reopen(reason), *effects)


def _fail(round_: Round, reason: str) -> Step:
    effects: tuple[Effect, ...] = (Fail(reason),)
    if round_.waiting:
        effects = (CancelTasks(tuple(sorted(round_.waiting)), reason), *effects)
    return replace(round_, phase=Phase.FAILED, wake_at=None, reason=reason), effects
