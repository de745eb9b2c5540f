"""The C++ tests, compiled with sanitizers and run here, and what keeps their golden digests and ARM run honest."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests/golden/engine.txt"
CPUS = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count())


def run(*command: object, cwd: Path = REPOSITORY) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of the native tests with sanitizers, compiled once for whoever asks."""
    cmake = (sys.executable, "-m", "cmake")
    build = REPOSITORY / "build/native"  # kept, as `make test-native` does: only what changed is compiled again
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(*cmake, "-S", REPOSITORY, "-B", build, "-DBITFLEET_TESTS=ON", "-DBITFLEET_SANITIZE=address,undefined")
        run(*cmake, "--build", build, "--parallel", CPUS)
    return build / "tests/bnncore/native"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_native_tests_pass_under_sanitizers(programs: Path) -> None:
    run(programs / "native_tests", "--golden", GOLDEN)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_step_makes_no_call_to_malloc(programs: Path) -> None:
    said = run(programs / "step_allocations")

    assert said.count(": 0 calls") == 30 + 24 + 15 + 6


def test_golden_digests_differ_and_are_sorted() -> None:
    lines = GOLDEN.read_text().splitlines()
    digests = [line.split()[1] for line in lines]

    assert lines == sorted(lines)
    assert len(set(digests)) == len(digests)  # each network, optimizer and preset ends somewhere of its own


@pytest.mark.parametrize(
    ("present", "package"), [("qemu-aarch64", "g++-aarch64-linux-gnu"), ("aarch64-linux-gnu-g++", "qemu-user")]
)
def test_the_tests_for_arm_name_what_they_miss(tmp_path: Path, present: str, package: str) -> None:
    for name in ("bash", "env", "nproc", "rm"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / name).symlink_to(program)
    (tmp_path / present).write_text("#!/bin/sh\n")
    (tmp_path / present).chmod(0o755)
    script = tmp_path / "checkout/.ci/arm"
    script.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / ".ci/arm", script)

    result = subprocess.run(
        [script], cwd=tmp_path / "checkout", env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"  sudo apt install {package}"
