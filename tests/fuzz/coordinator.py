"""What the coordinator reads: every message of a device, bodies of requests over REST, certificates and the like."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_codec
from bnncore.secure import Context, ExchangeRules, Participant
from server.api.trust_views import EnrolRequest, KeyRequest, SignedRequest, TokenRequest
from server.coordinator.combining import MaskedArithmetic
from server.coordinator.disk import Disk
from server.coordinator.events import ExchangeStep, SubmitStatus
from server.coordinator.intake import Intake, Traffic
from server.coordinator.memory import training_memory
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.space import Space
from server.coordinator.upload import Upload, decode_update
from server.dashboard.form import read_form
from server.errors import InvalidRequestError, UpdateRejected
from server.identity.authority import Authority, key_digest
from server.identity.devices import Devices
from server.identity.keys import ApiKeys, new_key
from server.identity.requests import read_request
from server.identity.secrets import digest_of
from server.identity.throttle import Throttle
from server.identity.tokens import new_token
from server.jobs import JobConfig, parse_job
from server.rpc import convert
from server.rpc.patience import Pace
from server.rpc.protocol import choose_protocol
from server.rpc.servicer import _chunks
from server.storage.blobs import LocalBlobs
from server.storage.payloads import BlobWriter
from server.storage.sql import open_storage
from server.storage.trust import AuditRecord, IdentityRecord
from server.strategies import Update
from tests.bnncore.random_differences import random_difference
from tests.fuzz.mutation import join_frames, message_mutation, mutate_bytes, split_frames, stream_mutation
from tests.fuzz.target import Target
from tests.server.conftest import make_job
from tests.server.identity.house import make_csr
from tests.server.identity.house import new_key as new_device_key
from tests.server.scripted import ScriptedDevice
from tests.server.strategies.updates import random_update

NOW = 1_800_000_000.0
UP_CODECS = ("float32", "float16", "int8", "sign", "flips")


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where the coordinator under test keeps things; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="bitfleet-fuzz-")


@cache
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def disk() -> Disk:
    root = Path(folder().name)
    return Disk(open_storage(f"sqlite:///{root / 'fuzz.db'}"), LocalBlobs(root / "blobs"))


@cache
def authority() -> Authority:
    return Authority.open(Path(folder().name) / "identity")


def read_event(data: bytes) -> None:
    """One event of a device's stream."""
    request = pb.ConnectRequest.FromString(data)
    match request.WhichOneof("event"):
        case "hello":
            hello = request.hello
            choose_protocol(hello.protocol_min, hello.protocol_max, server_version="0")
            convert.hello_of(hello, labels={})
        case "heartbeat":
            convert.heartbeat_of(request.heartbeat)
        case "report":
            convert.report_of(request.report)


def read_download(data: bytes) -> None:
    """What a device wants to download: of one that is there, the bytes from an offset on."""
    request = pb.DownloadModelRequest.FromString(data)
    convert.check_device_id(request.device_id)
    disk().blobs.read(request.model_digest, min(request.offset, 1 << 40), 64)


class AnyRound:
    """A round that takes whatever update is whole."""

    def __init__(self, config: JobConfig, header: UpdateHeader) -> None:
        self._config = config
        self._header = header

    def count(self, *, up: int) -> None:
        pass

    def read(self, payload: BlobWriter) -> Update | None:
        header, data = self._header, payload.read()
        if header.step is None:
            return decode_update(self._config, header.round_number, data)
        if header.step is ExchangeStep.KEYS:
            context = Context(header.job_id, header.round_number, header.attempt, header.model_digest)
            MaskedArithmetic().check_keys(bytes(data), context, ExchangeRules(), header.device_id, None)
        return None

    async def offer(self, upload: Upload) -> SubmitAnswer:
        return SubmitAnswer(SubmitStatus.ACCEPTED)

    async def refuse(self, reason: str) -> SubmitAnswer:
        raise UpdateRejected(reason)


@cache
def job_of(codec: str) -> JobConfig:
    return make_job(up_codec=codec, statistics_batches=2)


def read_upload(codec: str, data: bytes) -> None:
    """An update's whole stream: its header, where the digest is right, its chunks, its payload."""
    loop().run_until_complete(_receive(codec, split_frames(data)))


async def _receive(codec: str, frames: list[bytes]) -> None:
    first, *rest = [pb.SubmitUpdateRequest.FromString(frame) for frame in frames] or [pb.SubmitUpdateRequest()]
    if first.WhichOneof("part") != "header":
        raise InvalidRequestError("the first part of an update must be its header")
    digest = hashlib.sha256(b"".join(request.chunk.data for request in rest)).hexdigest()
    header = replace(convert.header_of(first.header, key_digest=None), update_digest=digest)
    if header.codec != codec or not 1 <= header.total_bytes <= 1 << 20:
        raise UpdateRejected("of another codec or size")  # the round's to say: `Desk.judge`

    async def requests() -> AsyncIterator[pb.SubmitUpdateRequest]:
        for request in rest:
            yield request

    intake = Intake(
        disk(),
        Space(disk(), quota_bytes=0, min_free_bytes=0),
        max_chunk_bytes=1024,
        max_chunks=1000,
        traffic=Traffic(),
    )
    await intake._receive(AnyRound(job_of(codec), header), header, _chunks(requests(), Pace(5.0, 1.0), lambda: None))


