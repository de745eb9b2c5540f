"""Traces, sent over OTLP to a collector of the test's own; and none, nor their library, where nobody asks."""

from __future__ import annotations

import ast
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.app import create_app
from server.app.tracing import traced
from tests.server.conftest import OpenHouse, make_job
from tests.server.scripted import connected

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes traces in as any OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self) -> dict[str, Any]:
        """Return what came, by name."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        scopes = [scope for request in requests for part in request.resource_spans for scope in part.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk")
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield collector
    collector.close()


async def test_requests_and_rounds_become_spans(open_house: OpenHouse, collector: Collector) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        app, disk = create_app(house.coordinator, version="0.1.0"), house.coordinator.disk
        async with traced(app, disk, environ, version="0.1.0"):
            job = await house.coordinator.jobs.create(make_job(rounds=1))
            for device in (a, b):
                task = await device.next_task()
                await device.submit(task, await device.train(task))
            await house.coordinator.jobs.wait_until_idle()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
                await client.get(f"/api/v1/jobs/{job.job_id}", headers=parent)
                await client.get("/api/v1/jobs/none/rounds")
        record = disk.storage.get_round(job.job_id, 1)

    assert record is not None
    spans = collector.spans()
    request = spans["GET /api/v1/jobs/{job_id}"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    told = {pair.key: pair.value for pair in request.attributes}
    assert told["http.response.status_code"].int_value == 200
    assert told["bitfleet.request_id"].string_value == "mine"
    missing = {pair.key: pair.value for pair in spans["GET /api/v1/jobs/{job_id}/rounds"].attributes}
    assert missing["http.response.status_code"].int_value == 404
    round_ = spans["round"]
    assert abs(round_.start_time_unix_nano / 1e9 - record.opened_at) < 1e-3
    assert {pair.key: pair.value.int_value for pair in round_.attributes}["bitfleet.devices"] == 2


def test_without_being_asked_for_nothing_of_it_is_imported() -> None:
    program = "import sys, server.app.serve; print([name for name in sys.modules if 'telemetry.' in name])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    # the API, which does nothing by itself, is FastAPI's to import
    assert not [
        name
        for name in ast.literal_eval(run.stdout)
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))
    ]
