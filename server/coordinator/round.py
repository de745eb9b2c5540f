"""The life of one round, as a pure state machine: ``advance(round, event, now) -> (round, effects)``.

::

    OPEN ──(enough devices, settled)──> COLLECTING ──(quorum)──> AGGREGATING ──> COMMITTED
      ^                                     │
      └──────(quorum missed, attempts left)─┴──(none left, or cancelled)──> FAILED

Under secure aggregation updates are keys at first, and UNMASKING lies before AGGREGATING: the members' exchange
(``exchange.py``), whose failure is that of an attempt. What was accepted in it is not accepted in the next one, which
needs new keys; members that have trained need not train again.

An update is a function of (model, data, round, device), whatever the attempt: so what was accepted in one attempt
stays accepted in the next, and a device that is still training goes on. A further attempt is a new deadline and a
cohort chosen anew among the devices that are there, not a new start.

Where a job's strategy takes late updates, a member that is still training when its round ends is *carried* into the
next one: a member there too, with the task that it has.

A device does one task at a time, so a member may have to end another job's task first: it is *queued*. It has the
deadline's time from when it is given this round's task, and the deadline ends no round in which a member is queued.

``now`` is any monotonic clock in seconds; only differences matter.
"""

from __future__ import annotations

from dataclasses import replace

from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    Cancelled,
    Committed,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Effect,
    Event,
    ExchangeDone,
    ExchangeMissed,
    SendTask,
    StartUnmasking,
    SubmitStatus,
    TaskBegun,
    TaskEnded,
    TaskOutcome,
    TaskQueued,
    TimePassed,
    UpdateOffered,
    UpdateRefused,
)
from server.coordinator.round_moves import (
    aggregate,
    choose_cohort,
    consider_closing,
    consider_opening,
    fail,
    miss_exchange,
    miss_quorum,
)
from server.coordinator.round_state import NOBODY, Phase, Round, Step
from server.coordinator.rules import RoundRules

__all__ = ["Phase", "Round", "Step", "advance", "open_round", "resume_round", "resume_unmasking"]


def open_round(
    rules: RoundRules,
    *,
    now: float,
    connected: frozenset[str] = NOBODY,
    quiet_since: float | None = None,
    attempt: int = 1,
    cohort: frozenset[str] = NOBODY,
    accepted: frozenset[str] = NOBODY,
    refused: frozenset[str] = NOBODY,
    carried: frozenset[str] = NOBODY,
    last_call: frozenset[str] = NOBODY,
    exchange: int = 1,
    trained: frozenset[str] = NOBODY,
    spent: frozenset[str] = NOBODY,
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
      exchange: under secure aggregation, of a round that is taken up again.
      trained: members of its exchanges that failed.
      spent: those of them that no further one has a part for.
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
        exchange=exchange,
        trained=trained,
        spent=spent,
    )
    settled_at = now if quiet_since is None else max(now, quiet_since + rules.settle_s)
    return consider_opening(round_, now, settled_at)


def resume_round(
    rules: RoundRules,
    *,
    now: float,
    attempt: int,
    cohort: frozenset[str],
    accepted: frozenset[str],
    refused: frozenset[str],
    carried: frozenset[str] = NOBODY,
    last_call: frozenset[str] = NOBODY,
    exchange: int = 1,
    spent: frozenset[str] = NOBODY,
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
        exchange=exchange,
        spent=spent,
        wake_at=now + rules.deadline_s,
    )
    return consider_closing(round_, now)


def resume_unmasking(
    rules: RoundRules,
    *,
    attempt: int,
    cohort: frozenset[str],
    accepted: frozenset[str],
    refused: frozenset[str],
    exchange: int,
    connected: frozenset[str],
    spent: frozenset[str] = NOBODY,
) -> Step:
    """Take up a round whose members were in their exchange when the coordinator stopped."""
    round_ = Round(
        rules,
        phase=Phase.UNMASKING,
        attempt=attempt,
        connected=connected,
        cohort=cohort,
        accepted=accepted,
        refused=refused,
        exchange=exchange,
        spent=spent,
    )
    return round_, (StartUnmasking(),)


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
    if round_.phase is Phase.COLLECTING and round_.wake_at is None:
        round_, late = _expire(round_, now)
        more += late
    return round_, effects + more


def _apply(round_: Round, event: Event, now: float) -> Step:
    match event:
        case TimePassed():
            return round_, ()
        case Cancelled(reason):
            # What is being merged is committed: the job ends after it.
            return (round_, ()) if round_.is_over or round_.phase is Phase.AGGREGATING else fail(round_, reason)
        case ExchangeDone():
            return replace(round_, phase=Phase.AGGREGATING), (Aggregate(),)
        case ExchangeMissed():
            return miss_exchange(round_, event, now)
        case Committed():
            return replace(round_, phase=Phase.COMMITTED), ()
        case DeviceConnected(device_id):
            return _connect(round_, device_id, now)
        case DeviceDisconnected(device_id):
            return _disconnect(round_, device_id)
        case DeviceGone(device_id):
            if device_id in round_.connected:
                return round_, ()
            return consider_closing(replace(round_, gone=round_.gone | {device_id}), now)
        case TaskQueued(device_id):
            return replace(round_, queued=round_.queued | {device_id}), ()
        case TaskBegun(device_id):
            if round_.phase is Phase.COLLECTING and device_id in round_.queued & round_.waiting:
                round_ = replace(round_, wake_at=now + round_.rules.deadline_s)
            return replace(round_, queued=round_.queued - {device_id}), ()
        case TaskEnded(device_id, outcome, _):
            return _end_task(round_, device_id, outcome, now)
        case UpdateOffered(device_id):
            return _judge_update(round_, device_id, now)
        case UpdateRefused(device_id):
            if device_id not in round_.waiting:
                return round_, ()
            round_ = replace(round_, refused=round_.refused | {device_id}, carried=round_.carried - {device_id})
            return consider_closing(round_, now)


def _expire(round_: Round, now: float) -> Step:
    if round_.phase is Phase.OPEN:
        return choose_cohort(round_, now)
    if round_.phase is Phase.COLLECTING:
        if round_.is_held_open:
            return replace(round_, wake_at=None), ()
        if len(round_.accepted) >= round_.quorum:
            return aggregate(round_)
        return miss_quorum(round_, f"deadline of {round_.rules.deadline_s:g} s passed", now)
    return replace(round_, wake_at=None), ()


def _connect(round_: Round, device_id: str, now: float) -> Step:
    round_ = replace(round_, connected=round_.connected | {device_id}, gone=round_.gone - {device_id})
    if round_.phase is Phase.OPEN:
        return consider_opening(round_, now, now + round_.rules.settle_s)
    if round_.phase is Phase.COLLECTING and device_id in round_.waiting:
        return round_, (SendTask(device_id),)
    return round_, ()


def _disconnect(round_: Round, device_id: str) -> Step:
    round_ = replace(round_, connected=round_.connected - {device_id})
    if round_.phase is Phase.OPEN and len(round_.available) < round_.rules.needed:
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
    return consider_closing(round_, now)


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
        round_, effects = consider_opening(round_, now, now)
    else:
        round_, effects = consider_closing(round_, now)
    return round_, (AnswerUpdate(device_id, SubmitStatus.ACCEPTED), *effects)
