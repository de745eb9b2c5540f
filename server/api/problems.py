"""Errors as ``application/problem+json`` (RFC 9457), with the status from the one error table."""

from __future__ import annotations

import http
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bnncore.errors import BitfleetError
from server.errors import status_of

_log = logging.getLogger(__name__)


def problem(status: int, detail: str, *, kind: str = "about:blank") -> JSONResponse:
    """Build an answer that says what went wrong."""
    body = {"type": kind, "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    @app.exception_handler(BitfleetError)
    async def _domain(request: Request, error: BitfleetError) -> JSONResponse:
        return problem(status_of(error)[0], str(error), kind=f"urn:bitfleet:error:{type(error).__name__}")

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return problem(422, f"the request is not valid: {problems}")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.exception("event=request_failed method=%s path=%s", request.method, request.url.path)
        return problem(500, f"the coordinator failed: {type(error).__name__}; see its log")
