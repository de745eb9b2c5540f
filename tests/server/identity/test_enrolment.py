"""Devices come, renew and go over REST: what is asked for, and what is refused."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.identity.authority import device_of, fingerprint
from tests.server.identity.house import SecureHouse, make_csr, new_key, open_secure_house


async def asked(house: SecureHouse, csr: str, token: str) -> httpx.Response:
    return await house.stranger.post("/api/v1/enrolments", json={"csr": csr, "token": token})


async def test_a_devices_certificate_is_short_lived_and_a_clients_only(house: SecureHouse) -> None:
    a = await house.enrol("pi-1")

    certificate = x509.load_pem_x509_certificate(a.certificate_pem.encode())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    left_s = certificate.not_valid_after_utc.timestamp() - time.time()
    assert device_of(certificate) == "pi-1"
    assert certificate.public_key() == a.key.public_key()
    assert house.authority.signed(certificate)
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not constraints.ca
    assert 6.9 * 86400 < left_s <= 7 * 86400


async def test_anyone_may_ask_by_what_the_coordinator_is_known(house: SecureHouse) -> None:
    told = (await house.stranger.get("/api/v1/enrolments")).json()

    assert fingerprint(x509.load_pem_x509_certificate(told["ca_pem"].encode())) == house.trust.tls.fingerprint
    assert told["grpc_port"] == house.grpc.port


async def test_a_token_lets_in_as_many_devices_as_it_says_with_its_labels(house: SecureHouse) -> None:
    token = await house.token(uses=2, labels={"site": "lab"})

    codes = [(await asked(house, make_csr(name, new_key(), "enrol"), token)).status_code for name in ("a", "b", "c")]
    refused = await asked(house, make_csr("c", new_key(), "enrol"), token)

    assert codes == [201, 201, 401]
    assert "the token is used up" in refused.json()["detail"]
    devices = (await house.admin.get("/api/v1/identities")).json()
    assert [(device["device_id"], device["state"], device["labels"]) for device in devices] == [
        ("a", "ACTIVE", {"site": "lab"}),
        ("b", "ACTIVE", {"site": "lab"}),
    ]


async def test_many_devices_at_once_use_a_token_no_more_often_than_it_says(house: SecureHouse) -> None:
    token = await house.token(uses=3)

    answers = await asyncio.gather(
        *(asked(house, make_csr(f"d{number}", new_key(), "enrol"), token) for number in range(8))
    )

    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [401] * 5


@pytest.mark.parametrize("kind", ["unknown", "expired", "deleted", "an API key"])
async def test_a_token_that_is_not_good_is_refused(house: SecureHouse, kind: str) -> None:
    token = house.admin_key if kind == "an API key" else "bft_00000000_nothing"
    if kind == "expired":
        token = await house.token(expires_s=0.01)
        await asyncio.sleep(0.05)
    if kind == "deleted":
        token = await house.token()
        await house.admin.delete(f"/api/v1/tokens/{token.split('_')[1]}")

    answer = await asked(house, make_csr("a", new_key(), "enrol"), token)

    assert answer.status_code == 401
    assert token not in answer.text
    assert (await house.admin.get("/api/v1/identities")).json() == []


async def test_a_token_is_no_api_key(house: SecureHouse) -> None:
    headers = {"Authorization": f"Bearer {await house.token()}"}

    assert (await house.stranger.get("/api/v1/jobs", headers=headers)).status_code == 401


async def test_a_name_belongs_to_one_key(house: SecureHouse) -> None:
    first = await house.enrol("a")
    token = await house.token()

    other = await asked(house, make_csr("a", new_key(), "enrol"), token)
    again = await asked(house, make_csr("a", first.key, "enrol"), "no token at all")
    unused = await asked(house, make_csr("b", new_key(), "enrol"), token)

    assert other.status_code == 409
    assert "choose another --device-id" in other.json()["detail"]
    assert again.status_code == 201  # the answer to the first was lost, say: the key stands for itself
    assert unused.status_code == 201  # what was refused cost no use


def unsigned_by_its_key() -> str:
    pem = make_csr("a", new_key(), "enrol")
    csr = x509.load_pem_x509_csr(pem.encode())
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()


def without_challenge() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(new_key(), hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr", "words"),
    [
        (lambda: "no request", "must be a certificate signing request"),
        (lambda: make_csr("a b", new_key(), "enrol"), "must be a device id"),
        (lambda: make_csr("a", new_key(), "leave"), "must say 'enrol'"),
        (lambda: make_csr("a", new_key(), "enrol", time.time() - 301), "must not be older than 300 s"),
        (lambda: make_csr("a", new_key(), "enrol", time.time() + 302), "must not be older than 300 s"),
        (lambda: make_csr("a", ec.generate_private_key(ec.SECP384R1()), "enrol"), "on the curve P-256"),
        (lambda: make_csr("a", rsa.generate_private_key(65537, 2048), "enrol"), "on the curve P-256"),
        (unsigned_by_its_key, "signature"),
        (without_challenge, "with a challenge"),
    ],
)
async def test_a_request_that_is_not_right_is_refused(house: SecureHouse, csr: Any, words: str) -> None:
    answer = await asked(house, csr(), await house.token())

    assert answer.status_code == 400
    assert words in answer.json()["detail"]


async def renewed(house: SecureHouse, csr: str) -> httpx.Response:
    return await house.stranger.post("/api/v1/enrolments/renew", json={"csr": csr})


async def test_a_device_renews_with_its_key_and_nobody_else_does(house: SecureHouse) -> None:
    a, b = await house.enrol("a"), await house.enrol("b")

    mine = await renewed(house, make_csr("a", a.key, "renew"))
    others = await renewed(house, make_csr("a", b.key, "renew"))
    nobodys = await renewed(house, make_csr("c", new_key(), "renew"))

    assert mine.status_code == 200
    assert mine.json()["certificate_pem"] != a.certificate_pem
    assert (others.status_code, nobodys.status_code) == (403, 403)


async def test_a_device_that_was_away_renews_within_the_grace_period_alone(tmp_path: Path) -> None:
    async with open_secure_house(tmp_path / "state", device_certificate_days=1.0, device_grace_days=10.0) as house:
        a = await house.enrol("a")
        now = time.time()
        for days, status in (
            (10.9, 200),
            (22.0, 403),
        ):  # each renewal is for a day from then on; the house's clock alone moves
            later = now + days * 86400
            house.trust.devices._clock = lambda later=later: later  # type: ignore[misc]
            answer = await renewed(house, make_csr("a", a.key, "renew", later))
            assert answer.status_code == status, answer.text

    assert "ended more than 10 days ago" in answer.json()["detail"]


async def test_strangers_may_ask_so_often_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.identity.throttle._WINDOW_S", 1e9)  # in which no minute ends
    async with open_secure_house(tmp_path / "state", enrolments_per_minute=30) as house:
        answers = [await asked(house, "no request", "t") for _ in range(4)]
        others = [await renewed(house, "no request"), await house.stranger.get("/healthz")]

    assert [answer.status_code for answer in answers] == [400, 400, 400, 429]
    assert "try again in" in answers[3].json()["detail"]
    assert [answer.status_code for answer in others] == [429, 200]
