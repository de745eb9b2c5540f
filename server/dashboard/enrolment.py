"""The page on which a token is made, and shown once with the command that uses it, to copy or as a QR code."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import Response
from markupsafe import Markup

from server.api.tokens import make_token
from server.api.trust_views import TokenRequest, TokenView
from server.coordinator.disk import Disk
from server.dashboard.form import read_form
from server.dashboard.page import Pages, go_to
from server.errors import InvalidRequestError
from server.identity.trust import Trust


def create_enrolment_pages(pages: Pages, disk: Disk, trust: Trust | None, grpc_port: int, enrol_url: str) -> APIRouter:
    """Build the page and its forms; see ``create_dashboard``."""
    router = APIRouter(route_class=pages.route_class())
    access = pages.access

    def address(request: Request) -> str:
        return enrol_url or f"{request.url.scheme}://{request.url.netloc}"

    @router.get("/enrol")
    async def enrol(request: Request) -> Response:
        """Show how devices come in, and the tokens that still let some in."""
        visitor = await access.visitor(request)
        if trust is None:
            grpc = f"{urlsplit(address(request)).hostname}:{grpc_port}"
            return await pages.show(request, "enrol_open.html", visitor, grpc=grpc)
        tokens = []
        if visitor.may("admin"):
            records = await disk.run(disk.storage.trust.list_tokens)
            tokens = [TokenView.of(record, trust.tls.fingerprint) for record in reversed(records)]
        return await pages.show(
            request, "enrol.html", visitor, tokens=tokens, server=address(request), fingerprint=trust.tls.fingerprint
        )

    if trust is None:
        return router

    @router.post("/enrol")
    async def create(request: Request) -> Response:
        """Make a token, and show its secret: it is in this answer alone."""
        form = await read_form(request)
        visitor = await access.admit_form(request, "admin", form.get("form_token", ""))
        record, secret = await make_token(disk, access, request, _wanted(form))
        fingerprint = trust.tls.fingerprint
        command = (
            f"BITFLEET_TOKEN={secret} bitfleet-client enroll --server {address(request)} --ca-fingerprint {fingerprint}"
        )
        return await pages.show(
            request,
            "enrolled.html",
            visitor,
            token=TokenView.of(record, fingerprint, secret),
            command=command,
            code=await asyncio.to_thread(_qr_code, command),
        )

    @router.post("/enrol/{token_id}/delete")
    async def delete(request: Request, token_id: str) -> Response:
        """Make a token good for nothing."""
        form = await read_form(request)
        await access.admit_form(request, "admin", form.get("form_token", ""))
        await disk.run(disk.storage.trust.delete_token, token_id, access.entry(request))
        return go_to("/enrol")

    return router


def _wanted(form: dict[str, str]) -> TokenRequest:
    """Read what the token is to be good for.

    Raises:
      InvalidRequestError: a field is not as it must be.
    """
    uses, hours = form.get("uses", ""), form.get("hours", "")
    try:
        num_uses, seconds = int(uses), 3600.0 * float(hours)
    except ValueError as error:
        raise InvalidRequestError(f"uses and hours must be numbers, got {uses!r:.40} and {hours!r:.40}") from error
    labels = {}
    for word in form.get("labels", "").split():
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidRequestError(f"labels must be KEY=VALUE, with spaces between them, got {word!r:.80}")
        labels[key] = value
    return TokenRequest(uses=num_uses, expires_s=seconds, labels=labels)


def _qr_code(text: str) -> Markup:
    """Draw a QR code as SVG, dark on light whatever the page's colours: that is what cameras look for."""
    import segno  # on first use: few visitors ask for one

    svg: str = segno.make(text, error="m").svg_inline(scale=1, border=4, dark="#000", light="#fff", omitsize=True)
    return Markup(svg)
