"""The demo as a newcomer runs it, only shorter."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from server.demo.fleet import Child, ChildFailedError
from tests.patience import LIMIT_S, wait_for

DEMO = [sys.executable, "-P", "-m", "server", "demo"]


def living(folder: Path) -> list[str]:
    """List the processes whose working folder is the demo's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_short_demo_shows_and_leaves_its_numbers(tmp_path: Path) -> None:
    command = [*DEMO, "--devices", "2", "--rounds", "2", "--json", "build/demo.json"]

    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    numbers = json.loads((tmp_path / "build" / "demo.json").read_text())
    assert list(numbers) == [
        "accuracy",
        "best_alone",
        "rounds",
        "devices",
        "down_bytes_per_device_round",
        "up_bytes_per_device_round",
        "device_pss_peak_bytes",
        "coordinator_rss_peak_bytes",
        "seconds",
    ]
    assert (numbers["rounds"], numbers["devices"]) == (2, 2)
    assert 0 < numbers["device_pss_peak_bytes"] <= 80e6
    assert re.search(r"dashboard http://127\.0\.0\.1:\d+/", result.stdout)
    assert re.search(r"^2 of 2 .* % +2 of 2 ", result.stdout, re.M)
    assert living(tmp_path) == []


def test_a_demo_that_stays_shows_its_dashboard_until_ctrl_c(tmp_path: Path) -> None:
    command = [*DEMO, "--devices", "1", "--rounds", "1", "--stay"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        stays = next(found for line in demo.stdout if (found := re.search(r"stay: (http://\S+) until Ctrl-C", line)))

        (job,) = httpx.get(f"{stays[1]}api/v1/jobs", timeout=LIMIT_S, trust_env=False).json()
        demo.send_signal(signal.SIGINT)

        assert demo.wait(timeout=LIMIT_S) == 0
    assert job["state"] == "COMPLETED"
    assert living(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_takes_its_processes_along(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.DEVNULL) as demo:
        wait_for("the devices to run", lambda: len(living(tmp_path)) >= 6)

        demo.send_signal(number)

        assert demo.wait(timeout=LIMIT_S) == 130
    assert living(tmp_path) == []


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.DEVNULL) as demo:
        wait_for("the devices to run", lambda: len(living(tmp_path)) >= 3)

        second = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)

        demo.terminate()
    assert second.returncode == 3
    assert "another demo runs" in second.stderr


def test_a_demo_without_its_data_says_what_to_do(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BITFLEET_DATA"}

    result = subprocess.run(
        [*DEMO, "--dataset", "mnist"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert result.returncode == 3
    assert "BITFLEET_DATA" in result.stderr


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("device-9", ["-c", "raise SystemExit('no such sensor')"], tmp_path / "device-9.log")
    child.reap(time.monotonic() + LIMIT_S)

    with pytest.raises(ChildFailedError, match=r"device-9 ended with status 1[\s\S]*no such sensor"):
        child.check()
