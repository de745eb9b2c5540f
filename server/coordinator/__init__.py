"""The domain: rounds, cohorts, sessions and jobs. No transport, no database, no clock of its own in the rules."""

from server.coordinator.coordinator import Coordinator, Limits
from server.coordinator.queue import JobState

__all__ = ["Coordinator", "JobState", "Limits"]
