"""The FastAPI application, built from a coordinator that is handed in."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.api.metrics import create_registry
from server.api.problems import add_problem_handlers, problem
from server.api.queries import Queries
from server.api.routes import create_router
from server.coordinator import Coordinator
from server.dashboard import read_page

_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


def create_app(coordinator: Coordinator, *, version: str) -> FastAPI:
    """Build the application.

    Args:
      coordinator: already started, or started before the first request.
      version: of the bitfleet package, for people.
    """
    # The interactive documentation pages load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(title="bitfleet coordinator", version=version, docs_url=None, redoc_url=None)
    queries = Queries(coordinator, version=version)
    registry = create_registry(coordinator)
    page = read_page()
    add_problem_handlers(app)
    app.include_router(create_router(coordinator, queries))

    @app.get("/", include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"})

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> Response:
        """Whether jobs are worked on and the database answers."""
        if not coordinator.jobs.is_working:
            return problem(503, "the coordinator is starting or stopping")
        await coordinator.disk.run(coordinator.disk.storage.list_jobs)
        return PlainTextResponse("ready")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app
