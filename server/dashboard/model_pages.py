"""The pages of models: which there are, their versions, where one comes from and how it differs from another."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from server.api.model_queries import FORMATS, ModelQueries
from server.api.numbers import LARGEST_NUMBER, Number
from server.api.queries import Queries
from server.dashboard.listing import Shown, ShownPart
from server.dashboard.page import Pages


def create_model_pages(pages: Pages, queries: Queries, models: ModelQueries) -> APIRouter:
    """Build the pages; whoever may read sees them."""
    router = APIRouter(route_class=pages.route_class())
    access = pages.access

    @router.get("/models")
    async def all_models(request: Request, shown: ShownPart) -> Response:
        """All models, the newest first."""
        visitor = await access.visitor(request)
        found = await queries.models(shown, newest_first=True)
        return await pages.show(request, "models.html", visitor, models=found, shown=shown)

    @router.get("/models/{model_id}")
    async def model(request: Request, model_id: str, shown: ShownPart) -> Response:
        """One model with its versions, the newest first."""
        visitor = await access.visitor(request)
        return await pages.show(
            request,
            "model.html",
            visitor,
            job=await queries.job(model_id),
            versions=await queries.versions(model_id, shown, newest_first=True),
            shown=shown,
            promoted=await models.promotions(model_id),
            formats=list(FORMATS),
        )

    @router.get("/models/{model_id}/versions/{number}")
    async def version(
        request: Request,
        model_id: str,
        number: Number,
        other: Annotated[int | None, Query(ge=0, le=LARGEST_NUMBER)] = None,
    ) -> Response:
        """One version: where it comes from, and how it differs from another one."""
        visitor = await access.visitor(request)
        lineage = await models.lineage(model_id, number)
        newest = await queries.versions(model_id, Shown(), newest_first=True)
        return await pages.show(
            request,
            "version.html",
            visitor,
            model_id=model_id,
            lineage=lineage,
            number=number,
            promoted=(await models.promotions(model_id)).promoted_version,
            others=[one.version for one in newest[::-1] if one.is_kept and one.version != number],
            comparison=None if other is None else await models.compare(model_id, other, number),
            formats=list(FORMATS),
        )

    return router
