"""One meter for whatever this machine offers, the whole board's first.

::

    ina219    a sensor of that family on the supply line, by the kernel's hwmon driver     the whole board
    hwmon     the firmware's power meter (ACPI)                                            the whole board
    pmic      the power management chip of a Raspberry Pi 5, asked by ``vcgencmd``         its rails, without losses
    rapl      counters of Intel and AMD processors                                         the processor package

All of them count everything that runs there, idle power included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bnncore.energy.pmic import open_pmic
from bnncore.energy.power_files import open_power_file
from bnncore.energy.rapl import Rapl, open_rapl

__all__ = ["Meter", "PowerMeter", "RaplMeter", "open_meter"]

LONGEST_GAP_S = 30.0
"""Between two looks at a power for which their mean may stand; of a longer gap nothing is counted."""


class Meter(Protocol):
    """Counts joules.

    Attributes:
      source: ``ina219``, ``hwmon``, ``pmic`` or ``rapl``.
    """

    source: str

    def take(self) -> float:
        """Joules since this was last asked; 0 the first time. May take some milliseconds.

        Raises:
          OSError: the sensor does not answer.
        """
        ...


class RaplMeter:
    """Differences of counters."""

    source = "rapl"

    def __init__(self, rapl: Rapl) -> None:
        self._rapl = rapl
        self._last: list[int] | None = None

    def take(self) -> float:
        """See ``Meter``; to be asked within a wrap-around of the counters, which is minutes."""
        before, self._last = self._last, self._rapl.read()
        return 0.0 if before is None else self._rapl.joules(before, self._last)


class PowerMeter:
    """The mean of a power at two times, times the seconds between them.

    Args:
      source: see ``Meter``.
      watts: reads the power.
      clock: seconds, monotonic.
    """

    def __init__(self, source: str, watts: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._watts = watts
        self._clock = clock
        self._last: tuple[float, float] | None = None

    def take(self) -> float:
        """See ``Meter``; to be asked about every second."""
        before, now = self._last, (self._clock(), self._watts())
        self._last = now
        if before is None or now[0] - before[0] > LONGEST_GAP_S:
            return 0.0
        return (before[1] + now[1]) / 2 * (now[0] - before[0])


def open_meter(root: Path = Path("/")) -> Meter | None:
    """Open the best meter that can be read here; None: there is none.

    Args:
      root: where ``sys`` lies.
    """
    if (found := open_power_file(root / "sys/class/hwmon")) is not None:
        return PowerMeter(*found)
    if (watts := open_pmic()) is not None:
        return PowerMeter("pmic", watts)
    rapl, _ = open_rapl(root / "sys/class/powercap")
    return None if rapl is None else RaplMeter(rapl)
