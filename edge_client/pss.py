"""Memory of the device's processes as the kernel counts it, the proportional set size, and how it is kept small.

A page that k processes map counts 1/k in each, so the sum over processes counts every page once. RSS would count
shared libraries twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

__all__ = ["begin_peak", "peak_pss_bytes", "process_tree", "pss_bytes", "tree_pss_bytes", "use_one_heap"]

_M_ARENA_MAX = -8


def pss_bytes(pid: int) -> int:
    """Read the proportional set size of one process; 0 when it has ended or the kernel does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def begin_peak() -> None:
    """Have this process's peak count from now on; where the kernel refuses, it counts from an earlier time."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_pss_bytes() -> int:
    """Bound this process's highest proportional set size since ``begin_peak``, or its start.

    It is what it has now, plus what its RSS has come down by.

    The kernel keeps a high-water mark of the RSS only. The pages a process gives back are its own, and count alike in
    both, so the bound is exact unless others began to share them.
    """
    sizes = {"VmHWM": 0, "VmRSS": 0}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    return pss_bytes(os.getpid()) + sizes["VmHWM"] - sizes["VmRSS"]


def process_tree(pid: int) -> list[int]:
    """List a process and all of its living descendants."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            parents.setdefault(_parent_of(name), []).append(int(name))
    tree = [pid]
    for process in tree:
        tree.extend(parents.get(process, []))
    return tree


def tree_pss_bytes(pid: int) -> int:
    """Sum the proportional set sizes of a process and all of its descendants; 0 when unknown."""
    return sum(pss_bytes(process) for process in process_tree(pid))


def use_one_heap() -> None:
    """Have all threads of this process share one heap: gRPC's seven would keep one each, 2 MB together.

    Call it before they start. Does nothing where the C library knows no such choice.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _parent_of(name: str) -> int:
    try:
        stat = Path(f"/proc/{name}/stat").read_text()
    except OSError:
        return 0
    # The command's name, in parentheses, may hold anything: the fields are counted from its last parenthesis.
    return int(stat.rpartition(")")[2].split()[1])
