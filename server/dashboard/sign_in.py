"""A key for a session, and the session's end."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.access import COOKIE
from server.dashboard.form import read_form
from server.dashboard.page import Pages, go_to
from server.errors import UnauthenticatedError
from server.identity.sessions import SESSION_S


def create_sign_in(pages: Pages) -> APIRouter:
    """Build the login and its end."""
    router = APIRouter(route_class=pages.route_class())
    access = pages.access

    @router.get("/login")
    async def login(request: Request, next: str = "/") -> Response:  # noqa: A002 - as the address names it
        """Ask for a key."""
        if not access.needs_keys:
            return go_to("/")
        return await pages.show(request, "login.html", None, next=_own_page(next), refusal="")

    @router.post("/login")
    async def begin(request: Request) -> Response:
        """Exchange a key for a session."""
        access.check_origin(request)  # so that nobody is made to work in another's session
        form = await read_form(request)
        wanted = _own_page(form.get("next", "/"))
        try:
            value = await access.open_session(request, form.get("key", "").strip())
        except UnauthenticatedError as error:
            return await pages.show(request, "login.html", None, status_code=401, next=wanted, refusal=str(error))
        await access.close_session(request)
        answer = go_to(wanted)
        answer.set_cookie(COOKIE, value, max_age=SESSION_S, path="/", httponly=True, secure=True, samesite="strict")
        return answer

    @router.post("/logout")
    async def end(request: Request) -> Response:
        """End the session."""
        form = await read_form(request)
        await access.admit_form(request, "read", form.get("form_token", ""))
        await access.close_session(request)
        answer = go_to("/login")
        answer.delete_cookie(COOKIE, path="/", httponly=True, secure=True, samesite="strict")
        return answer

    return router


def _own_page(address: str) -> str:
    """Return an address of this dashboard as it is, and the first page instead of any other."""
    return address if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", address) else "/"
