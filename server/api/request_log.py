"""Each request has an id, which is in its answer and in the log lines that it leaves; and a line of its own.

Whoever asks may bring the id along in ``X-Request-ID``, so that one is followed through several systems.
"""

from __future__ import annotations

import contextvars
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

HEADER = "X-Request-ID"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ASKED_ALL_THE_TIME = ("/healthz", "/readyz", "/metrics", "/static/")
_PATH_SHOWN = 200

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""Of the request that is being served; each has a context of its own."""


class RequestLog:
    """Names requests and writes them down: method, path, status, time, bytes, from where and by whom; no query."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        brought = Headers(scope=scope).get(HEADER, "")
        name = brought if _GOOD_ID.fullmatch(brought) else secrets.token_hex(8)
        request_id.set(name)
        state: dict[str, Any] = scope.setdefault("state", {})  # where ``Access`` says who asks
        begun, status, num_bytes = time.perf_counter(), 500, 0

        async def send_named(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])[HEADER] = name
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            return await self._app(scope, receive, send_named)
        finally:
            path = scope.get("raw_path", b"").decode("ascii", "replace")  # encoded: one word, whatever was asked for
            is_usual = status < 400 and path.startswith(_ASKED_ALL_THE_TIME)
            _log.log(
                logging.DEBUG if is_usual else logging.INFO,
                "event=request method=%s path=%s status=%d seconds=%.4f bytes=%d origin=%s actor=%s",
                scope["method"],
                path[:_PATH_SHOWN],
                status,
                time.perf_counter() - begun,
                num_bytes,
                scope["client"][0] if scope.get("client") else "-",
                state.get("actor", "-"),
            )
