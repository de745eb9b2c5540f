"""The cryptography of an exchange, from one library, in one place.

X25519 agrees on keys, HKDF-SHA256 derives them, ChaCha20-Poly1305 seals, ChaCha20 makes masks, ECDSA on P-256 with
SHA-256 signs, as the certificates of devices do. Every key is derived for one purpose, named in its ``purpose``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from bnncore.errors import PayloadError
from bnncore.secure.terms import Signer

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "KeyStream",
    "agree",
    "certified_key",
    "check_public_key",
    "check_signature",
    "derive",
    "load_signer",
    "open_sealed",
    "public_key",
    "seal",
]

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_DEVICE_URI = "urn:bitfleet:device:"


class KeyStream:
    """The ChaCha20 key stream of a key that is used for nothing else, from its beginning.

    ``take`` gives a view of a buffer that the next call overwrites.
    """

    def __init__(self, key: bytes) -> None:
        # 64-bit block counter and nonce, all 0: the key is used once.
        self._encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._zeros = b""
        self._buffer = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Give the next bytes: ``uint8[num_bytes]``."""
        if len(self._zeros) < num_bytes:
            self._zeros, self._buffer = bytes(num_bytes), np.empty(num_bytes, np.uint8)
        part = self._buffer[:num_bytes]
        self._encryptor.update_into(memoryview(self._zeros)[:num_bytes], part.data)
        return part


def public_key(private: bytes) -> bytes:
    """Give the public X25519 key of a private one, 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Give the secret that two X25519 keys have in common.

    Raises:
      PayloadError: the public key is one of the few that have the same secret with every key.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise PayloadError("a public key that agrees on nothing secret") from error


def check_public_key(public: bytes) -> None:
    """Check that an X25519 key agrees on something secret.

    Raises:
      PayloadError: it is one of the few of small order, which do with no key.
    """
    agree(bytes(KEY_BYTES), public)


def derive(secret: bytes, purpose: str, *bound_to: bytes) -> bytes:
    """Derive a key of 32 bytes by HKDF-SHA256 for a purpose, bound to what else is given."""
    info = b"".join(len(part).to_bytes(4, "little") + part for part in (purpose.encode(), *bound_to))
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def seal(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """Encrypt, and authenticate by a tag of 16 bytes."""
    return ChaCha20Poly1305(key).encrypt(nonce, plain, None)


def open_sealed(key: bytes, nonce: bytes, sealed: bytes) -> bytes:
    """Decrypt what was sealed.

    Raises:
      PayloadError: it was sealed with another key or changed since.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, None)
    except (InvalidTag, ValueError) as error:
        raise PayloadError("what is sealed cannot be opened: it was sealed for another, or changed since") from error


def load_signer(key_pem: bytes, certificate_pem: bytes) -> Signer:
    """Make a signer of a device's private key and certificate, both PEM.

    Raises:
      PayloadError: they cannot be read.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise PayloadError(f"the device's key or certificate cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PayloadError("the device's key must be of an elliptic curve; enrol the device again")
    private = key
    return Signer(
        certificate.public_bytes(serialization.Encoding.DER), lambda data: private.sign(data, ec.ECDSA(hashes.SHA256()))
    )


def certified_key(ca_pem: bytes, certificate_der: bytes, device_id: str) -> bytes:
    """Give the public key (SubjectPublicKeyInfo, DER) that an authority certifies as a device's today.

    Raises:
      PayloadError: the certificate is malformed, of another authority, of another device, or not valid today.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        key = certificate.public_key()
        certificate.verify_directly_issued_by(_authority(ca_pem))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except InvalidSignature as error:
        raise PayloadError("its certificate is not of this fleet's authority") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound) as error:
        raise PayloadError(f"its certificate is none of a device of this fleet: {error}") from error
    except x509.DuplicateExtension as error:
        raise PayloadError(f"its certificate is malformed: {error}") from error
    if uris != [_DEVICE_URI + device_id]:
        raise PayloadError(f"its certificate is of another device: {uris}")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PayloadError("its certificate must be for a key of an elliptic curve")
    if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        raise PayloadError(
            f"its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not today; is this device's clock right?"
        )
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=4)
def _authority(ca_pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ca_pem)


def check_signature(public_der: bytes, signature: bytes, data: bytes) -> None:
    """Check a signature against a certified key.

    Raises:
      PayloadError: the key did not sign these bytes.
    """
    key = serialization.load_der_public_key(public_der)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # as certified_key gives it
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise PayloadError("its keys are not signed with the key of its certificate") from error
