"""What a device is known by: its key, its certificate, and the coordinator's, in the state folder.

::

    identity/key.pem           the device's private key (0600); it never leaves the device
    identity/certificate.pem   signed by the coordinator; short-lived, renewed by ``edge_client.enrolment``
    identity/ca.pem            by which the device knows the coordinator
    identity/facts.json        device id, addresses, the certificate's dates; written last

Reading needs the standard library alone: the agent never loads a library for certificates.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bnncore.durable import replace_file
from edge_client.errors import StateFolderError
from edge_client.records import as_record, read_json

__all__ = ["Credentials", "Identity", "IdentityFolder"]

RENEW_WHEN_LEFT = 1 / 3
"""Part of a certificate's life that is left when it is renewed."""


@dataclass(frozen=True)
class Credentials:
    """What the device shows and asks for on a connection, all PEM."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """A device's place in a fleet. Times are seconds since 1970."""

    device_id: str
    server: str
    """``HOST:PORT`` where devices connect."""
    enrolled_at: str
    """``https://HOST:PORT`` where it enrolled and renews its certificate."""
    not_before: float
    not_after: float

    @property
    def renew_at(self) -> float:
        """When the certificate is to be renewed."""
        return self.not_after - (self.not_after - self.not_before) * RENEW_WHEN_LEFT


class IdentityFolder:
    """The folder of a device's identity."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def key_file(self) -> Path:
        """The private key."""
        return self.root / "key.pem"

    def read(self) -> Identity | None:
        """Read who this device is; None before it enrolled.

        Raises:
          StateFolderError: what is there is damaged.
        """
        try:
            return as_record(Identity, read_json((self.root / "facts.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateFolderError(
                f"the device's identity in {self.root} is damaged: {error}; enrol again with: bitfleet-client enroll"
            ) from error

    def credentials(self) -> Credentials:
        """Read what a connection needs.

        Raises:
          StateFolderError: a file is missing.
        """
        names = ("ca.pem", "certificate.pem", "key.pem")
        try:
            ca_pem, certificate_pem, key_pem = ((self.root / name).read_bytes() for name in names)
        except OSError as error:
            raise StateFolderError(
                f"the device's identity in {self.root} lacks a file: {error}; enrol again with: bitfleet-client enroll"
            ) from error
        return Credentials(ca_pem, certificate_pem, key_pem)

    def keep(self, identity: Identity, certificate_pem: bytes, ca_pem: bytes) -> None:
        """Write what the coordinator gave; a power cut leaves the old certificate or the new one, for the same key."""
        for name, data in (
            ("ca.pem", ca_pem),
            ("certificate.pem", certificate_pem),
            ("facts.json", json.dumps(asdict(identity), indent=2).encode() + b"\n"),
        ):
            with replace_file(self.root / name) as file:
                file.write(data)

    def keep_key(self, key_pem: bytes) -> None:
        """Write a new private key, for its owner's eyes only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_file(self.key_file, mode=0o600) as file:
            file.write(key_pem)

    def forget(self) -> None:
        """Remove the identity; the key's bytes are overwritten first, as far as the disk lets them."""
        if self.key_file.exists():
            size = self.key_file.stat().st_size
            with open(self.key_file, "r+b") as file:
                file.write(os.urandom(size))
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(self.root, ignore_errors=True)
