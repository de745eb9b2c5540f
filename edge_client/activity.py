"""What the device does now, as heartbeats tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitfleet.v1 import fleet_pb2 as wire

__all__ = ["Activity"]


@dataclass
class Activity:
    """One piece of work."""

    state: wire.DeviceState = wire.DEVICE_STATE_IDLE
    task_id: str = ""
    step: int = 0
    total_steps: int = 0
    paused_by: Sequence[str] = ()
    """What holds it, in words; nothing does where this is empty."""

    @property
    def is_idle(self) -> bool:
        """Whether no task is at hand."""
        return self.state == wire.DEVICE_STATE_IDLE

    @property
    def told_state(self) -> wire.DeviceState:
        """The state that the coordinator is told."""
        return wire.DEVICE_STATE_PAUSED if self.paused_by else self.state
