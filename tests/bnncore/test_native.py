"""The C++ tests, compiled with sanitizers and run here, and what keeps their golden digests and ARM run honest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests/golden/engine.txt"
CPUS = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count())


def run(*command: object, cwd: Path = REPOSITORY) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_native_tests_pass_under_sanitizers() -> None:
    cmake = (sys.executable, "-m", "cmake")
    build = REPOSITORY / "build/native"  # kept, as `make test-native` does: only what changed is compiled again

    run(*cmake, "-S", REPOSITORY, "-B", build, "-DBITFLEET_TESTS=ON", "-DBITFLEET_SANITIZE=address,undefined")
    run(*cmake, "--build", build, "--parallel", CPUS)
    run(build / "tests/bnncore/native/native_tests", "--golden", GOLDEN)


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
