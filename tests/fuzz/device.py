"""What a device reads: every message of its coordinator, its answers over HTTPS, and the files of its state folder.

The files are the device's own, which a power cut or a worn card may have damaged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.checkpoint import save_checkpoint
from bnncore.errors import ProtocolError
from bnncore.federated import EngineShelf
from bnncore.federated.local import load_model
from bnncore.spec import ModelSpec
from edge_client.best_model import read_best_model
from edge_client.budgets import Budgets
from edge_client.conditions import Surroundings
from edge_client.courier import Courier, status_name
from edge_client.daily_use import DailyUse, Use, read_use
from edge_client.enrolment import read_certificate
from edge_client.errors import IdentityRefusedError, LinkError, one_line
from edge_client.https import read_answer, read_enrolment
from edge_client.identity import Identity
from edge_client.link import Link
from edge_client.model_source import ModelSource
from edge_client.outbox import Dispatch, Outbox, Privacy, Report, Talk
from edge_client.pending_update import PendingUpdate
from edge_client.policy import Policy, read_policy
from edge_client.privacy_account import PrivacyAccount
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir
from edge_client.task_file import task_file
from edge_client.task_rules import TaskRules, is_well_named, seconds_left
from edge_client.trainer import check_memory, local_task_of
from edge_client.transport import FleetStream, Transport
from edge_client.worker import Worker
from tests.bnncore.random_states import random_state
from tests.edge_client.wire import make_task, pieces_of
from tests.fuzz.coordinator import certificate, pem_of
from tests.fuzz.core import SPEC, file_with
from tests.fuzz.mutation import join_frames, message_mutation, mutate, mutate_bytes, split_frames, stream_mutation
from tests.fuzz.target import Target

MEMORY = 64 << 20
FINGERPRINT = "sha256:" + "0" * 64


@cache
def device() -> SimpleNamespace:
    """The agent's parts over a state folder in memory, without a link."""
    logging.getLogger("edge_client").setLevel(logging.CRITICAL)
    folder = tempfile.TemporaryDirectory(prefix="bitfleet-fuzz-", dir="/dev/shm")
    state = StateDir(Path(folder.name))
    state.models.root.mkdir()
    use = DailyUse(state.daily_use_file, Policy())
    link = Link(state.outbox)
    transport = SimpleNamespace(_stub=SimpleNamespace(), talk=Talk())
    courier = Courier(cast(Transport, transport), link, state.outbox, "bird-1", use)
    settings = ClientSettings("localhost:1", Path(folder.name), data=Path("/data"))
    rules = TaskRules(Policy(), use, MEMORY, PrivacyAccount(state.outbox, Policy()), has_identity=False)
    worker = Worker(
        settings, state, "bird-1", courier, link, rules, Surroundings(settings, Budgets.of(settings, Policy()))
    )
    return SimpleNamespace(
        folder=folder, state=state, worker=worker, courier=courier, transport=transport, shelf=EngineShelf()
    )


@cache
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def read_event(data: bytes) -> None:
    """One event on the device's stream: what the agent and its worker do with it at once."""

    async def take() -> None:
        event = pb.ConnectResponse.FromString(data)
        worker: Worker = device().worker
        match event.WhichOneof("event"):
            case "welcome":
                stream = FleetStream(cast(Any, None), event.welcome, Talk())
                assert 1024 <= stream.chunk_bytes <= 1 << 20
                assert 0.1 <= stream.heartbeat_interval_s <= 600
                one_line(event.welcome.server_version)
            case "task":
                worker.offer(event.task)
                assert len(worker._waiting) <= 8
            case "exchange":
                worker.order(event.exchange)
            case "cancel":
                worker.cancel(event.cancel.task_id, one_line(event.cancel.reason))

    loop().run_until_complete(take())


def read_task(data: bytes) -> None:
    """A task: the agent's checks, its file, and all that a trainer does before it trains."""
    task = pb.Task.FromString(data)
    worker: Worker = device().worker
    if not is_well_named(task):
        raise ProtocolError("passed over")
    worker._rules.check(task)
    assert 0 <= seconds_left(task.deadline_s) < 1e9
    told = task_file(worker._settings, worker._state, "bird-1", MEMORY, task, ModelSource(None), plan_only=False)
    written = json.loads(json.dumps(told))
    local_task = local_task_of(written)
    spec = ModelSpec.from_json(written["spec_json"])
    check_memory(local_task, spec, 60, 1, written["max_memory"])
    engine = device().shelf.take(spec, local_task.training, min(local_task.training.batch_size, 60))
    load_model(engine, spec, local_task, None)


