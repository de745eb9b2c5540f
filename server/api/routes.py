"""The routes under ``/api/v1``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from server.api.access import Access
from server.api.examples import JOB_EXAMPLE
from server.api.idempotency import IdempotencyKey
from server.api.numbers import Number
from server.api.paging import PAGED, Asked
from server.api.queries import Queries
from server.api.status_views import StatusView
from server.api.views import DeviceView, JobView, ModelView, RoundView, VersionView
from server.coordinator import JobState
from server.coordinator.fleet_jobs import FleetJobs
from server.coordinator.round import Phase
from server.jobs import parse_job


def create_router(jobs: FleetJobs, queries: Queries, access: Access) -> APIRouter:
    """Build the routes: whoever may read may look, whoever may operate may change jobs."""
    router = APIRouter(prefix="/api/v1", dependencies=[Depends(access.needs("read", is_recorded=True))])
    operate = [Depends(access.needs("operate"))]

    @router.get("/status")
    async def status() -> StatusView:
        """The coordinator at a glance."""
        return await queries.status()

    @router.get("/jobs", responses=PAGED)
    async def list_jobs(
        paging: Asked,
        state: Annotated[JobState | None, Query(description="Only those of this state")] = None,
        name: Annotated[str | None, Query(max_length=64, description="Only those of this name")] = None,
    ) -> list[JobView]:
        """Jobs, in the order in which they were created."""
        return await queries.jobs(paging, state, name)

    @router.post("/jobs", status_code=201, dependencies=[Depends(access.needs("operate", is_recorded=True))])
    async def create_job(
        job: Annotated[dict[str, Any], Body(examples=[JOB_EXAMPLE])],
        request: Request,
        response: Response,
        key: IdempotencyKey,
    ) -> JobView:
        """Create a job from the same object that a job file holds; 422 says what is wrong with it."""
        config = parse_job(job)
        await access.record(request, f"name={config.name}")
        job_id = await jobs.create(config, key)
        response.headers["Location"] = f"/api/v1/jobs/{job_id}"
        return await queries.job(job_id)

    @router.get("/jobs/{job_id}")
    async def get_job(job_id: str) -> JobView:
        """One job; 404 when there is none of this id."""
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/cancel", dependencies=operate)
    async def cancel_job(job_id: str) -> JobView:
        """Cancel a pending or running job; 409 when it has ended. What it committed stays."""
        await jobs.cancel(job_id)
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/pause", dependencies=operate)
    async def pause_job(job_id: str) -> JobView:
        """Stop a pending or running job where it stands; 409 when it has ended or is paused."""
        await jobs.pause(job_id)
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/resume", dependencies=operate)
    async def resume_job(job_id: str) -> JobView:
        """Let a paused job go on; 409 when it is not paused."""
        await jobs.resume(job_id)
        return await queries.job(job_id)

    @router.get("/jobs/{job_id}/rounds", responses=PAGED)
    async def list_rounds(
        job_id: str,
        paging: Asked,
        state: Annotated[Phase | None, Query(description="Only those of this state")] = None,
        updates: Annotated[bool, Query(description="Whether with what became of each device's task")] = True,
    ) -> list[RoundView]:
        """A job's rounds by number, with what became of every device's task."""
        return await queries.rounds(job_id, paging, state, has_updates=updates)

    @router.get("/jobs/{job_id}/rounds/{number}")
    async def get_round(job_id: str, number: Number) -> RoundView:
        """One round; 404 when it was not opened (yet)."""
        return await queries.round(job_id, number)

    @router.get("/devices", responses=PAGED)
    async def list_devices(
        paging: Asked,
        state: Annotated[
            str | None, Query(pattern="^[A-Z]{1,20}$", description="Only those of this state, such as TRAINING")
        ] = None,
        connected: Annotated[bool | None, Query(description="Only those that have a stream now, or have none")] = None,
        label: Annotated[
            str | None, Query(pattern="^[^=]+=.+$", max_length=200, description="Only those with this label, key=value")
        ] = None,
        name: Annotated[str, Query(max_length=64, description="Only those whose id has this in it")] = "",
    ) -> list[DeviceView]:
        """Devices that ever connected, by id."""
        key, _, value = (label or "").partition("=")
        return await queries.devices(paging, state, (key, value) if label else None, is_connected=connected, name=name)

    @router.get("/devices/{device_id}")
    async def get_device(device_id: str) -> DeviceView:
        """One device; 404 when none of this id ever connected."""
        return await queries.device(device_id)

    @router.get("/models", responses=PAGED)
    async def list_models(paging: Asked) -> list[ModelView]:
        """Every job's model with its newest version; a model has its job's id."""
        return await queries.models(paging)

    @router.get("/models/{model_id}/versions", responses=PAGED)
    async def list_versions(model_id: str, paging: Asked) -> list[VersionView]:
        """A model's versions by number; 0 is the initial one."""
        return await queries.versions(model_id, paging)

    @router.get("/models/{model_id}/versions/{version}")
    async def get_version(model_id: str, version: Number) -> VersionView:
        """One version; 404 when it was not made (yet)."""
        return await queries.version(model_id, version)

    return router
