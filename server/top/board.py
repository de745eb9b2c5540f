"""What the terminal shows: read from the API at once, and kept up to date by its events."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

from server.api.status_views import RunningJobView, StatusView
from server.api.views import DeviceView, JobView
from server.client import FleetClient, FleetEvent

_DEVICES_SHOWN = 200
_WAITING_SHOWN = 5
_REFUSALS_KEPT = 50
_ROWS_READ = 500
"""Members of a round whose rows are read for its refusals; of a larger one those are shown that happen."""
REFUSED = ("REJECTED", "LATE", "DECLINED", "FAILED", "LOST")
"""An update's statuses that say why it does not count."""


@dataclass(frozen=True)
class Refusal:
    """An update that does not count."""

    job: str
    round: int
    device_id: str
    status: str
    reason: str


class Board:
    """A fleet's newest state.

    Args:
      fleet: a client of its coordinator.
    """

    def __init__(self, fleet: FleetClient) -> None:
        self._fleet = fleet
        self.status: StatusView | None = None
        self.waiting: list[JobView] = []
        """Pending and paused jobs, the first few."""
        self.devices: list[DeviceView] = []
        """Those with a stream first."""
        self.refusals: deque[Refusal] = deque(maxlen=_REFUSALS_KEPT)
        """The newest last."""
        self._accuracies: dict[str, dict[int, float]] = {}
        self._must_reload = True
        self.read_at = 0.0
        """On the monotonic clock."""

    def take(self, event: FleetEvent) -> None:
        """Take an event in; what it does not say itself is read by ``refresh``."""
        data = event.data
        if event.kind == "reset":
            self._must_reload = True
        elif event.kind == "round" and data.get("accuracy") is not None:
            self._accuracies.setdefault(data["job"], {})[data["round"]] = data["accuracy"]
        elif event.kind == "update" and data["status"] in REFUSED:
            self.refusals.append(Refusal(data["job"], data["round"], data["device_id"], data["status"], data["reason"]))

    def refresh(self, *, is_followed: bool) -> None:
        """Read what is shown; all of it where events are not followed, or some were missed."""
        self.status = self._fleet.status()
        waiting = [job for state in ("PENDING", "PAUSED") for job in self._first(state)]
        self.waiting = sorted(waiting, key=lambda job: job.created_at)[:_WAITING_SHOWN]
        connected = list(islice(self._fleet.devices.list(connected=True), _DEVICES_SHOWN))
        away = islice(self._fleet.devices.list(connected=False), max(0, 20 - len(connected)))
        self.devices = [*connected, *away]
        if self._must_reload or not is_followed:
            self.refusals.clear()
            self._accuracies.clear()
        for job in self.status.running:
            if job.id not in self._accuracies:
                self._read_rounds(job)
        self._must_reload = False
        self.read_at = time.monotonic()

    def accuracies(self, job_id: str) -> list[float]:
        """Return a job's known accuracies, percent, by round."""
        by_round = self._accuracies.get(job_id, {})
        return [by_round[number] for number in sorted(by_round)]

    def _first(self, state: str) -> list[JobView]:
        return list(islice(self._fleet.jobs.list(state=state), _WAITING_SHOWN))

    def _read_rounds(self, job: RunningJobView) -> None:
        known = self._accuracies.setdefault(job.id, {})
        for round_ in self._fleet.jobs.rounds(job.id, updates=False):
            if round_.accuracy is not None:
                known[round_.round] = round_.accuracy
        newest = job.rounds_committed if job.round is None else job.round
        for number in range(max(1, newest - 1), newest + 1):
            if job.devices <= _ROWS_READ:
                refused = [row for row in self._fleet.jobs.round(job.id, number).updates if row.status in REFUSED]
                self.refusals.extend(Refusal(job.id, number, row.device_id, row.status, row.reason) for row in refused)
