"""What the two ports negotiate, with raw TLS; and the coordinator's own certificate."""

from __future__ import annotations

import asyncio
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from bnncore.errors import ConfigurationError
from server.identity import tls as tls_module
from server.identity.authority import Authority, private_pem
from server.identity.tls import own_tls
from server.settings import Address
from tests.patience import patiently
from tests.server.identity.house import SecureHouse, open_secure_house


async def negotiate(house: SecureHouse, port: Address, version: ssl.TLSVersion, identity: Path | None = None) -> str:
    """Shake hands with at most a version of TLS; gives what came of it."""
    context = house.context()
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        context.load_cert_chain(identity)
    try:
        _, writer = await asyncio.open_connection(port.host, port.port, ssl=context)
    except (ssl.SSLError, OSError) as error:
        return type(error).__name__
    negotiated = str(writer.get_extra_info("ssl_object").version())
    writer.close()
    return negotiated


async def test_rest_speaks_tls_1_3_alone(house: SecureHouse) -> None:
    assert await negotiate(house, house.http, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert "Error" in await negotiate(house, house.http, ssl.TLSVersion.TLSv1_2)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_devices_speak_tls_1_2_or_1_3_and_nothing_older(house: SecureHouse, tmp_path: Path) -> None:
    a = await house.enrol("a")
    identity = tmp_path / "a.pem"
    identity.write_bytes(private_pem(a.key) + a.certificate_pem.encode())

    assert await negotiate(house, house.grpc, ssl.TLSVersion.TLSv1_3, identity) == "TLSv1.3"
    assert await negotiate(house, house.grpc, ssl.TLSVersion.TLSv1_2, identity) == "TLSv1.2"
    assert "Error" in await negotiate(house, house.grpc, ssl.TLSVersion.TLSv1_1, identity)


async def test_nobody_is_heard_in_the_clear(house: SecureHouse) -> None:
    for port in (house.grpc, house.http):
        reader, writer = await asyncio.open_connection(port.host, port.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"ok" not in await patiently(reader.read())
        writer.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_private_keys_are_their_owners_alone(house: SecureHouse) -> None:
    folder = house.state / "identity"

    holders = {path.name: mode(path) for path in folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()}
    assert holders == {"authority.pem": 0o600, "server.pem": 0o600}
    assert mode(folder) == 0o700


def san_of(chain_pem: bytes) -> set[str]:
    certificate = x509.load_pem_x509_certificate(chain_pem)
    return {
        str(name.value) for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    }


def test_the_certificate_names_the_hosts_and_is_made_anew_for_others(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)

    first = own_tls(tmp_path, authority, ["fleet.example"])
    again = own_tls(tmp_path, authority, ["fleet.example"])
    other = own_tls(tmp_path, authority, ["fleet.example", "192.168.1.9"])

    assert san_of(first.pair.chain_pem) == {"localhost", "127.0.0.1", "::1", "fleet.example"}
    assert again.pair == first.pair
    assert san_of(other.pair.chain_pem) == {"localhost", "127.0.0.1", "::1", "fleet.example", "192.168.1.9"}
    assert other.fingerprint == first.fingerprint  # what devices know it by stays


def test_the_certificate_is_renewed_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.open(tmp_path)
    monkeypatch.setattr(tls_module, "SERVER_LIFETIME", timedelta(days=274))  # of the 825 days a third is 275
    old = own_tls(tmp_path, authority, [])
    monkeypatch.undo()

    new = own_tls(tmp_path, authority, [])

    assert new.pair != old.pair
    assert own_tls(tmp_path, authority, []).pair == new.pair


def test_a_certificate_of_another_authority_or_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "a")
    own_tls(tmp_path / "a", Authority.open(tmp_path / "b"), [])

    replaced = own_tls(tmp_path / "a", authority, [])
    (tmp_path / "a/server.pem").write_text("nothing")
    again = own_tls(tmp_path / "a", authority, [])

    assert authority.signed(replaced.pair.certificate)
    assert authority.signed(again.pair.certificate)


def test_coordinators_that_begin_at_once_share_one_authority_and_it_may_be_read_only(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(Authority.open, [tmp_path / "shared"] * 8))

    assert len({authority.pem for authority in opened}) == 1
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["authority.pem"]
    assert mode(tmp_path / "shared/authority.pem") == 0o600
    before = (tmp_path / "shared").stat().st_mtime_ns
    Authority.open(tmp_path / "shared").publish(tmp_path / "own")  # a mount that can only be read is not written to
    assert (tmp_path / "shared").stat().st_mtime_ns == before
    assert (tmp_path / "own/ca.pem").read_bytes() == opened[0].pem


def test_a_damaged_authority_is_told_and_not_replaced(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    (tmp_path / "authority.pem").write_text("nothing")

    with pytest.raises(ConfigurationError, match=r"authority\.pem must hold a private key and its certificate"):
        Authority.open(tmp_path)
    assert (tmp_path / "authority.pem").read_text() == "nothing"


async def test_the_operators_own_certificate_is_shown(tmp_path: Path) -> None:
    operator = Authority.open(tmp_path / "operator")
    operator.publish(tmp_path / "operator")
    pair = operator.issue_server(("localhost", "127.0.0.1"), timedelta(days=1))
    chain, key, ca = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "operator/ca.pem"
    chain.write_bytes(pair.chain_pem)
    key.write_bytes(pair.key_pem)

    async with open_secure_house(tmp_path / "state", tls_cert=chain, tls_key=key, tls_ca=ca) as house:
        a = await house.enrol("a")
        told = (await house.stranger.get("/api/v1/enrolments")).json()
        credentials = grpc.ssl_channel_credentials(ca.read_bytes(), private_pem(a.key), a.certificate_pem.encode())
        async with grpc.aio.secure_channel(str(house.grpc), credentials) as channel:
            await patiently(channel.channel_ready())

    assert told["ca_pem"].encode() == ca.read_bytes() == operator.pem
    assert operator.signed(house.trust.tls.pair.certificate)
    assert house.authority.signed(x509.load_pem_x509_certificate(a.certificate_pem.encode()))


async def test_a_key_that_is_another_certificates_is_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "operator")
    authority.publish(tmp_path / "operator")
    one, other = (authority.issue_server(("localhost",), timedelta(days=1)) for _ in range(2))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(one.chain_pem)
    key.write_bytes(other.key_pem)

    with pytest.raises(ConfigurationError, match="cannot be used together"):
        async with open_secure_house(
            tmp_path / "state", tls_cert=chain, tls_key=key, tls_ca=tmp_path / "operator/ca.pem"
        ):
            pass
