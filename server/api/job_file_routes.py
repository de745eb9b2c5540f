"""Jobs as they are written: read back, and created again with changes."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from server.api.access import Access
from server.api.examples import JOB_EXAMPLE
from server.api.idempotency import IdempotencyKey
from server.api.queries import Queries
from server.api.views import JobView
from server.coordinator import Coordinator
from server.job_files import apply_changes, as_written
from server.jobs import JobConfig, parse_job


class CloneRequest(BaseModel):
    """What a job's copy is to have differently."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"set": {"rounds": 50, "seed": 1}}})

    set: dict[str, Any] = Field(default_factory=dict)
    """Values by key, dotted where it is within a part (``model.params.widths``); null takes a key out."""


def create_job_file_router(coordinator: Coordinator, queries: Queries, access: Access) -> APIRouter:
    """Build the routes over a coordinator."""
    router = APIRouter(prefix="/api/v1/jobs", dependencies=[Depends(access.needs("read", is_recorded=True))])

    async def written(job_id: str) -> dict[str, Any]:
        job = await coordinator.jobs.get(job_id)
        return await asyncio.to_thread(lambda: as_written(JobConfig.from_json(job.config_json)))

    @router.get("/{job_id}/file", responses={200: {"content": {"application/json": {"example": JOB_EXAMPLE}}}})
    async def get_job_file(job_id: str) -> dict[str, Any]:
        """The job as one would write it: without what is a default or follows from the rest."""
        return await written(job_id)

    @router.post("/{job_id}/clone", status_code=201, dependencies=[Depends(access.needs("operate", is_recorded=True))])
    async def clone_job(
        job_id: str, wanted: CloneRequest, request: Request, response: Response, key: IdempotencyKey
    ) -> JobView:
        """Create a job like another one, which begins at once unless ``starts_at`` is set; 422 says what is wrong."""
        changes = {"starts_at": None, **wanted.set}
        config = await asyncio.to_thread(parse_job, apply_changes(await written(job_id), changes))
        await access.record(request, f"name={config.name}")
        created = await coordinator.fleet_jobs.create(config, key)
        response.headers["Location"] = f"/api/v1/jobs/{created}"
        return await queries.job(created)

    return router
