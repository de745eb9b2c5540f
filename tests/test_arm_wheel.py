"""The wheel for 64-bit ARM, where `make arm-wheel` has built one, and the scripts that build it and run it."""

import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.patience import LIMIT_S
from tests.test_packaging import PYPROJECT, REPOSITORY

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
ELF_MACHINE_AARCH64 = 183
WHEELS = sorted(REPOSITORY.glob(f"build/arm-*/dist/bitfleet-{PYPROJECT['project']['version']}-*.whl"))
PYTHONS = sorted(REPOSITORY.glob("build/arm-*/venv/bin/python3"))


@pytest.fixture(params=[path.name for path in WHEELS] or ["none"])
def wheel(request: pytest.FixtureRequest) -> Path:
    if not WHEELS:
        if shutil.which(COMPILER) is None:
            pytest.skip(f"no cross compiler {COMPILER}; install it with: sudo apt install g++-aarch64-linux-gnu")
        pytest.skip("no wheel for ARM was built; `make arm-wheel` builds it in two minutes")
    return next(path for path in WHEELS if path.name == request.param)


@pytest.mark.arm
def test_the_wheel_says_what_it_is_for(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{name}-{version}.dist-info/WHEEL").decode()

    # nanobind has a stable ABI from Python 3.12 on.
    assert (python, abi) in {("cp311", "cp311"), ("cp312", "abi3")}
    assert platform == "linux_aarch64"
    assert f"Tag: {python}-{abi}-{platform}" in metadata.splitlines()
    assert "Root-Is-Purelib: false" in metadata.splitlines()


@pytest.mark.arm
def test_the_wheel_holds_the_engine_for_arm_and_nothing_for_another_processor(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        extensions = [name for name in names if ".so" in name]
        headers = {name: archive.read(name)[:20] for name in extensions}

    abi = "abi3" if "-abi3-" in wheel.name else "cpython-311-aarch64-linux-gnu"
    assert extensions == [f"bnncore/_native.{abi}.so"]
    for header in headers.values():
        magic, bits, machine = struct.unpack_from("<4sB13xH", header)
        assert (magic, bits, machine) == (b"\x7fELF", 2, ELF_MACHINE_AARCH64)


@pytest.mark.arm
def test_the_wheel_holds_what_a_device_needs_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    assert {"bnncore/engine.py", "edge_client/agent.py", "edge_client/trainer.py", "bitfleet/v1/fleet_pb2.py"} <= names
    assert [name for name in names if name.endswith((".cc", ".h", ".proto", ".cmake"))] == []
    assert {name.partition("/")[0] for name in names} == {
        *("bnncore", "edge_client", "server", "bitfleet"),
        "-".join(wheel.name.split("-")[:2]) + ".dist-info",
    }


@pytest.mark.parametrize(
    ("script", "packages"), [("arm-root", "debootstrap qemu-user dpkg"), ("arm-wheel", "g++-aarch64-linux-gnu")]
)
def test_a_script_names_the_packages_that_are_missing(script: str, packages: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [REPOSITORY / ".ci" / script, tmp_path],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Missing on this system; install with:", f"  sudo apt install {packages}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.arm
def test_the_emulated_python_starts_emulated_children() -> None:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR}; install it with: sudo apt install qemu-user")
    if not PYTHONS:
        pytest.skip("no Python for ARM is here; `make arm-client` makes it")
    machine = "import platform; print(platform.machine())"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {machine!r}], check=True)"

    done = subprocess.run([PYTHONS[0], "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=True)

    assert done.stdout == "aarch64\n"
