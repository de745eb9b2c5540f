"""A coordinator that asks who it is: real TLS on both ports, a real database, devices with keys of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID
from grpc import ChannelCredentials

from server.api.app import create_app
from server.app.doors import devices_door, listening, peoples_door
from server.app.http import Listener
from server.app.identity import open_trust, write_endpoint
from server.coordinator import Coordinator
from server.identity.authority import Authority, private_pem
from server.identity.trust import Trust
from server.limits import ConnectionLimits
from server.replicas.names import new_replica_id
from server.replicas.replica import Replica
from server.rpc import FleetService
from server.settings import Address, Settings
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from server.storage.state_folder import IDENTITY_FOLDER
from tests.patience import LIMIT_S
from tests.server.conftest import patient_connections, patient_limits
from tests.server.databases import lay_database


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_csr(device_id: str, key: Any, purpose: str, at: float | None = None) -> str:
    """Sign what a device asks for, as ``edge_client.enrolment`` does."""
    challenge = f"{purpose} {int(time.time() if at is None else at)}"
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge.encode())
        .sign(key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Enrolled:
    """A device's side of its identity."""

    device_id: str
    key: ec.EllipticCurvePrivateKey
    certificate_pem: str


@dataclass
class SecureHouse:
    """A running coordinator with both of its doors.

    Attributes:
      admin: an HTTP client with the first admin key.
      stranger: one without a key.
    """

    coordinator: Coordinator
    trust: Trust
    authority: Authority
    state: Path
    grpc: Address
    http: Address
    admin_key: str
    admin: httpx.AsyncClient
    stranger: httpx.AsyncClient
    listener: Listener
    service: FleetService
    replica: Replica | None = None
    """What it is among others over the same database."""
    _stack: contextlib.AsyncExitStack = field(repr=False, default_factory=contextlib.AsyncExitStack)

    @property
    def url(self) -> str:
        return f"https://{self.http}"

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.pem.decode())

    async def with_scope(self, scope: str) -> httpx.AsyncClient:
        """Make a key of this scope, and a client that has it."""
        key = (await self.admin.post("/api/v1/keys", json={"name": scope, "scope": scope})).json()["key"]
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.AsyncClient(
            base_url=self.url, verify=self.context(), headers=headers, trust_env=False, timeout=LIMIT_S
        )
        return await self._stack.enter_async_context(client)

    async def token(self, **wanted: Any) -> str:
        response = await self.admin.post("/api/v1/tokens", json=wanted)
        assert response.status_code == 201, response.text
        return str(response.json()["token"])

    async def enrol(self, device_id: str, *, token: str | None = None, key: Any = None) -> Enrolled:
        """Enrol a device over REST."""
        key = key or new_key()
        body = {"csr": make_csr(device_id, key, "enrol"), "token": token or await self.token()}
        response = await self.stranger.post("/api/v1/enrolments", json=body)
        assert response.status_code == 201, response.text
        return Enrolled(device_id, key, response.json()["certificate_pem"])

    def credentials(self, device: Enrolled) -> ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.authority.pem, private_pem(device.key), device.certificate_pem.encode()
        )

    async def audit(self) -> list[dict[str, Any]]:
        """Return the audit log, the oldest entry first."""
        entries: list[dict[str, Any]] = (await self.admin.get("/api/v1/audit")).json()
        return entries[::-1]


@contextlib.asynccontextmanager
async def open_secure_house(
    state: Path,
    *,
    limits: Mapping[str, Any] = MappingProxyType({}),
    connections: ConnectionLimits | None = None,
    blobs: Path | None = None,
    **changes: Any,
) -> AsyncIterator[SecureHouse]:
    """Open a coordinator over a folder; ``changes`` replace its settings. Opening it again is a restart.

    Over PostgreSQL it is a replica; replicas of one fleet have one folder of payloads.
    """
    here = Address("127.0.0.1", 0)
    settings = Settings(**{"grpc": here, "http": here, "state": state, **changes})
    folder = state / IDENTITY_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    connections = connections or patient_connections()
    if not settings.database:
        lay_database(state / "bitfleet.db")
    storage = open_storage(settings.database_url)
    coordinator = Coordinator(
        storage,
        LocalBlobs(blobs or state / "blobs"),
        limits=patient_limits(**limits),
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(coordinator.stop)
        trust = await open_trust(settings, coordinator)
        await trust.machines_key(folder, is_lost=settings.new_admin_key)
        replica = None
        if storage.is_shared:
            store = "" if blobs is None else str(blobs)
            url = settings.database_url
            replica = Replica(coordinator, storage, new_replica_id(), url, store=store, version="0.1.0")
            replica.share_trust(trust, trust.authority)
        service = FleetService(coordinator, version="0.1.0", devices=trust.devices)
        grpc_address = await stack.enter_async_context(devices_door(coordinator, service, here, trust.tls, connections))
        listener = stack.enter_context(listening(here, connections))
        http_address = Address(*listener.getsockname()[:2])
        app = create_app(
            coordinator,
            version="0.1.0",
            trust=trust,
            replica=replica,
            grpc_port=grpc_address.port,
            public_origin=settings.public_origin,
            limits=connections,
        )
        await stack.enter_async_context(peoples_door(coordinator, app, listener, trust.tls, connections))
        if replica is None:
            await coordinator.lead()
        else:
            await stack.enter_async_context(replica)
        write_endpoint(settings, http_address, trust)
        authority = Authority.open(settings.identity or folder)
        key = (folder / "admin.key").read_text().strip() if (folder / "admin.key").exists() else ""
        options: dict[str, Any] = {
            "base_url": f"https://{http_address}",
            "verify": ssl.create_default_context(cadata=trust.tls.trust_pem.decode()),
            "trust_env": False,
            "timeout": LIMIT_S,
        }
        headers = {"Authorization": f"Bearer {key}"}
        admin = await stack.enter_async_context(httpx.AsyncClient(headers=headers, **options))
        stranger = await stack.enter_async_context(httpx.AsyncClient(**options))
        yield SecureHouse(
            coordinator,
            trust,
            authority,
            state,
            grpc_address,
            http_address,
            key,
            admin,
            stranger,
            listener,
            service,
            replica,
            stack,
        )


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Wait for a call's end; give its status."""
    async with asyncio.timeout(LIMIT_S):
        return await call.code(), await call.details()
