"""Sessions of browsers: a key is exchanged for a random text, and every form of a session carries a secret of its own.

A session holds at every coordinator over the database. What is in memory is a copy: a session that is not there is
looked for in the database, and one that may have ended elsewhere is read again when that is told (``reread``).
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import UnauthenticatedError
from server.identity.devices import RunOnDisk
from server.identity.secrets import digest_of
from server.identity.throttle import Throttle
from server.storage.trust import SessionRecord, TrustStore

SESSION_S = 12 * 3600
MAX_SESSIONS = 1000


@dataclass(frozen=True)
class Session:
    """A browser that showed a key."""

    key_digest: str
    ends_at: float
    """Seconds since 1970."""
    form_token: str
    """Stands in every form of its pages, so that a page of another site cannot write one."""

    def is_form_token(self, told: str) -> bool:
        """Say whether a form is one of this session's."""
        return hmac.compare_digest(self.form_token.encode(), told.encode())


class Sessions:
    """All sessions, by the digest of their secret; the arguments are those of ``ApiKeys``."""

    def __init__(
        self, store: TrustStore, run: RunOnDisk, strangers: Throttle, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._run = run
        self._strangers = strangers
        self._clock = clock
        self._known: dict[str, SessionRecord] = {}

    async def open(self, key_digest: str) -> str:
        """Begin a session of a key; returns its secret. Of very many the oldest ends."""
        secret, now = secrets.token_urlsafe(32), self._clock()
        record = SessionRecord(digest_of(secret), key_digest, now + SESSION_S)
        await self._run(self._store.add_session, record, now, MAX_SESSIONS)
        self._keep(record)
        return secret

    async def get(self, secret: str | None, origin: str) -> Session:
        """Return the session of a secret.

        Args:
          secret: as it was sent; None: there was none.
          origin: the address that it came from.

        Raises:
          UnauthenticatedError: there is none, or it has ended.
          TooManyRequestsError: the address has tried too many that are none.
        """
        record = None
        if secret is not None:
            digest = digest_of(secret)
            record = self._known.get(digest)
            if record is None:
                self._strangers.admit(origin)
                record = await self._run(self._store.find_session, digest)
                if record is not None:
                    self._strangers.forgive(origin)
                    self._keep(record)
        if secret is None or record is None or record.ends_at <= self._clock():
            raise UnauthenticatedError("this needs an API key: log in, or send Authorization: Bearer KEY")
        return Session(record.key_digest, record.ends_at, digest_of(f"the forms of {secret}"))

    async def close(self, secret: str | None) -> None:
        """End a session, if there is one."""
        if secret is not None:
            digest = digest_of(secret)
            await self._run(self._store.end_session, digest)
            self._known.pop(digest, None)

    async def reread(self, digest: str) -> None:
        """Read a session, which may have ended at another coordinator."""
        self._known.pop(digest, None)
        record = await self._run(self._store.find_session, digest)
        if record is None:
            self._known.pop(digest, None)  # once more: it may have been read before it ended, and kept since
        else:
            self._keep(record)

    def forget(self) -> None:
        """Look in the database again for all."""
        self._known.clear()

    def _keep(self, record: SessionRecord) -> None:
        while len(self._known) >= MAX_SESSIONS:
            del self._known[next(iter(self._known))]
        self._known[record.digest] = record
