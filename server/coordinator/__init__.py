"""The domain: rounds, cohorts, sessions and jobs. No transport, no database, no clock of its own in the rules."""

from server.coordinator.coordinator import Coordinator
from server.coordinator.job_state import JobState

__all__ = ["Coordinator", "JobState"]
