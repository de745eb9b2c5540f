"""A step allocates nothing: a C++ program with its own malloc counts the calls."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_step_makes_no_call_to_malloc(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "the native tests need a C++ compiler: apt install g++"
    sources = [path for path in (REPOSITORY / "bnncore/native/src").rglob("*.cc") if "bindings" not in path.name]
    program = tmp_path / "step_allocations"

    command = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-pthread", "-o", str(program)]
    command += [f"-I{REPOSITORY}/bnncore/native/include", f"-I{REPOSITORY}/bnncore/native/src"]
    command += [str(Path(__file__).parent / "native/step_allocations.cc"), *map(str, sources)]
    subprocess.run(command, check=True, timeout=110)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 0, result.stdout
    assert result.stdout.count(": 0 calls") == 30