def uploads(codec: str) -> list[bytes]:
    """An update, and a device's keys for secure aggregation."""
    spec = job_of(codec).spec
    update: Any = random_update(1, spec=spec)
    if get_codec(codec).is_difference:
        update = random_difference(spec, 1, density=None if codec == "sign" else 0.3)
    header = pb.UpdateHeader(
        device_id="bird-1",
        task_id="t",
        job_id="stripes-1",
        round_number=1,
        model_digest="0" * 64,
        num_examples=60,
        codec=codec,
        metrics=pb.UpdateMetrics(
            loss=0.5, accuracy=0.5, steps=3, seconds=1.0, validation_examples=9, validation_correct=3
        ),
    )
    context = Context(header.job_id, header.round_number, 1, header.model_digest)
    keys = Participant.begin(context, ExchangeRules(), header.device_id, None).keys
    payload = get_codec(codec).encode(spec, update, kind="update")
    return [_upload(header, payload), _upload(header, keys, step=pb.EXCHANGE_STEP_KEYS, attempt=1)]


def _upload(update: pb.UpdateHeader, payload: bytes, **changes: Any) -> bytes:
    header = pb.UpdateHeader(update_digest=hashlib.sha256(payload).hexdigest(), total_bytes=len(payload), **changes)
    header.MergeFrom(update)
    chunks = [
        pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=at, data=payload[at : at + 400]))
        for at in range(0, len(payload), 400)
    ]
    messages = [pb.SubmitUpdateRequest(header=header), *chunks]
    return join_frames([message.SerializeToString() for message in messages])


def body_reader(model: type[BaseModel], use: Callable[[Any], object]) -> Callable[[bytes], None]:
    """Give the reader of a request's body: JSON, then what pydantic makes of it, then what is done with that."""

    def read(data: bytes) -> None:
        try:
            body = model.model_validate(json.loads(data))
        except (ValueError, RecursionError, ValidationError) as error:
            raise InvalidRequestError(str(error)) from error  # 422, or 400 where it is no JSON
        use(body)

    return read


def read_page_form(data: bytes) -> None:
    """A form as a page of the dashboard sends it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    fields = asyncio.run(read_form(Request({"type": "http", "method": "POST", "headers": headers}, receive)))
    digest_of(fields.get("key", "").strip())


def read_job(data: bytes) -> None:
    """A job as ``POST /api/v1/jobs`` takes it, and what is worked out of it at once."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(str(error)) from error
    job = parse_job(value)
    assert JobConfig.from_json(job.to_json()) == job
    training_memory(job, num_examples=40, threads=1)


def read_csr(purpose: Literal["enrol", "renew", "leave"], data: bytes) -> None:
    """A certificate signing request whose text is right around any bytes."""
    read_request(pem_of("CERTIFICATE REQUEST", data), purpose, NOW)


def read_csr_text(data: bytes) -> None:
    read_request(data.decode(errors="replace"), "enrol", NOW)


def read_certificate(data: bytes) -> None:
    """A certificate that a device shows. TLS has checked its signature: only what our authority signed comes here."""
    try:
        certificate = x509.load_der_x509_certificate(data)
        assert authority().signed(certificate)
    except (ValueError, x509.InvalidVersion, AssertionError) as error:
        raise InvalidRequestError("TLS refuses it") from error
    peer = devices().peer_of(pem_of("CERTIFICATE", data).encode())
    devices().check(peer)


def read_foreign_certificate(data: bytes) -> None:
    """Whether a certificate is ours, asked of any certificate that can be parsed."""
    try:
        certificate = x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise InvalidRequestError(str(error)) from error
    authority().signed(certificate)


def read_key(data: bytes) -> None:
    """What stands in ``Authorization``: headers are Latin-1."""
    scheme, _, secret = data.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidRequestError("no key")
    loop().run_until_complete(keys()[0].authenticate(secret.strip(), "here"))


