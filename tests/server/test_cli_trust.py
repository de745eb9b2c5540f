"""``bitfleet-server`` as an operator meets it: served over TLS, asked from the same machine and from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from server.app.identity import people_url
from server.cli import main
from server.settings import Address, Settings
from tests.patience import LIMIT_S

READY = re.compile(r"^bitfleet-server ready: devices at (\S+), people at (https://\S+?)/\s*$", re.M)


@dataclass
class Served:
    state: Path
    url: str
    output: str


@contextlib.contextmanager
def serving(state: Path, *options: str, terminal: bool = False) -> Iterator[Served]:
    """Run ``bitfleet-server serve`` as it is meant to be run, its output in a file or on a terminal."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "server", "serve", "--state", str(state), *options),
            *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        ],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        output = b""
        while b"known by" not in output or (terminal and b"told this once" not in output):
            more = os.read(ours, 4096)
            assert more, output
            output += more
        ready = READY.search(output.decode())
        assert ready, output
        yield Served(state, ready[2], output.decode())
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        os.close(ours)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served") / "state", "--public-host", "fleet.example") as running:
        yield running


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_on_its_machine_the_command_line_needs_no_key(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "jobs", "list", "--state", str(served.state), "--json")

    assert (code, json.loads(out)) == (0, [])


def test_elsewhere_it_needs_the_certificate_and_a_key(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run(capsys, "key", "create", "ops", "--state", str(served.state))
    (tmp_path / "key").write_text(out)
    where = ("--server", served.url, "--ca", str(served.state / "identity/ca.pem"))

    without_key, _, no_key = run(capsys, "jobs", "list", *where)
    without_ca, _, no_ca = run(capsys, "jobs", "list", "--server", served.url)
    with_file, _, _ = run(capsys, "jobs", "list", *where, "--key-file", "key")
    forbidden, _, scope = run(capsys, "token", "create", *where, "--key-file", "key")
    monkeypatch.setenv("BITFLEET_API_KEY", out.strip())
    with_variable, _, _ = run(capsys, "jobs", "list", *where)

    assert (without_key, without_ca, with_file, forbidden, with_variable) == (1, 4, 0, 1, 0)
    assert "this needs an API key" in no_key
    assert "CERTIFICATE_VERIFY_FAILED" in no_ca
    assert "this needs the scope 'admin'; key 'ops' has 'read'" in scope


def test_the_local_key_is_sent_nowhere_else(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = served.url.replace("127.0.0.1", "localhost")
    where = ("--server", elsewhere, "--ca", str(served.state / "identity/ca.pem"), "--state", str(served.state))

    code, _, err = run(capsys, "jobs", "list", *where)

    assert code == 1
    assert "this needs an API key" in err


def test_a_token_is_shown_once_with_the_line_for_devices(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", str(served.state))
    options = ("--uses", "2", "--expires", "7d", "--label", "site=lab")

    code, out, _ = run(capsys, "token", "create", *options, *state)
    _, listed, _ = run(capsys, "token", "list", "--json", *state)

    token, note, line = out.splitlines()
    (fingerprint,) = re.findall(r"known by (sha256:[0-9a-f]{64})", served.output)
    assert code == 0
    assert "for 2 devices until " in note
    url = served.url.replace("127.0.0.1", "fleet.example")
    assert line.split() == ["bitfleet-client", "enroll", "--server", url, "--ca-fingerprint", fingerprint]
    (kept,) = [row for row in json.loads(listed) if row["id"] == token.split("_")[1]]
    assert (kept["uses_left"], kept["labels"], kept["token"]) == (2, {"site": "lab"}, None)
    assert token not in listed
    assert run(capsys, "token", "delete", kept["id"], *state)[0] == 0
    assert run(capsys, "token", "delete", kept["id"], *state)[0] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--expires", "soon"), "--expires must be a whole number"), (("--label", "lab"), "--label must be KEY=VALUE")],
)
def test_a_token_that_makes_no_sense_is_refused(
    served: Served, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, _, err = run(capsys, "token", "create", *options, "--state", str(served.state))

    assert code == 3
    assert words in err


def test_keys_are_listed_and_revoked_and_all_is_in_the_audit_log(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(served.state))
    _, created, _ = run(capsys, "key", "create", "visitor", "--scope", "operate", "--json", *state)
    key = json.loads(created)

    assert "visitor" in run(capsys, "key", "list", *state)[1]
    assert run(capsys, "key", "revoke", key["id"], *state)[0] == 0
    _, audit, _ = run(capsys, "audit", "--json", *state)
    assert [entry["action"] for entry in json.loads(audit)][-2:] == [
        "POST /api/v1/keys",
        f"DELETE /api/v1/keys/{key['id']}",
    ]
    assert key["key"] not in audit


def test_a_device_that_is_not_enrolled_cannot_be_revoked(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "devices", "revoke", "nobody", "--state", str(served.state))

    assert code == 1
    assert "no device 'nobody' is enrolled" in err
    assert run(capsys, "devices", "enrolled", "--state", str(served.state))[0] == 0


def test_the_first_key_is_printed_on_a_terminal_alone(served: Served, tmp_path: Path) -> None:
    with serving(tmp_path / "state", terminal=True) as seen:
        pass

    assert (seen.state / "identity/admin.key").read_text().strip() in seen.output
    assert "told this once" not in served.output
    assert (served.state / "identity/admin.key").read_text().strip() not in served.output


def test_people_are_told_an_address_that_a_browser_takes() -> None:
    here, everywhere = Address("127.0.0.1", 8080), Address("0.0.0.0", 8080)
    settings = Settings(http=everywhere, public_host=("fleet.example", "fleet"))

    assert people_url(settings, everywhere, None) == "http://fleet.example:8080"
    assert people_url(settings, here, None) == "http://127.0.0.1:8080"
    assert people_url(Settings(http=everywhere), everywhere, None) == "http://0.0.0.0:8080"
    by_proxy = replace(settings, public_url="https://People.example:8443/")
    assert people_url(by_proxy, everywhere, None) == "https://people.example:8443"
