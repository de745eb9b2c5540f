"""Errors as ``application/problem+json`` (RFC 9457), with the status from the one error table."""

from __future__ import annotations

import http
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bnncore.errors import BitfleetError
from server.api.request_log import HEADER, request_id
from server.errors import NotFoundError, status_of
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

_MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


_EXAMPLE = {
    "type": "urn:bitfleet:error:NotFoundError",
    "title": "Not Found",
    "status": 404,
    "detail": "there is no job 'digits-1f2e3d4c'; list them with: bitfleet-server jobs list",
}

ANY_PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong",
        "content": {_MEDIA_TYPE: {"schema": Problem.model_json_schema(), "example": _EXAMPLE}},
    }
}
"""For the API's description: whatever is not a route's own answer is a problem."""


def problem(status: int, detail: str, *, kind: str = "about:blank", **more: Any) -> JSONResponse:
    """Build an answer that says what went wrong; ``more`` are members of its own (RFC 9457, section 3.2)."""
    body = {"type": kind, "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type=_MEDIA_TYPE)


def add_problem_handlers(app: FastAPI, show: Callable[[Request, BaseException], Awaitable[Response]]) -> None:
    """Make every error of the app a problem.

    Args:
      app: the application.
      show: tells an error as a page: whoever looks for a page that is not there is a person.
    """

    @app.exception_handler(BitfleetError)
    async def _domain(request: Request, error: BitfleetError) -> JSONResponse:
        return problem(status_of(error)[0], str(error), kind=f"urn:bitfleet:error:{type(error).__name__}")

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return problem(422, f"the request is not valid: {problems}")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        looks = "text/html" in request.headers.get("accept", "") and not path.startswith("/api/")
        if error.status_code == 404 and looks:
            return await show(request, NotFoundError(f"there is no page {path!r:.200}"))
        answer = problem(error.status_code, f"{request.method} {path}: {error.detail}")
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.exception("event=request_failed method=%s path=%s", request.method, request.url.path)
        answer = problem(500, f"the coordinator failed: {type(error).__name__}; see its log")
        answer.headers[HEADER] = request_id.get() or ""  # it is made outside of what gives all others their id
        return answer


class RefusalsAsProblems:
    """Answers 503 when the disk or the database takes nothing now, which is no fault of the program."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if has_begun or not is_refusal(error):
                raise
            _log.error("event=disk_refuses path=%r reason=%r", scope["path"], str(error))
            answer = problem(503, "the coordinator's disk or database takes nothing now; try again in a moment")
            await answer(scope, receive, send)
