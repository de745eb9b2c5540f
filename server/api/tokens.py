"""Tokens, made by whoever may: over REST and from the dashboard, with the same entry in the audit log."""

from __future__ import annotations

import time

from fastapi import Request

from server.api.access import Access
from server.api.trust_views import TokenRequest
from server.coordinator.disk import Disk
from server.identity.tokens import new_token
from server.storage.trust import TokenRecord


async def make_token(disk: Disk, access: Access, request: Request, wanted: TokenRequest) -> tuple[TokenRecord, str]:
    """Make a token for an admitted request; returns what is kept of it, and its secret, which is told only now.

    Raises:
      InvalidRequestError: a number or a label makes no sense.
    """
    token, secret = new_token(uses=wanted.uses, lifetime_s=wanted.expires_s, labels=wanted.labels, now=time.time())
    words = " ".join(f"{key}={value}" for key, value in token.labels.items())
    detail = f"id={token.token_id} uses={token.uses_left}" + (f" labels: {words}" if words else "")
    await disk.run(disk.storage.trust.add_token, token, access.entry(request, detail))
    return token, secret
