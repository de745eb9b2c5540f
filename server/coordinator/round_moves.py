"""How a round goes from phase to phase: opens, chooses its cohort, closes, tries again, fails. See ``round.py``."""

from __future__ import annotations

from dataclasses import replace

from server.coordinator.cohort import select_cohort
from server.coordinator.events import (
    Aggregate,
    CancelTasks,
    Effect,
    ExchangeMissed,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    StartUnmasking,
)
from server.coordinator.round_state import NOBODY, Devices, Phase, Round, Step


def consider_opening(round_: Round, now: float, settled_at: float) -> Step:
    """Start the settle time when there are enough devices; choose at once when it is over already."""
    if len(round_.available) < round_.rules.needed:
        return round_, ()
    wake_at = settled_at if round_.wake_at is None else min(round_.wake_at, settled_at)
    round_ = replace(round_, wake_at=wake_at)
    return choose_cohort(round_, now) if now >= wake_at else (round_, ())


def choose_cohort(round_: Round, now: float) -> Step:
    """Choose who is asked among those who are there, and start to collect."""
    rules = round_.rules
    busy = round_.accepted | round_.carried
    candidates = round_.available - busy - round_.refused
    if len(candidates) + len(busy) < rules.needed:
        candidates = round_.available - busy
    fresh = _fresh_members(round_, candidates, None if rules.cohort_size == 0 else max(0, rules.asked - len(busy)))
    dropped = round_.waiting - round_.carried - fresh
    round_ = replace(
        round_,
        phase=Phase.COLLECTING,
        cohort=busy | fresh,
        failed=NOBODY,
        refused=round_.refused - fresh,
        gone=NOBODY,
        queued=NOBODY,
        wake_at=now + rules.deadline_s,
        reason="",
    )
    told = sorted(fresh | (round_.carried & round_.connected))  # who is at it already is not disturbed
    effects: tuple[Effect, ...] = (StartCollecting(), *(SendTask(device_id) for device_id in told))
    if dropped:
        effects += (CancelTasks(tuple(sorted(dropped)), "another cohort was chosen"),)
    round_, more = consider_closing(round_, now)
    return round_, effects + more


def _fresh_members(round_: Round, candidates: Devices, room: int | None) -> Devices:
    """Choose so many of the candidates, those first that have trained already; None: all."""
    if room is None:
        return candidates
    chosen: Devices = NOBODY
    for group in (candidates & round_.trained, candidates - round_.trained):
        if room > len(chosen):
            more = select_cohort(group, room - len(chosen), round_.rules.seed, round_.rules.round_number)
            chosen |= frozenset(more)
    return chosen


def consider_closing(round_: Round, now: float) -> Step:
    """Close early when there are enough updates, or nobody who is there can still deliver."""
    if round_.phase is not Phase.COLLECTING:
        return round_, ()
    if round_.rules.enough is not None and len(round_.accepted) >= max(round_.rules.enough, round_.quorum):
        return aggregate(round_)
    if round_.waiting - round_.gone:
        return round_, ()
    if len(round_.accepted) >= round_.quorum:
        return aggregate(round_)
    if round_.waiting:
        return round_, ()  # devices that are gone may come back before the deadline, and the quorum needs them
    return miss_quorum(round_, "no device is left that could deliver", now)


def aggregate(round_: Round) -> Step:
    """End the collecting, with updates enough."""
    is_secure = round_.rules.is_secure
    effects: tuple[Effect, ...] = (StartUnmasking() if is_secure else Aggregate(),)
    stopped = round_.waiting - round_.late
    if stopped:
        effects = (CancelTasks(tuple(sorted(stopped)), f"round {round_.rules.round_number} has closed"), *effects)
    return replace(round_, phase=Phase.UNMASKING if is_secure else Phase.AGGREGATING, wake_at=None), effects


def miss_quorum(round_: Round, why: str, now: float) -> Step:
    """End an attempt that has too few updates."""
    return _try_again(round_, f"{why}, {len(round_.accepted)} of the {round_.quorum} updates needed were accepted", now)


def miss_exchange(round_: Round, missed: ExchangeMissed, now: float) -> Step:
    """End an attempt whose updates could not be added up: none of them is accepted any more."""
    round_ = replace(
        round_,
        exchange=round_.exchange + 1,
        trained=(round_.trained | round_.accepted) - missed.declined - missed.spent,
        refused=round_.refused | missed.declined,
        spent=round_.spent | missed.spent,
        accepted=NOBODY,
    )
    return _try_again(round_, missed.reason, now)


def _try_again(round_: Round, why: str, now: float) -> Step:
    reason = f"attempt {round_.attempt} of {round_.rules.max_attempts}: {why}"
    if round_.attempt >= round_.rules.max_attempts:
        return fail(round_, reason)
    round_ = replace(round_, phase=Phase.OPEN, attempt=round_.attempt + 1, failed=NOBODY, wake_at=None, reason=reason)
    round_, effects = consider_opening(round_, now, now)
    return round_, (Reopen(reason), *effects)


def fail(round_: Round, reason: str) -> Step:
    """End the round without a model."""
    effects: tuple[Effect, ...] = (Fail(reason),)
    if round_.busy:
        effects = (CancelTasks(tuple(sorted(round_.busy)), reason), *effects)
    return replace(round_, phase=Phase.FAILED, wake_at=None, reason=reason), effects
