"""Memory of other processes as the kernel counts it, sampled from outside.

The proportional set size of a device sums over all of its processes and counts a page that k processes map as 1/k,
so nothing is counted twice; a peak between two samples can be missed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 0.05


def process_tree(pid: int) -> list[int]:
    """List a process and all of its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(_parent(int(name)), []).append(int(name))
    tree = [pid]
    for process in tree:
        tree.extend(children.get(process, []))
    return tree


def tree_pss_bytes(pid: int) -> int:
    """Sum the proportional set sizes of a process and its descendants; 0 where the kernel does not tell."""
    return sum(_field_bytes(process, "smaps_rollup", "Pss:") for process in process_tree(pid))


def rss_peak_bytes(pid: int) -> int:
    """Read a process's highest resident set size so far (VmHWM); 0 when it has ended."""
    return _field_bytes(pid, "status", "VmHWM:")


class PeakSampler:
    """Samples the PSS of several process trees in a thread, from entering to leaving it.

    Attributes:
      peaks: highest sum seen, in bytes, by name.
    """

    def __init__(self, pids: Mapping[str, int], interval_s: float = INTERVAL_S) -> None:
        self.peaks = dict.fromkeys(pids, 0)
        self._interval_s = interval_s
        self._pids = dict(pids)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            for name, pid in self._pids.items():
                self.peaks[name] = max(self.peaks[name], tree_pss_bytes(pid))


def _field_bytes(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command's name, in parentheses, may hold anything: fields are counted from its last parenthesis.
    return int(stat.rpartition(")")[2].split()[1])
