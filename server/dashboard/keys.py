"""The page of the API keys: who has one, a new one (shown once), and one's end."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.trust_views import KeyView
from server.dashboard.form import read_form
from server.dashboard.page import Pages, go_to
from server.errors import ForbiddenError
from server.identity.keys import SCOPES, new_key
from server.identity.trust import Trust


def create_key_pages(pages: Pages, trust: Trust) -> APIRouter:
    """Build the page and its forms, for administrators."""
    router = APIRouter(route_class=pages.route_class())
    access = pages.access

    @router.get("/keys")
    async def keys(request: Request) -> Response:
        """Show all keys, the newest first, without their secrets."""
        visitor = await access.visitor(request)
        if not visitor.may("admin"):
            raise ForbiddenError(f"keys need the scope 'admin'; key {visitor.name!r} has {visitor.scope!r}")
        known = [KeyView.of(record) for record in trust.keys.list()[::-1]]
        return await pages.show(request, "keys.html", visitor, keys=known, scopes=SCOPES, made=None)

    @router.post("/keys")
    async def create(request: Request) -> Response:
        """Make a key, and show its secret: it is in this answer alone."""
        form = await read_form(request)
        visitor = await access.admit_form(request, "admin", form.get("form_token", ""))
        key, secret = new_key(form.get("name", ""), form.get("scope", ""), time.time())
        await trust.keys.add(key, access.entry(request, f"name={key.name} scope={key.scope} id={key.key_id}"))
        known = [KeyView.of(record) for record in trust.keys.list()[::-1]]
        made = KeyView.of(key, secret)
        return await pages.show(request, "keys.html", visitor, keys=known, scopes=SCOPES, made=made)

    @router.post("/keys/{key_id}/revoke")
    async def revoke(request: Request, key_id: str) -> Response:
        """End a key's life at once, and with it the sessions that it began."""
        form = await read_form(request)
        await access.admit_form(request, "admin", form.get("form_token", ""))
        await trust.keys.revoke(key_id, access.entry(request))
        return go_to("/keys")

    return router