class Answers:
    """A call whose answers are what was recorded."""

    def __init__(self, frames: list[bytes]) -> None:
        self._messages = [pb.DownloadModelResponse.FromString(frame) for frame in frames]

    async def read(self) -> Any:
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    def cancel(self) -> None:
        self._messages.clear()


def read_download(data: bytes) -> None:
    """The answers to a request for a model, up to the cache."""
    answers = Answers(split_frames(data))
    task, _ = download_seed()
    courier, transport = device().courier, device().transport
    transport._stub.DownloadModel = lambda request: answers
    transport.download = partial(Transport.download, transport)
    cache_of_job = device().state.models.of("job")

    async def once(what: str, attempt: Callable[[Any], Awaitable[None]]) -> None:
        await attempt(None)

    courier._persist = once
    try:
        loop().run_until_complete(courier.fetch(cache_of_job, task.model_digest, task.model_bytes))
    except LinkError as error:
        raise ProtocolError(str(error)) from error
    finally:
        size = cache_of_job.partial_bytes(task.model_digest)
        shutil.rmtree(cache_of_job.root)
        assert size <= task.model_bytes


@cache
def download_seed() -> tuple[pb.Task, bytes]:
    task, model = make_task(from_seed=False, widths=(64, 64))
    frames = [
        pb.DownloadModelResponse(offset=at, data=piece, total_bytes=len(model)).SerializeToString()
        for at, piece in pieces_of(model, 0)
    ]
    return task, join_frames(frames)


def read_submit_answer(data: bytes) -> None:
    answer = pb.SubmitUpdateResponse.FromString(data)
    assert len(status_name(answer)) <= 11
    assert len(one_line(answer.reason)) <= 300


def read_https_answer(data: bytes) -> None:
    """An answer of the REST side: its time on the first line, then its content."""
    date, _, content = data.partition(b"\n")
    value = read_answer(200, date.decode("latin-1"), content).value
    try:
        read_certificate(value)
    except ProtocolError:
        read_enrolment(value, "https://h:1", FINGERPRINT)


def read_https_refusal(data: bytes) -> None:
    with contextlib.suppress(IdentityRefusedError):
        read_answer(403, "Thu, 01 Jan 2026 00:00:00 GMT", data)


def read_pending(data: bytes) -> None:
    """The header, whose digest is right."""
    state: StateDir = device().state
    folder = state.pending_file.parent
    folder.mkdir(exist_ok=True)
    state.pending_file.write_bytes(b"update")
    (folder / "header.json").write_bytes(data + b"\n" + hashlib.sha256(data).hexdigest().encode())
    state.pending()


def read_outbox(data: bytes) -> None:
    state: StateDir = device().state
    (state.root / "outbox.jsonl").write_bytes(data)
    for entry in state.outbox.entries():
        json.dumps(asdict(entry))
    state.outbox.verify()


def read_peers(data: bytes) -> None:
    (device().state.root / "peers.json").write_bytes(data)
    device().state.peers.pins()


def read_progress(data: bytes) -> None:
    """How far an exchange has come; what cannot be read has it dropped."""
    folder = device().state.exchange
    folder.attempt.mkdir(parents=True, exist_ok=True)
    (folder.attempt / "participant").write_bytes(data)
    with contextlib.suppress(ValueError):
        folder.participant()


def read_last_task(data: bytes) -> None:
    (device().state.root / "last_task.json").write_bytes(data)
    device().state.last_task()


def read_identity(data: bytes) -> None:
    folder = device().state.identity
    folder.root.mkdir(exist_ok=True)
    (folder.root / "facts.json").write_bytes(data)
    folder.read()


def read_days_use(data: bytes) -> None:
    read_use(file_with(data))


def read_notes(data: bytes) -> None:
    read_best_model(file_with(data))


def read_rules(data: bytes) -> None:
    read_policy(file_with(data))