def pem_of(kind: str, der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n"


@cache
def keys() -> tuple[ApiKeys, str]:
    """The keys that are known, and the secret of one."""
    known = ApiKeys(disk().storage.trust, disk().run, Throttle(per_origin=sys.maxsize))
    key, secret = new_key("grafana", "read", NOW)
    loop().run_until_complete(known.add(key, AuditRecord(NOW, "test", "add", "here", "")))
    return known, secret


@cache
def devices() -> Devices:
    known = Devices(authority(), disk().storage.trust, disk().run, lifetime_s=60, grace_s=60)
    digest = key_digest(cast(EllipticCurvePublicKey, x509.load_der_x509_certificate(certificate()).public_key()))
    record = IdentityRecord("bird-1", digest, "ACTIVE", {}, enrolled_at=NOW, expires_at=NOW)
    token, secret = new_token(uses=1, lifetime_s=60, labels={}, now=NOW)
    entry = AuditRecord(NOW, "test", "enrol", "here", "")
    disk().storage.trust.add_token(token, entry)
    disk().storage.trust.enrol(record, digest_of(secret), NOW, entry)
    loop().run_until_complete(known.load())
    return known


@cache
def csr(purpose: str) -> bytes:
    request = x509.load_pem_x509_csr(make_csr("bird-1", new_device_key(), purpose, at=NOW).encode())
    return request.public_bytes(serialization.Encoding.DER)


@cache
def certificate() -> bytes:
    made = authority().certify("bird-1", new_device_key().public_key(), timedelta(days=7))
    return made.public_bytes(serialization.Encoding.DER)


def _hello() -> bytes:
    return ScriptedDevice("", "bird-1").hello().SerializeToString()


def _events() -> list[bytes]:
    beat = pb.Heartbeat(state=pb.DEVICE_STATE_TRAINING, task_id="t", step=1, total_steps=4, pss_bytes=1 << 20)
    report = pb.TaskReport(task_id="t", outcome=pb.TASK_OUTCOME_DECLINED, reason="no")
    events = (pb.ConnectRequest(heartbeat=beat), pb.ConnectRequest(report=report))
    return [_hello(), *(event.SerializeToString() for event in events)]


def _download() -> bytes:
    digest = disk().blobs.put(b"a payload" * 20)
    return pb.DownloadModelRequest(device_id="bird-1", model_digest=digest, offset=7).SerializeToString()


def _dumps(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def _jobs() -> list[bytes]:
    plain, onebit = make_job(), make_job(recipe="onebit", local_validation=0.2, local_tensors=["norm*"])
    written_out = {**json.loads(plain.to_json()), "model": {"spec": plain.spec.to_dict()}}
    return [plain.to_json().encode(), onebit.to_json().encode(), json.dumps(written_out).encode()]


def coordinator_targets() -> dict[str, Target]:
    """Give the targets by name."""
    enrol = body_reader(
        EnrolRequest, lambda body: (digest_of(body.token.get_secret_value()), read_request(body.csr, "enrol", NOW))
    )
    token = body_reader(
        TokenRequest,
        lambda body: new_token(uses=body.uses, lifetime_s=body.expires_s, labels=body.labels, now=NOW),
    )
    key = body_reader(KeyRequest, lambda body: new_key(body.name, body.scope, NOW))
    signed = body_reader(SignedRequest, lambda body: read_request(body.csr, "renew", NOW))
    text = {purpose: pem_of("CERTIFICATE REQUEST", csr(purpose)) for purpose in ("enrol", "renew")}
    labels = {"labels": {"site": "lab"}, "uses": 3, "expires_s": 60.0}
    found = {
        "rpc Connect: a device's event": Target(read_event, _events, message_mutation(pb.ConnectRequest)),
        "rpc DownloadModel: request": Target(
            read_download, lambda: [_download()], message_mutation(pb.DownloadModelRequest)
        ),
    }
    for codec in UP_CODECS:
        found[f"rpc SubmitUpdate: stream, {codec}"] = Target(
            partial(read_upload, codec), partial(uploads, codec), stream_mutation(pb.SubmitUpdateRequest)
        )
    return found | {
        "REST job": Target(read_job, _jobs),
        "REST enrolment": Target(enrol, _dumps({"csr": text["enrol"], "token": "bft_1_x"})),
        "REST renewal": Target(signed, _dumps({"csr": text["renew"]})),
        "REST token": Target(token, _dumps(labels)),
        "REST key": Target(key, _dumps({"name": "grafana", "scope": "read"})),
        "page's form": Target(read_page_form, lambda: [b"key=bfk_1_x&next=%2Fjobs%2Fa"], mutate_bytes),
        "REST Authorization": Target(read_key, lambda: [f"Bearer {keys()[1]}".encode()], mutate_bytes),
        "certificate request": Target(partial(read_csr, "enrol"), lambda: [csr("enrol")], mutate_bytes),
        "certificate request, text": Target(read_csr_text, lambda: [text["enrol"].encode()], mutate_bytes),
        "device's certificate": Target(read_certificate, lambda: [certificate()], mutate_bytes),
        "foreign certificate": Target(read_foreign_certificate, lambda: [certificate()], mutate_bytes),
    }
