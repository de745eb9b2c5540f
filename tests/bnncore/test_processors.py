"""Processors under a quota: control groups of both versions, written as the kernel writes them."""

import os
from pathlib import Path

import pytest

from bnncore.processors import oversubscription, usable_processors


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def system(root: Path, groups: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path = path.with_name(path.name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 4


@pytest.mark.parametrize(
    ("limit", "usable"), [("150000 100000", 1.5), ("max 100000", 4), ("900000 100000", 4), ("", 4)]
)
def test_the_second_version_has_one_file(tmp_path: Path, limit: str, usable: float) -> None:
    assert usable_processors(system(tmp_path, "0::/\n", cpu_max=limit + "\n")) == usable


def test_a_limit_of_an_outer_group_holds_inside(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/slice/job\n", slice__cpu_max="50000 100000\n", slice__job__cpu_max="max 100000\n")

    assert usable_processors(root) == 0.5


def test_the_first_version_has_two_files(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "5:memory:/box\n3:cpu,cpuacct:/box\n",
        cpu__box__cpu_cfs_quota_us="250000\n",
        cpu__box__cpu_cfs_period_us="100000\n",
        cpu__cpu_cfs_quota_us="-1\n",
        cpu__cpu_cfs_period_us="100000\n",
    )

    assert usable_processors(root) == 2.5


@pytest.mark.parametrize("content", ["rubbish", "0::\n:", "a:b\n\n"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, content: str) -> None:
    assert usable_processors(system(tmp_path, content, cpu_max="x y z\n")) == 4


def test_more_threads_than_processors_are_told_with_a_better_number() -> None:
    assert oversubscription(4) is None
    assert oversubscription(2, usable=1.5) is None
    message = oversubscription(4, usable=1.5)
    assert message is not None
    assert "4 threads share 1.5 processor(s)" in message
    assert "1 would be faster" in message
