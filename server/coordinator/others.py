"""What other replicas of a coordinator hear of devices at this one's door, where there are others."""

from __future__ import annotations

from typing import Protocol

from server.coordinator.events import TaskOutcome
from server.coordinator.sessions import Session


class Others(Protocol):
    """The other replicas; all of them know all sessions, and one of them may lead."""

    def connected(self, session: Session) -> None:
        """Tell all that a device has opened a stream here."""

    def disconnected(self, session: Session) -> None:
        """Tell all that a device's stream here has ended."""

    def noted(self, session: Session) -> None:
        """Tell all what a device is doing now."""

    def reported(self, device_id: str, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """Tell the lead that a task has ended without an update."""

    def sent(self, task_id: str, device_id: str, num_bytes: int) -> None:
        """Tell the lead how many bytes a task, or an order for a step of its exchange, had on the wire."""

    def downloaded(self, device_id: str, digest: str, num_bytes: int) -> None:
        """Tell the lead how many bytes a piece of a model, or of a step, had on the wire."""


class NoOthers:
    """A coordinator by itself."""

    def connected(self, session: Session) -> None:
        """See ``Others``."""

    def disconnected(self, session: Session) -> None:
        """See ``Others``."""

    def noted(self, session: Session) -> None:
        """See ``Others``."""

    def reported(self, device_id: str, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """See ``Others``."""

    def sent(self, task_id: str, device_id: str, num_bytes: int) -> None:
        """See ``Others``."""

    def downloaded(self, device_id: str, digest: str, num_bytes: int) -> None:
        """See ``Others``."""
