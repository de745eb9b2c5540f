"""The pages that look: the coordinator, its devices, jobs with their rounds, models, and the audit log."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from server.api.numbers import Number
from server.api.queries import Queries
from server.api.trust_views import AuditView, IdentityView
from server.coordinator import Coordinator
from server.dashboard.assets import has_charting
from server.dashboard.charts import charts_of
from server.dashboard.history import History
from server.dashboard.listing import ENTRIES_SHOWN, ShownPart, rounds_to_draw
from server.dashboard.page import Pages
from server.errors import ForbiddenError, NotFoundError
from server.identity.trust import Trust

_HINDERED_SHOWN = 20
"""Most devices in a list of those that cannot take part."""
_ENTRIES_SHOWN = 200
_MOST_ENTRIES = 5000
_CONNECTED = "CONNECTED"
"""In the list of states: whatever state it is in."""


def create_looking_pages(pages: Pages, coordinator: Coordinator, queries: Queries, trust: Trust | None) -> APIRouter:
    """Build the pages; whoever may read sees all but the audit log and what devices enrolled with."""
    router = APIRouter(route_class=pages.route_class())
    access, history = pages.access, History(coordinator)

    @router.get("/")
    async def overview(request: Request, shown: ShownPart) -> Response:
        """The coordinator at a glance."""
        visitor = await access.visitor(request)
        hindered = await queries.hindered()
        return await pages.show(
            request,
            "overview.html",
            visitor,
            status=await queries.status(),
            jobs=await queries.jobs(shown, newest_first=True),
            shown=shown,
            hindered=dict(list(hindered.items())[:_HINDERED_SHOWN]),
            num_hindered=len(hindered),
            needs_keys=access.needs_keys,
        )

    @router.get("/devices")
    async def fleet(
        request: Request,
        shown: ShownPart,
        name: Annotated[str, Query(max_length=64)] = "",
        state: Annotated[str, Query(max_length=32)] = "",
    ) -> Response:
        """All devices, or those with a part of a name and in a state."""
        visitor = await access.visitor(request)
        status = await queries.status()
        connected = state == _CONNECTED or None
        wanted = None if connected or not state else state
        devices = await queries.devices(shown, wanted, is_connected=connected, name=name)
        unseen = None
        if trust is not None and visitor.may("admin"):
            unseen = await coordinator.disk.run(coordinator.disk.storage.pages.unseen, ENTRIES_SHOWN)
        return await pages.show(
            request,
            "devices.html",
            visitor,
            num_devices=status.devices_known,
            num_connected=status.devices_connected,
            devices=devices,
            shown=shown,
            turns=await history.last_turns([device.device_id for device in devices]),
            unseen=[] if unseen is None else [IdentityView.of(record) for record in unseen.records],
            num_unseen=0 if unseen is None else unseen.total,
            states=sorted({*status.device_states, _CONNECTED, "OFFLINE", *([state] if state else [])}),
            name=name,
            state=state,
            needs_keys=access.needs_keys,
        )

    @router.get("/devices/{device_id}")
    async def device(request: Request, device_id: str) -> Response:
        """One device, and its part in the newest rounds; of one that never connected, what it enrolled with."""
        visitor = await access.visitor(request)
        identity = trust.devices.get(device_id) if trust is not None and visitor.may("admin") else None
        try:
            found = await queries.device(device_id)
        except NotFoundError:
            if identity is None:
                raise
            return await pages.show(request, "unseen.html", visitor, identity=IdentityView.of(identity))
        turns = await history.of_device(device_id)
        return await pages.show(
            request,
            "device.html",
            visitor,
            device=found,
            identity=None if identity is None else IdentityView.of(identity),
            turns=turns,
            names={turn.job.job_id: turn.job.name for turn in turns},
        )

    @router.get("/jobs/{job_id}")
    async def job(request: Request, job_id: str, shown: ShownPart) -> Response:
        """One job: how it learns, what it costs, and its rounds."""
        visitor = await access.visitor(request)
        status, found = await queries.status(), await queries.job(job_id)
        rounds = await queries.rounds(job_id, shown, has_updates=False, newest_first=True)
        drawn = rounds_to_draw(found.rounds_committed, found.best_version)
        known = {round_.round: round_ for round_ in rounds}
        if missing := [number for number in drawn if number not in known]:  # the table has all of a short job
            more = await queries.rounds(job_id, only=missing, has_updates=False)
            known |= {round_.round: round_ for round_ in more}
        played = [known[number] for number in drawn if number in known]
        hindered = {name: why[job_id] for name, why in (await queries.hindered()).items() if job_id in why}
        return await pages.show(
            request,
            "job.html",
            visitor,
            job=found,
            running=next((running for running in status.running if running.id == job_id), None),
            rounds=rounds,
            shown=shown,
            has_charts=has_charting(),
            charts=charts_of(found, played),
            is_thinned=len(drawn) < found.rounds_committed,
            best=next((round_.accuracy for round_ in played if round_.round == found.best_version), None),
            hindered=dict(list(hindered.items())[:_HINDERED_SHOWN]),
            num_hindered=len(hindered),
            num_connected=status.devices_connected,
            config=json.dumps(found.config, indent=2, ensure_ascii=False),
            spec=json.dumps(found.spec, indent=2, ensure_ascii=False),
        )

    @router.get("/jobs/{job_id}/rounds/{number}")
    async def round_page(request: Request, job_id: str, number: Number) -> Response:
        """One round, with what became of every device's task."""
        visitor = await access.visitor(request)
        found, round_ = await queries.job(job_id), await queries.round(job_id, number)
        next_ = await coordinator.disk.run(coordinator.disk.storage.get_round, job_id, number + 1)
        return await pages.show(request, "round.html", visitor, job=found, round=round_, has_next=next_ is not None)

    @router.get("/audit")
    async def audit(
        request: Request,
        text: Annotated[str, Query(max_length=100)] = "",
        entries: Annotated[int, Query(ge=1, le=_MOST_ENTRIES)] = _ENTRIES_SHOWN,
    ) -> Response:
        """The newest entries of the audit log, the newest first."""
        visitor = await access.visitor(request)
        if not visitor.may("admin"):
            raise ForbiddenError(f"the audit log needs the scope 'admin'; key {visitor.name!r} has {visitor.scope!r}")
        newest = await coordinator.disk.run(coordinator.disk.storage.pages.audit, entries)
        views = [AuditView.of(record) for record in newest.records]
        found = [v for v in views if text.lower() in f"{v.actor} {v.action} {v.origin} {v.detail}".lower()]
        return await pages.show(
            request,
            "audit.html",
            visitor,
            entries=found,
            num_read=len(views),
            text=text,
            more=min(_MOST_ENTRIES, entries * 4) if len(views) < newest.total and entries < _MOST_ENTRIES else 0,
        )

    return router
