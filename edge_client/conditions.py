"""What keeps the device from work now: power, network and temperature, as Linux tells them, by the owner's rules.

What the kernel does not tell counts as no obstacle: a board without a battery lists none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.settings import ClientSettings

__all__ = ["read_conditions"]


def read_conditions(settings: ClientSettings, root: Path = Path("/")) -> wire.Conditions:
    """Read what keeps the device from work; what its owner allows is left out.

    Args:
      settings: the owner's rules.
      root: where ``sys`` and ``proc`` lie.
    """
    limit = settings.max_temperature
    return wire.Conditions(
        on_battery=not settings.allow_battery and _runs_on_battery(root),
        metered=not settings.allow_metered and (settings.metered or _leaves_by_modem(root)),
        too_hot=limit is not None and any(degrees > limit for degrees in _temperatures(root)),
    )


def _runs_on_battery(root: Path) -> bool:
    """Say whether a battery of the device itself is discharged and nothing else feeds it."""
    discharging = False
    for supply in (root / "sys/class/power_supply").glob("*"):
        kind = _read(supply / "type")
        if kind != "Battery":
            if _read(supply / "online") == "1":
                return False
        elif _read(supply / "scope") != "Device":  # that of a mouse
            discharging |= _read(supply / "status") == "Discharging"
    return discharging


def _leaves_by_modem(root: Path) -> bool:
    """Say whether the default route of IPv4 goes through a mobile modem."""
    for line in _read(root / "proc/net/route").splitlines()[1:]:
        interface, destination, *_ = line.split()
        if destination == "00000000":
            return "DEVTYPE=wwan" in _read(root / "sys/class/net" / interface / "uevent").splitlines()
    return False


def _temperatures(root: Path) -> Iterator[float]:
    """Give the degrees Celsius of all thermal zones."""
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        text = _read(zone / "temp")
        if text.removeprefix("-").isdecimal():
            yield int(text) / 1000


def _read(path: Path) -> str:
    """Read a file of the kernel; empty when there is none, or when the hardware behind it does not answer."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
