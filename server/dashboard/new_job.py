"""The page on which a job is made: from a file, a template, or another job."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from bnncore.errors import ConfigurationError
from server.coordinator import Coordinator
from server.dashboard.form import read_form
from server.dashboard.page import Pages, go_to
from server.errors import InvalidJobError, InvalidRequestError, NotFoundError
from server.job_files import as_written, list_templates, parse_text, read_template, write_yaml
from server.jobs import JobConfig

_KINDS = ("yaml", "json", "toml")
_TEXT = "the text"
"""What the file is called in messages."""


def create_new_job_page(pages: Pages, coordinator: Coordinator) -> APIRouter:
    """Build the page and its form."""
    router = APIRouter(route_class=pages.route_class())
    access = pages.access

    async def like(job_id: str) -> str:
        """Write a job as a file; it begins when it is made, not when the other one did."""
        stored = await coordinator.jobs.get(job_id)

        def write() -> str:
            config = JobConfig.from_json(stored.config_json)
            return write_yaml(as_written(config.model_copy(update={"starts_at": None})))

        return await asyncio.to_thread(write)

    @router.get("/jobs/new")
    async def new_job(
        request: Request,
        job: Annotated[str, Query(max_length=200)] = "",
        template: Annotated[str, Query(max_length=100)] = "",
    ) -> Response:
        """Show the form: empty, or with the text of a template or of another job."""
        visitor = await access.visitor(request)
        text, kind = "", "yaml"
        if job:
            text = await like(job)
        elif template:
            if template not in list_templates():
                raise NotFoundError(f"there is no template {template!r}; there are {', '.join(list_templates())}")
            text, kind = read_template(template).text, "toml"
        return await pages.show(request, "new_job.html", visitor, **_shown(text, kind, secrets.token_urlsafe(24)))

    @router.post("/jobs/new")
    async def create_job(request: Request) -> Response:
        """Make the job, once however often its form is sent; or show the form again with what is wrong."""
        form = await read_form(request)
        visitor = await access.admit_form(request, "operate", form.get("form_token", ""))
        text, kind, once = form.get("text", ""), form.get("kind", "yaml"), form.get("once", "")
        if kind not in _KINDS or not re.fullmatch(r"[\w-]{16,64}", once, re.ASCII):
            raise InvalidRequestError("this form is not as its page made it: open the page again")
        try:
            config = await asyncio.to_thread(lambda: parse_text(_TEXT, kind, text).validate())
            await access.record(request, f"name={config.name}")
            job_id = await coordinator.fleet_jobs.create(config, once)
        except (ConfigurationError, InvalidJobError) as error:
            values = _shown(text, kind, secrets.token_urlsafe(24), str(error))
            return await pages.show(request, "new_job.html", visitor, status_code=422, **values)
        return go_to(f"/jobs/{job_id}")

    return router


def _shown(text: str, kind: str, once: str, refusal: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {"text": text, "kind": kind, "once": once, "refusal": refusal}
    return values | {"kinds": _KINDS, "templates": list_templates()}
