"""A round on a table: events go in, effects come out, the clock is moved by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from server.coordinator.events import (
    AnswerUpdate,
    Effect,
    Event,
    SubmitStatus,
    TimePassed,
    UpdateOffered,
)
from server.coordinator.round import Round, advance, open_round
from server.coordinator.rules import RoundRules

DEADLINE_S = 100.0
SETTLE_S = 2.0


@dataclass
class Table:
    """A round under test with its clock and the effects of the latest event."""

    round: Round
    effects: list[Effect]
    now: float = 0.0
    history: list[Effect] = field(default_factory=list)

    def tell(self, *events: Event) -> list[Effect]:
        self.effects = []
        for event in events:
            self.round, effects = advance(self.round, event, self.now)
            self.effects += effects
        self.history += self.effects
        return self.effects

    def pass_time(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.tell(TimePassed())

    def accept(self, *device_ids: str) -> list[Effect]:
        return self.tell(*(UpdateOffered(device_id) for device_id in device_ids))


def rules(**changes: Any) -> RoundRules:
    defaults: dict[str, Any] = {
        "round_number": 5,
        "seed": 1,
        "min_devices": 2,
        "cohort_size": 0,
        "quorum": None,
        "deadline_s": DEADLINE_S,
        "settle_s": SETTLE_S,
        "max_attempts": 3,
    }
    return RoundRules(**{**defaults, **changes})


def opened(*connected: str, **changes: Any) -> Table:
    """A round opened in a fleet that has been quiet for long, so that it need not settle."""
    round_, effects = open_round(rules(**changes), now=0.0, connected=frozenset(connected), quiet_since=-1000.0)
    return Table(round_, list(effects))


def refusal(status: SubmitStatus, effects: list[Effect]) -> str:
    (answer,) = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
    assert answer.status is status
    return answer.reason
