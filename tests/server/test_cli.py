"""``bitfleet-server`` as a user meets it: a real process, real ports, exit codes and words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bnncore.checkpoint import load_checkpoint
from server.cli import main
from server.cli.asking import print_table
from tests.patience import LIMIT_S
from tests.server.conftest import make_job
from tests.server.scripted import connected

REPOSITORY = Path(__file__).resolve().parents[2]
READY = re.compile(r"bitfleet-server ready: devices at (\S+), people at (http://\S+)/")


@dataclass
class Server:
    process: subprocess.Popen[str]
    grpc: str
    http: str

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Stop it; returns its exit code and its log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, log


@contextlib.contextmanager
def serving(state: Path, *options: str) -> Iterator[Server]:
    """Run ``bitfleet-server serve`` on free ports."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'proto'}"}
    command = [sys.executable, "-m", "server", "serve", "--insecure", "--state", str(state)]
    addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *addresses, *options], env=environment, cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = READY.fullmatch(line.strip())
        assert found, line + process.communicate(timeout=LIMIT_S)[1]
        yield Server(process, found[1], found[2])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(make_job(rounds=2).to_json())
    return path


def test_it_says_where_it_listens_and_stops_cleanly_on_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as server:
        answers = [httpx.get(server.http + path, timeout=LIMIT_S) for path in ("/healthz", "/readyz", "/")]
        code, log = server.end()

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert code == 0
    assert "Traceback" not in log


async def test_it_stops_cleanly_with_devices_in_the_middle_of_a_round(tmp_path: Path, job_file: Path) -> None:
    with serving(tmp_path / "state", "--job", str(job_file)) as server:
        async with connected(server.grpc, "a", "b") as (a, _):
            await a.next_task()
            code, log = server.end()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await a.stream.read()
            ended = await a.stream.code()

    assert code == 0
    assert ended == grpc.StatusCode.UNAVAILABLE
    assert "Traceback" not in log


async def test_a_job_goes_on_after_kill_9_with_the_same_command(tmp_path: Path, job_file: Path) -> None:
    options = ("--job", str(job_file))
    with serving(tmp_path / "state", *options) as server:
        async with connected(server.grpc, "a", "b") as (a, _):
            await a.work(1)  # acknowledged; the other device has not delivered
            first = httpx.get(server.http + "/api/v1/jobs", timeout=LIMIT_S).json()  # noqa: ASYNC210 - nothing else runs here
            code, _ = server.end(signal.SIGKILL)
    with serving(tmp_path / "state", *options, "--exit-when-done") as server:
        async with connected(server.grpc, "a", "b") as (a, b):
            again = httpx.get(server.http + "/api/v1/jobs", timeout=LIMIT_S).json()  # noqa: ASYNC210
            await b.work(1)  # a is not asked again
            assert (await a.next_task()).round_number == 2
            await b.vanish()
            await a.vanish()
            await a.connect()
            await b.connect()
            await a.work(1)
            await b.work(1)
            server.process.communicate(timeout=LIMIT_S)

    assert code == -signal.SIGKILL
    assert [job["id"] for job in again] == [job["id"] for job in first]
    assert server.process.returncode == 0


def test_it_ends_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--exit-when-done") as server:
        server.process.communicate(timeout=LIMIT_S)

    assert server.process.returncode == 0


async def test_it_ends_with_1_when_a_job_has_failed(tmp_path: Path) -> None:
    from bitfleet.v1 import fleet_pb2 as pb

    (tmp_path / "job.json").write_text(make_job(min_devices=1, max_attempts=1).to_json())
    options = ("--exit-when-done", "--job", str(tmp_path / "job.json"))
    with serving(tmp_path / "state", *options) as server:
        async with connected(server.grpc, "a") as (a,):
            await a.report(await a.next_task(), pb.TASK_OUTCOME_FAILED, "out of memory")
            server.process.communicate(timeout=LIMIT_S)

    assert server.process.returncode == 1


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_status_says_that_a_job_waits_for_room(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, job_file: Path
) -> None:
    options = ("--disk-quota-bytes", "1048576", "--min-free-bytes", str(2**62), "--job", str(job_file))
    with serving(tmp_path / "state", *options) as server:
        out = ""
        while "waits" not in out:
            _, out, _ = run(capsys, "status", "--server", server.http)

    assert re.search(r"^disk +0\.0 of 1\.0 MiB used by payloads", out, re.M)
    assert re.search(r"^stripes-\w+ waits +there is no room for \d+ bytes", out, re.M)


