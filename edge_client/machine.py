"""What the machine has for this process: memory and cores, less what its control groups hold back; its temperature.

A container, or a unit with ``MemoryMax`` or ``CPUQuota``, has less than the machine. Groups are those of version 2, of
every level from this process's own up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hottest_zone", "memory_bytes", "read_text", "usable_cores"]


def memory_bytes(root: Path = Path("/")) -> int:
    """Give the bytes of memory that this process may take at most.

    Args:
      root: where ``sys`` and ``proc`` lie.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _groups(root):
        text = read_text(group / "memory.max")
        if text.isdecimal():
            limits.append(int(text))
    return min(limits)


def usable_cores(root: Path = Path("/")) -> int:
    """Give the cores that this process may keep busy, at least 1.

    Args:
      root: where ``sys`` and ``proc`` lie.
    """
    cores = [len(os.sched_getaffinity(0))]
    for group in _groups(root):
        quota, _, period = read_text(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            cores.append(math.ceil(int(quota) / int(period)))
    return max(1, min(cores))


def hottest_zone(root: Path = Path("/")) -> float | None:
    """Degrees Celsius of the hottest thermal zone; None where there is none.

    Args:
      root: where ``sys`` lies.
    """
    texts = [read_text(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    return max((int(text) / 1000 for text in texts if text.removeprefix("-").isdecimal()), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Give the folders of this process's control group and of all above it."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            top = root / "sys/fs/cgroup"
            group = top / line.removeprefix("0::/")
            yield group
            if group != top:
                yield from (parent for parent in group.parents if parent.is_relative_to(top))


def read_text(path: Path) -> str:
    """Read a file of the kernel; empty when there is none, or when the hardware behind it does not answer."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
