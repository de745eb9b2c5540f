"""Where a job stands."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)

    @property
    def is_runnable(self) -> bool:
        """Whether the queue takes the job up when its turn comes."""
        return self in (JobState.PENDING, JobState.RUNNING)


RESULTS = {
    "cancel": (JobState.CANCELLED,),
    "pause": (JobState.PAUSED,),
    "resume": (JobState.PENDING, JobState.RUNNING),
}
"""Where a job stands after what people ask of it: by that, whoever got no answer sees that it was done."""
