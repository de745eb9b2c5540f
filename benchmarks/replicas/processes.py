"""What processes on this machine cost in processor time, with their children."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from edge_client.pss import process_tree

_TICKS = os.sysconf("SC_CLK_TCK")


def processor_s(pids: Iterable[int]) -> float:
    """User and system time of processes and all their children so far, those that have ended included."""
    return sum(_own_processor_s(pid) for root in pids for pid in process_tree(root))


def _own_processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS
