"""What is changed from the browser about jobs, models and devices: checked, and written down before it is done."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.model_queries import ModelQueries
from server.coordinator.fleet_jobs import FleetJobs
from server.dashboard.form import read_form
from server.dashboard.page import Pages, go_to
from server.errors import InvalidRequestError
from server.identity.trust import Trust


def create_job_forms(pages: Pages, jobs: FleetJobs) -> APIRouter:
    """Build what the buttons of a job's page do."""
    router = APIRouter(route_class=pages.route_class())
    changes: dict[str, Callable[[str], Awaitable[object]]] = {
        "pause": jobs.pause,
        "resume": jobs.resume,
        "cancel": jobs.cancel,
    }

    @router.post("/jobs/{job_id}/{change}")
    async def change_job(request: Request, job_id: str, change: Literal["pause", "resume", "cancel"]) -> Response:
        """Pause, resume or cancel a job."""
        form = await read_form(request)
        await pages.access.admit_form(request, "operate", form.get("form_token", ""))
        await pages.access.record(request)
        await changes[change](job_id)
        return go_to(f"/jobs/{quote(job_id)}")

    return router


def create_model_forms(pages: Pages, models: ModelQueries) -> APIRouter:
    """Build what the buttons of a model's pages do."""
    router = APIRouter(route_class=pages.route_class())

    @router.post("/models/{model_id}/promote")
    async def promote(request: Request, model_id: str) -> Response:
        """Declare a version to be the one to use."""
        form = await read_form(request)
        await pages.access.admit_form(request, "operate", form.get("form_token", ""))
        version = form.get("version", "")
        if not re.fullmatch(r"[0-9]{1,9}", version):
            raise InvalidRequestError(f"version must be a number, got {version!r:.40}")
        await pages.access.record(request, f"version={version}")
        await models.promote(model_id, int(version), request.state.actor)
        return go_to(f"/models/{quote(model_id)}")

    @router.post("/models/{model_id}/rollback")
    async def roll_back(request: Request, model_id: str) -> Response:
        """Make the version promoted before the one to use again."""
        form = await read_form(request)
        await pages.access.admit_form(request, "operate", form.get("form_token", ""))
        await pages.access.record(request)
        await models.roll_back(model_id, request.state.actor)
        return go_to(f"/models/{quote(model_id)}")

    return router


def create_device_forms(pages: Pages, trust: Trust) -> APIRouter:
    """Build what the button of a device's page does."""
    router = APIRouter(route_class=pages.route_class())

    @router.post("/devices/{device_id}/revoke")
    async def revoke(request: Request, device_id: str) -> Response:
        """Shut a device out, at its next message."""
        form = await read_form(request)
        await pages.access.admit_form(request, "admin", form.get("form_token", ""))
        await trust.devices.revoke(device_id, pages.access.entry(request))
        return go_to(f"/devices/{quote(device_id, safe='')}")

    return router
