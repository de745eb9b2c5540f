"""The power management chip of a Raspberry Pi 5, whose voltages and currents ``vcgencmd pmic_read_adc`` prints.

Lines are ``VDD_CORE_A current(7)=2.49A`` and ``VDD_CORE_V volt(15)=0.72V``. Their products are the power of the rails
that the chip feeds; its own losses, and what hangs on USB and the header, are not in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable

__all__ = ["open_pmic", "watts_of"]

_LIMIT_S = 2.0
_LINE = re.compile(r"^\s*(\w+)_([AV]) \w+\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)


def open_pmic() -> Callable[[], float] | None:
    """Give what reads the watts; None: this is no board with such a chip, or this user may not ask it."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None

    def watts() -> float:
        """Ask the chip; raises OSError when it does not answer."""
        try:
            done = subprocess.run(
                [command, "pmic_read_adc"], capture_output=True, timeout=_LIMIT_S, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"vcgencmd gave no answer in {_LIMIT_S:g} s") from error
        found = watts_of(done.stdout.decode(errors="replace"))
        if found is None:
            raise OSError("vcgencmd names no rail with its voltage and its current")
        return found

    try:
        watts()
    except OSError:
        return None
    return watts


def watts_of(text: str) -> float | None:
    """Add up the power of all rails of which both the voltage and the current are told; None where there is none."""
    values = {(name, unit): float(value) for name, unit, value in _LINE.findall(text)}
    rails = [name for name, unit in values if unit == "A" and (name, "V") in values]
    return sum(values[name, "A"] * values[name, "V"] for name in rails) if rails else None
