"""A device's identity from its side: real processes against a real coordinator over TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from bnncore.errors import UnreachableError
from edge_client.cli import main
from edge_client.enrolment import renew
from edge_client.errors import ClockError, IdentityRefusedError, SettingsError
from edge_client.https import Coordinator, fetch_ca
from edge_client.identity import IdentityFolder
from edge_client.outbox import Request
from edge_client.renewal import Renewal
from edge_client.state_dir import StateDir
from edge_client.transport import Transport
from server.identity.authority import key_digest, load_key
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, open_secure_house

JOB = {"classes": ["a", "b", "c"], "input_shape": [8, 8], "min_devices": 1, "rounds": 1}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "coordinator") as running:
        yield running


async def client(*words: str, token: str = "", given: bytes = b"") -> tuple[int, str]:
    """Run ``bitfleet-client`` to its end; gives its exit code and all it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge_client", *words),
        env=os.environ | {"BITFLEET_TOKEN": token},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await patiently(process.communicate(given))
    return process.returncode or 0, output.decode()


async def enrol(house: SecureHouse, state: Path, *words: str, token: str | None = None) -> tuple[int, str]:
    where = ("--server", house.url, "--ca-fingerprint", house.trust.tls.fingerprint, "--state", str(state))
    return await client("enroll", *where, *words, token=await house.token() if token is None else token)


