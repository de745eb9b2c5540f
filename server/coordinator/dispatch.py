"""Hands out tasks: a device does one at a time, whatever number of jobs want it.

Jobs choose their cohorts as if they were alone; where two have chosen the same device, its tasks queue here. They are
handed out in the order in which they were asked for. A round has one task for a device and asks for the next one only
after it has closed, so nobody waits for more than one task of each other job, and no job is served twice before another
one that waits.

A device that is away keeps its task at hand: it may be training, and it is sent the task again when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.coordinator.messages import CancelOrder, ExchangeOrder, TaskOrder
from server.coordinator.sessions import Fleet


class TaskSource(Protocol):
    """A round, for which tasks are handed out."""

    @property
    def job_id(self) -> str:
        """The round's job."""

    def begin(self, device_id: str) -> TaskOrder:
        """Make the device's task, which it is sent now, for the first time or again."""

    def queue(self, device_id: str) -> None:
        """Note that the device is at another job's task."""

    def give_up(self, device_id: str) -> None:
        """Note that the device's time for its task is over, and that another job has it now."""


@dataclass
class _Desk:
    """What one device has to do."""

    source: TaskSource | None = None
    """Whose task is at hand."""
    order: TaskOrder | None = None
    """The task at hand, as it was sent last."""
    queue: dict[str, TaskSource] = field(default_factory=dict)
    """Who waits for the device, by job, in the order of asking."""
    alarm: asyncio.TimerHandle | None = None
    """Set to the end of the time for the task at hand, while others wait."""


class Dispatcher:
    """One desk for each device that has something to do."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._desks: dict[str, _Desk] = {}

    def job_at(self, device_id: str) -> str | None:
        """Return the job whose task a device has."""
        desk = self._desks.get(device_id)
        return None if desk is None or desk.source is None else desk.source.job_id

    def queue_of(self, device_id: str) -> list[str]:
        """List the jobs that wait for a device."""
        desk = self._desks.get(device_id)
        return [] if desk is None else list(desk.queue)

    def ask(self, source: TaskSource, device_id: str) -> None:
        """Hand a round's task to a device, now or when its turn comes; asking again sends the task at hand again."""
        desk = self._desks.setdefault(device_id, _Desk())
        if desk.source is not None and desk.source.job_id == source.job_id:
            desk.source = source
            self._send(device_id, desk)
        else:
            desk.queue[source.job_id] = source
        self._go_on(device_id, desk)
        if desk.source is not None and source.job_id in desk.queue:
            source.queue(device_id)

    def hold(self, source: TaskSource, device_id: str) -> None:
        """Note that a device is at a round's task, after a restart; nothing is sent."""
        desk = self._desks.setdefault(device_id, _Desk())
        if desk.source is None:
            desk.source, desk.order = source, source.begin(device_id)
            self._go_on(device_id, desk)

    def release(self, job_id: str, device_id: str) -> None:
        """Note that a job is done with a device: it has the update, or waits for it no more."""
        desk = self._desks.get(device_id)
        if desk is None:
            return
        desk.queue.pop(job_id, None)
        if desk.source is not None and desk.source.job_id == job_id:
            desk.source = desk.order = None
        self._go_on(device_id, desk)

    def pass_on(self, device_id: str, order: ExchangeOrder) -> None:
        """Pass an order on that belongs to the task that a device has."""
        self._fleet.send(device_id, order)

    def cancel(self, job_id: str, device_id: str, task_id: str, reason: str) -> None:
        """Tell a device that a task is not waited for, and release it."""
        self._fleet.send(device_id, CancelOrder(task_id, reason))
        self.release(job_id, device_id)

    def withdraw(self, job_id: str) -> None:
        """Take back what a job asked for and was not handed out yet."""
        for device_id, desk in list(self._desks.items()):
            if desk.queue.pop(job_id, None) is not None:
                self._go_on(device_id, desk)

    def forget(self, job_id: str) -> None:
        """Release all devices of a job."""
        for device_id in list(self._desks):
            self.release(job_id, device_id)

    def _go_on(self, device_id: str, desk: _Desk) -> None:
        """Hand out the next task if the device is free for it, and bound how long others wait for the one at hand."""
        if desk.alarm is not None:
            desk.alarm.cancel()
            desk.alarm = None
        if desk.source is None and desk.queue and self._may_work(device_id):
            desk.source = desk.queue.pop(next(iter(desk.queue)))
            self._send(device_id, desk)
        if desk.order is not None and desk.queue:
            left_s = max(0.0, desk.order.deadline_at - self._clock())
            desk.alarm = asyncio.get_running_loop().call_later(left_s, self._take_away, device_id, desk)
        if desk.source is None and not desk.queue:
            self._desks.pop(device_id, None)

    def _may_work(self, device_id: str) -> bool:
        session = self._fleet.get(device_id)
        return session is not None and session.heartbeat.conditions.reason is None

    def _send(self, device_id: str, desk: _Desk) -> None:
        assert desk.source is not None
        desk.order = desk.source.begin(device_id)
        self._fleet.send(device_id, desk.order)

    def _take_away(self, device_id: str, desk: _Desk) -> None:
        """End a task whose time is over: others wait, and a round that is held open would wait for ever."""
        source, order = desk.source, desk.order
        if source is not None and order is not None:
            source.give_up(device_id)
            self.cancel(source.job_id, device_id, order.task_id, "its time is over and another job waits")
