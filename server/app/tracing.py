"""Traces of requests and rounds, for OpenTelemetry; its library is imported where traces are asked for, nowhere else.

They are asked for by the variables of OpenTelemetry itself: ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where they go, and all
others of its SDK hold (``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ...).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bnncore.errors import ConfigurationError
from server.api.request_log import request_id
from server.coordinator.disk import Disk
from server.storage.base import RoundRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SERVICE = "bitfleet-server"
_NS = 1_000_000_000
_LOOK_S = 60.0
_LAST_S = 2.0
"""Seconds that the last traces may take when the process ends."""


def open_provider(environ: Mapping[str, str], *, version: str) -> TracerProvider | None:
    """Set up what sends traces over OTLP; None where the environment does not ask for it.

    Raises:
      ConfigurationError: OpenTelemetry is not installed.
    """
    if not any(environ.get(name) for name in _ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        asked = next(name for name in _ENDPOINTS if environ.get(name))
        raise ConfigurationError(
            f"{asked} asks for traces, which needs OpenTelemetry: pip install 'bitfleet[otel]', or unset it ({error})"
        ) from error
    named = {"service.name": environ.get("OTEL_SERVICE_NAME", _SERVICE), "service.version": version}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextlib.asynccontextmanager
async def traced(app: FastAPI, disk: Disk, environ: Mapping[str, str], *, version: str) -> AsyncIterator[None]:
    """Send traces of an app's requests, and of the rounds that end in the block, where the environment asks for it.

    Args:
      app: not served yet.
      disk: whose feed tells of rounds.
      environ: the process's environment.
      version: of the bitfleet package.

    Raises:
      ConfigurationError: OpenTelemetry is not installed.
    """
    provider = open_provider(environ, version=version)
    if provider is None:
        yield
        return
    tracer = provider.get_tracer("bitfleet", version)
    app.add_middleware(TracedRequests, tracer=tracer)
    try:
        async with _traced_rounds(tracer, disk):
            yield
    finally:  # what is left is sent, unless nobody takes it
        last = threading.Thread(target=provider.shutdown, name="last traces", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _LAST_S)


class TracedRequests:
    """Makes a span of every request, below the one that a ``traceparent`` header names."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, StatusCode

        method, parent = scope["method"], propagate.extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(method, parent, kind=SpanKind.SERVER) as span:
            span.set_attribute("http.request.method", method)
            span.set_attribute("url.path", scope["path"])

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                return await self._app(scope, receive, send_noted)
            finally:
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                if (name := request_id.get()) is not None:
                    span.set_attribute("bitfleet.request_id", name)


@contextlib.asynccontextmanager
async def _traced_rounds(tracer: Tracer, disk: Disk) -> AsyncIterator[None]:
    """Make a span of every round that ends in the block, from when it was opened."""
    task = asyncio.create_task(_follow(tracer, disk), name="traces of rounds")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _follow(tracer: Tracer, disk: Disk) -> None:
    watcher = disk.feed.watch()
    while (events := await watcher.next(within_s=_LOOK_S)) is not None:
        for event in events:
            if event.kind != "round":
                continue
            told: dict[str, Any] = json.loads(event.data)
            if told.get("state") in ("COMMITTED", "FAILED"):
                try:
                    record = await disk.run(disk.storage.get_round, told["job"], told["round"])
                except Exception:  # noqa: BLE001 - whatever the database has, the next round is traced again
                    _log.exception("event=round_not_traced job=%s round=%d", told["job"], told["round"])
                    continue
                if record is not None:
                    _trace(tracer, record)


def _trace(tracer: Tracer, record: RoundRecord) -> None:
    from opentelemetry.trace import StatusCode

    opened_ns = int(record.opened_at * _NS)
    attributes: dict[str, str | int | float] = {
        "bitfleet.job": record.job_id,
        "bitfleet.round": record.round_number,
        "bitfleet.attempt": record.attempt,
        "bitfleet.devices": len(record.cohort),
        "bitfleet.collected_s": record.collected_s,
    }
    if record.overhead_s is not None:
        attributes["bitfleet.overhead_s"] = record.overhead_s
    span = tracer.start_span("round", start_time=opened_ns, attributes=attributes)
    if record.state == "FAILED":
        span.set_status(StatusCode.ERROR, record.reason)
    span.end(None if record.committed_at is None else int(record.committed_at * _NS))
