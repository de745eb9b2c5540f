"""The JSON objects of enrolment, tokens, keys and the audit log. A secret is in the answer that makes it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from server.api.view import View
from server.api.views import iso_time
from server.storage.trust import AuditRecord, IdentityRecord, KeyRecord, TokenRecord

if TYPE_CHECKING:
    from server.identity.devices import IssuedCertificate


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EnrolRequest(_Request):
    """A device's request for its first certificate."""

    csr: str = Field(max_length=8192)
    token: SecretStr = Field(max_length=200)


class SignedRequest(_Request):
    """A device's request that its key alone stands for."""

    csr: str = Field(max_length=8192)


class TokenRequest(_Request):
    """What a token is to be good for."""

    uses: int = 1
    expires_s: float = 86400.0
    labels: dict[str, str] = Field(default_factory=dict)


class KeyRequest(_Request):
    """What a key is to be good for."""

    name: str
    scope: str


class EnrolmentView(View):
    """What a device must know before it enrols."""

    ca_pem: str
    """The certificate by which devices know this coordinator; checked against the fingerprint that they were told."""
    grpc_port: int


class CertificateView(View):
    """A device's certificate. Times are seconds since 1970."""

    device_id: str
    certificate_pem: str
    not_before: float
    not_after: float

    @classmethod
    def of(cls, issued: IssuedCertificate) -> CertificateView:
        """Build the view."""
        return cls(
            device_id=issued.device_id,
            certificate_pem=issued.certificate_pem,
            not_before=issued.not_before,
            not_after=issued.not_after,
        )


class IdentityView(View):
    """An enrolled device."""

    device_id: str
    state: str
    labels: dict[str, str]
    enrolled_at: str
    certificate_ends_at: str

    @classmethod
    def of(cls, record: IdentityRecord) -> IdentityView:
        """Build the view of a record."""
        return cls(
            device_id=record.device_id,
            state=record.state,
            labels=record.labels,
            enrolled_at=iso_time(record.enrolled_at),
            certificate_ends_at=iso_time(record.expires_at),
        )


class TokenView(View):
    """A token; ``token`` is its secret, in the answer that made it."""

    id: str
    uses_left: int
    labels: dict[str, str]
    created_at: str
    expires_at: str
    token: str | None = None
    ca_fingerprint: str

    @classmethod
    def of(cls, record: TokenRecord, ca_fingerprint: str, secret: str | None = None) -> TokenView:
        """Build the view of a record."""
        return cls(
            id=record.token_id,
            uses_left=record.uses_left,
            labels=record.labels,
            created_at=iso_time(record.created_at),
            expires_at=iso_time(record.expires_at),
            token=secret,
            ca_fingerprint=ca_fingerprint,
        )


class KeyView(View):
    """A key to this API; ``key`` is its secret, in the answer that made it."""

    id: str
    name: str
    scope: str
    created_at: str
    revoked_at: str | None
    key: str | None = None

    @classmethod
    def of(cls, record: KeyRecord, secret: str | None = None) -> KeyView:
        """Build the view of a record."""
        return cls(
            id=record.key_id,
            name=record.name,
            scope=record.scope,
            created_at=iso_time(record.created_at),
            revoked_at=None if record.revoked_at is None else iso_time(record.revoked_at),
            key=secret,
        )


class AuditView(View):
    """An entry of the audit log."""

    at: str
    actor: str
    action: str
    origin: str
    detail: str

    @classmethod
    def of(cls, record: AuditRecord) -> AuditView:
        """Build the view of a record."""
        return cls(
            at=iso_time(record.at),
            actor=record.actor,
            action=record.action,
            origin=record.origin,
            detail=record.detail,
        )
