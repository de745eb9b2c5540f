"""What keeps the device from work now: power, network, temperature and time, by the owner's rules.

What the kernel does not tell counts as no obstacle: a board without a battery lists none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.budgets import Budgets
from edge_client.machine import hottest_zone, read_text
from edge_client.settings import ClientSettings

__all__ = ["COOLING_C", "Surroundings", "obstacles"]

COOLING_C = 5.0
"""A device that was too hot is so until it is as much cooler than its limit: else it would stop and go all the time."""


class Surroundings:
    """Reads what keeps the device from work, and remembers that it was too hot.

    Args:
      settings: say whether the network is metered.
      budgets: the owner's rules.
      root: where ``sys`` and ``proc`` lie.
      minute: the minute of the day, 0 to 1439, by the owner's clock.
    """

    def __init__(
        self,
        settings: ClientSettings,
        budgets: Budgets,
        *,
        root: Path = Path("/"),
        minute: Callable[[], int] | None = None,
    ) -> None:
        self._budgets = budgets
        self._metered = settings.metered
        self._hottest = math.inf if budgets.max_temperature is None else budgets.max_temperature
        self._root = root
        self._minute = minute or _minute_now
        self._is_cooling = False

    def read(self) -> wire.Conditions:
        """Read what keeps the device from work; what its owner allows is left out."""
        return wire.Conditions(
            on_battery=not self._budgets.on_battery and _runs_on_battery(self._root),
            metered=not self._budgets.metered and (self._metered or _leaves_by_modem(self._root)),
            too_hot=self._is_too_hot(),
            outside_hours=not all(hours.include(self._minute()) for hours in self._budgets.hours),
        )

    def temperature(self) -> float | None:
        """Degrees Celsius of the hottest thermal zone; None where there is none."""
        return hottest_zone(self._root)

    def _is_too_hot(self) -> bool:
        degrees = self.temperature()
        limit = self._hottest - (COOLING_C if self._is_cooling else 0.0)
        self._is_cooling = degrees is not None and degrees > limit
        return self._is_cooling


def obstacles(conditions: wire.Conditions) -> list[str]:
    """Name what keeps a device from work, as its owner reads it; nothing does where the list is empty."""
    return [
        text
        for holds, text in (
            (conditions.on_battery, "it runs on its battery"),
            (conditions.metered, "its network is metered"),
            (conditions.too_hot, "it is too hot"),
            (conditions.outside_hours, "it is outside of its hours"),
        )
        if holds
    ]


def _minute_now() -> int:
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


def _runs_on_battery(root: Path) -> bool:
    """Say whether a battery of the device itself is discharged and nothing else feeds it."""
    discharging = False
    for supply in (root / "sys/class/power_supply").glob("*"):
        kind = read_text(supply / "type")
        if kind != "Battery":
            if read_text(supply / "online") == "1":
                return False
        elif read_text(supply / "scope") != "Device":  # that of a mouse
            discharging |= read_text(supply / "status") == "Discharging"
    return discharging


def _leaves_by_modem(root: Path) -> bool:
    """Say whether the default route of IPv4 goes through a mobile modem."""
    for line in read_text(root / "proc/net/route").splitlines()[1:]:
        interface, destination, *_ = line.split()
        if destination == "00000000":
            return "DEVTYPE=wwan" in read_text(root / "sys/class/net" / interface / "uevent").splitlines()
    return False
