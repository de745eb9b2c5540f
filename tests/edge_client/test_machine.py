"""What the machine and this process's control groups leave it."""

import os
from pathlib import Path

from edge_client.machine import memory_bytes, usable_cores
from tests.edge_client.test_conditions import machine


def test_every_level_of_the_control_groups_counts(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == cores
    everything = memory_bytes(tmp_path)

    machine(tmp_path, proc__self__cgroup="0::/system.slice/fleet")
    for name, text in (("system.slice/memory.max", "67108864"), ("system.slice/fleet/memory.max", "max")):
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "sys/fs/cgroup/system.slice/fleet/cpu.max").write_text("50000 100000\n")

    assert memory_bytes(tmp_path) == 64 << 20 < everything
    assert usable_cores(tmp_path) == 1
