"""Comes and goes: makes the device's key, gets its certificate, renews it, and leaves. Runs in a short-lived process.

    python -m edge_client.enrolment renew STATE

The key is made here and stays here. What is sent is a certificate signing request, which the key signs and which says
what is asked and when (``challenge``): it is the proof of who asks, at renewal the only one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from bnncore.errors import BitfleetError, ProtocolError
from edge_client.child import EventWriter, bind_to_parent, child_parser
from edge_client.errors import IdentityRefusedError, SettingsError, StateFolderError
from edge_client.https import Coordinator, fetch_ca
from edge_client.identity import Identity, IdentityFolder
from edge_client.outbox import Request, utc_now
from edge_client.settings import check_device_id
from edge_client.state_dir import StateDir

__all__ = ["enrol", "leave", "read_certificate", "renew"]

_PATH = "/api/v1/enrolments"


@dataclass(frozen=True)
class Certificate:
    """What a coordinator gave. Times are seconds since 1970."""

    pem: bytes
    not_before: float
    not_after: float


def read_certificate(answer: Any) -> Certificate:
    """Read the answer to a request for a certificate.

    Raises:
      ProtocolError: it holds none.
    """
    try:
        pem = answer["certificate_pem"].encode()
        certificate = x509.load_pem_x509_certificate(pem)
        return Certificate(
            pem, certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        )
    except (KeyError, TypeError, ValueError, AttributeError, x509.InvalidVersion) as error:
        raise ProtocolError(f"the coordinator's answer must hold a certificate: {error}") from error


def enrol(state: StateDir, url: str, token: str, fingerprint: str, device_id: str | None) -> Identity:
    """Enrol this device. Done again after an interruption it goes on with the same key, and costs no second use.

    Args:
      state: the state folder, locked by this process.
      url: ``https://HOST:PORT`` of the coordinator.
      token: from the coordinator's operator.
      fingerprint: of the certificate by which the coordinator is known, told by the operator too.
      device_id: the device's name; None: the kept one, or a new one.

    Raises:
      SettingsError: an argument makes no sense, or the coordinator is not the one that the fingerprint is of.
      IdentityRefusedError: the coordinator does not take this device.
      UnreachableError: nobody answers, or this device's clock is wrong.
      StateFolderError: the folder belongs to another device, or cannot be written.
    """
    if not token:
        raise SettingsError(
            "a token is needed, typed when asked, in $BITFLEET_TOKEN or by --token-file (- is standard input); "
            "the coordinator's operator makes one with: bitfleet-server token create"
        )
    check_device_id(device_id)
    ca_pem, grpc_port = fetch_ca(url, fingerprint)
    if device_id is None or state.device_id() is not None:  # else it is kept when the coordinator has taken it
        device_id = state.settle_device_id(device_id)
    folder = state.identity
    try:
        key = _key(folder) if folder.key_file.exists() else _new_key(folder)
    except OSError as error:
        raise StateFolderError(f"the device's key cannot be kept in {folder.root}: {error}") from error
    coordinator = Coordinator(url, ca_pem)
    given = read_certificate(_ask(coordinator, key, device_id, "enrol", _ledger(state), token=token))
    host = f"[{coordinator.host}]" if ":" in coordinator.host else coordinator.host
    state.settle_device_id(device_id)
    identity = Identity(device_id, f"{host}:{grpc_port}", url, given.not_before, given.not_after)
    folder.keep(identity, given.pem, ca_pem)
    return identity


def renew(folder: IdentityFolder, note: Callable[[Request], None] = lambda request: None) -> Identity:
    """Get the next certificate, for the same key; this works for some time after the last one's end too.

    Args:
      folder: with the identity.
      note: told what is about to leave.

    Raises:
      IdentityRefusedError: the coordinator gives none (any more).
      UnreachableError: nobody answers, or this device's clock is wrong.
      StateFolderError: the device is not enrolled, or its files are damaged.
    """
    identity, coordinator = _known(folder)
    given = read_certificate(_ask(coordinator, _key(folder), identity.device_id, "renew", note))
    renewed = replace(identity, not_before=given.not_before, not_after=given.not_after)
    folder.keep(renewed, given.pem, folder.credentials().ca_pem)
    return renewed


def leave(state: StateDir) -> None:
    """Tell the coordinator that this device leaves; its files stay.

    Args:
      state: the state folder, locked by this process.

    Raises:
      IdentityRefusedError: the coordinator does not know this device (any more).
      UnreachableError: nobody answers, or this device's clock is wrong.
      StateFolderError: the device is not enrolled, its files are damaged, or its ledger cannot be written.
    """
    identity, coordinator = _known(state.identity)
    _ask(coordinator, _key(state.identity), identity.device_id, "leave", _ledger(state))


def _ledger(state: StateDir) -> Callable[[Request], None]:
    """Return what writes a request down in the outbox ledger before it leaves."""

    def note(request: Request) -> None:
        try:
            state.outbox.requesting(request)
        except OSError as error:
            raise StateFolderError(f"the outbox ledger cannot be written, so nothing was sent: {error}") from error

    return note


def _known(folder: IdentityFolder) -> tuple[Identity, Coordinator]:
    identity = folder.read()
    if identity is None:
        raise StateFolderError(f"no identity in {folder.root}; enrol first with: bitfleet-client enroll")
    return identity, Coordinator(identity.enrolled_at, folder.credentials().ca_pem)


def _new_key(folder: IdentityFolder) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    folder.keep_key(pem)
    return key


def _key(folder: IdentityFolder) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(folder.key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise StateFolderError(
            f"the device's key {folder.key_file} cannot be read: {error}; remove it and enrol again"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateFolderError(f"{folder.key_file} must hold a key of an elliptic curve; remove it and enrol again")
    return key


def _ask(
    coordinator: Coordinator,
    key: ec.EllipticCurvePrivateKey,
    device_id: str,
    purpose: str,
    note: Callable[[Request], None],
    **token: str,
) -> Any:
    """Ask, once ``note`` has been told what leaves; gives the answer."""
    csr = _request(coordinator, key, device_id, purpose)
    body = {"csr": csr, **token}
    holds = "certificate request and token" if token else "certificate request"
    num_bytes, digest = len(json.dumps(body).encode()), hashlib.sha256(csr.encode()).hexdigest()
    note(Request(utc_now(), purpose, coordinator.url, holds, num_bytes, digest))
    return coordinator.ask("POST", _PATH if purpose == "enrol" else f"{_PATH}/{purpose}", body).value


def _request(coordinator: Coordinator, key: ec.EllipticCurvePrivateKey, device_id: str, purpose: str) -> str:
    """Sign what is asked, with the time of the coordinator's clock."""
    at = int(coordinator.ask("GET", "/healthz").at)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, f"{purpose} {at}".encode())
        .sign(key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def main(argv: list[str] | None = None) -> int:
    """Renew a certificate for the agent, and print one event that says how it went."""
    parser = child_parser("python -m edge_client.enrolment", __doc__)
    parser.add_argument("action", choices=["renew"])
    parser.add_argument("state", type=Path)
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    sent: list[int] = []
    outcome: dict[str, Any] = {"outcome": "renewed"}
    try:
        renew(StateDir(arguments.state).identity, lambda request: sent.append(request.bytes))
    except IdentityRefusedError as error:
        outcome = {"outcome": "refused", "reason": str(error)}
    except (BitfleetError, OSError) as error:
        outcome = {"outcome": "failed", "reason": str(error)}
    EventWriter().write({**outcome, "bytes": sum(sent)})  # the ledger is the agent's
    return 0


if __name__ == "__main__":
    sys.exit(main())
