"""Both programs as their units start them: no root, no capability, nothing to write to but their own folder."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnncore.unit import render_unit
from tests.e2e.conftest import DEVICES
from tests.patience import LIMIT_S, wait_for

NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parents[2]

# What a unit's ProtectSystem, PrivateTmp, User, NoNewPrivileges and CapabilityBoundingSet come to. Python may lie in
# a folder of root's, which is replaced by one through which everybody may pass.
BOX = """
set -e
state=$1 python=$2 closed=$3; shift 3
mount --make-rprivate /
mount --bind "$state" "$state"
mount -t tmpfs tmpfs /var/tmp
if [ -n "$closed" ]; then
  mkdir /var/tmp/python
  mount --bind "$python" /var/tmp/python
  mount -t tmpfs -o mode=755 tmpfs "$closed"
  mkdir -p "$python"
  mount --move /var/tmp/python "$python"
  mount -o remount,ro "$closed"
fi
mount -o remount,bind,ro /
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env HOME=/nonexistent TMPDIR=/var/tmp BITFLEET_CACHE="$state/cache" XDG_CONFIG_HOME="$state/config" "$@"
"""


def closed_folder(path: Path) -> str:
    """Name the uppermost folder on a path through which only its owner may pass; empty when there is none."""
    return next((str(folder) for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), "")


def in_box(state: Path, *arguments: str | Path) -> list[str]:
    python = Path(sys.base_prefix)
    box = ["unshare", "--mount", "sh", "-c", BOX, "sh", str(state), str(python), closed_folder(python)]
    return [*box, sys.executable, *map(str, arguments)]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that everybody can reach, which pytest's own is not."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("only root may give up being root")
    if subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    folder = Path(tempfile.mkdtemp(prefix="bitfleet-"))
    folder.chmod(0o755)
    for name in ("server", "client"):
        (folder / name).mkdir()
        os.chown(folder / name, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def can_run(home: Path) -> bool:
    return subprocess.run(in_box(home / "client", "-c", "import grpc"), capture_output=True).returncode == 0


def test_a_fleet_runs_without_root_on_a_read_only_disk(home: Path, shards: dict[str, Path]) -> None:
    if not can_run(home):
        pytest.skip("this Python is not everybody's to run")
    name = DEVICES[0]
    shutil.copytree(shards[name], home / "data")
    job = {
        "name": "unprivileged", "model": {"zoo": "mlp", "params": {"widths": [32]}}, "input_shape": [8, 8],
        "classes": [str(digit) for digit in range(10)], "rounds": 2, "min_devices": 1, "local_steps": 5,
        "evaluation": {"dataset": "digits"},
    }  # fmt: skip
    (home / "job.json").write_text(json.dumps(job))
    serve: list[str | Path] = ["-m", "server", "serve", "--state", home / "server"]
    serve += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (home / "server.log").open("wb") as log:
            wanted = in_box(home / "server", *serve, "--job", home / "job.json", "--exit-when-done")
            running.append(subprocess.Popen(wanted, stdout=log, stderr=log))
        coordinator = running[0]

        def ready() -> re.Match[str] | None:
            said = (home / "server.log").read_text()
            assert coordinator.poll() is None, said
            return re.search(r"people at (?P<url>\S+?)/\s+known by (?P<fingerprint>\S+)", said)

        found = wait_for("the coordinator", ready)
        told = subprocess.run(
            [sys.executable, "-m", "server", "token", "create", "--state", home / "server", "--json"],
            stdout=subprocess.PIPE, check=True, timeout=LIMIT_S,
        )  # fmt: skip
        token = json.loads(told.stdout)["token"]
        enrol = ["-m", "edge_client", "enroll", "--server", found["url"], "--ca-fingerprint", found["fingerprint"]]
        state: list[str | Path] = ["--state", home / "client"]
        subprocess.run(
            in_box(home / "client", *enrol, *state, "--token-file", "-"),
            input=token.encode(),
            check=True,
            timeout=LIMIT_S,
        )
        with (home / "client.log").open("wb") as log:
            agent = in_box(home / "client", "-m", "edge_client", "run", *state, "--data", home / "data")
            running.append(subprocess.Popen(agent, stdout=log, stderr=log))

        try:
            assert coordinator.wait(LIMIT_S) == 0
        except (AssertionError, subprocess.TimeoutExpired):
            print(*((home / f"{name}.log").read_text() for name in ("server", "client")))
            raise
        running[1].send_signal(signal.SIGTERM)
        assert running[1].wait(LIMIT_S) == 0, (home / "client.log").read_text()
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert {path.stat().st_uid for path in (home / "server").rglob("*")} == {NOBODY}
    assert {path.stat().st_uid for path in (home / "client").rglob("*")} == {NOBODY}


@pytest.mark.parametrize("package", ["server", "edge_client"])
def test_units_ask_for_what_the_box_has(package: str, tmp_path: Path) -> None:
    name = {"server": "bitfleet-server", "edge_client": "bitfleet-client"}[package]
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    unit.read_string(render_unit(package, name))
    service = unit["Service"]

    program, command = service["ExecStart"].split()
    assert Path(program).is_absolute()
    assert subprocess.run([program, command, "--help"], capture_output=True, timeout=LIMIT_S).returncode == 0
    assert service["User"] == "bitfleet"
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 60
    if shutil.which("systemd-analyze"):
        (tmp_path / f"{name}.service").write_text(render_unit(package, name))
        verify = ["systemd-analyze", "verify", str(tmp_path / f"{name}.service")]
        verified = subprocess.run(verify, capture_output=True, text=True, timeout=LIMIT_S)
        assert (verified.returncode, f"{name}.service" in verified.stderr) == (0, False), verified.stderr
    assert (service["ProtectSystem"], service["ReadWritePaths"]) == ("strict", "/var/lib/bitfleet")
    assert (service["NoNewPrivileges"], service["CapabilityBoundingSet"], service["PrivateTmp"]) == ("yes", "", "yes")
