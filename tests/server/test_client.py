"""The typed client against a coordinator that runs, over TLS; the page's own lines among it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bnncore.checkpoint import load_checkpoint
from bnncore.errors import ConfigurationError, UnreachableError
from server.client import FleetClient, RequestError
from server.client.connection import Connection
from server.client.events import FleetEvent, read_events
from server.storage.trust import AuditRecord
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, open_secure_house
from tests.server.scripted import ScriptedDevice, write_held_out_set

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rest.md"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as running:
        yield running


def client_of(house: SecureHouse) -> FleetClient:
    return FleetClient(house.url, key=house.admin_key, ca_file=house.state / "identity" / "ca.pem")


async def test_the_pages_lines_run_a_job_and_fetch_its_model(
    house: SecureHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    write_held_out_set(tmp_path / "held-out")
    evaluation = {"dataset": "idx", "data": str(tmp_path / "held-out")}
    description = make_job(rounds=2, min_devices=1, evaluation=evaluation).model_dump(mode="json")
    names = {
        "url": house.url,
        "key": house.admin_key,
        "ca_file": house.state / "identity" / "ca.pem",
        "description": description,
    }
    monkeypatch.chdir(tmp_path)
    enrolled = await house.enrol("a")
    async with ScriptedDevice(str(house.grpc), "a", credentials=house.credentials(enrolled)) as device:
        await device.connect()
        await asyncio.gather(device.work(2), asyncio.to_thread(exec, lines, names))

    said = capsys.readouterr().out
    assert [line.split()[:3] for line in said.splitlines() if "accuracy" in line] == [
        ["round", "1", "accuracy"], ["round", "2", "accuracy"]
    ]  # fmt: skip
    assert "2 1 of 1 devices" in said
    assert load_checkpoint(tmp_path / "model.safetensors").extra["job_name"] == "stripes"


async def test_everything_else_by_name(house: SecureHouse) -> None:
    def use() -> None:
        with client_of(house) as fleet:
            jobs = [fleet.jobs.create(make_job(name=name, min_devices=9)) for name in ("one", "two", "two")]
            assert [job.id for job in fleet.jobs.list()] == [job.id for job in jobs]
            assert [job.id for job in fleet.jobs.list(name="two")] == [job.id for job in jobs[1:]]
            assert fleet.jobs.pause(jobs[0].id).state == "PAUSED"
            assert fleet.jobs.resume(jobs[0].id).state in ("PENDING", "RUNNING")
            assert fleet.jobs.cancel(jobs[0].id).state == "CANCELLED"
            assert fleet.jobs.wait(jobs[0].id).state == "CANCELLED"
            assert fleet.status().jobs["CANCELLED"] == 1
            assert list(fleet.devices.list(connected=True)) == []
            token = fleet.tokens.create(uses=3, labels={"site": "lab"})
            assert token.token is not None
            assert [(known.id, known.token) for known in fleet.tokens.list()] == [(token.id, None)]
            fleet.tokens.delete(token.id)
            key = fleet.keys.create("grafana")
            fleet.keys.revoke(key.id)
            assert fleet.identities.list() == []
            actions = [entry.action for entry in fleet.audit(action="POST /api/v1/tokens")]
            assert actions == ["POST /api/v1/tokens"]
            with pytest.raises(RequestError, match="there is no job 'none'") as refusal:
                fleet.jobs.get("none")
            assert refusal.value.status == 404
            for strange in ("../tokens", "..", "a/b?c=%2F#d"):  # no id leads to another address
                with pytest.raises(RequestError) as refusal:
                    fleet.keys.revoke(strange)
                assert refusal.value.status == 404
            with pytest.raises(RequestError, match=r"there is no job 'no\?#%25 job'"):
                fleet.jobs.get("no?#%25 job")
            with pytest.raises(ConfigurationError, match="an id is empty, in /jobs/"):
                fleet.jobs.get("")
        with (
            FleetClient(house.url, key=key.key, ca_file=house.state / "identity" / "ca.pem") as stranger,
            pytest.raises(RequestError) as refusal,
        ):
            next(stranger.events())
        assert refusal.value.status == 401

    await asyncio.to_thread(use)


async def test_lists_longer_than_a_page_are_read_to_their_end(house: SecureHouse) -> None:
    for number in range(501):
        entry = AuditRecord(float(number), "test", "count", "127.0.0.1")
        await house.coordinator.disk.run(house.coordinator.disk.storage.trust.record, entry)

    def read() -> int:
        with client_of(house) as fleet:
            return sum(1 for _ in fleet.audit(actor="test"))

    assert await asyncio.to_thread(read) == 501


async def test_what_is_asked_of_a_job_is_done_whatever_answers_are_lost(
    house: SecureHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.client.connection._PAUSES_S", (0.01,) * 4)
    lost: list[str] = []

    class LosesAnswers(BaseHTTPRequestHandler):
        """What stands before the coordinator, and breaks down."""

        def do_POST(self) -> None:
            self.pass_on(is_lost=self.path not in lost)

        def do_GET(self) -> None:
            self.pass_on(is_lost=False)

        def pass_on(self, *, is_lost: bool) -> None:
            try:
                status, content = 200, behind.request(self.command, self.path.removeprefix("/api/v1")).content
            except RequestError as error:
                status, content = error.status, f'{{"detail": "{error}"}}'.encode()
            if is_lost:
                lost.append(self.path)
                self.send_error(503)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    ca_pem = (house.state / "identity" / "ca.pem").read_text()
    with (
        Connection(house.url, key=house.admin_key, ca_pem=ca_pem) as behind,
        HTTPServer(("127.0.0.1", 0), LosesAnswers) as server,
    ):
        threading.Thread(target=server.serve_forever).start()
        try:
            with FleetClient(f"http://127.0.0.1:{server.server_port}") as fleet:
                job_id = (await house.coordinator.jobs.create(make_job(min_devices=9))).job_id
                changes = (fleet.jobs.pause, fleet.jobs.resume, fleet.jobs.cancel)
                states = [(await asyncio.to_thread(change, job_id)).state for change in changes]
                with pytest.raises(RequestError, match="is CANCELLED and can no longer be cancelled"):
                    await asyncio.to_thread(fleet.jobs.cancel, job_id)  # as it is told to whoever asks once
        finally:
            server.shutdown()

    assert [path.rpartition("/")[2] for path in lost] == ["pause", "resume", "cancel"]
    assert (states[0], states[2]) == ("PAUSED", "CANCELLED")
    assert states[1] in ("PENDING", "RUNNING")


async def test_a_coordinator_that_stays_away_is_given_up(tmp_path: Path) -> None:
    kinds: list[str] = []
    async with open_secure_house(tmp_path / "state") as house:
        fleet = client_of(house)
        events = fleet.events(patience_s=0.0)
        kinds.append((await asyncio.to_thread(next, events)).kind)
        ended = asyncio.create_task(asyncio.to_thread(lambda: list(events)))
        await house.coordinator.jobs.create(make_job())
    with fleet, pytest.raises(UnreachableError, match="is the coordinator running"):
        await ended

    assert kinds == ["reset"]


def test_a_stream_on_which_nothing_happened_for_long_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda seconds: None)
    monkeypatch.setattr("server.client.events.time", clock)
    asked: list[str | None] = []

    class Coordinator(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal now
            asked.append(self.headers["Last-Event-ID"])
            self.send_response(503 if len(asked) == 2 else 200)
            self.end_headers()
            if len(asked) != 2:
                self.wfile.write(f"id: p-{len(asked)}\nevent: reset\ndata: {{}}\n\n".encode())
                time.sleep(0.2)  # until it is read, and more is waited for
                now += 3600.0

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with (
        HTTPServer(("127.0.0.1", 0), Coordinator) as server,
        FleetClient(f"http://127.0.0.1:{server.server_port}") as fleet,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        events = fleet.events(patience_s=60.0)
        told = [next(events).event_id, next(events).event_id]
        server.shutdown()

    assert told == ["p-1", "p-3"]
    assert asked == [None, "p-1", "p-1"]


async def test_what_is_asked_for_is_made_once_whatever_answers_are_lost(
    house: SecureHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.client.connection._PAUSES_S", (0.01,) * 4)
    received: list[str] = []

    class LosesAnswers(BaseHTTPRequestHandler):
        """What stands before the coordinator, and breaks down."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(self.headers["Idempotency-Key"])
            if len(received) == 1:
                self.send_error(503)
                return
            headers = {"Idempotency-Key": received[-1], "Content-Type": "application/json"}
            answer = behind.request("POST", "/jobs", content=body, headers=headers)
            if len(received) > 2:  # else it was made, and nobody hears of it
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

        def log_message(self, *args: object) -> None:
            pass

    ca_pem = (house.state / "identity" / "ca.pem").read_text()
    with (
        Connection(house.url, key=house.admin_key, ca_pem=ca_pem) as behind,
        HTTPServer(("127.0.0.1", 0), LosesAnswers) as server,
    ):
        threading.Thread(target=server.serve_forever).start()
        try:
            with FleetClient(f"http://127.0.0.1:{server.server_port}") as fleet:
                job = await asyncio.to_thread(fleet.jobs.create, make_job(min_devices=9))
        finally:
            server.shutdown()

    assert (len(received), len(set(received))) == (3, 1)
    assert [known["id"] for known in (await house.admin.get("/api/v1/jobs")).json()] == [job.id]


