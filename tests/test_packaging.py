"""The distribution: what it needs is pinned, and what it cannot run on is refused."""

import re
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import bnncore
from bnncore.cli.main import build_parser as core_parser
from edge_client.cli import build_parser as device_parser
from server.cli.main import build_parser as coordinator_parser
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

# Installed by choice, in versions that fit the machine; of them CI installs torch, in the version that Makefile says.
UNPINNED_EXTRAS = {"torch", "images", "sim"}


def canonical(requirement: str) -> str:
    (name,) = re.findall(r"^[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    project: dict[str, Any] = PYPROJECT["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in UNPINNED_EXTRAS]
    return [
        *PYPROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(name for names in extras for name in names),
    ]


def test_every_dependency_has_a_lower_bound() -> None:
    assert [requirement for requirement in requirements() if ">=" not in requirement] == []


def test_every_dependency_of_ci_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line) for line in lines if re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)}

    assert {canonical(requirement) for requirement in requirements()} - pinned == set()


def test_the_installed_version_is_this_one() -> None:
    assert version("bitfleet") == PYPROJECT["project"]["version"]


def test_the_packages_of_the_design_are_installed() -> None:
    assert PYPROJECT["tool"]["scikit-build"]["wheel"]["packages"] == [
        "bnncore",
        "edge_client",
        "server",
        "proto/bitfleet",
    ]


@pytest.mark.slow
def test_a_32_bit_system_is_refused_when_it_installs(tmp_path: Path) -> None:
    # Runs the real CMakeLists.txt, told right after project() that pointers have 4 bytes.
    pretend = tmp_path / "pretend.cmake"
    pretend.write_text('set(CMAKE_SIZEOF_VOID_P 4)\nset(CMAKE_SYSTEM_PROCESSOR "armv7l")\n')

    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "cmake",
            "-S",
            REPOSITORY,
            "-B",
            tmp_path,
            f"-DCMAKE_PROJECT_bitfleet_INCLUDE={pretend}",
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    message = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "bitfleet needs a 64-bit system, this one is armv7l" in message
    assert "Raspberry Pi" in message


@pytest.mark.parametrize("build_parser", [core_parser, device_parser, coordinator_parser])
def test_each_command_tells_its_version(
    build_parser: Callable[[], ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["--version"])

    assert capsys.readouterr().out == f"bitfleet {bnncore.__version__}\n"