def _events() -> list[bytes]:
    task, _ = make_task()
    task.steps.add(base_digest=b"b" * 32, digest=b"d" * 32, num_bytes=9)
    welcome = pb.Welcome(protocol=1, server_version="1", heartbeat_interval_s=5.0, max_chunk_bytes=1 << 16)
    events = (
        pb.ConnectResponse(welcome=welcome),
        pb.ConnectResponse(task=task),
        pb.ConnectResponse(cancel=pb.CancelTask(task_id="job-1", reason="over")),
        pb.ConnectResponse(exchange=pb.ExchangeOrder(task_id="job-1", attempt=1, step=pb.EXCHANGE_STEP_SHARES)),
    )
    return [event.SerializeToString() for event in events]


def _answer(value: object) -> bytes:
    return b"Thu, 01 Jan 2026 00:00:00 GMT\n" + json.dumps(value).encode()


def _outbox() -> bytes:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        outbox = Outbox(Path(folder) / "outbox.jsonl")
        outbox.sending(
            Dispatch("2026-01-01", "masked", "j", 1, "t", 9, "d" * 64, 1, Privacy("central", 1.0, 0.5, 1e-5))
        )
        outbox.answered("ACCEPTED")
        outbox.reporting(Report("2026-01-01", "t", "FAILED", "no", 9, "d" * 64))
        outbox.talked(Talk("2026-01-01", {"hello": 1}, 99))
        return (Path(folder) / "outbox.jsonl").read_bytes()


def _change_a_line(data: bytes, rng: Any) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate(lines[at] or b"{}", rng)
    return b"\n".join(lines)


def _best_model() -> bytes:
    notes = {"validation_examples": 9, "validation_correct": 5, "validation_loss": 0.5}
    extra = {"job_id": "j", "round_number": 3, **notes}
    path = Path(device().folder.name) / "best"
    save_checkpoint(path, SPEC, random_state(SPEC, 1), extra=extra)
    return path.read_bytes()


POLICY = b'[jobs]\nallow = ["digits-*"]\n[task]\nmax_memory = "64MiB"\nmax_seconds = 60\n[day]\nmax_down = 1000\n'


def device_targets() -> dict[str, Target]:
    """Give the targets by name."""
    pending = PendingUpdate(
        *(
            "t",
            "j",
            1,
            "m",
            hashlib.sha256(b"update").hexdigest(),
            6,
            60,
            "int8",
            0.1,
            0.5,
            20,
            1.5,
            1.2,
            1,
            2,
            4096,
            12,
            9,
            0.5,
            3.5,
            "rapl",
        )
    )
    identity = Identity("bird-1", "h:1", "https://h:2", 1.0, 2.0)
    pem = pem_of("CERTIFICATE", certificate())
    answer = pb.SubmitUpdateResponse(status=pb.SUBMIT_STATUS_LATE, reason="closed")
    return {
        "rpc Connect: the coordinator's event": Target(read_event, _events, message_mutation(pb.ConnectResponse)),
        "task, up to its training": Target(
            read_task, lambda: [make_task()[0].SerializeToString()], message_mutation(pb.Task)
        ),
        "rpc DownloadModel: answers": Target(
            read_download, lambda: [download_seed()[1]], stream_mutation(pb.DownloadModelResponse)
        ),
        "rpc SubmitUpdate: answer": Target(
            read_submit_answer, lambda: [answer.SerializeToString()], message_mutation(pb.SubmitUpdateResponse)
        ),
        "HTTPS answer": Target(
            read_https_answer,
            lambda: [_answer({"certificate_pem": pem})],
            _change_a_line,
        ),
        "HTTPS refusal": Target(read_https_refusal, lambda: [b'{"detail": "no"}']),
        "pending update's header": Target(read_pending, lambda: [json.dumps(asdict(pending)).encode()]),
        "outbox ledger": Target(read_outbox, lambda: [_outbox()], _change_a_line),
        "peers' keys": Target(read_peers, lambda: [b'{"cat-1": {"key": "30ab", "since": "2026-01-01"}}']),
        "exchange's progress": Target(
            read_progress,
            lambda: [b'{"attempt": 1, "num_members": 4, "made": {"keys": {"digest": "d", "order": "o"}}}\nsecrets'],
        ),
        "last task": Target(read_last_task, lambda: [b'{"task_id": "t", "outcome": "FAILED"}']),
        "identity's facts": Target(read_identity, lambda: [json.dumps(asdict(identity)).encode()]),
        "day's use": Target(read_days_use, lambda: [json.dumps(asdict(Use("2026-01-01"))).encode()]),
        "best model's notes": Target(read_notes, lambda: [_best_model()]),
        "policy": Target(read_rules, lambda: [POLICY], mutate_bytes),
    }
