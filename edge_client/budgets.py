"""What a device's owner lets training take: of each flag and each rule of the policy the stricter one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edge_client.hours import Hours
from edge_client.policy import Policy
from edge_client.settings import ClientSettings
from edge_client.task_rules import memory_limit

__all__ = ["Budgets"]


@dataclass(frozen=True)
class Budgets:
    """The effective budgets of one agent."""

    memory_bytes: int
    """Of a trainer."""
    threads: int
    cpu_share: float
    """Percent of the time that a trainer runs."""
    hours: tuple[Hours, ...]
    """All of them have to include the time of the day."""
    max_temperature: float | None
    """Degrees Celsius; None: any."""
    on_battery: bool
    """Whether it trains there too."""
    metered: bool
    """Whether it takes part over such a network too."""
    day: dict[str, int | None]
    """Bytes of a day: ``down``, ``up``, ``written``; None: any."""

    @classmethod
    def of(cls, settings: ClientSettings, policy: Policy) -> Budgets:
        """Take flags and policy together."""
        degrees = [limit for limit in (settings.max_temperature, policy.max_temperature) if limit is not None]
        return cls(
            memory_bytes=memory_limit(settings.memory_budget, policy),
            threads=settings.threads,
            cpu_share=min(settings.cpu_share, policy.cpu_share),
            hours=tuple(hours for hours in (settings.hours, policy.hours) if hours is not None),
            max_temperature=min(degrees, default=None),
            on_battery=settings.allow_battery and not policy.mains_only,
            metered=settings.allow_metered and not policy.unmetered_only,
            day={"down": policy.max_down, "up": policy.max_up, "written": policy.max_written},
        )

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {**asdict(self), "hours": [str(hours) for hours in self.hours]}
