"""Who asks, and whether that one may: API keys, the cookie of browsers, and the audit log of all that changes.

A key travels in ``Authorization: Bearer``. The dashboard exchanges one for a cookie that scripts cannot read. To the
REST API the cookie is good for looking only, so that another site's page, which could make a browser send it, changes
nothing. The dashboard's own forms change things: each must come from a page of this very origin and hold the secret of
its session. Without keys (``--insecure``, loopback) everyone on this machine may do everything; requests that a
browser makes for another site's page are refused, and forms are checked as they are with keys.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request

from server.coordinator.disk import Disk
from server.errors import ForbiddenError, UnauthenticatedError
from server.identity.keys import SCOPES, require
from server.identity.sessions import Session
from server.identity.trust import Trust
from server.storage.trust import AuditRecord, KeyRecord

COOKIE = "__Host-bitfleet"
"""The prefix has browsers take it over TLS from this very host alone: nobody beside it can plant one."""

_LOOKING = ("GET", "HEAD", "OPTIONS")

Check = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page."""

    name: str
    """Of the key; empty: served without keys."""
    scope: str
    form_token: str
    """For the forms of the page; empty: who asks has no session, so has no forms."""

    def may(self, scope: str) -> bool:
        """Say whether the scope includes another."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Access:
    """The door of the REST API and of the dashboard.

    Args:
      disk: where the audit log is.
      trust: whom to let in; None lets everyone in, on loopback.
      public_origin: of pages that come by a proxy, beside this very one; empty: none do.
    """

    def __init__(self, disk: Disk, trust: Trust | None, public_origin: str = "") -> None:
        self._disk = disk
        self._trust = trust
        self._public_origin = public_origin
        self._everyone = Session("", math.inf, secrets.token_urlsafe(32))
        """The session of all browsers, without keys."""

    def needs(self, scope: str, *, is_recorded: bool = False) -> Check:
        """Build the check of routes: who asks has the scope, and a change is in the audit log before it is made.

        Args:
          scope: what it takes.
          is_recorded: the routes write their entries themselves, in the transaction of the change.
        """

        async def check(request: Request) -> None:
            await self.admit(request, scope)
            if request.method not in _LOOKING and not is_recorded:
                await self.record(request)

        return check

    async def admit(self, request: Request, scope: str) -> None:
        """Find out who asks, and check that one may do what needs the scope.

        Raises:
          UnauthenticatedError: there is no key, or none that is known here.
          TooManyRequestsError: too many that are none came from this address.
          ForbiddenError: the key's scope is smaller, or another site's page asks.
        """
        if self._trust is None:
            _refuse_other_sites(request)
            request.state.actor = "local"
            return
        key = await self._key_of(request, self._trust)
        require(key, scope)
        request.state.actor = f"key:{key.name}"

    async def visitor(self, request: Request) -> Visitor:
        """Find out who looks at a page; raises as ``admit`` with the scope "read"."""
        await self.admit(request, "read")
        if self._trust is None:
            return Visitor("", SCOPES[-1], self._everyone.form_token)
        key = await self._key_of(request, self._trust)
        has_session = "authorization" not in request.headers
        session = await _session_of(request, self._trust) if has_session else None
        return Visitor(key.name, key.scope, session.form_token if session else "")

    async def admit_form(self, request: Request, scope: str, form_token: str) -> Visitor:
        """Check that a form was sent by a page of the visitor's own session, whose key has the scope; returns whose.

        Args:
          request: a POST.
          scope: what it takes.
          form_token: as it stands in the form.

        Raises:
          UnauthenticatedError: there is no session, or its key was revoked.
          ForbiddenError: another site's page sent it, or it is not a form of this session, or the scope is smaller.
        """
        self.check_origin(request)
        trust = self._trust
        session = self._everyone if trust is None else await _session_of(request, trust)
        if not session.is_form_token(form_token):
            raise ForbiddenError(
                "this form is not of your session (any more): open its page again, and send it from there"
            )
        if trust is None:
            request.state.actor = "local"
            return Visitor("", SCOPES[-1], session.form_token)
        key = await trust.keys.with_digest(session.key_digest, origin_of(request))
        require(key, scope)
        request.state.actor = f"key:{key.name}"
        return Visitor(key.name, key.scope, session.form_token)

    def check_origin(self, request: Request) -> None:
        """Raise ForbiddenError unless a page of this coordinator makes the request, as browsers tell it."""
        if self._trust is None:
            _refuse_other_sites(request)
        origin, site = request.headers.get("origin", ""), request.headers.get("sec-fetch-site", "same-origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        if site == "same-origin" and origin in {own, self._public_origin or own}:
            return
        message = f"a form must be sent from a page of this coordinator, not from {origin or 'nowhere'!r:.80}"
        if self._trust is not None and site == "same-origin" and origin:
            message += "; if that is a proxy before it, name it: bitfleet-server serve --public-url URL"
        raise ForbiddenError(message)

    async def record(self, request: Request, detail: str = "") -> None:
        """Write into the audit log what an admitted request is about to change."""
        await self._disk.run(self._disk.storage.trust.record, self.entry(request, detail))

    def entry(self, request: Request, detail: str = "") -> AuditRecord:
        """Describe what an admitted request is about to change."""
        action = f"{request.method} {request.url.path}"
        return AuditRecord(time.time(), request.state.actor, action, origin_of(request), detail)

    @property
    def needs_keys(self) -> bool:
        """Whether who asks must show a key."""
        return self._trust is not None

    async def open_session(self, request: Request, secret: str) -> str:
        """Begin a session of the browser that sent a key; returns the cookie's value.

        Raises:
          UnauthenticatedError: the key is not known here, or none is needed.
          TooManyRequestsError: too many that are none came from this address.
        """
        if self._trust is None:
            raise UnauthenticatedError("this coordinator is served without keys")
        key = await self._trust.keys.authenticate(secret, origin_of(request))
        return await self._trust.sessions.open(key.digest)

    async def close_session(self, request: Request) -> None:
        """End the session of a browser, if it has one."""
        if self._trust is not None:
            await self._trust.sessions.close(request.cookies.get(COOKIE))

    async def _key_of(self, request: Request, trust: Trust) -> KeyRecord:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return await trust.keys.authenticate(secret.strip(), origin_of(request))
        if COOKIE in request.cookies and request.method in _LOOKING:
            session = await _session_of(request, trust)
            return await trust.keys.with_digest(session.key_digest, origin_of(request))
        raise UnauthenticatedError(
            "this needs an API key, which bitfleet-server key create makes: send Authorization: Bearer KEY; "
            "bitfleet-server takes it from $BITFLEET_API_KEY or --key-file"
        )


def origin_of(request: Request) -> str:
    """Return the address that a request came from."""
    return "" if request.client is None else request.client.host


async def _session_of(request: Request, trust: Trust) -> Session:
    return await trust.sessions.get(request.cookies.get(COOKIE), origin_of(request))


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a browser asks for another site: by its origin, or by a name that was made to lead here."""
    if request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        raise ForbiddenError("another site's page may not ask this coordinator")
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not _is_loopback(host):
        raise ForbiddenError(f"a coordinator without TLS answers on loopback names only, was asked for {host!r:.80}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
