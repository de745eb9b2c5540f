"""Fuzz the REST API: schemathesis against a coordinator that runs, over TLS, with the key of each scope and with none.

python -m tests.server.fuzz_api --seconds 120
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parents[2]
SCOPES = ("admin", "operate", "read", "none")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "an_error_is_a_problem"
)
_READY = re.compile(r"people at (https://\S+?)/\s*$", re.M)


def fuzz(
    folder: Path, options: Sequence[str], scopes: Sequence[str] = SCOPES
) -> list[subprocess.CompletedProcess[str]]:
    """Start a coordinator, run schemathesis once for each scope, stop it; gives what the runs said.

    Args:
      folder: for the coordinator's state and its log, ``log``.
      options: of schemathesis.
      scopes: with whose keys.
    """
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'proto'}"}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "server", "serve", "--state", folder / "state", "--min-free-bytes", "0"),
                *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--enrolments-per-minute", "1000000"),
            ],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        stack.callback(server.wait, LIMIT_S)
        stack.callback(server.terminate)
        assert server.stdout is not None
        stack.enter_context(server.stdout)
        url = _READY.search(server.stdout.readline())
        assert url, (folder / "log").read_text()
        keys, ca = _keys(folder / "state", url[1], scopes)
        return [_run(url[1], ca, key, options, folder, environment) for key in keys]


def _keys(state: Path, url: str, scopes: Sequence[str]) -> tuple[list[str | None], Path]:
    ca = state / "identity" / "ca.pem"
    first = (state / "identity" / "admin.key").read_text().strip()
    with httpx.Client(
        base_url=url,
        verify=ssl.create_default_context(cafile=ca),
        headers={"Authorization": f"Bearer {first}"},
        trust_env=False,
        timeout=LIMIT_S,
    ) as admin:
        made = {
            scope: admin.post("/api/v1/keys", json={"name": f"fuzz-{scope}", "scope": scope}).json()["key"]
            for scope in scopes
            if scope != "none"
        }
    return [made.get(scope) for scope in scopes], ca


def _run(
    url: str, ca: Path, key: str | None, options: Sequence[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    header = [] if key is None else ["--header", f"Authorization: Bearer {key}"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--tls-verify", ca),
            *("--exclude-path", "/api/v1/events"),  # has no end: test_events.py
            *("--checks", CHECKS, "--suppress-health-check", "all", "--warnings", "off", *header, *options),
        ],
        cwd=folder, env=environment | {"SCHEMATHESIS_HOOKS": "tests.server.api_checks", "NO_COLOR": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="in all")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        runs = fuzz(Path(folder), ["--max-time", str(max(1, seconds // len(SCOPES)))])
        errors = [line for line in (Path(folder) / "log").read_text().splitlines() if "level=ERROR" in line]
    for scope, run in zip(SCOPES, runs, strict=True):
        print(f"== key: {scope}", run.stdout, run.stderr, sep="\n")
    print(
        json.dumps(
            {"failed": [scope for scope, run in zip(SCOPES, runs, strict=True) if run.returncode], "errors": errors}
        )
    )
    return int(any(run.returncode for run in runs) or bool(errors))


if __name__ == "__main__":
    sys.exit(main())
