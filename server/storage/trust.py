"""What the coordinator keeps of who may do what: records, and the protocol of their part of the database.

Secrets are kept as SHA-256 digests: they are random and long, so a digest cannot be guessed back. Times are seconds
since 1970 (UTC). Each change is one transaction together with its entry in the audit log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class IdentityRecord:
    """An enrolled device."""

    device_id: str
    key_digest: str
    """SHA-256 of its public key."""
    state: str
    """ACTIVE, REVOKED or LEFT."""
    labels: dict[str, str]
    enrolled_at: float
    expires_at: float
    """End of its newest certificate."""


@dataclass(frozen=True)
class TokenRecord:
    """A token that lets devices enrol."""

    token_id: str
    digest: str = field(repr=False)
    labels: dict[str, str]
    """What devices that enrol with it are labelled."""
    uses_left: int
    created_at: float
    expires_at: float


@dataclass(frozen=True)
class KeyRecord:
    """A key of a person or a tool to the REST API."""

    key_id: str
    name: str
    scope: str
    """read, operate or admin."""
    digest: str = field(repr=False)
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True)
class SessionRecord:
    """A browser's session, which stands for a key."""

    digest: str = field(repr=False)
    """Of its secret, as all digests."""
    key_digest: str = field(repr=False)
    ends_at: float


@dataclass(frozen=True)
class AuditRecord:
    """An entry of the audit log."""

    at: float
    actor: str
    """Who: ``key:NAME``, ``device:ID``, ``local`` (served without keys) or ``coordinator``."""
    action: str
    origin: str
    """The address it came from; empty for the coordinator's own."""
    detail: str = ""


class TrustStore(Protocol):
    """Identities, tokens, keys and the audit log. A method returns only after its change is on disk.

    Other coordinators may change the same rows at any moment: what a change depends on is looked at in its transaction,
    and all of them are told of it by an announcement (``announcements.py``) of kind ``trust.changed``: ``of`` is
    ``device``, ``key`` or ``session``, and ``name`` the device's or the key's id, or the session's digest.
    """

    def list_identities(self) -> list[IdentityRecord]:
        """Return all devices that ever enrolled, by id."""

    def get_identity(self, device_id: str) -> IdentityRecord | None:
        """Return a device's identity, if it ever enrolled."""

    def enrol(self, identity: IdentityRecord, token_digest: str, now: float, entry: AuditRecord) -> IdentityRecord:
        """Use a token up once and add a device with the token's labels; one that has left may come again.

        Returns:
          What was added.

        Raises:
          UnauthenticatedError: there is no such token, it has expired or is used up.
          ConflictError: a device of this id is enrolled, or was revoked.
        """

    def change_identity(
        self, device_id: str, changes: Mapping[str, object], entry: AuditRecord, *, of_key: str | None = None
    ) -> IdentityRecord | None:
        """Change a device's identity, unless it was revoked.

        Args:
          device_id: the device.
          changes: values by the names of ``IdentityRecord``.
          entry: is written down when something is changed.
          of_key: only if the device is active with the key of this digest.

        Returns:
          The identity as it is now; None: nothing was changed.
        """

    def add_token(self, token: TokenRecord, entry: AuditRecord) -> None:
        """Add a token."""

    def list_tokens(self) -> list[TokenRecord]:
        """Return all tokens, the oldest first."""

    def delete_token(self, token_id: str, entry: AuditRecord) -> None:
        """Remove a token; raises NotFoundError when there is none of this id."""

    def add_key(self, key: KeyRecord, entry: AuditRecord) -> None:
        """Add a key; raises ConflictError when its name is taken."""

    def list_keys(self) -> list[KeyRecord]:
        """Return all keys, the oldest first."""

    def find_key(self, digest: str) -> KeyRecord | None:
        """Return the key whose secret has this digest, if there is one."""

    def revoke_key(self, key_id: str, now: float, entry: AuditRecord) -> None:
        """End a key's life; raises NotFoundError when no living key has this id."""

    def add_session(self, session: SessionRecord, now: float, most: int) -> None:
        """Add a session, and forget those that have ended; of more than ``most`` the oldest end."""

    def find_session(self, digest: str) -> SessionRecord | None:
        """Return the session whose secret has this digest, if there is one."""

    def end_session(self, digest: str) -> None:
        """Remove a session; nothing happens when there is none."""

    def record(self, entry: AuditRecord) -> None:
        """Append to the audit log. Nothing changes or removes an entry: the database refuses it."""