class Running:
    """A running agent."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        return await patiently(self.process.wait())


@pytest.fixture
async def run(tmp_path: Path, data_dir: Path) -> AsyncIterator[Callable[..., object]]:
    """Start agents; those that still run when the test ends are killed."""
    started: list[Running] = []

    async def start(state: Path, *words: str) -> Running:
        log = tmp_path / f"agent-{len(started)}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "edge_client", "run", "--data", str(data_dir), "--state", str(state), *words),
                stdout=file,
                stderr=file,
            )
        started.append(Running(process, log))
        return started[-1]

    yield start
    for agent in started:
        if agent.process.returncode is None:
            agent.process.kill()
        await agent.process.wait()


async def test_a_device_enrols_trains_and_is_shut_out(house: SecureHouse, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    state = tmp_path / "device"
    token = await house.token()
    code, output = await enrol(house, state, "--device-id", "pi-1", token=token)
    assert code == 0, output
    agent = await run(state)
    job = await house.coordinator.jobs.create(make_job(**JOB))
    await patiently(house.coordinator.jobs.wait_until_idle())
    shown = (await house.admin.get(f"/api/v1/jobs/{job.job_id}")).json()
    await house.admin.post("/api/v1/identities/pi-1/revoke")

    assert shown["state"] == "COMPLETED"
    assert await agent.ended() == 3
    assert "device pi-1 was revoked by its operator" in agent.log
    assert token not in output + agent.log


async def test_the_key_stays_on_the_device_for_its_owner_alone(house: SecureHouse, tmp_path: Path) -> None:
    state = tmp_path / "device"
    await enrol(house, state)

    folder = IdentityFolder(state / "identity")
    (enrolled,) = house.trust.devices.list()
    key = load_key(folder.key_file.read_bytes(), folder.key_file)
    assert stat.S_IMODE(folder.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    assert key_digest(key.public_key()) == enrolled.key_digest
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in house.state.rglob("*.db*"))
    assert "PRIVATE" not in repr(folder.credentials())


@pytest.mark.parametrize("way", ["file", "standard input", "argument"])
async def test_a_token_may_come_in_other_ways(house: SecureHouse, tmp_path: Path, way: str) -> None:
    token = await house.token()
    (tmp_path / "token").write_text(f"{token}\n")
    words = {
        "file": ("--token-file", str(tmp_path / "token")),
        "standard input": ("--token-file", "-"),
        "argument": ("--token", token),
    }[way]
    where = ("--server", house.url, "--ca-fingerprint", house.trust.tls.fingerprint)

    code, output = await client("enroll", *where, "--state", str(tmp_path / "d"), *words, given=f"{token}\n".encode())

    assert code == 0, output
    assert token not in output


async def test_what_stands_in_the_way_is_told(house: SecureHouse, tmp_path: Path) -> None:
    used = await house.token()
    await enrol(house, tmp_path / "a", "--device-id", "a", token=used)
    where = ("--server", house.url, "--ca-fingerprint", "sha256:" + "0" * 64, "--state", str(tmp_path / "b"))

    answers = [
        await enrol(house, tmp_path / "b", token=used),
        await enrol(house, tmp_path / "c", "--device-id", "a"),
        await enrol(house, tmp_path / "d", token=""),
        await client("enroll", *where, token="bft_x"),
    ]

    assert [code for code, _ in answers] == [3, 3, 3, 3]
    for (_, output), words in zip(
        answers,
        ("the token is used up", "choose another --device-id", "a token is needed", "either it is another coordinator"),
        strict=True,
    ):
        assert words in output
        assert "Traceback" not in output
    again, _ = await enrol(house, tmp_path / "c", "--device-id", "c")
    assert again == 0  # the name that was refused was not kept


async def test_an_interrupted_enrolment_goes_on_with_the_same_token(house: SecureHouse, tmp_path: Path) -> None:
    state, token = tmp_path / "device", await house.token()
    await enrol(house, state, token=token)
    for name in ("facts.json", "certificate.pem"):  # as if the answer had been lost
        (state / "identity" / name).unlink()

    code, output = await enrol(house, state, token=token)

    assert code == 0, output
    assert len(house.trust.devices.list()) == 1


async def test_the_agent_renews_and_goes_on_with_the_new_certificate(house: SecureHouse, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    state = StateDir(tmp_path / "device")
    await enrol(house, state.root, "--device-id", "a")
    old, facts = state.identity.credentials(), state.identity.read()
    assert facts is not None
    now = time.time()
    # Two thirds of its life are over, as far as the agent knows.
    state.identity.keep(replace(facts, not_before=now - 300, not_after=now + 100), old.certificate_pem, old.ca_pem)

    agent = await run(state.root)
    await agent.until(lambda: "certificate renewed" in agent.log)
    await until(lambda: len(house.coordinator.fleet) == 1)
    (entry,) = [entry for entry in await house.audit() if entry["action"] == "renew"]
    agent.process.send_signal(signal.SIGTERM)

    assert await agent.ended() == 0
    assert entry["actor"] == "device:a"
    assert state.identity.credentials().certificate_pem != old.certificate_pem
    assert state.identity.credentials().key_pem == old.key_pem


async def test_what_a_renewal_sends_is_counted(house: SecureHouse, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "device")
    await enrol(house, state.root)
    transport = Transport(str(house.grpc), state.identity.credentials())

    await Renewal(state, transport).look_into(failures=2)
    await transport.close()

    assert transport.talk.messages == {"renewal": 1}
    assert transport.talk.bytes > 400  # a certificate request


async def test_a_device_that_was_away_comes_back_by_its_key(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    lifetime = 1e-5  # days: a second
    async with open_secure_house(tmp_path / "coordinator", device_certificate_days=lifetime) as house:
        await enrol(house, tmp_path / "device")
        facts = StateDir(tmp_path / "device").identity.read()
        assert facts is not None
        await asyncio.sleep(max(0.0, facts.not_after + 0.1 - time.time()))  # away until it has expired
        house.trust.devices._lifetime_s = 3600.0
        agent = await run(tmp_path / "device")
        await until(lambda: len(house.coordinator.fleet) == 1)

        assert "certificate renewed" in agent.log


YEAR_S = 365 * 86400.0


async def test_a_wrong_clock_is_told_from_a_bad_certificate(
    tmp_path: Path,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A device in 1970 and a coordinator in the present are to a certificate what this device and a coordinator a year
    # ahead are: its certificate begins then, and its clock says so.
    async with open_secure_house(tmp_path / "coordinator") as house:
        await enrol(house, tmp_path / "device")
    (tmp_path / "coordinator/identity/server.pem").unlink()
    monkeypatch.setattr("server.identity.authority._BACKDATED", timedelta(seconds=-YEAR_S))
    async with open_secure_house(tmp_path / "coordinator") as house:
        coordinator = Coordinator(house.url, house.authority.pem)
        with pytest.raises(UnreachableError, match="is out of date"):
            await asyncio.to_thread(coordinator.ask, "GET", "/healthz")
    monkeypatch.setattr("uvicorn.server.formatdate", lambda now, **options: formatdate(now + YEAR_S, **options))
    async with open_secure_house(tmp_path / "coordinator") as house:
        coordinator = Coordinator(house.url, house.authority.pem)
        with pytest.raises(ClockError, match="clock wrong: this device says") as wrong:
            await asyncio.to_thread(coordinator.ask, "GET", "/healthz")
        state = StateDir(tmp_path / "device")
        facts, known = state.identity.read(), state.identity.credentials()
        assert facts is not None
        moved = replace(facts, server=str(house.grpc), enrolled_at=house.url)
        state.identity.keep(moved, known.certificate_pem, known.ca_pem)
        agent = await run(state.root)
        await agent.until(lambda: "clock wrong" in agent.log)  # and it goes on trying
        agent.process.send_signal(signal.SIGTERM)
        code = await agent.ended()

    assert wrong.value.offset_s == pytest.approx(-YEAR_S, abs=60)
    assert "wait for time synchronisation" in agent.log
    assert code == 0


async def test_an_impostor_learns_no_token(house: SecureHouse, tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "impostor") as impostor:
        with pytest.raises(SettingsError, match="somebody stands between"):
            await asyncio.to_thread(fetch_ca, impostor.url, house.trust.tls.fingerprint)
        await enrol(house, tmp_path / "device")
        state = StateDir(tmp_path / "device")
        facts = state.identity.read()
        assert facts is not None
        known = state.identity.credentials()
        state.identity.keep(replace(facts, enrolled_at=impostor.url), known.certificate_pem, known.ca_pem)
        with pytest.raises(UnreachableError, match="does not show a certificate of the coordinator"):
            await asyncio.to_thread(renew, state.identity)


async def test_a_revoked_device_gets_no_new_certificate(house: SecureHouse, tmp_path: Path) -> None:
    await enrol(house, tmp_path / "device", "--device-id", "a")
    await house.admin.post("/api/v1/identities/a/revoke")

    with pytest.raises(IdentityRefusedError, match="device a was revoked"):
        await asyncio.to_thread(renew, StateDir(tmp_path / "device").identity)


async def test_leaving_tells_the_coordinator_and_removes_the_key(house: SecureHouse, tmp_path: Path) -> None:
    state, token = tmp_path / "device", await house.token()
    await enrol(house, state, "--device-id", "a", token=token)

    code, output = await client("leave", "--state", str(state))
    _, listed = await client("outbox", "--state", str(state))
    _, verified = await client("outbox", "--verify", "--state", str(state))

    assert code == 0, output
    asked = [entry for entry in StateDir(state).outbox.entries() if isinstance(entry, Request)]
    assert [(entry.purpose, entry.to, entry.holds) for entry in asked] == [
        ("enrol", house.url, "certificate request and token"),
        ("leave", house.url, "certificate request"),
    ]
    assert asked[0].bytes - asked[1].bytes in range(len(token), len(token) + 20)
    assert f"enrol: {asked[0].bytes} bytes to {house.url}, certificate request and token" in listed
    assert verified.startswith("intact: 2 lines")
    assert token not in (state / "outbox.jsonl").read_text()
    assert [(device.device_id, device.state) for device in house.trust.devices.list()] == [("a", "LEFT")]
    assert not (state / "identity").exists()
    assert (state / "device_id").exists()
    assert (await enrol(house, state))[0] == 0  # it may come again, under its name


async def test_purging_leaves_nothing(house: SecureHouse, tmp_path: Path) -> None:
    state = tmp_path / "device"
    await enrol(house, state)
    for path in (state / "outbox.jsonl", state / "pending" / "update.safetensors", state / "feedback" / "x"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")

    code, output = await client("leave", "--purge", "--state", str(state))

    assert code == 0, output
    assert not state.exists()


async def test_nothing_is_removed_while_the_coordinator_cannot_be_told(tmp_path: Path) -> None:
    state = tmp_path / "device"
    async with open_secure_house(tmp_path / "coordinator") as house:
        await enrol(house, state)

    code, output = await client("leave", "--purge", "--state", str(state))
    kept = (state / "identity/key.pem").exists()
    forced, _ = await client("leave", "--purge", "--offline", "--state", str(state))

    assert (code, kept, forced) == (4, True, 0)
    assert "--offline removes without telling" in output
    assert not state.exists()


def test_a_server_that_is_no_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--ca-fingerprint", "sha256:" + "0" * 64, "--token", "t", "--state", str(tmp_path / "s")]

    assert main(["enroll", "--server", "http://127.0.0.1:1", *where]) == 3
    assert "--server must be https://HOST:PORT" in capsys.readouterr().err
    assert main(["enroll", "--server", "https://127.0.0.1:1", *where]) == 4
    assert "no answer from https://127.0.0.1:1" in capsys.readouterr().err
    assert main(["enroll", "--server", "https://127.0.0.1:1", "--ca-fingerprint", "ab", "--token", "t"]) == 3


async def test_status_shows_where_a_device_is_enrolled(house: SecureHouse, tmp_path: Path) -> None:
    await enrol(house, tmp_path / "device", "--device-id", "a")

    _, output = await client("status", "--json", "--state", str(tmp_path / "device"))

    facts = json.loads(output)
    assert (facts["device_id"], facts["enrolled_at"]) == ("a", str(house.grpc))
    assert facts["certificate_ends_at"].startswith("20")
