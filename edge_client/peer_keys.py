"""The keys of the devices that this one has added up updates with: ``peers.json`` in the state folder.

A device's key is believed when its fleet's authority certifies it, and kept then; later another key under the same name
is refused until the owner says to forget the old one. So an authority that turns bad can invent new devices, and cannot
slip itself in for one that is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bnncore.durable import replace_file
from edge_client.errors import StateFolderError
from edge_client.outbox import utc_now
from edge_client.records import as_record, read_json

__all__ = ["Peer", "PeerKeys"]


@dataclass(frozen=True)
class Peer:
    """One device that was met."""

    key: str
    """Its public key: SubjectPublicKeyInfo, DER, in hex digits."""
    since: str
    """When it was met first: UTC, ISO 8601."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key."""
        return hashlib.sha256(bytes.fromhex(self.key)).hexdigest()


class PeerKeys:
    """The file. It is written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Peer]:
        """Read who was met, by name.

        Raises:
          StateFolderError: the file cannot be read; to believe everybody anew is the owner's choice.
        """
        try:
            value = read_json(self._path.read_bytes())
            if not isinstance(value, dict):
                raise ValueError("it must be an object")
            peers = {name: as_record(Peer, facts) for name, facts in value.items()}
            for peer in peers.values():
                bytes.fromhex(peer.key)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StateFolderError(
                f"the keys of other devices in {self._path} cannot be read: {error}; remove the file to learn them anew"
            ) from error
        return peers

    def pins(self) -> dict[str, bytes]:
        """Give the keys by name of device."""
        return {name: bytes.fromhex(peer.key) for name, peer in self.read().items()}

    def learn(self, keys: Mapping[str, bytes]) -> None:
        """Keep the keys of those that were not met before.

        Raises:
          OSError: the disk refused.
        """
        peers = self.read()
        new = {name: Peer(key.hex(), utc_now()) for name, key in keys.items() if name not in peers}
        if new:
            self._write({**peers, **new})

    def forget(self, name: str) -> bool:
        """Forget a device's key; says whether there was one."""
        peers = self.read()
        if peers.pop(name, None) is None:
            return False
        self._write(peers)
        return True

    def forget_all(self) -> None:
        """Forget everybody: this device has left its fleet."""
        self._path.unlink(missing_ok=True)

    def _write(self, peers: Mapping[str, Peer]) -> None:
        facts = {name: {"key": peer.key, "since": peer.since} for name, peer in sorted(peers.items())}
        with replace_file(self._path, mode=0o600) as file:
            file.write(json.dumps(facts, indent=1).encode())
