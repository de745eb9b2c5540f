"""The fleet's own certificate authority (CA): one key that signs its coordinators and its devices.

A certificate says what it is for: a device's is a client's only, so that no device can stand for the coordinator, and
its name is a URI beside the common name, never a host name. Keys are on the curve P-256; private ones lie in files of
mode 0600 in a folder of mode 0700.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from server.storage.state_folder import AUTHORITY_FILE

AUTHORITY_LIFETIME = timedelta(days=20 * 365)
_BACKDATED = timedelta(hours=1)
"""Certificates begin so much earlier, for clocks that are a little behind."""
_DEVICE_URI = "urn:bitfleet:device:"


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate chain, both PEM."""

    key_pem: bytes
    chain_pem: bytes

    def __repr__(self) -> str:
        return "KeyPair(...)"

    @property
    def certificate(self) -> x509.Certificate:
        """The first certificate of the chain."""
        return x509.load_pem_x509_certificate(self.chain_pem)


class Authority:
    """A certificate authority.

    Attributes:
      certificate: its own, signed by itself.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the authority of a folder, or make it there; several coordinators that begin at once get the same one.

        Raises:
          ConfigurationError: its file is damaged, or the folder cannot be used.
        """
        path = folder / AUTHORITY_FILE
        try:
            if not path.exists():  # where there is one, the folder may be one that can only be read
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                pair = _new_authority()
                with (
                    contextlib.suppress(FileExistsError),
                    replace_file(path, mode=0o600, may_exist=False) as file,
                ):
                    file.write(pair.key_pem + pair.chain_pem)
            pair = read_pair(path)
        except OSError as error:
            raise ConfigurationError(f"the fleet's authority in {folder} cannot be used: {error}") from error
        return cls(load_key(pair.key_pem, path), pair.certificate)

    def publish(self, folder: Path) -> None:
        """Write the authority's certificate, which may be handed out, into a coordinator's own folder, made if missing.

        Raises:
          ConfigurationError: the folder cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replace_file(folder / "ca.pem") as file:
                file.write(self.pem)
        except OSError as error:
            raise ConfigurationError(f"the coordinator's identity in {folder} cannot be used: {error}") from error

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue_server(self, hosts: tuple[str, ...], lifetime: timedelta) -> KeyPair:
        """Make a new key and certificate for a server that is reached by these host names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf("bitfleet coordinator", key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, lifetime)
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        signed = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        return KeyPair(private_pem(key), signed.public_bytes(serialization.Encoding.PEM))

    def certify(self, device_id: str, key: ec.EllipticCurvePublicKey, lifetime: timedelta) -> x509.Certificate:
        """Sign a device's certificate for a key that the device holds."""
        builder = self._leaf(device_id, key, ExtendedKeyUsageOID.CLIENT_AUTH, lifetime)
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_DEVICE_URI + device_id)])
        return builder.add_extension(name, critical=False).sign(self._key, hashes.SHA256())

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is of this authority; its dates are not looked at."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, usage: x509.ObjectIdentifier, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        return (
            _builder(name, key, self.certificate.subject, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def fingerprint(certificate: x509.Certificate) -> str:
    """Name a certificate for people: ``sha256:`` and the SHA-256 of its DER form in lower-case hex."""
    return f"sha256:{certificate.fingerprint(hashes.SHA256()).hex()}"


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """Name a public key: SHA-256 of its SubjectPublicKeyInfo in lower-case hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


def device_of(certificate: x509.Certificate) -> str | None:
    """Read the device's name in a certificate; None when it names no device."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0].removeprefix(_DEVICE_URI) if len(uris) == 1 and uris[0].startswith(_DEVICE_URI) else None


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, complete or not at all."""
    with replace_file(path, mode=0o600) as file:
        file.write(data)


def read_pair(path: Path) -> KeyPair:
    """Read a file that holds a private key and a certificate chain.

    Raises:
      ConfigurationError: it holds something else.
      OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, password=None)
        chain = x509.load_pem_x509_certificates(data)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} must hold a private key and its certificate in PEM: {error}") from error
    chain_pem = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)
    return KeyPair(private_pem(key), chain_pem)


def load_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key of an elliptic curve; raises ConfigurationError for another kind."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} must hold a key of an elliptic curve, holds {type(key).__name__}")
    return key


def private_pem(key: PrivateKeyTypes) -> bytes:
    """Write a private key as PEM (PKCS #8, not encrypted: the file's mode protects it)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _new_authority() -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"bitfleet fleet {x509.random_serial_number() & 0xFFFFFFFF:08x}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, key.public_key(), subject, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(private_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Name, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
