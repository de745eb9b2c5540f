"""The routes of enrolment (open: what a device signs is its proof) and of administration."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from server.api.access import Access, origin_of
from server.api.paging import PAGED, Asked
from server.api.tokens import make_token
from server.api.trust_views import (
    AuditView,
    CertificateView,
    EnrolmentView,
    EnrolRequest,
    IdentityView,
    KeyRequest,
    KeyView,
    SignedRequest,
    TokenRequest,
    TokenView,
)
from server.coordinator.disk import Disk
from server.identity.keys import new_key
from server.identity.trust import Trust


def create_enrolment_router(trust: Trust, grpc_port: int) -> APIRouter:
    """Build the routes by which devices come and go; how often strangers may ask is limited."""
    router = APIRouter(prefix="/api/v1/enrolments")
    devices = trust.devices

    def admitted(request: Request) -> str:
        origin = origin_of(request)
        trust.throttle.admit(origin)
        return origin

    @router.get("")
    async def how_to_enrol() -> EnrolmentView:
        """The certificate by which this coordinator is known, and where devices connect."""
        return EnrolmentView(ca_pem=trust.tls.trust_pem.decode(), grpc_port=grpc_port)

    @router.post("", status_code=201)
    async def enrol(body: EnrolRequest, request: Request) -> CertificateView:
        """Take a new device in; 401 when the token is not good, 409 when the name is taken, 429 when too many come."""
        return CertificateView.of(await devices.enrol(body.csr, body.token.get_secret_value(), admitted(request)))

    @router.post("/renew")
    async def renew(body: SignedRequest, request: Request) -> CertificateView:
        """Give an enrolled device its next certificate; 403 when it may have none."""
        return CertificateView.of(await devices.renew(body.csr, admitted(request)))

    @router.post("/leave", status_code=204)
    async def leave(body: SignedRequest, request: Request) -> None:
        """Let a device go; 403 when it is not enrolled."""
        await devices.leave(body.csr, admitted(request))

    return router


def create_trust_router(trust: Trust, access: Access) -> APIRouter:
    """Build the routes by which an administrator lets devices, people and tools in and out."""
    check = Depends(access.needs("admin", is_recorded=True))
    router = APIRouter(prefix="/api/v1", dependencies=[check])

    @router.get("/identities")
    async def list_identities() -> list[IdentityView]:
        """All devices that ever enrolled."""
        return [IdentityView.of(record) for record in trust.devices.list()]

    @router.post("/identities/{device_id}/revoke")
    async def revoke_device(device_id: str, request: Request) -> IdentityView:
        """Shut a device out, at its next message."""
        return IdentityView.of(await trust.devices.revoke(device_id, access.entry(request)))

    @router.get("/keys")
    async def list_keys() -> list[KeyView]:
        """All keys, without their secrets."""
        return [KeyView.of(record) for record in trust.keys.list()]

    @router.post("/keys", status_code=201)
    async def create_key(body: KeyRequest, request: Request) -> KeyView:
        """Make a key; its secret is told only now."""
        key, secret = new_key(body.name, body.scope, time.time())
        await trust.keys.add(key, access.entry(request, f"name={key.name} scope={key.scope} id={key.key_id}"))
        return KeyView.of(key, secret)

    @router.delete("/keys/{key_id}", status_code=204)
    async def revoke_key(key_id: str, request: Request) -> None:
        """End a key's life at once."""
        await trust.keys.revoke(key_id, access.entry(request))

    return router


def create_token_router(trust: Trust, access: Access, disk: Disk) -> APIRouter:
    """Build the routes of tokens."""
    check = Depends(access.needs("admin", is_recorded=True))
    router = APIRouter(prefix="/api/v1/tokens", dependencies=[check])
    store, seen_by = disk.storage.trust, trust.tls.fingerprint

    @router.get("")
    async def list_tokens() -> list[TokenView]:
        """All tokens, without their secrets."""
        return [TokenView.of(record, seen_by) for record in await disk.run(store.list_tokens)]

    @router.post("", status_code=201)
    async def create_token(body: TokenRequest, request: Request) -> TokenView:
        """Make a token; its secret is told only now."""
        token, secret = await make_token(disk, access, request, body)
        return TokenView.of(token, seen_by, secret)

    @router.delete("/{token_id}", status_code=204)
    async def delete_token(token_id: str, request: Request) -> None:
        """Make a token good for nothing."""
        await disk.run(store.delete_token, token_id, access.entry(request))

    return router


def create_audit_router(access: Access, disk: Disk) -> APIRouter:
    """Build the route of the audit log."""
    router = APIRouter(prefix="/api/v1/audit", dependencies=[Depends(access.needs("admin"))])

    @router.get("", responses=PAGED)
    async def list_audit(
        paging: Asked,
        actor: Annotated[str | None, Query(max_length=160, description="Only this one's, such as key:NAME")] = None,
        action: Annotated[str | None, Query(max_length=200, description="Only actions that begin so")] = None,
    ) -> list[AuditView]:
        """Entries of the audit log, the newest first."""
        page = await disk.run(disk.storage.pages.audit, paging.limit, paging.after, actor=actor, action=action)
        paging.tell(page)
        return [AuditView.of(record) for record in page.records]

    return router
