"""Devices over real TLS: who is let in, under which name, and what each may see."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from bitfleet.v1 import fleet_pb2 as pb
from server.identity.authority import Authority, private_pem
from tests.patience import patiently, until
from tests.server.conftest import make_job
from tests.server.identity.house import Enrolled, SecureHouse, ended, make_csr, new_key, open_secure_house
from tests.server.scripted import ScriptedDevice


def device(house: SecureHouse, who: Enrolled, device_id: str | None = None) -> ScriptedDevice:
    return ScriptedDevice(str(house.grpc), device_id or who.device_id, credentials=house.credentials(who))


async def test_an_enrolled_device_works(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")
    job = await house.coordinator.jobs.create(make_job(rounds=1))
    async with device(house, a) as one, device(house, b) as two:
        await one.connect()
        await two.connect()
        answers = [*await one.work(1), *await two.work(1)]
        await patiently(house.coordinator.jobs.wait_until_idle())

    assert [answer.status for answer in answers] == [pb.SUBMIT_STATUS_ACCEPTED] * 2
    assert (await house.admin.get(f"/api/v1/jobs/{job.job_id}")).json()["state"] == "COMPLETED"


async def refusal(stranger: ScriptedDevice) -> tuple[grpc.StatusCode, str]:
    """Connect, and give the status by which that was refused."""
    with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
        await stranger.connect()
    return await ended(stranger.stream)


def certificate(authority: Authority, device_id: str, key: object, lifetime: timedelta) -> str:
    signed = authority.certify(device_id, key.public_key(), lifetime)  # type: ignore[attr-defined]
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("kind", ["none", "foreign", "expired"])
async def test_without_a_good_certificate_no_connection_is_made(house: SecureHouse, kind: str, tmp_path: Path) -> None:
    good = await house.enrol("a")
    foreign = Authority.open(tmp_path / "other")
    credentials = {
        "none": grpc.ssl_channel_credentials(house.authority.pem),
        "foreign": house.credentials(Enrolled("a", good.key, certificate(foreign, "a", good.key, timedelta(days=1)))),
        "expired": house.credentials(
            Enrolled("a", good.key, certificate(house.authority, "a", good.key, timedelta(seconds=-1)))
        ),
    }[kind]

    async with ScriptedDevice(str(house.grpc), "a", credentials=credentials) as stranger:
        status, _ = await refusal(stranger)

    assert status is grpc.StatusCode.UNAVAILABLE
    assert len(house.coordinator.fleet) == 0


async def test_a_certificate_of_the_authority_for_a_device_that_never_enrolled_is_refused(house: SecureHouse) -> None:
    key = new_key()
    made = Enrolled("ghost", key, certificate(house.authority, "ghost", key, timedelta(days=1)))

    async with device(house, made) as ghost:
        status, reason = await refusal(ghost)

    assert status is grpc.StatusCode.PERMISSION_DENIED
    assert "knows no device ghost" in reason


async def test_the_servers_own_certificate_is_no_devices(house: SecureHouse) -> None:
    pair = house.trust.tls.pair
    credentials = grpc.ssl_channel_credentials(house.authority.pem, pair.key_pem, pair.chain_pem)

    async with ScriptedDevice(str(house.grpc), "a", credentials=credentials) as thief:
        status, _ = await refusal(thief)

    assert status is grpc.StatusCode.UNAVAILABLE  # its use is a server's


async def test_a_device_may_not_speak_for_another(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")
    await house.coordinator.jobs.create(make_job())
    async with device(house, a) as one, device(house, b) as two, device(house, b, device_id="a") as liar:
        await one.connect()
        await two.connect()
        task = await one.next_task()
        payload = await one.train(task)
        stream = await refusal(liar)
        with pytest.raises(grpc.aio.AioRpcError) as download:
            await liar.download(task.model_digest)
        with pytest.raises(grpc.aio.AioRpcError) as submission:
            await liar.submit(task, payload)
        honest = await one.submit(task, payload)

    assert stream == (grpc.StatusCode.PERMISSION_DENIED, "the certificate is of device b, which may not speak for 'a'")
    assert download.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert submission.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert honest.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_a_replayed_submission_counts_once(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")
    await house.coordinator.jobs.create(make_job())
    async with device(house, a) as one, device(house, b) as two:
        await one.connect()
        await two.connect()
        task = await one.next_task()
        payload = await one.train(task)
        first = await one.submit(task, payload)
        again = await one.submit(task, payload)
        with pytest.raises(grpc.aio.AioRpcError) as as_it_was:
            await two.submit(task, payload, device_id="a")
        as_its_own = await two.submit(task, payload, device_id="b")

    assert first.status == pb.SUBMIT_STATUS_ACCEPTED
    assert again.status == pb.SUBMIT_STATUS_DUPLICATE
    assert as_it_was.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert as_its_own.status == pb.SUBMIT_STATUS_REJECTED


async def test_a_device_sees_the_models_of_its_own_tasks_alone(house: SecureHouse) -> None:
    a, outsider = await house.enrol("a"), await house.enrol("outsider")
    await house.coordinator.jobs.create(make_job(min_devices=1, cohort_size=1))
    async with device(house, a) as one, device(house, outsider) as other:
        await one.connect()
        task = await one.next_task()
        await other.connect()
        whole = await one.download(task.model_digest)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.download(task.model_digest)
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await other.download("0" * 64)

    assert len(whole) == task.model_bytes
    assert refused.value.code() is missing.value.code() is grpc.StatusCode.NOT_FOUND  # which of both is not told


async def test_a_job_is_for_devices_of_its_labels_alone(house: SecureHouse) -> None:
    token = await house.token(labels={"site": "lab", "board": "pi4"})
    inside = await house.enrol("inside", token=token)
    outside = await house.enrol("outside", token=await house.token(labels={"site": "home"}))
    await house.coordinator.jobs.create(make_job(min_devices=1, rounds=1, device_labels={"site": "lab"}))
    async with device(house, outside) as other, device(house, inside) as one:
        await other.connect()
        await one.connect()
        await one.work(1)
        await patiently(house.coordinator.jobs.wait_until_idle())
        (job,) = (await house.admin.get("/api/v1/jobs")).json()
        rounds = (await house.admin.get(f"/api/v1/jobs/{job['id']}/rounds")).json()

    assert [update["device_id"] for update in rounds[0]["updates"]] == ["inside"]


async def test_revocation_cuts_the_stream_and_every_later_call(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")
    await house.coordinator.jobs.create(make_job())
    async with device(house, a) as one, device(house, b) as two:
        await one.connect()
        await two.connect()
        task = await one.next_task()
        payload = await one.train(task)
        revoked = await house.admin.post("/api/v1/identities/a/revoke")
        status, reason = await ended(one.stream)
        with pytest.raises(grpc.aio.AioRpcError) as submission:
            await one.submit(task, payload)
        with pytest.raises(grpc.aio.AioRpcError) as download:
            await one.download(task.model_digest)
        again, _ = await refusal(one)
        await two.beat()
        others_state = two.stream.done()

    assert revoked.json()["state"] == "REVOKED"
    assert (status, reason) == (grpc.StatusCode.PERMISSION_DENIED, "device a was revoked by its operator")
    assert submission.value.code() is download.value.code() is again is grpc.StatusCode.PERMISSION_DENIED
    assert not others_state


async def test_revocation_ends_an_upload_at_its_next_chunk(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")
    await house.coordinator.jobs.create(make_job())
    async with device(house, a) as one, device(house, b) as two:
        await one.connect()
        await two.connect()
        task = await one.next_task()
        payload = await one.train(task)
        call = one.stub.SubmitUpdate()
        await call.write(pb.SubmitUpdateRequest(header=one.header(task, payload)))
        await call.write(pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=0, data=payload[:300])))
        await house.admin.post("/api/v1/identities/a/revoke")
        await call.write(pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=300, data=payload[300:600])))
        await call.done_writing()
        status, _ = await ended(call)

    assert status is grpc.StatusCode.PERMISSION_DENIED


async def test_a_revoked_device_stays_out_after_a_restart_and_its_name_stays_taken(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state") as house:
        a = await house.enrol("a")
        await house.admin.post("/api/v1/identities/a/revoke")
    async with open_secure_house(tmp_path / "state") as house:
        async with device(house, a) as one:
            status, _ = await refusal(one)
        body = {"csr": make_csr("a", new_key(), "enrol"), "token": await house.token()}
        again = await house.stranger.post("/api/v1/enrolments", json=body)
        renewed = await house.stranger.post("/api/v1/enrolments/renew", json={"csr": make_csr("a", a.key, "renew")})

    assert status is grpc.StatusCode.PERMISSION_DENIED
    assert (again.status_code, renewed.status_code) == (409, 403)
    assert "was revoked" in again.json()["detail"]


async def test_an_old_certificate_ends_with_its_key_when_the_name_has_a_new_one(house: SecureHouse) -> None:
    old = await house.enrol("a")
    await house.stranger.post("/api/v1/enrolments/leave", json={"csr": make_csr("a", old.key, "leave")})
    new = await house.enrol("a")

    async with device(house, old) as one, device(house, new) as two:
        status, _ = await refusal(one)
        await two.connect()

    assert status is grpc.StatusCode.PERMISSION_DENIED


async def test_a_device_that_leaves_loses_its_stream(house: SecureHouse) -> None:
    a = await house.enrol("a")
    async with device(house, a) as one:
        await one.connect()
        left = await house.stranger.post("/api/v1/enrolments/leave", json={"csr": make_csr("a", a.key, "leave")})
        status, reason = await ended(one.stream)
        await until(lambda: len(house.coordinator.fleet) == 0)

    assert left.status_code == 204
    assert (status, reason) == (grpc.StatusCode.PERMISSION_DENIED, "device a has left")


async def test_a_certificate_that_ends_while_its_connection_lives_is_good_for_no_new_call(house: SecureHouse) -> None:
    a = await house.enrol("a")
    async with device(house, a) as one:
        await one.connect()
        house.trust.devices._clock = lambda: time.time() + 8 * 86400
        await one.vanish()
        status, reason = await refusal(one)

    assert status is grpc.StatusCode.UNAUTHENTICATED
    assert "has expired" in reason


async def test_a_device_cannot_stand_for_the_coordinator(house: SecureHouse) -> None:
    # Its name is the host's, and its certificate is of the same authority; but its use is a client's.
    thief = await house.enrol("localhost")
    server = grpc.aio.server()
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials([(private_pem(thief.key), thief.certificate_pem.encode())]),
    )
    await server.start()
    victim = await house.enrol("victim")

    async with ScriptedDevice(f"localhost:{port}", "victim", credentials=house.credentials(victim)) as misled:
        status, reason = await refusal(misled)
    await server.stop(None)

    assert status is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in reason
