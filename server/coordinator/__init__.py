"""The domain: rounds, cohorts, sessions and jobs. No transport, no database, no clock of its own in the rules.

The names below are loaded when they are first used: who only asks a coordinator wants a state's name, and not all that
one is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.coordinator.job_state import JobState

if TYPE_CHECKING:
    from server.coordinator.coordinator import Coordinator as Coordinator

__all__ = ["Coordinator", "JobState"]


def __getattr__(name: str) -> Any:
    if name != "Coordinator":
        raise AttributeError(f"module 'server.coordinator' has no attribute {name!r}")
    from server.coordinator.coordinator import Coordinator

    globals()[name] = Coordinator
    return Coordinator