@pytest.mark.parametrize("flag", ["--grpc", "--http"])
def test_a_port_in_use_is_named_with_its_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        addresses = {"--grpc": "127.0.0.1:0", "--http": "127.0.0.1:0"} | {flag: address}
        options = [part for pair in addresses.items() for part in pair]
        code, _, err = run(capsys, "serve", "--insecure", "--state", str(tmp_path / "state"), *options)

    assert code == 3
    assert f"cannot listen on {flag} {address}" in err
    assert "in use" in err


def test_a_state_folder_has_one_coordinator(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with serving(tmp_path / "state"):
        code, _, err = run(capsys, "serve", "--insecure", "--state", str(tmp_path / "state"), *addresses)

    assert code == 3
    assert "is in use by another coordinator" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--insecure", "--grpc", "0.0.0.0:7070"), "is reachable from other machines, which needs TLS"),
        (("--public-host", "no host"), "--public-host must be a host name or an IP address, got 'no host'"),
        (("--public-url", "https://fleet.example/path"), "--public-url must be https://HOST or https://HOST:PORT"),
        (("--public-url", "https://fleet.example", "--insecure"), "leave --public-url out"),
        (("--tls-cert", "/no/c", "--tls-key", "/no/k", "--tls-ca", "/no/a"), "must be PEM files"),
        (("--insecure", "--state", "/proc/nowhere"), "--state /proc/nowhere cannot be used"),
        (("--insecure", "--job", "/no/such/job.json"), "cannot read the job file /no/such/job.json"),
        (("--insecure", "--database", "nonsense"), "--database must be a URL"),
    ],
)
def test_what_cannot_be_served_is_refused_with_exit_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    defaults = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    code, _, err = run(capsys, "serve", *defaults, *options)

    assert code == 3
    assert err.startswith("bitfleet: error: ")
    assert words in err


def test_the_effective_settings_are_shown_with_their_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFLEET_SERVER_SETTLE_S", "2")
    code, out, _ = run(capsys, "serve", "--insecure", "--database", "postgresql://me:s3cret@db/x", "--print-config")

    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["settle_s"].split()[1:] == ["2.0", "(environment)"]
    assert lines["grpc"].split()[1:] == ["127.0.0.1:7070", "(default)"]
    assert "(command line)" in lines["database"]
    assert "s3cret" not in out


@pytest.mark.parametrize("arguments", [[], ["sing"], ["jobs"], ["jobs", "show"], ["serve", "--colour"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: bitfleet-server" in capsys.readouterr().err


def test_no_answer_ends_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    code, _, err = run(capsys, "jobs", "list", "--server", f"http://127.0.0.1:{port}")

    assert code == 4
    assert f"no answer from http://127.0.0.1:{port}" in err


def test_an_address_that_is_no_url_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "jobs", "list", "--server", "localhost:8080")[0] == 3


@pytest.mark.parametrize("command", ["serve", "status", "jobs list", "simulate"])
def test_without_the_extra_of_the_server_a_command_names_it(command: str) -> None:
    without = "import sys; sys.modules.update(fastapi=None, rich=None); from server.cli import main; sys.exit(main())"

    ended = subprocess.run(
        [sys.executable, "-c", without, *command.split()], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )

    assert ended.returncode == 3
    assert re.fullmatch(
        r"bitfleet: error: (rich|fastapi) is not installed here. "
        r"Install what the coordinator needs: pip install 'bitfleet\[server\]'\n",
        ended.stderr,
    )


def test_a_limit_below_one_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "audit", "--limit", "-1")

    assert code == 3
    assert "--limit must be at least 1, got -1" in err


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[red]job"], [["[/b] :smile:"]])

    assert capsys.readouterr().out.split() == ["[red]job", "[/b]", ":smile:"]


def test_a_table_has_a_line_for_each_row_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["state", "accuracy", "because"], [["COMMITTED", "96.10 %", "no class of that name " * 9]])

    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines][1:] == ["COMMITTED  96.10 %   " + ("no class of that name " * 9).rstrip()]


@pytest.mark.parametrize("columns", [20, 50])
def test_a_table_in_a_terminal_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))

    print_table(["state", "accuracy", "because"], [["COMMITTED", "96.10 %", "no class of that name " * 9]])

    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[1].startswith("COMMITTED  96.10 %   no")
    assert max(map(len, lines)) <= max(columns, len("COMMITTED  accuracy  because "))
    assert " ".join(" ".join(lines[1:]).split()[3:]) == ("no class of that name " * 9).rstrip()


