"""All that a coordinator which asks who it is needs, opened together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.errors import ConflictError
from server.identity.authority import Authority, fingerprint, write_private
from server.identity.devices import Devices, RunOnDisk
from server.identity.keys import ApiKeys, new_key
from server.identity.sessions import Sessions
from server.identity.throttle import Throttle
from server.identity.tls import ServerTls
from server.storage.trust import AuditRecord, TrustStore

ADMIN_KEY_FILE = "admin.key"


@dataclass(frozen=True)
class TrustRules:
    """How long and how often; see ``Settings`` for the meaning."""

    certificate_lifetime_s: float = 7 * 86400.0
    certificate_grace_s: float = 90 * 86400.0
    enrolments_per_minute: int = 600


@dataclass(frozen=True)
class Trust:
    """Who may connect, and by what they are known."""

    authority: str
    """The fingerprint of whose certificates devices show."""
    tls: ServerTls
    devices: Devices
    keys: ApiKeys
    sessions: Sessions
    """Of browsers."""
    throttle: Throttle
    """Of requests to enrol, renew or leave."""

    @classmethod
    async def open(
        cls, tls: ServerTls, authority: Authority, store: TrustStore, run: RunOnDisk, rules: TrustRules
    ) -> Self:
        """Read identities and keys."""
        devices = Devices(
            authority,
            store,
            run,
            lifetime_s=rules.certificate_lifetime_s,
            grace_s=rules.certificate_grace_s,
        )
        in_all = rules.enrolments_per_minute
        # Two counts, so that a tool with a wrong key does not keep devices from its address out.
        enrolments, guesses = [Throttle(per_origin=max(1, in_all // 10), in_all=in_all) for _ in range(2)]
        keys = ApiKeys(store, run, guesses)
        await devices.load()
        await keys.load()
        return cls(
            fingerprint(authority.certificate),
            tls,
            devices,
            keys,
            Sessions(store, run, guesses),
            enrolments,
        )

    async def reread(self, of: str, name: str) -> None:
        """Read again what another coordinator may have changed; see ``TrustStore`` for the arguments."""
        if of == "device":
            await self.devices.reread(name)
        elif of == "key":
            await self.keys.load()
        else:
            await self.sessions.reread(name)

    async def reread_all(self) -> None:
        """Read everything again: changes may have been missed."""
        self.sessions.forget()
        await self.keys.load()
        await self.devices.load()

    async def machines_key(self, folder: Path, *, is_lost: bool = False) -> str | None:
        """Make an admin key for this machine's command line, when nobody has one.

        Args:
          folder: where it is to lie, for the coordinator's user alone.
          is_lost: make one in any case.

        Returns:
          Its secret; None when there was no need.
        """
        if not is_lost and any(key.scope == "admin" and key.revoked_at is None for key in self.keys.list()):
            return None
        now = time.time()
        key, secret = new_key(f"machine-{time.time_ns()}" if self.keys.list() else "first", "admin", now)
        file = folder / ADMIN_KEY_FILE
        write_private(file, secret.encode() + b"\n")  # first: a key in the database alone is lost
        try:
            entry = AuditRecord(now, "coordinator", "make an admin key for this machine", "", key.name)
            await self.keys.add(key, entry)
        except ConflictError:  # another coordinator has made the first one at the same moment
            file.unlink()
            await self.keys.load()
            return None
        return secret
