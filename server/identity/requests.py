"""What a device signs: a certificate signing request (CSR) that also says what is asked, and when.

Its signature shows that the device holds the key. The challenge attribute holds ``PURPOSE SECONDS``, the seconds since
1970 on the coordinator's clock (which the device read from the ``Date`` of an answer, so its own may be wrong): a
request that somebody kept is of no use a few minutes later, and one for leaving does not renew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from server.errors import InvalidRequestError
from server.identity.authority import key_digest

Purpose = Literal["enrol", "renew", "leave"]

_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.AttributeNotFound)
"""What parsing a request raises, of whatever it is made."""
_FRESH_S = 300.0
_MAX_CHARS = 8192
_DEVICE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class DeviceRequest:
    """A request whose signature is good."""

    device_id: str
    key: ec.EllipticCurvePublicKey

    @property
    def key_digest(self) -> str:
        """SHA-256 of the public key."""
        return key_digest(self.key)


def read_request(pem: str, purpose: Purpose, now: float) -> DeviceRequest:
    """Check a device's request.

    Args:
      pem: the CSR.
      purpose: what it must be for.
      now: seconds since 1970.

    Raises:
      InvalidRequestError: it is malformed, of another kind of key, for another purpose, too old, or its signature is
        wrong.
    """
    if len(pem) > _MAX_CHARS:
        raise InvalidRequestError(f"csr must have at most {_MAX_CHARS} characters, has {len(pem)}")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key, is_signed = csr.public_key(), csr.is_signature_valid
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        challenge = csr.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value.decode()
    except _UNREADABLE as error:
        raise InvalidRequestError(
            f"csr must be a certificate signing request in PEM with a challenge: {error}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidRequestError("the device's key must be on the curve P-256")
    if not is_signed:
        raise InvalidRequestError("the request's signature is not of its own key")
    device_id = str(names[0].value) if len(names) == 1 else ""
    if _DEVICE_ID.fullmatch(device_id) is None:
        raise InvalidRequestError("the request's common name must be a device id: 1 to 64 of [A-Za-z0-9._-]")
    stated, _, seconds = challenge.partition(" ")
    if stated != purpose or not seconds.isdecimal():
        raise InvalidRequestError(f"the request must say {purpose!r} and when, says {challenge[:40]!r}")
    if abs(now - int(seconds)) > _FRESH_S:
        raise InvalidRequestError(f"the request must not be older than {_FRESH_S:.0f} s; make a new one")
    return DeviceRequest(device_id, key)