def test_a_terminal_is_spared_columns_that_say_what_is_usual(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, usual = ["round", "attempt", "rejected"], {"attempt": "1", "rejected": "0"}
    rows: list[list[Any]] = [[1, 1, 0], [2, 1, 3]]

    print_table(columns, rows, usual=usual)
    assert capsys.readouterr().out.split() == ["round", "attempt", "rejected", "1", "1", "0", "2", "1", "3"]

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_table(columns, rows, usual=usual)
    print_table(columns, rows[:1], usual=usual)
    print_table(columns, [], usual=usual)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["round", "rejected"], ["1", "0"], ["2", "3"], ["round"], ["1"], columns]


async def test_jobs_devices_and_models_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, job_file: Path
) -> None:
    def ask(server: Server, *arguments: str) -> Any:
        code, out, err = run(capsys, *arguments, "--server", server.http, "--json")
        assert code == 0, err
        return json.loads(out)

    with serving(tmp_path / "state") as server:
        created = ask(server, "jobs", "create", str(job_file))
        async with connected(server.grpc, "a", "b") as devices:
            for _ in range(2):
                for device in devices:
                    await device.work(1)
            shown = ask(server, "jobs", "show", created["id"])
            while shown["state"] == "RUNNING":
                shown = ask(server, "jobs", "show", created["id"])
            listed = ask(server, "devices", "list")
        readable = [
            run(capsys, *words, "--server", server.http)
            for words in (["jobs", "list"], ["jobs", "show", created["id"]], ["devices", "list"], ["models", "list"])
        ]
        status = ask(server, "status")
        glance = run(capsys, "status", "--server", server.http)
        models = ask(server, "models", "list")
        exported = ask(server, "models", "export", created["id"], "--output", str(tmp_path / "m.safetensors"))
        initial = ask(
            server,
            "models",
            "export",
            created["id"],
            "--model-version",
            "0",
            "--output",
            str(tmp_path / "m0.safetensors"),
        )
        unwritable = run(
            capsys, "models", "export", created["id"], "--output", "/no/such/folder/m", "--server", server.http
        )
        unevaluated = run(capsys, "models", "export", created["id"], "--best", "--server", server.http)
        missing = run(capsys, "jobs", "cancel", "nope", "--server", server.http)
        pausing = [run(capsys, "jobs", word, created["id"], "--server", server.http) for word in ("pause", "resume")]
        ended = run(capsys, "jobs", "cancel", created["id"], "--server", server.http)
        invalid = tmp_path / "invalid.json"
        invalid.write_text("{}")
        refused = run(capsys, "jobs", "create", str(invalid), "--server", server.http)

    assert (shown["state"], [round_["state"] for round_ in shown["rounds"]]) == ("COMPLETED", ["COMMITTED"] * 2)
    assert [device["device_id"] for device in listed] == ["a", "b"]
    assert [code for code, _, _ in readable] == [0, 0, 0, 0]
    assert f"a round costs {shown['overhead_s']:.3f} s beside" in readable[1][1]
    assert status["round_overhead_s"] == shown["overhead_s"]
    assert glance[0] == 0
    assert re.search(r"^devices +0 of 2 connected$", glance[1], re.M)
    assert re.search(r"^jobs +1 completed$", glance[1], re.M)
    assert re.search(r"^disk +\d+\.\d MiB used by payloads, \d+\.\d MiB free$", glance[1], re.M)
    assert re.search(rf"^overhead +{shown['overhead_s']:.3f} s a round", glance[1], re.M)
    assert f"{shown['overhead_s']:.3f} s" in readable[0][1]
    assert all(created["id"][:20] in out for _, out, _ in (readable[0], readable[1], readable[3]))
    assert [(model["id"], model["latest"]["version"]) for model in models] == [(created["id"], 2)]
    assert (exported["version"], initial["version"]) == (2, 0)
    assert load_checkpoint(tmp_path / "m.safetensors").weights_digest == models[0]["latest"]["weights_digest"]
    assert load_checkpoint(tmp_path / "m0.safetensors").extra["version"] == 0
    assert unwritable[0] == 3
    assert (shown["best_version"], unevaluated[0], "was evaluated; leave --best out" in unevaluated[2]) == (
        None,
        1,
        True,
    )
    assert (missing[0], "there is no job 'nope'" in missing[2]) == (1, True)
    assert [code for code, _, _ in pausing] == [1, 1]
    assert "is COMPLETED; only a pending or running job can be paused" in pausing[0][2]
    assert "is COMPLETED; only a paused job can be resumed" in pausing[1][2]
    assert (ended[0], "is COMPLETED and can no longer be cancelled" in ended[2]) == (1, True)
    assert (refused[0], "the job is not valid:\n" in refused[2], "invalid.json" in refused[2]) == (3, True, True)
