"""How a page is rendered, with which headers it goes out, and how an error becomes one."""

from __future__ import annotations

import asyncio
import hashlib
import http
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from bnncore.errors import BitfleetError
from server.api.access import Access, Visitor
from server.dashboard.assets import CHARTING, GET_CHARTING, asset
from server.dashboard.formats import FILTERS
from server.errors import UnauthenticatedError, status_of

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {styles}; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY.format(styles="'self'"),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # not no-referrer: a form's Origin would be null then
    "X-Content-Type-Options": "nosniff",
}


_DRAWING = {"Content-Security-Policy": _POLICY.format(styles="'self' 'unsafe-inline'")}
"""On pages with charts: BokehJS makes style elements for what it draws. Scripts are files alone, all the same."""


class Pages:
    """Renders templates for a visitor.

    Args:
      access: who may see what.
      version: of the bitfleet package.
    """

    def __init__(self, access: Access, *, version: str) -> None:
        self.access = access
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.globals.update(
            asset_url=lambda name: asset(name).url, charting=CHARTING, get_charting=GET_CHARTING, version=version
        )

    async def show(
        self,
        request: Request,
        template: str,
        visitor: Visitor | None,
        *,
        status_code: int = 200,
        has_charts: bool = False,
        **values: Any,
    ) -> Response:
        """Render a page; 304 when the browser has this very one."""
        shared = {"visitor": visitor, "path": request.url.path, "has_charts": has_charts}
        body = await asyncio.to_thread(self._render, template, {**values, **shared})
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        policies = HEADERS | (_DRAWING if has_charts else {})
        headers = policies | {"Cache-Control": "no-cache, private", "ETag": etag}
        if request.method == "POST" or status_code >= 400:
            headers = policies | {"Cache-Control": "no-store"}
        elif request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(body, status_code=status_code, headers=headers)

    def _render(self, template: str, values: dict[str, Any]) -> bytes:
        return self._templates.get_template(template).render(values).encode()

    async def refuse(self, request: Request, error: BaseException) -> Response:
        """Tell an error as a page; who is not known (any more) is led to the login."""
        if isinstance(error, UnauthenticatedError) and self.access.needs_keys:
            wanted = {"next": _address(request)} if request.method == "GET" else {}
            return go_to("/login" + (f"?{urlencode(wanted)}" if wanted["next"] != "/" else "") if wanted else "/login")
        status, words = _told(error)
        try:
            visitor = await self.access.visitor(request) if request.method == "GET" else None
        except BitfleetError:
            visitor = None
        title = http.HTTPStatus(status).phrase
        return await self.show(request, "problem.html", visitor, status_code=status, title=title, words=words)

    def route_class(self) -> type[APIRoute]:
        """Make the kind of route whose errors are pages."""
        pages = self

        class PageRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def answer(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except (BitfleetError, RequestValidationError) as error:
                        return await pages.refuse(request, error)

                return answer

        return PageRoute


def go_to(path: str) -> Response:
    """Send the browser to another page, which it gets."""
    return RedirectResponse(path, status_code=303, headers=HEADERS | {"Cache-Control": "no-store"})


def _address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _told(error: BaseException) -> tuple[int, str]:
    if isinstance(error, RequestValidationError):
        return 404, "There is no such page: " + "; ".join(
            f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()
        )
    return status_of(error)[0], str(error)
