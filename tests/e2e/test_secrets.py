"""Nothing secret is where others look: logs at their most talkative, process lists, answers, settings as they print."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from server.settings import Settings
from tests.e2e.processes import Process
from tests.patience import LIMIT_S, wait_for

LOOK_S = 0.05
"""Between two looks at the processes of this machine."""

_READY = re.compile(r"people at (https://\S+?)/\s*$", re.M)
_KNOWN = re.compile(r"known by (\S+)")


class ProcessList:
    """The command lines of all processes, as ``ps`` shows them to everyone, for as long as a block lasts."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            for name in filter(str.isdecimal, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    self.seen.add(Path(f"/proc/{name}/cmdline").read_bytes())


def command(*words: str | Path) -> str:
    """Run a command of ours to its end; gives what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def private_lines(*files: Path) -> list[str]:
    """Return the lines of private keys in PEM files."""
    blocks = [re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", file.read_text(), re.S) for file in files]
    return [line for block in blocks if block for line in block[1].splitlines()]


def test_no_secret_is_where_others_look(tmp_path: Path, job: dict[str, Any], shards: dict[str, Path]) -> None:
    state, device = tmp_path / "state", tmp_path / "device"
    job_file, token_file, key_file = tmp_path / "job.json", tmp_path / "token", tmp_path / "key"
    job_file.write_text(json.dumps({**job, "rounds": 1, "min_devices": 1, "quorum": 1, "local_steps": 10}))
    processes, listed = [], ProcessList()
    try:
        with listed.watched():
            here = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug")
            coordinator = Process(
                ["-m", "server", "serve", "--state", str(state), *here], tmp_path / "server.log", "secrets"
            )
            processes.append(coordinator)
            wait_for("the coordinator", lambda: _KNOWN.search(coordinator.log.read_text()))
            url, known = _READY.search(coordinator.log.read_text()), _KNOWN.search(coordinator.log.read_text())
            assert url
            assert known
            token = json.loads(command("server", "token", "create", "--json", "--state", state))["token"]
            key = json.loads(
                command("server", "key", "create", "ops", "--scope", "operate", "--json", "--state", state)
            )
            token_file.write_text(token)
            key_file.write_text(key["key"])
            where = ("--server", url[1], "--ca", state / "identity" / "ca.pem", "--key-file", key_file)
            told = [command("server", "jobs", "create", job_file, *where)]
            enrol_at = ("--server", url[1], "--ca-fingerprint", known[1], "--state", device, "--device-id", "pi")
            told.append(command("edge_client", "enroll", "--token-file", token_file, *enrol_at))
            data = str(next(iter(shards.values())))
            agent = Process(
                ["-m", "edge_client", "run", "--data", data, "--state", str(device), "--log-level", "debug"],
                tmp_path / "agent.log",
                "secrets",
            )
            processes.append(agent)
            wait_for("the job", lambda: "state=COMPLETED" in coordinator.log.read_text())
            trust = ssl.create_default_context(cafile=state / "identity" / "ca.pem")
            with httpx.Client(base_url=url[1], verify=trust, trust_env=False, timeout=LIMIT_S) as http:
                session = http.post("/login", data={"key": key["key"]}, headers={"Origin": str(url[1])})
                told.append(http.post("/api/v1/enrolments", json={"csr": 1, "token": token, "more": 1}).text)
                told.append(http.post("/login", json={"key": [key["key"]]}, headers={"Origin": str(url[1])}).text)
                told.append(http.post("/api/v1/enrolments", content=f'{{"token": "{token}", ').text)
                told.append(http.get("/api/v1/status", headers={"Authorization": f"Basic {key['key']}"}).text)
            told.append(command("server", "audit", "--json", "--state", state))
            told.append(command("server", "token", "list", "--json", "--state", state))
            told.append(command("server", "key", "list", "--json", "--state", state))
            for process in reversed(processes):
                process.terminate()
    finally:
        for process in processes:
            process.kill()
    secrets = [
        token,
        key["key"],
        session.cookies["__Host-bitfleet"],
        (state / "identity" / "admin.key").read_text().strip(),
        *private_lines(*state.glob("identity/*.pem"), *device.glob("identity/*.pem")),
    ]
    everything = "\n".join(
        [
            coordinator.log.read_text(),
            agent.log.read_text(),
            *told,
            *(line.decode(errors="replace") for line in listed.seen),
        ]
    )

    assert len(secrets) >= 4 + 3 * 3  # three private keys of three lines each
    assert any(b"edge_client" in line for line in listed.seen)
    assert [secret for secret in secrets if secret in everything] == []


def test_settings_hide_the_databases_password() -> None:
    settings = Settings(database="postgresql+psycopg://user:hunter2@db/fleet")

    assert "hunter2" not in repr(settings) + str(settings.shown())
