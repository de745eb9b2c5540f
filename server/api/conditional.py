"""Answers that have not changed are not sent again: ETag and If-None-Match (RFC 9110, 8.8.3 and 13.1.2)."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OF_A_304 = ("etag", "cache-control", "link", "x-total-count", "vary")
"""Headers that a 304 repeats (RFC 9110, 15.4.5)."""


class ConditionalAnswers:
    """Gives every JSON answer to a GET under ``/api/v1`` a tag of its bytes, and a 304 to whoever has them already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith("/api/v1/"):
            return await self._app(scope, receive, send)
        known = Headers(scope=scope).get("if-none-match", "")
        start: Message | None = None
        body = bytearray()

        async def send_tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                start = message
                return None
            if start is None or message["type"] != "http.response.body":
                return await send(message)
            body.extend(message.get("body", b""))
            if message.get("more_body", False):
                return None
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers = MutableHeaders(raw=start["headers"])
            headers["ETag"] = tag
            headers.setdefault("Cache-Control", "private, no-cache")
            if _names(known, tag):
                kept = [(name, value) for name, value in headers.raw if name.decode() in _OF_A_304]
                await send({"type": "http.response.start", "status": 304, "headers": kept})
                return await send({"type": "http.response.body", "body": b""})
            await send(start)
            return await send({"type": "http.response.body", "body": bytes(body)})

        return await self._app(scope, receive, send_tagged)


def _is_json(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type") == "application/json"


def _names(known: str, tag: str) -> bool:
    """Say whether an If-None-Match names a tag; proxies that compress make tags weak."""
    return known.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in known.split(","))
