"""Keys of people and tools to the REST API, each with a scope: what it may do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from server.errors import ForbiddenError, InvalidRequestError, UnauthenticatedError
from server.identity.devices import RunOnDisk
from server.identity.secrets import digest_of, new_secret
from server.identity.throttle import Throttle
from server.storage.trust import AuditRecord, KeyRecord, TrustStore

SCOPES = ("read", "operate", "admin")
"""Look; create, pause and cancel jobs; let devices, people and tools in and out. Each includes those before it."""


_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiKeys:
    """All keys. A key is compared by its digest, so what is kept opens nothing.

    Where several coordinators share the database, what is in memory is a copy: an unknown key is looked for in the
    database, and what another coordinator has changed is read when it says so (``load``).

    Args:
      store: what is kept of them.
      run: calls the store on its thread.
      strangers: how often one address may make the database look for a key that is none.
      clock: seconds since 1970.
    """

    def __init__(
        self, store: TrustStore, run: RunOnDisk, strangers: Throttle, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._run = run
        self._strangers = strangers
        self._clock = clock
        self._by_digest: dict[str, KeyRecord] = {}

    async def load(self) -> None:
        """Read all keys; comes first, and again when some may have changed."""
        self._by_digest = {key.digest: key for key in await self._run(self._store.list_keys)}

    def list(self) -> list[KeyRecord]:
        """Return all keys, the oldest first."""
        return sorted(self._by_digest.values(), key=lambda key: key.created_at)

    async def authenticate(self, secret: str, origin: str) -> KeyRecord:
        """Return the key that a secret is.

        Args:
          secret: as it was sent.
          origin: the address that it came from.

        Raises:
          UnauthenticatedError: it is none, or was revoked.
          TooManyRequestsError: the address has tried too many that are none.
        """
        return await self.with_digest(digest_of(secret), origin)

    async def with_digest(self, digest: str, origin: str) -> KeyRecord:
        """Return the key whose secret has a digest; raises as ``authenticate``."""
        key = self._by_digest.get(digest)
        if key is None:
            self._strangers.admit(origin)
            key = await self._run(self._store.find_key, digest)
            if key is not None:
                self._strangers.forgive(origin)
                self._by_digest[digest] = key
        if key is None or key.revoked_at is not None:
            raise UnauthenticatedError("the API key is not known here, or was revoked")
        return key

    async def add(self, key: KeyRecord, entry: AuditRecord) -> None:
        """Add a key that ``new_key`` made; raises ConflictError when its name is taken."""
        await self._run(self._store.add_key, key, entry)
        self._by_digest[key.digest] = key

    async def revoke(self, key_id: str, entry: AuditRecord) -> None:
        """End a key's life at once; raises NotFoundError when no living key has this id."""
        await self._run(self._store.revoke_key, key_id, self._clock(), entry)
        await self.load()


def new_key(name: str, scope: str, now: float) -> tuple[KeyRecord, str]:
    """Make a key; returns what is kept of it, and its secret, which is told only now.

    Raises:
      InvalidRequestError: there is no such scope, or the name is no short word.
    """
    if scope not in SCOPES:
        raise InvalidRequestError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    if _NAME.fullmatch(name) is None:
        raise InvalidRequestError(f"a key's name must be 1 to 64 of [A-Za-z0-9._-], got {name!r:.80}")
    key_id, secret = new_secret("bfk")
    return KeyRecord(key_id, name, scope, digest_of(secret), created_at=now), secret


def require(key: KeyRecord, scope: str) -> None:
    """Check that a key may do what needs a scope.

    Raises:
      ForbiddenError: it may not.
    """
    if SCOPES.index(key.scope) < SCOPES.index(scope):
        raise ForbiddenError(f"this needs the scope {scope!r}; key {key.name!r} has {key.scope!r}")
