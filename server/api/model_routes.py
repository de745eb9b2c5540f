"""The routes about single model versions: download, lineage, comparison, promotion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from server.api.access import Access
from server.api.model_queries import FORMATS, ModelQueries
from server.api.model_views import ComparisonView, LineageView, PromotedView
from server.api.numbers import LARGEST_NUMBER, Number, QueryNumber

_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class PromoteRequest(BaseModel):
    """Which version is to be used from now on."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=0, le=LARGEST_NUMBER)


def create_model_router(models: ModelQueries, access: Access) -> APIRouter:
    """Build the routes: whoever may read may look, whoever may operate may promote."""
    router = APIRouter(prefix="/api/v1/models", dependencies=[Depends(access.needs("read", is_recorded=True))])
    operate = [Depends(access.needs("operate"))]

    @router.get("/{model_id}/versions/{version}/download", response_class=FileResponse, responses=_FILE)
    async def download_version(
        model_id: str,
        version: Number,
        format: Annotated[  # noqa: A002 - the name of the parameter in the URL
            Literal["safetensors", "onnx", "packed"],
            Query(description="A checkpoint (float32, statistics included), ONNX, or packed in a bit a weight"),
        ] = "safetensors",
    ) -> FileResponse:
        """A version as a file."""
        path = await models.export(model_id, version, format)
        return FileResponse(
            path,
            filename=f"{model_id}-v{version}{FORMATS[format]}",
            media_type="application/octet-stream",
            background=BackgroundTask(path.unlink),
        )

    @router.get("/{model_id}/versions/{version}/lineage")
    async def get_lineage(model_id: str, version: Number) -> LineageView:
        """Where a version comes from: its job and round, of how many updates, what it may tell of a device."""
        return await models.lineage(model_id, version)

    @router.get("/{model_id}/compare")
    async def compare_versions(model_id: str, a: QueryNumber, b: QueryNumber) -> ComparisonView:
        """How two versions differ: accuracy, loss, and weights tensor by tensor."""
        return await models.compare(model_id, a, b)

    @router.get("/{model_id}/promotions")
    async def list_promotions(model_id: str) -> PromotedView:
        """Which version is to be used, and which were."""
        return await models.promotions(model_id)

    @router.post("/{model_id}/promote", dependencies=operate)
    async def promote_version(model_id: str, wanted: PromoteRequest, request: Request) -> PromotedView:
        """Declare a version to be the one to use; 409 when it is already. Its bytes are kept from now on."""
        return await models.promote(model_id, wanted.version, request.state.actor)

    @router.post("/{model_id}/rollback", dependencies=operate)
    async def roll_back(model_id: str, request: Request) -> PromotedView:
        """Make the version promoted before the one to use again; 409 when there was none."""
        return await models.roll_back(model_id, request.state.actor)

    return router
