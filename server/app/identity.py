"""Opens the coordinator's identity in its state folder, and leaves there what this machine's command line needs.

::

    identity/authority.pem   the fleet's authority: key and certificate (0600). Who has it can make devices. It lies in
                             the folder of ``--identity`` instead, where several coordinators share it
    identity/ca.pem          its certificate, by which devices and people know the coordinator
    identity/server.pem      the coordinator's key and certificate (0600)
    identity/admin.key       the first API key, for the command line on this machine (0600)
    endpoint.json            where people and devices reach the coordinator that runs, and what they know it by
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from bnncore.durable import replace_file
from server.coordinator import Coordinator
from server.errors import ForbiddenError
from server.identity.authority import Authority
from server.identity.tls import ServerTls, names_of_this_machine, operators_tls, own_tls
from server.identity.trust import Trust, TrustRules
from server.settings import Address, Settings
from server.storage.state_folder import IDENTITY_FOLDER

ENDPOINT_FILE = "endpoint.json"


async def open_trust(settings: Settings, coordinator: Coordinator) -> Trust:
    """Open the coordinator's certificate, its devices and its keys; the first start makes what is missing.

    Raises:
      ConfigurationError: a file cannot be used.
    """
    folder = settings.state / IDENTITY_FOLDER
    authority = Authority.open(settings.identity or folder)
    authority.publish(folder)
    rules = TrustRules(
        certificate_lifetime_s=settings.device_certificate_days * 86400,
        certificate_grace_s=settings.device_grace_days * 86400,
        enrolments_per_minute=settings.enrolments_per_minute,
    )
    tls = _open_tls(settings, folder, authority)
    trust = await Trust.open(tls, authority, coordinator.disk.storage.trust, coordinator.disk.run, rules)

    def cut(device_id: str, reason: str) -> None:
        session = coordinator.fleet.get(device_id)
        if session is not None:
            session.end(ForbiddenError(reason))

    trust.devices.on_end = cut
    coordinator.know_authority(authority.pem)
    return trust


def _open_tls(settings: Settings, folder: Path, authority: Authority) -> ServerTls:
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        return operators_tls(settings.tls_cert, settings.tls_key, settings.tls_ca, authority)
    named = {host for address in (settings.grpc, settings.http) for host in names_of_this_machine(address.host)}
    return own_tls(folder, authority, named | set(settings.public_host))


def write_endpoint(settings: Settings, http: Address, trust: Trust | None) -> None:
    """Leave word for the command line of this machine.

    Args:
      settings: whose first public host is the one that devices are told.
      http: where people and tools connect.
      trust: None serves in the clear.
    """
    scheme = "http" if trust is None else "https"
    here = ("::1" if http.host == "::" else "127.0.0.1") if _is_everywhere(http) else http.host
    word = {
        "url": f"{scheme}://{Address(here, http.port)}",
        "enrol_url": enrol_url(settings, http, trust),
        "ca_pem": None if trust is None else trust.tls.trust_pem.decode(),
    }
    with replace_file(settings.state / ENDPOINT_FILE) as file:
        file.write(json.dumps(word, indent=2).encode() + b"\n")


def enrol_url(settings: Settings, http: Address, trust: Trust | None) -> str:
    """Return where devices reach the coordinator; arguments as those of ``write_endpoint``."""
    scheme = "http" if trust is None else "https"
    named = (
        settings.public_host[0] if settings.public_host else socket.gethostname() if _is_everywhere(http) else http.host
    )
    return f"{scheme}://{Address(named, http.port)}"


def people_url(settings: Settings, http: Address, trust: Trust | None) -> str:
    """Return what people open in a browser: as the operator says, or by the name that is in the certificate.

    Arguments as those of ``write_endpoint``.
    """
    if settings.public_origin:
        return settings.public_origin
    if settings.public_host and _is_everywhere(http):
        return enrol_url(settings, http, trust)
    return f"{'http' if trust is None else 'https'}://{http}"


def _is_everywhere(address: Address) -> bool:
    return address.host in ("0.0.0.0", "::")
