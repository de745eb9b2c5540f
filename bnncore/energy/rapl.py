"""Measured joules, where the processor counts them: RAPL (running average power limit) of Intel and AMD.

Linux shows its counters under /sys/class/powercap. They count the whole processor package: idle cores and other
programs included, memory mostly not. Virtual machines have none; Linux since 5.10 lets root alone read them.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["Rapl", "open_rapl"]

_ROOT = Path("/sys/class/powercap")


class Rapl:
    """The energy counters of all packages."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]

    def read(self) -> list[int]:
        """Microjoules by package, since some moment; they wrap around."""
        return [_number(zone / "energy_uj") for zone in self._zones]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Joules between two readings that lie less than one wrap-around (minutes) apart."""
        return sum((b - a) % (top + 1) for a, b, top in zip(before, after, self._ranges, strict=True)) * 1e-6


def open_rapl(root: Path = _ROOT) -> tuple[Rapl | None, str]:
    """Open the counters, or say why there are none.

    Returns:
      The counters and what they count, or None and the reason.
    """
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
    if not zones:
        return None, f"this machine shows no energy counters (no package under {root})"
    try:
        rapl = Rapl(zones)
        rapl.read()
    except OSError as error:
        return None, f"the energy counters cannot be read: {error}. Run as root"
    return rapl, f"RAPL, {len(zones)} package(s), idle power and other programs included"


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _number(path: Path) -> int:
    return int(path.read_text())
