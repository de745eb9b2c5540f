"""The life of one exchange, as a pure state machine: ``advance(exchange, event, now) -> (exchange, effects)``.

An *exchange* adds up one round's updates under masks (Bonawitz et al., CCS 2017). It begins when the round has its
members' keys::

    SHARES ──> MASKED ──> REVEAL ──> done
       └──────────┴──────────┴─────> missed: the round takes another attempt, with new keys

A step is over when everybody who was asked has answered or is lost, or when its time is. It needs ``min_members``
answers; who did not answer is told to stop, and is out of the steps after it. REVEAL ends as soon as its shares suffice
to take the masks off. Who answered a step that is over is fixed: masks are taken off accordingly. Members that have
revealed shares take no part in a further attempt.

``now`` is any monotonic clock in seconds; only differences matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.coordinator.events import (
    AnswerUpdate,
    CancelTasks,
    DeviceConnected,
    DeviceGone,
    Event,
    ExchangeStep,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
)
from server.coordinator.round_state import NOBODY, Devices

_STEPS = tuple(ExchangeStep)


def before(step: ExchangeStep) -> ExchangeStep:
    """Return the step that comes before one, itself for the first."""
    return _STEPS[max(0, _STEPS.index(step) - 1)]


# Events beside those of a round -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepOffered:
    """A valid step of the exchange is at the door."""

    device_id: str
    step: ExchangeStep
    suffices: bool = False
    """Whether what was revealed takes the masks off the sum with this one."""


@dataclass(frozen=True)
class StepRefused:
    """A device's step was found invalid: it goes on no further."""

    device_id: str
    step: ExchangeStep


ExchangeEvent = Event | StepOffered | StepRefused


# Effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeginStep:
    """Write down that this step is waited for, and order it from all who are to take it."""

    step: ExchangeStep


@dataclass(frozen=True)
class OrderStep:
    """Order the present step from one device (again)."""

    device_id: str


@dataclass(frozen=True)
class Unmask:
    """Take the masks off the sum."""


@dataclass(frozen=True)
class Miss:
    """The exchange has failed."""

    reason: str


ExchangeEffect = BeginStep | OrderStep | CancelTasks | AnswerUpdate | Unmask | Miss


@dataclass(frozen=True)
class Exchange:
    """An exchange's whole state."""

    number: int
    """In its round, counted from 1."""
    members: Devices
    """Devices whose keys were accepted."""
    min_members: int
    phase_s: float
    """Seconds for each step."""
    step: ExchangeStep = ExchangeStep.SHARES
    """What is waited for."""
    shared: Devices = NOBODY
    masked: Devices = NOBODY
    revealed: Devices = NOBODY
    lost: Devices = NOBODY
    """Members that said that they go on no further, or sent what is not valid."""
    declined: Devices = NOBODY
    """Those of them that will not, or must not, be asked again."""
    gone: Devices = NOBODY
    """Members that have been silent for too long; they may still come back before the step's time is over."""
    wake_at: float | None = None
    """When the step's time is over; None: the exchange is."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is waited for."""
        return self.wake_at is None

    def taken(self, step: ExchangeStep) -> Devices:
        """Return the devices of which a step was accepted."""
        match step:
            case ExchangeStep.KEYS:
                return self.members
            case ExchangeStep.SHARES:
                return self.shared
            case ExchangeStep.MASKED:
                return self.masked
            case ExchangeStep.REVEAL:
                return self.revealed

    def asked(self, step: ExchangeStep) -> Devices:
        """Return the devices that are to take a step: those of which the one before it was accepted."""
        return self.taken(before(step))

    @property
    def spent(self) -> Devices:
        """Members that no further exchange of the round has a part for, since they have revealed shares.

        An update serves in one sum that is opened: of two that differ by one device the difference would be its update.
        Devices keep to that by themselves too.
        """
        return self.revealed

    def absent(self, step: ExchangeStep) -> Devices:
        """Return the devices that are to take a step and will not any more."""
        missing = self.asked(step) - self.taken(step)
        if _STEPS.index(step) < _STEPS.index(self.step) or self.is_over:
            return missing
        return missing & self.lost if step is self.step else NOBODY

    @property
    def waiting(self) -> Devices:
        """Devices that may still answer the present step."""
        return NOBODY if self.is_over else self.asked(self.step) - self.taken(self.step) - self.lost


Step = tuple[Exchange, tuple[ExchangeEffect, ...]]


def begin_exchange(exchange: Exchange, *, now: float) -> Step:
    """Begin an exchange among its members."""
    if len(exchange.members) < exchange.min_members:
        return _miss(exchange, f"it has {len(exchange.members)} members")
    exchange = replace(exchange, wake_at=now + exchange.phase_s)
    exchange, effects = _consider_closing(exchange, now)
    return exchange, (BeginStep(ExchangeStep.SHARES), *effects)


def resume_exchange(exchange: Exchange, *, now: float, suffices: bool) -> Step:
    """Take up an exchange where the coordinator stopped; the step's time starts anew.

    Args:
      exchange: what is written down of it.
      now: clock.
      suffices: whether what was revealed takes the masks off the sum.
    """
    if suffices:
        return exchange, (Unmask(),)
    exchange, effects = _consider_closing(replace(exchange, wake_at=now + exchange.phase_s), now)
    return exchange, effects or tuple(OrderStep(device_id) for device_id in sorted(exchange.waiting))


def wait_for_more(exchange: Exchange, *, now: float) -> Step:
    """Go on with REVEAL, whose shares seemed to suffice and do not, as far as there are more to come."""
    return _consider_closing(replace(exchange, wake_at=now + exchange.phase_s), now)


