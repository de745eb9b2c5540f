"""Everything that the dashboard serves, for the application to include."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import FileResponse, Response

from server.api.model_queries import ModelQueries
from server.api.queries import Queries
from server.coordinator import Coordinator
from server.dashboard.assets import asset, names
from server.dashboard.enrolment import create_enrolment_pages
from server.dashboard.forms import create_device_forms, create_job_forms, create_model_forms
from server.dashboard.keys import create_key_pages
from server.dashboard.model_pages import create_model_pages
from server.dashboard.new_job import create_new_job_page
from server.dashboard.page import HEADERS, Pages
from server.dashboard.pages import create_looking_pages
from server.dashboard.sign_in import create_sign_in
from server.errors import NotFoundError
from server.identity.trust import Trust


def create_dashboard(
    pages: Pages,
    coordinator: Coordinator,
    queries: Queries,
    *,
    trust: Trust | None,
    grpc_port: int,
    enrol_url: str = "",
) -> APIRouter:
    """Build the routes of all pages.

    Args:
      pages: how they look, and who may see and change what.
      coordinator: already started, or started before the first request.
      queries: its views.
      trust: by which devices enrol; None: served without keys.
      grpc_port: where devices connect.
      enrol_url: where devices reach the REST API; empty: where the browser does.
    """
    router = APIRouter(include_in_schema=False, default_response_class=Response)
    router.include_router(create_new_job_page(pages, coordinator))
    router.include_router(create_looking_pages(pages, coordinator, queries, trust))
    router.include_router(create_job_forms(pages, coordinator.fleet_jobs))
    models = ModelQueries(coordinator)
    router.include_router(create_model_pages(pages, queries, models))
    router.include_router(create_model_forms(pages, models))
    if trust is not None:
        router.include_router(create_device_forms(pages, trust))
        router.include_router(create_key_pages(pages, trust))
    router.include_router(create_enrolment_pages(pages, coordinator.disk, trust, grpc_port, enrol_url))
    router.include_router(create_sign_in(pages))
    router.include_router(_create_static())
    return router


def _create_static() -> APIRouter:
    router = APIRouter(prefix="/static")

    @router.get("/{name}")
    async def static(name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
        """Serve a script or a style by the name that holds its digest: it never changes."""
        found = next((file for file in names() if asset(file).url == f"/static/{name}"), None)
        if found is None:
            raise NotFoundError(f"there is no file {name!r:.80} here; a newer page names newer ones: load it again")
        file = asset(found)
        headers = HEADERS | {
            "Cache-Control": "public, max-age=31536000, immutable",
            "ETag": f'"{file.digest[:32]}"',
            "Vary": "Accept-Encoding",
        }
        if "gzip" not in accept_encoding:
            return FileResponse(file.path, media_type=file.media_type, headers=headers)
        compressed = await asyncio.to_thread(lambda: file.compressed)
        return Response(compressed, media_type=file.media_type, headers=headers | {"Content-Encoding": "gzip"})

    return router
