"""The FastAPI application, built from a coordinator that is handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.api.access import Access
from server.api.body import BodyLimit
from server.api.conditional import ConditionalAnswers
from server.api.description import describe
from server.api.event_routes import create_event_router
from server.api.health_routes import create_health_router
from server.api.job_file_routes import create_job_file_router
from server.api.metrics import create_registry, observe
from server.api.model_queries import ModelQueries
from server.api.model_routes import create_model_router
from server.api.problems import ANY_PROBLEM, RefusalsAsProblems, add_problem_handlers
from server.api.queries import Queries
from server.api.request_log import RequestLog
from server.api.routes import create_router
from server.api.trust_routes import (
    create_audit_router,
    create_enrolment_router,
    create_token_router,
    create_trust_router,
)
from server.coordinator import Coordinator
from server.identity.trust import Trust
from server.limits import ConnectionLimits

if TYPE_CHECKING:
    from server.replicas.replica import Replica

_METRICS = "# HELP bitfleet_jobs_running Jobs that run\n# TYPE bitfleet_jobs_running gauge\nbitfleet_jobs_running 1.0\n"


def _text(example: str) -> dict[int | str, dict[str, Any]]:
    """Describe an answer in plain text."""
    return {200: {"content": {"text/plain": {"example": example}}}}


def create_app(
    coordinator: Coordinator,
    *,
    version: str,
    trust: Trust | None = None,
    replica: Replica | None = None,
    grpc_port: int = 0,
    enrol_url: str = "",
    public_origin: str = "",
    limits: ConnectionLimits | None = None,
) -> FastAPI:
    """Build the application.

    Args:
      coordinator: already started, or started before the first request.
      version: of the bitfleet package, for people.
      trust: whom to let in; None lets everyone in, on loopback.
      replica: what the coordinator is among others over the same database; None: there are none.
      grpc_port: where devices connect, which they are told when they enrol.
      enrol_url: where devices reach this application; empty: where a browser does that asks for the dashboard.
      public_origin: of the dashboard's pages where they come by a proxy.
      limits: of a request's body and of streams of events.
    """
    from server.dashboard.page import Pages  # here: its pages are made of what this package gives
    from server.dashboard.router import create_dashboard

    # The interactive documentation pages load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(title="bitfleet coordinator", version=version, docs_url=None, redoc_url=None, responses=ANY_PROBLEM)
    limits = limits or ConnectionLimits()
    app.add_middleware(RefusalsAsProblems)
    app.add_middleware(ConditionalAnswers)
    app.add_middleware(BodyLimit, max_bytes=limits.max_request_bytes)
    app.add_middleware(RequestLog)
    queries = Queries(coordinator, version=version, replica=replica)
    access = Access(coordinator.disk, trust, public_origin)
    pages = Pages(access, version=version)
    add_problem_handlers(app, pages.refuse)
    app.include_router(create_health_router(coordinator.readiness))
    app.include_router(create_router(coordinator.fleet_jobs, queries, access))
    app.include_router(create_event_router(coordinator.disk.feed, access, limits))
    app.include_router(create_job_file_router(coordinator, queries, access))
    app.include_router(create_model_router(ModelQueries(coordinator), access))
    app.include_router(create_audit_router(access, coordinator.disk))
    if trust is not None:
        app.include_router(create_enrolment_router(trust, grpc_port))
        app.include_router(create_trust_router(trust, access))
        app.include_router(create_token_router(trust, access, coordinator.disk))

    app.include_router(
        create_dashboard(pages, coordinator, queries, trust=trust, grpc_port=grpc_port, enrol_url=enrol_url)
    )

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_text(_METRICS),
        dependencies=[Depends(access.needs("read"))],
    )
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        registry = create_registry(coordinator, await observe(coordinator), replica)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    describe(app)
    return app
