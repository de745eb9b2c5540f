"""What a person gets wrong is told in one line with the exit code of the house, and stops nobody else."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Fleet
from tests.patience import LIMIT_S

SERVER = ["-m", "server", "serve", "--insecure"]
CLIENT = ["-m", "edge_client", "run", "--insecure"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(("flag", "other"), [("--grpc", "--http"), ("--http", "--grpc")])
def test_a_port_in_use(flag: str, other: str, used_port: int, tmp_path: Path) -> None:
    result = run(*SERVER, flag, f"127.0.0.1:{used_port}", other, "127.0.0.1:0", "--state", str(tmp_path))

    assert result.returncode == 3
    assert f"{flag} 127.0.0.1:{used_port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_that_others_could_reach(tmp_path: Path) -> None:
    result = run(*SERVER, "--grpc", "0.0.0.0:0", "--http", "127.0.0.1:0", "--state", str(tmp_path))

    assert result.returncode == 3
    assert "TLS" in result.stderr


def test_a_data_folder_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"

    result = run(*CLIENT, "--server", "127.0.0.1:1", "--data", str(missing), "--state", str(tmp_path / "state"))

    assert result.returncode == 3
    assert str(missing) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_coordinator_that_is_not_there(shards: dict[str, Path], tmp_path: Path) -> None:
    data = ["--data", str(shards["device-1"]), "--state", str(tmp_path)]

    result = run(*CLIENT, "--server", "127.0.0.1:1", "--max-retries", "0", *data)

    assert result.returncode == 4
    assert "127.0.0.1:1" in result.stderr


def test_a_running_coordinator_shrugs_off_nonsense(undisturbed: Fleet) -> None:
    host, port = undisturbed.url.removeprefix("http://").split(":")

    for nonsense in (b"\x00" * 64, b"GET /api/v1/jobs/none/rounds HTTP/1.1\r\n\r\n", b"POST / HTTP/9\r\n"):
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
            connection.sendall(nonsense)

    assert undisturbed.job()["state"] == "COMPLETED"