def test_a_download_is_never_in_memory_and_is_whole_or_not_there(tmp_path: Path) -> None:
    piece, told = bytes(2**20), 0

    class Coordinator(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(told))
            self.end_headers()
            for _ in range(32):
                self.wfile.write(piece)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with (
        HTTPServer(("127.0.0.1", 0), Coordinator) as server,
        FleetClient(f"http://127.0.0.1:{server.server_port}") as fleet,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        told = 33 * len(piece)
        with pytest.raises(UnreachableError):
            fleet.models.download("m", 1, tmp_path / "model")
        left = list(tmp_path.iterdir())
        told = 32 * len(piece)
        tracemalloc.start()
        try:
            fleet.models.download("m", 1, tmp_path / "model")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            server.shutdown()

    assert left == []
    assert (tmp_path / "model").stat().st_size == told
    assert peak < told / 2


def test_a_stream_is_read_as_browsers_read_it() -> None:
    lines = ["retry: 2000", "", ": alive", "", "id: p-1", "event: job", 'data: {"id":"j"}', "", "id: p-2", "data: {}"]

    assert list(read_events(lines)) == [FleetEvent("job", {"id": "j"}, "p-1")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: FleetClient("http://127.0.0.1:1", key="bfk_x"), "a key is sent over https only"),
        (lambda path: FleetClient("https://127.0.0.1:1", ca_file=path / "none"), "cannot read .*none: No such file"),
        (lambda path: FleetClient("nonsense").status(), "must be one such as https://127.0.0.1:8080"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_sent(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(tmp_path)