def advance(exchange: Exchange, event: ExchangeEvent, now: float) -> Step:
    """Apply one event; time comes first, as in a round.

    Returns:
      The exchange after the event and what is to be done, in order.
    """
    effects: tuple[ExchangeEffect, ...] = ()
    if exchange.wake_at is not None and now >= exchange.wake_at:
        exchange, effects = _close(exchange, now, f"its time of {exchange.phase_s:g} s is over")
    exchange, more = _apply(exchange, event, now)
    return exchange, effects + more


def _apply(exchange: Exchange, event: ExchangeEvent, now: float) -> Step:
    match event:
        case DeviceConnected(device_id):
            exchange = replace(exchange, gone=exchange.gone - {device_id})
            return exchange, (OrderStep(device_id),) if device_id in exchange.waiting else ()
        case DeviceGone(device_id):
            return _consider_closing(replace(exchange, gone=exchange.gone | {device_id}), now)
        case TaskEnded(device_id, TaskOutcome.ABANDONED, _):
            # It was told to stop; when it is started again it connects again and is asked again.
            return _consider_closing(replace(exchange, gone=exchange.gone | {device_id}), now)
        case TaskEnded(device_id, outcome, _):
            return _lose(exchange, device_id, now, declined=outcome is TaskOutcome.DECLINED)
        case StepRefused(device_id, step):
            answers = step is exchange.step and device_id in exchange.waiting
            return _lose(exchange, device_id, now, declined=True) if answers else (exchange, ())
        case StepOffered(device_id, step, suffices):
            return _judge(exchange, device_id, step, now, suffices=suffices)
        case _:
            return exchange, ()


def _lose(exchange: Exchange, device_id: str, now: float, *, declined: bool) -> Step:
    if device_id not in exchange.members:
        return exchange, ()
    exchange = replace(exchange, lost=exchange.lost | {device_id})
    if declined:
        exchange = replace(exchange, declined=exchange.declined | {device_id})
    return _consider_closing(exchange, now)


def _judge(exchange: Exchange, device_id: str, step: ExchangeStep, now: float, *, suffices: bool) -> Step:
    status, reason = judge(exchange, device_id, step)
    answer = AnswerUpdate(device_id, status, reason)
    if status is not SubmitStatus.ACCEPTED:
        return exchange, (answer,)
    exchange = replace(exchange, lost=exchange.lost - {device_id}, declined=exchange.declined - {device_id})
    match step:
        case ExchangeStep.SHARES:
            exchange = replace(exchange, shared=exchange.shared | {device_id})
        case ExchangeStep.MASKED:
            exchange = replace(exchange, masked=exchange.masked | {device_id})
        case _:
            exchange = replace(exchange, revealed=exchange.revealed | {device_id})
            if suffices:
                return replace(exchange, wake_at=None), (answer, Unmask())
    exchange, effects = _consider_closing(exchange, now)
    return exchange, (answer, *effects)


def judge(exchange: Exchange, device_id: str, step: ExchangeStep) -> tuple[SubmitStatus, str]:
    """Say what becomes of a valid step that is offered now, and why."""
    name = f"exchange {exchange.number}"
    if device_id not in exchange.members:
        return SubmitStatus.REJECTED, f"device {device_id} is not a member of {name}"
    if device_id in exchange.taken(step) or (exchange.is_over and device_id in exchange.asked(ExchangeStep.REVEAL)):
        return SubmitStatus.DUPLICATE, ""
    if exchange.is_over or _STEPS.index(step) < _STEPS.index(exchange.step):
        return SubmitStatus.LATE, f"step {step} of {name} is over"
    if step is not exchange.step and device_id in exchange.asked(exchange.step):
        return SubmitStatus.REJECTED, f"step {exchange.step} of {name} was asked for, not {step}"
    if device_id not in exchange.asked(step):
        return SubmitStatus.LATE, f"device {device_id} did not take a step of {name} before {step} in time"
    return SubmitStatus.ACCEPTED, ""


def _consider_closing(exchange: Exchange, now: float) -> Step:
    """End the step when nobody who is there can still answer it and there are answers enough, or nobody is left."""
    if exchange.is_over or exchange.waiting - exchange.gone:
        return exchange, ()
    if exchange.waiting and (exchange.step is ExchangeStep.REVEAL or not _has_enough(exchange)):
        return exchange, ()  # devices that are gone may come back before the time is over, and are needed
    return _close(exchange, now, "no device is left that could take it")


def _has_enough(exchange: Exchange) -> bool:
    return len(exchange.taken(exchange.step)) >= exchange.min_members


def _close(exchange: Exchange, now: float, why: str) -> Step:
    """End the present step: go on to the next one, or fail."""
    answered, asked = len(exchange.taken(exchange.step)), len(exchange.asked(exchange.step))
    if exchange.step is ExchangeStep.REVEAL:
        return _miss(exchange, f"{why}, the shares of {answered} of {asked} devices do not take the masks off")
    if not _has_enough(exchange):
        return _miss(exchange, f"{why}, {answered} of {asked} devices answered")
    ended = exchange.step
    following = _STEPS[_STEPS.index(ended) + 1]
    exchange = replace(exchange, step=following, wake_at=now + exchange.phase_s)
    absent = tuple(sorted(exchange.absent(ended)))
    told = (CancelTasks(absent, f"step {ended} of the exchange is over"),) if absent else ()
    exchange, effects = _consider_closing(exchange, now)
    return exchange, (*told, BeginStep(following), *effects)


def _miss(exchange: Exchange, why: str) -> Step:
    reason = f"exchange {exchange.number}, step {exchange.step}: {why}; {exchange.min_members} members are needed"
    return replace(exchange, wake_at=None), (Miss(reason),)
