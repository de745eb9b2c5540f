"""The fleet's jobs at any replica: what is asked of them goes to the lead, which works on them.

What every replica knows by itself, as it has the database and all devices' sessions, is answered where it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Collection, Mapping

from server.coordinator import Coordinator
from server.coordinator.eligibility import Eligibility, problems_of
from server.coordinator.fleet_jobs import RunningJob
from server.coordinator.job_state import RESULTS, JobState
from server.errors import ConflictError, NotReadyError
from server.jobs import JobConfig
from server.replicas.bus import Body, Bus
from server.replicas.members import Members
from server.replicas.wire import from_json, to_json
from server.storage.refusal import is_refusal

_log = logging.getLogger(__name__)

_CHANGE_S = 60.0
"""What a job is evaluated on is opened before it is added; its data may have to be read."""
_NEXT_LEAD_S = 5.0
"""For so long a change waits for the next lead when there is none."""
_LOOK_AGAIN_S = 2.0
"""An event that says that a job has ended may be lost."""
_LOOK_S = 3.0
"""Who only looks rather sees less than waits longer."""


class DistantJobs:
    """Asks the lead, which may be this very replica; see ``FleetJobs`` for the contract.

    Args:
      coordinator: of this replica, of whose own jobs others ask while it leads.
      bus: connects it with them.
      members: who they are.
    """

    def __init__(self, coordinator: Coordinator, bus: Bus, members: Members) -> None:
        self._coordinator = coordinator
        self._own = coordinator.fleet_jobs
        self._bus = bus
        self._members = members
        self._disk = coordinator.disk
        self._demands: dict[str, Eligibility] = {}
        """Of the running jobs."""
        bus.answer("jobs.create", self._create)
        bus.answer("jobs.ensure", self._ensure)
        bus.answer("jobs.change", self._change)
        bus.answer("jobs.running", self._running)

    async def create(self, config: JobConfig, key: str | None = None) -> str:
        body = {"config": config.to_json(), "key": key or str(uuid.uuid4())}
        return str((await self._insist("jobs.create", body))["job_id"])

    async def ensure(self, config: JobConfig) -> None:
        await self._bus.ask("lead", "jobs.ensure", {"config": config.to_json()}, timeout_s=_CHANGE_S)

    async def cancel(self, job_id: str) -> None:
        await self._insist("jobs.change", {"change": "cancel", "job_id": job_id})

    async def pause(self, job_id: str) -> None:
        await self._insist("jobs.change", {"change": "pause", "job_id": job_id})

    async def resume(self, job_id: str) -> None:
        await self._insist("jobs.change", {"change": "resume", "job_id": job_id})

    async def wait_until_idle(self) -> None:
        watcher = self._disk.feed.watch()
        while not (await self._is_idle() and not await self._own.running()):
            events = await watcher.next(within_s=_LOOK_AGAIN_S)
            while events and all(event.kind not in ("job", "reset") for event in events):
                events = await watcher.next(within_s=_LOOK_AGAIN_S)
            if events is None:  # this coordinator ends
                return

    async def _is_idle(self) -> bool:
        """Say whether no job waits or runs, as is written down, whoever works on them."""
        try:
            counts = await self._disk.run(self._disk.storage.pages.count_jobs)
        except Exception as error:
            if not is_refusal(error):
                raise
            _log.warning("event=jobs_not_counted reason=%r", str(error))
            return False
        return not any(count and JobState(state).is_runnable for state, count in counts.items())

    async def running(self) -> list[RunningJob]:
        try:
            answer = await self._bus.ask("lead", "jobs.running", {}, timeout_s=_LOOK_S)
        except NotReadyError as error:
            _log.info("event=lead_is_away asked=running reason=%r", str(error))
            return []
        return [from_json(RunningJob, job) for job in answer["jobs"]]

    async def problems(self, device_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        if not device_ids:
            return {}
        most = self._coordinator.limits.max_jobs
        running = await self._disk.run(self._disk.storage.pages.jobs, most, state=JobState.RUNNING)
        known, demands = self._demands, dict[str, Eligibility]()
        for job in running.records:
            if job.job_id not in known:
                known[job.job_id] = Eligibility(await asyncio.to_thread(JobConfig.from_json, job.config_json))
            demands[job.job_id] = known[job.job_id]
        self._demands = demands
        return problems_of(self._coordinator.fleet, device_ids, demands)

    async def _insist(self, kind: str, body: Body) -> Body:
        """Ask the lead, and the next one where it is gone before it has answered."""
        while True:
            await self._wait_for_lead()
            lead = self._members.lead_id
            try:
                return await self._bus.ask(lead or "lead", kind, body, timeout_s=_CHANGE_S)
            except NotReadyError:
                await self._wait_for_lead()
                if self._members.lead_id in (None, lead):
                    raise
                body = {**body, "is_repeated": True}  # the one before may have done it

    async def _wait_for_lead(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NEXT_LEAD_S):
                await self._members.wait_for_lead()

    # As the lead

    def _check_lead(self) -> None:
        if self._bus.find_lead() != self._bus.id:
            raise NotReadyError(f"replica {self._bus.id} does not lead any more; try again")

    async def _create(self, sender: str, body: Body) -> Body:
        self._check_lead()
        return {"job_id": await self._own.create(JobConfig.from_json(body["config"]), body.get("key"))}

    async def _ensure(self, sender: str, body: Body) -> Body:
        self._check_lead()
        await self._own.ensure(JobConfig.from_json(body["config"]))
        return {}

    async def _change(self, sender: str, body: Body) -> Body:
        self._check_lead()
        changes = {"cancel": self._own.cancel, "pause": self._own.pause, "resume": self._own.resume}
        try:
            await changes[body["change"]](body["job_id"])
        except ConflictError:
            job = await self._coordinator.jobs.get(body["job_id"])
            if not body.get("is_repeated") or job.state not in RESULTS[body["change"]]:
                raise
        return {}

    async def _running(self, sender: str, body: Body) -> Body:
        self._check_lead()
        return {"jobs": [to_json(job) for job in await self._own.running()]}
