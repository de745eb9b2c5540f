"""The devices that are enrolled: who gets a certificate, and whether the holder of one may still speak.

A device's identity is its key: its name stands for one public key until it leaves. Certificates are short-lived, and
the device renews them itself by a request signed with that key, up to a grace period after the last one's end.
Revocation needs no list that somebody fetches: every message is checked against the table in memory. Where several
coordinators share the database, that is a copy: what is about to be changed is read first, and what another
coordinator has changed is read when it says so (``reread``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import ParamSpec, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.errors import ConflictError, ForbiddenError, NotFoundError, UnauthenticatedError
from server.identity.authority import Authority, device_of, key_digest
from server.identity.requests import DeviceRequest, read_request
from server.identity.secrets import digest_of
from server.storage.trust import AuditRecord, IdentityRecord, TrustStore

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RunOnDisk(Protocol):
    """Calls a function on the database's thread; see ``server.coordinator.disk.Disk.run``."""

    def __call__(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Awaitable[_T]:
        """Call it there."""


@dataclass(frozen=True)
class Peer:
    """Who holds the other end of a TLS connection."""

    device_id: str
    key_digest: str


@dataclass(frozen=True)
class IssuedCertificate:
    """What a device is given."""

    device_id: str
    certificate_pem: str
    not_before: float
    not_after: float


class Devices:
    """All enrolled devices.

    Args:
      authority: signs their certificates.
      store: what is kept of them.
      run: calls the store on its thread.
      lifetime_s: of a certificate.
      grace_s: after a certificate's end, in which its key still gets a new one.
      clock: seconds since 1970.
    """

    def __init__(
        self,
        authority: Authority,
        store: TrustStore,
        run: RunOnDisk,
        *,
        lifetime_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._store = store
        self._run = run
        self._lifetime_s = lifetime_s
        self._grace_s = grace_s
        self._clock = clock
        self._identities: dict[str, IdentityRecord] = {}
        self._changing = asyncio.Lock()
        self.on_end: Callable[[str, str], None] = lambda device_id, reason: None
        """Told (device id, why) when a device may not speak any more, to cut its open streams."""

    async def load(self) -> None:
        """Read all identities; comes first, and again when changes may have been missed."""
        for record in await self._run(self._store.list_identities):
            self._keep(record)

    async def reread(self, device_id: str) -> IdentityRecord | None:
        """Read a device's identity, which another coordinator may have changed; returns it, if it ever enrolled."""
        record = await self._run(self._store.get_identity, device_id)
        if record is not None:
            self._keep(record)
        return record

    def list(self) -> list[IdentityRecord]:
        """Return all that ever enrolled, by id."""
        return sorted(self._identities.values(), key=lambda record: record.device_id)

    def get(self, device_id: str) -> IdentityRecord | None:
        """Return a device's identity, if it ever enrolled."""
        return self._identities.get(device_id)

    def peer_of(self, certificate_pem: bytes) -> Peer:
        """Read who a certificate is of, whose signature and dates TLS has checked.

        Raises:
          UnauthenticatedError: it is no device's, or has expired since the connection began.
        """
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        device_id, key = device_of(certificate), certificate.public_key()
        if device_id is None or not isinstance(key, ec.EllipticCurvePublicKey):
            raise UnauthenticatedError("the certificate is not a device's; enrol with: bitfleet-client enroll")
        if certificate.not_valid_after_utc.timestamp() < self._clock():
            raise UnauthenticatedError(f"the certificate of device {device_id} has expired; connect with a new one")
        return Peer(device_id, key_digest(key))

    def check(self, peer: Peer) -> IdentityRecord:
        """Return the identity of a peer that may speak now.

        Raises:
          ForbiddenError: it was revoked, has left, or its name is another key's now.
        """
        record = self._identities.get(peer.device_id)
        if record is None or record.key_digest != peer.key_digest:
            raise ForbiddenError(f"this coordinator knows no device {peer.device_id} with this key; enrol it again")
        if record.state != "ACTIVE":
            raise ForbiddenError(_ended(record))
        return record

    async def admit(self, peer: Peer) -> IdentityRecord:
        """Do as ``check``, for a peer that begins to speak: it may have enrolled elsewhere a moment ago."""
        known = self._identities.get(peer.device_id)
        if known is None or (known.key_digest != peer.key_digest and known.state != "REVOKED"):
            await self.reread(peer.device_id)
        return self.check(peer)

    async def enrol(self, csr_pem: str, token: str, origin: str) -> IssuedCertificate:
        """Take a new device in. Asked again by the same key, it costs no second use of the token.

        Raises:
          InvalidRequestError: the request is malformed.
          UnauthenticatedError: the token is not good.
          ConflictError: another device has this name.
        """
        async with self._changing:
            now = self._clock()
            request = read_request(csr_pem, "enrol", now)
            known = await self.reread(request.device_id)
            if known is not None and (known.state, known.key_digest) == ("ACTIVE", request.key_digest):
                return await self._issue(request, known, "enrol again", origin)
            certificate = self._certify(request)
            record = IdentityRecord(
                request.device_id, request.key_digest, "ACTIVE", {}, enrolled_at=now, expires_at=certificate.not_after
            )
            entry = _entry(record, "enrol", origin, now)
            self._keep(await self._run(self._store.enrol, record, digest_of(token), now, entry))
            return certificate

    async def renew(self, csr_pem: str, origin: str) -> IssuedCertificate:
        """Give an enrolled device its next certificate, for the same key.

        Raises:
          InvalidRequestError: the request is malformed.
          ForbiddenError: the device is not enrolled with this key, was revoked, or was away for too long.
        """
        async with self._changing:
            now = self._clock()
            request = read_request(csr_pem, "renew", now)
            await self.reread(request.device_id)
            record = self.check(Peer(request.device_id, request.key_digest))
            if now > record.expires_at + self._grace_s:
                raise ForbiddenError(
                    f"the certificate of device {record.device_id} ended more than {self._grace_s / 86400:g} days ago; "
                    "enrol it again under another name, or let the operator revoke this one"
                )
            return await self._issue(request, record, "renew", origin)

    async def leave(self, csr_pem: str, origin: str) -> None:
        """Let a device go; its name is free again.

        Raises:
          InvalidRequestError: the request is malformed.
          ForbiddenError: the device is not enrolled with this key.
        """
        async with self._changing:
            now = self._clock()
            request = read_request(csr_pem, "leave", now)
            await self.reread(request.device_id)
            record = self.check(Peer(request.device_id, request.key_digest))
            await self._change(record, {"state": "LEFT"}, _entry(record, "leave", origin, now))

    async def revoke(self, device_id: str, entry: AuditRecord) -> IdentityRecord:
        """Shut a device out, at its next message; its name stays taken.

        Raises:
          NotFoundError: no such device is enrolled.
          ConflictError: it was revoked before.
        """
        async with self._changing:
            revoked = await self._run(self._store.change_identity, device_id, {"state": "REVOKED"}, entry)
            if revoked is not None:
                self._keep(revoked)
                return revoked
            if await self.reread(device_id) is None:
                raise NotFoundError(
                    f"no device {device_id!r} is enrolled; list them with: bitfleet-server devices list"
                )
            raise ConflictError(f"device {device_id} was revoked before")

    async def _issue(
        self, request: DeviceRequest, record: IdentityRecord, action: str, origin: str
    ) -> IssuedCertificate:
        certificate = self._certify(request)
        entry = _entry(record, action, origin, self._clock())
        await self._change(record, {"expires_at": certificate.not_after}, entry)
        return certificate

    async def _change(self, record: IdentityRecord, changes: dict[str, object], entry: AuditRecord) -> None:
        """Change what its own key may; raises ForbiddenError when it may not any more, since a moment ago."""
        key = record.key_digest
        changed = await self._run(self._store.change_identity, record.device_id, changes, entry, of_key=key)
        if changed is not None:
            self._keep(changed)
        else:
            await self.reread(record.device_id)
            self.check(Peer(record.device_id, key))

    def _keep(self, record: IdentityRecord) -> None:
        """Keep an identity as it is now, and cut the streams of whoever may not speak under its name any more."""
        before = self._identities.get(record.device_id)
        self._identities[record.device_id] = record
        if before is None or before.state != "ACTIVE":
            return
        if record.state != "ACTIVE":
            self.on_end(record.device_id, _ended(record))
        elif record.enrolled_at != before.enrolled_at:
            self.on_end(record.device_id, f"device {record.device_id} has left, and enrolled anew")

    def _certify(self, request: DeviceRequest) -> IssuedCertificate:
        lifetime = timedelta(seconds=self._lifetime_s)
        certificate = self._authority.certify(request.device_id, request.key, lifetime)
        return IssuedCertificate(
            device_id=request.device_id,
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )


def _ended(record: IdentityRecord) -> str:
    word = "was revoked by its operator" if record.state == "REVOKED" else "has left"
    return f"device {record.device_id} {word}"


def _entry(record: IdentityRecord, action: str, origin: str, now: float) -> AuditRecord:
    return AuditRecord(now, f"device:{record.device_id}", action, origin, f"key=sha256:{record.key_digest}")
