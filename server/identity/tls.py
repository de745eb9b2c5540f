"""What the coordinator shows and asks for when a connection begins: its certificate, and whose it trusts.

Made by the fleet's own authority and renewed at start, or the operator's files. REST takes TLS 1.3 alone; gRPC takes
1.2 too, since its library has no option for it, and trusts only clients with a device's certificate.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from bnncore.errors import ConfigurationError
from server.identity.authority import Authority, KeyPair, fingerprint, read_pair, write_private

SERVER_LIFETIME = timedelta(days=825)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*|[0-9a-f:.]+")


@dataclass(frozen=True)
class ServerTls:
    """The coordinator's side of TLS.

    Attributes:
      pair: key and chain that it shows.
      pair_files: files with the chain and with the key.
      trust_pem: the certificate by which devices and people know it.
      client_roots_pem: whose clients it lets in at the devices' port.
    """

    pair: KeyPair
    pair_files: tuple[Path, Path]
    trust_pem: bytes
    client_roots_pem: bytes

    @property
    def fingerprint(self) -> str:
        """What devices are told, to know the coordinator by."""
        return fingerprint(x509.load_pem_x509_certificate(self.trust_pem))

    def http_context(self) -> ssl.SSLContext:
        """Build the context of the REST port: TLS 1.3, no certificate asked for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        chain, key = self.pair_files
        try:
            context.load_cert_chain(chain, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"the certificate in {chain} and the key in {key} cannot be used together: {error}"
            ) from error
        return context


def own_tls(folder: Path, authority: Authority, hosts: Iterable[str]) -> ServerTls:
    """Open the coordinator's certificate, signed by the fleet's authority.

    It is made anew when there is none, when it names other hosts, and when less than a third of its life is left.

    Raises:
      ConfigurationError: the folder cannot be used, or a host's name is malformed.
    """
    path = folder / "server.pem"
    names = tuple(sorted({*_LOOPBACK, *hosts}))
    for name in names:
        if _HOST.fullmatch(name) is None:
            raise ConfigurationError(f"--public-host must be a host name or an IP address, got {name!r}")
    try:
        pair = _usable(path, authority, names)
        if pair is None:
            pair = authority.issue_server(names, SERVER_LIFETIME)
            write_private(path, pair.key_pem + pair.chain_pem)
    except OSError as error:
        raise ConfigurationError(f"the coordinator's certificate {path} cannot be used: {error}") from error
    return ServerTls(pair, (path, path), authority.pem, authority.pem)


def operators_tls(chain: Path, key: Path, trust: Path, authority: Authority) -> ServerTls:
    """Open the operator's certificate: its chain, its key, and the certificate of who signed it.

    Raises:
      ConfigurationError: a file cannot be read or holds something else.
    """
    try:
        chain_pem, key_pem, trust_pem = (path.read_bytes() for path in (chain, key, trust))
        x509.load_pem_x509_certificates(chain_pem)
        x509.load_pem_x509_certificate(trust_pem)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--tls-cert, --tls-key and --tls-ca must be PEM files with a certificate chain, its key and the "
            f"certificate of the authority that signed it: {error}"
        ) from error
    tls = ServerTls(KeyPair(key_pem, chain_pem), (chain, key), trust_pem, authority.pem)
    tls.http_context()
    return tls


def names_of_this_machine(listening: str) -> set[str]:
    """Name the hosts by which this machine is reached, as far as it knows: an address it listens on, its own name."""
    name = socket.gethostname()
    names = {name, name if "." in name else f"{name}.local"} - {""}
    usable = {host for host in names if _HOST.fullmatch(host)}
    return usable if listening in ("0.0.0.0", "::") else usable | {listening}


def _usable(path: Path, authority: Authority, names: tuple[str, ...]) -> KeyPair | None:
    try:
        pair = read_pair(path)
    except (FileNotFoundError, ConfigurationError):
        return None
    certificate = pair.certificate
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if left < SERVER_LIFETIME / 3 or not authority.signed(certificate):
        return None
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    shown = {str(name.value) for name in found}
    return pair if shown == {str(name) for name in names} else None
