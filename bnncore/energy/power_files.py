"""Sensors of the supply line that the kernel shows under /sys/class/hwmon, in microwatts.

Only those that stand for the board: a graphics card or a disk has such files too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["open_power_file"]

_SOURCES = {
    **dict.fromkeys(("ina219", "ina220", "ina226", "ina230", "ina231", "ina237", "ina238"), "ina219"),
    "power_meter": "hwmon",
}
"""By the driver's name for the chip."""


def open_power_file(root: Path) -> tuple[str, Callable[[], float]] | None:
    """Find a sensor that can be read.

    Args:
      root: the folder of all sensors.

    Returns:
      Its kind, and what reads its watts; None: there is none.
    """
    for chip in sorted(root.glob("hwmon*")):
        for name in ("power1_input", "power1_average"):
            try:
                source = _SOURCES.get((chip / "name").read_text().strip())
                _watts(chip / name)
            except (OSError, ValueError):
                continue
            if source is not None:
                return source, lambda path=chip / name: _watts(path)
    return None


def _watts(path: Path) -> float:
    return int(path.read_text()) * 1e-6
