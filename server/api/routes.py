"""The routes under ``/api/v1``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from server.api.queries import Queries
from server.api.views import DeviceView, JobView, ModelView, RoundView, StatusView, VersionView
from server.coordinator import Coordinator
from server.jobs import parse_job


def create_router(coordinator: Coordinator, queries: Queries) -> APIRouter:
    """Build the routes over a coordinator."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/status")
    async def status() -> StatusView:
        """The coordinator at a glance."""
        return await queries.status()

    @router.get("/jobs")
    async def list_jobs() -> list[JobView]:
        """All jobs, in the order in which they were created."""
        return await queries.jobs()

    @router.post("/jobs", status_code=201)
    async def create_job(job: Annotated[dict[str, Any], Body()], response: Response) -> JobView:
        """Create a job from the same object that a job file holds; 422 says what is wrong with it."""
        record = await coordinator.jobs.create(parse_job(job))
        response.headers["Location"] = f"/api/v1/jobs/{record.job_id}"
        return await queries.job(record.job_id)

    @router.get("/jobs/{job_id}")
    async def get_job(job_id: str) -> JobView:
        """One job; 404 when there is none of this id."""
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str) -> JobView:
        """Cancel a pending or running job; 409 when it has ended. What it committed stays."""
        await coordinator.jobs.cancel(job_id)
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/pause")
    async def pause_job(job_id: str) -> JobView:
        """Stop a pending or running job where it stands; 409 when it has ended or is paused."""
        await coordinator.jobs.pause(job_id)
        return await queries.job(job_id)

    @router.post("/jobs/{job_id}/resume")
    async def resume_job(job_id: str) -> JobView:
        """Let a paused job go on; 409 when it is not paused."""
        await coordinator.jobs.resume(job_id)
        return await queries.job(job_id)

    @router.get("/jobs/{job_id}/rounds")
    async def list_rounds(job_id: str) -> list[RoundView]:
        """A job's rounds with what became of every device's task."""
        return await queries.rounds(job_id)

    @router.get("/devices")
    async def list_devices() -> list[DeviceView]:
        """All devices that ever connected."""
        return await queries.devices()

    @router.get("/models")
    async def list_models() -> list[ModelView]:
        """Every job's model with its newest version; a model has its job's id."""
        return await queries.models()

    @router.get("/models/{model_id}/versions")
    async def list_versions(model_id: str) -> list[VersionView]:
        """All versions of a model; 0 is the initial one."""
        return await queries.versions(model_id)

    @router.get("/models/{model_id}/versions/{version}")
    async def get_version(model_id: str, version: int) -> VersionView:
        """One version; 404 when it was not made (yet)."""
        return await queries.version(model_id, version)

    @router.get("/models/{model_id}/versions/{version}/download", response_class=FileResponse)
    async def download_version(model_id: str, version: int) -> FileResponse:
        """A version as a checkpoint file (safetensors, float32, statistics included)."""
        path = await queries.checkpoint(model_id, version)
        return FileResponse(
            path,
            filename=f"{model_id}-v{version}.safetensors",
            media_type="application/octet-stream",
            background=BackgroundTask(path.unlink),
        )

    return router
