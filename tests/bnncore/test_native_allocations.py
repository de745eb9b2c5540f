"""A step allocates nothing: a C++ program with its own malloc counts the calls."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_step_makes_no_call_to_malloc(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "the native tests need a C++ compiler: apt install g++"
    sources = [path for path in (REPOSITORY / "bnncore/native/src").rglob("*.cc") if "bindings" not in path.name]
    program = tmp_path / "step_allocations"

    command = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-pthread"]
    command += [f"-I{REPOSITORY}/bnncore/native/include", f"-I{REPOSITORY}/bnncore/native/src"]

    def compile_one(source: Path) -> str:
        target = str(tmp_path / ("-".join(source.relative_to(REPOSITORY).parts) + ".o"))
        subprocess.run([*command, "-c", str(source), "-o", target], check=True, timeout=110)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [Path(__file__).parent / "native/step_allocations.cc", *sources]))
    subprocess.run([compiler, "-pthread", "-o", str(program), *objects], check=True, timeout=60)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 0, result.stdout
    assert result.stdout.count(": 0 calls") == 30 + 24 + 15 + 6
