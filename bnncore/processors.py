"""How many processors this process may really use: its affinity, and the quota of its control groups.

A container that may use 1.5 of 4 processors still sees four of them, and four threads there wait for each other at the
end of every layer. Standard library alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["oversubscription", "usable_processors"]

_Quota = Callable[[Path], float]


def usable_processors(root: Path = Path("/")) -> float:
    """Give the processors that this process may use, a fraction where a control group allows a fraction.

    Args:
      root: where ``proc`` and ``sys`` are mounted.

    Source: Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and scheduler/sched-bwc.rst (``cpu.cfs_quota_us``) of
    the Linux kernel. A group's limit holds for all groups in it, so the smallest on the way to the root counts.
    """
    usable = float(len(os.sched_getaffinity(0)))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if not controllers:
            usable = min(usable, _least(root / "sys/fs/cgroup", path, _quota_v2))
        elif "cpu" in names:
            usable = min(usable, *(_least(root / "sys/fs/cgroup" / n, path, _quota_v1) for n in ("cpu", controllers)))
    return usable


def oversubscription(threads: int, usable: float | None = None) -> str | None:
    """Say what is wrong with this number of threads here, or nothing if it fits.

    Args:
      threads: of an engine.
      usable: processors; ``usable_processors()`` unless it is given.
    """
    usable = usable_processors() if usable is None else usable
    if threads <= math.ceil(usable):
        return None
    best = max(1, math.floor(usable))
    return (
        f"{threads} threads share {usable:g} processor(s) here (affinity and cgroup limits counted): each layer waits "
        f"for the last of them. {best} would be faster and take less memory"
    )


def _least(mount: Path, group: str, quota: _Quota) -> float:
    """Give the smallest quota from a group up to the mount point."""
    folder = mount / group.strip("/")
    folders = [folder, *(p for p in folder.parents if p == mount or mount in p.parents)]
    return min(quota(f) for f in folders)


def _quota_v2(folder: Path) -> float:
    lines = _lines(folder / "cpu.max")
    fields = lines[0].split() if lines else []
    return _ratio(fields[0], fields[1]) if len(fields) == 2 else math.inf


def _quota_v1(folder: Path) -> float:
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    return _ratio(quota[0], period[0]) if quota and period else math.inf


def _ratio(quota: str, period: str) -> float:
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:  # "max"
        return math.inf
    return microseconds / of if microseconds > 0 and of > 0 else math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
