"""A rolling upgrade with an old version from git and a new one: side by side they serve one fleet, forth and back.

Two replicas. The one that does not lead is replaced, the lead is killed (so that the new version leads and the old one
is a door), then that one is replaced, too. A second job is created by the new version. While it is played one replica
goes back to the old version, and leads in the end. Each time in the middle of a round: one device sends its update only
when the step is taken. After each step the balancer is restarted, too: connections would stay with the replica that
was not touched, and the other one would have nothing to do. What must hold is what holds under kills (``accounts.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.fleet import NotRecoveredError, wait_for
from benchmarks.replicas.accounts import Run
from benchmarks.replicas.clients import Clients
from benchmarks.replicas.fleet import Devices, read_ledger
from benchmarks.replicas.site import LIMIT_S, Replica, Site, small_job
from benchmarks.replicas.versions import Version

_JOBS = ("before", "after")
"""Created by the old version, and by the new one."""


@dataclass(frozen=True)
class Campaign:
    """Who takes part.

    Attributes:
      old: version that is replaced.
      new: version that replaces it.
      devices: how many, all of which every round needs; half of them of the old version.
      clients: how many of them are real agents that train; the others are virtual.
      rounds: of both jobs together.
      training_s: what a virtual device takes for a round.
      seed: of virtual devices' updates and times.
      limit_s: of each wait.
    """

    old: Version
    new: Version
    devices: int = 20
    clients: int = 4
    rounds: int = 12
    training_s: tuple[float, float] = (1.0, 6.0)
    seed: int = 0
    limit_s: float = 600.0

    @property
    def rounds_by_job(self) -> tuple[int, int]:
        return self.rounds - self.rounds // 2, self.rounds // 2


@dataclass
class Stage:
    """What happened between a step and the next.

    Attributes:
      step: what was done at its beginning; what came meanwhile is counted here.
      lead: the version that led then, old or new.
      door: that of the other replica.
      rounds: committed until the next step, the one under way at the step included.
      updates: counted.
      at_door: of them, those that the other replica added up.
    """

    step: str
    lead: str
    door: str
    rounds: int = 0
    updates: int = 0
    at_door: int = 0


@dataclass
class Played:
    """A run, its stages and the schema's revision after each."""

    run: Run = field(default_factory=Run)
    stages: list[Stage] = field(default_factory=list)
    schemas: list[str] = field(default_factory=list)


def play(root: Path, campaign: Campaign, say: Callable[[str], None], *, is_calm: bool) -> Played:
    """Play both jobs, upgraded meanwhile or with the new version alone, and count."""
    old = campaign.new if is_calm else campaign.old
    played = Played()
    training_s, mischief = ((0.0, 0.0), 0.0) if is_calm else (campaign.training_s, 0.15)
    with Site(root, 2, version=old) as site, ExitStack() as stack:

        def enter(first: int, end: int, version: Version, **changes: Any) -> Devices:
            plan = {"seed": campaign.seed, "mischief": mischief, **changes}
            return stack.enter_context(Devices(site, end - first, say, first=first, version=version, **plan))

        virtual = campaign.devices - campaign.clients
        groups = [
            enter(0, virtual // 2, old, training_s=training_s),
            enter(virtual // 2, virtual - 1, campaign.new, training_s=training_s),
        ]
        gate = enter(virtual - 1, virtual, campaign.new, waits=True)
        versions = [(old, campaign.new)[i % 2] for i in range(campaign.clients)]
        clients = stack.enter_context(Clients(site, versions, first=virtual))
        for group in (*groups, gate):
            group.hear("enrolled")
            group.tell()
            group.hear("connected")
        began = time.monotonic()
        watch = _Watch(site, gate, clients, campaign, played, say)
        jobs = []
        for name, rounds in zip(_JOBS, campaign.rounds_by_job, strict=True):
            jobs.append(site.create_job(small_job(name, rounds, campaign.devices)))
            watch.follow(jobs[-1], [] if is_calm else _STEPS[name], rounds)
        played.run.seconds = time.monotonic() - began
        ledger = clients.finish()
        for group in groups:
            played.run.errors.update(group.finish())
        for group in (*groups, gate):
            played.run.problems += group.problems
            ledger += read_ledger(group.ledger)
        seed = None if campaign.clients else campaign.seed
        for job_id, rounds in zip(jobs, campaign.rounds_by_job, strict=True):
            played.run.count(site, job_id, ledger, rounds=rounds, devices=campaign.devices, seed=seed)
        ((fence,),) = site.postgres.query("SELECT fence FROM leases WHERE name = 'rounds'")
        played.run.leads = int(fence)
        played.run.problems += _complaints(site)
    return played


class _Watch:
    """Takes the steps, and notes what came of each."""

    def __init__(
        self,
        site: Site,
        gate: Devices,
        clients: Clients,
        campaign: Campaign,
        played: Played,
        say: Callable[[str], None],
    ) -> None:
        self.site = site
        self.campaign = campaign
        self._gate = gate
        self._clients = clients
        self._played = played
        self._say = say
        self._before = (0, 0, 0)
        self._door_id = ""
        self._begin_stage("both started")

    def follow(self, job_id: str, steps: Sequence[tuple[str, Callable[[_Watch], None]]], rounds: int) -> None:
        """Take steps in the middle of rounds of a job, until its end."""
        due = [1 + rounds * number // len(steps) for number in range(len(steps))]
        for number in range(1, rounds + 1):
            self._gate.hear("ready", self.campaign.limit_s)
            for (what, step), at in zip(steps, due, strict=True):
                if at == number:
                    self._wait("another device's update", partial(self._has_updates, job_id, number))
                    self._end_stage()
                    step(self)
                    self._begin_stage(what)
            self._gate.tell()
            self._gate.hear("sent", self.campaign.limit_s)
        self._wait(f"{job_id} to be done", lambda: self._is_done(job_id))
        self._end_stage()

    def split(self) -> tuple[Replica, Replica]:
        """Give the lead and the other one."""
        lead = self.site.lead()
        return lead, next(replica for replica in self.site.replicas if replica is not lead)

    def become(self, replica: Replica, version: Version, stop: Callable[[Replica], None] = Replica.end) -> None:
        """Stop a replica and start it again, of a version; then have devices spread over both again."""
        stop(replica)
        replica.version = version
        replica.start()
        replica.await_ready()
        wait_for("both replicas to know each other", self._know_each_other, LIMIT_S)
        self.site.restart_balancer()

    def _know_each_other(self) -> bool:
        said = [self.site.status_of(replica) for replica in self.site.replicas]
        known = [{member["id"] for member in one["alive"]} for one in said if one is not None]
        return len(known) == 2 and known[0] == known[1] == {one["id"] for one in said if one is not None}

    def _is_done(self, job_id: str) -> bool:
        ((state, reason),) = self.site.postgres.query("SELECT state, reason FROM jobs WHERE job_id = %s", job_id)
        if state == "FAILED":
            raise NotRecoveredError(f"job {job_id} failed: {reason}")
        return bool(state == "COMPLETED")

    def _has_updates(self, job_id: str, number: int) -> bool:
        ((updates,),) = self.site.postgres.query(
            "SELECT count(*) FROM updates WHERE job_id = %s AND round_number = %s AND status = 'ACCEPTED'",
            *(job_id, number),
        )
        return int(updates) > 0

    def _wait(self, what: str, probe: Callable[[], Any]) -> None:
        def looked() -> Any:
            self._clients.check()
            for replica in self.site.replicas:
                if not replica.is_alive:
                    raise NotRecoveredError(
                        f"{replica.version.name} ended by itself: {replica.log.read_text()[-3000:]}"
                    )
            return probe()

        wait_for(what, looked, self.campaign.limit_s)

    def _begin_stage(self, step: str) -> None:
        lead, door = self.split()
        lead_of, door_of = ("old" if one.version is self.campaign.old else "new" for one in (lead, door))
        stage = Stage(step, lead_of, door_of)
        self._played.stages.append(stage)
        said = wait_for("the door to say its name", lambda: self.site.status_of(door), LIMIT_S)
        if self._door_id != said["id"]:
            self._door_id, self._before = said["id"], (*self._before[:2], 0)
        ((schema,),) = self.site.postgres.query("SELECT version_num FROM alembic_version")
        self._played.schemas.append(schema)
        self._say(f"{step}: {stage.lead} leads, {stage.door} is a door, schema {schema}")

    def _end_stage(self) -> None:
        stage, now = self._played.stages[-1], self._counts()
        rounds, updates, at_door = (count - before for count, before in zip(now, self._before, strict=True))
        stage.rounds += rounds
        stage.updates += updates
        stage.at_door += at_door
        self._before = now

    def _counts(self) -> tuple[int, int, int]:
        """Committed rounds, counted updates and those that the present door added up, of all jobs."""
        ((rounds,),) = self.site.postgres.query("SELECT count(*) FROM rounds WHERE state = 'COMMITTED'")
        ((updates, at_door),) = self.site.postgres.query(
            "SELECT count(*), count(*) FILTER (WHERE folded_by = %s) FROM updates WHERE status = 'ACCEPTED'",
            self._door_id,
        )
        return int(rounds), int(updates), int(at_door)


def _replace_door(watch: _Watch) -> None:
    watch.become(watch.split()[1], watch.campaign.new)


def _kill_lead(watch: _Watch) -> None:
    lead, _ = watch.split()
    watch.become(lead, lead.version, Replica.kill)


def _go_back(watch: _Watch) -> None:
    watch.become(watch.split()[1], watch.campaign.old)


def _end_lead(watch: _Watch) -> None:
    lead, _ = watch.split()
    watch.become(lead, lead.version)


_STEPS: Mapping[str, Sequence[tuple[str, Callable[[_Watch], None]]]] = {
    "before": (
        ("the door is replaced (SIGTERM)", _replace_door),
        ("the lead is killed (SIGKILL)", _kill_lead),
        ("the old door is replaced (SIGTERM)", _replace_door),
    ),
    "after": (
        ("the door goes back (SIGTERM)", _go_back),
        ("the lead is started anew (SIGTERM)", _end_lead),
    ),
}


def _complaints(site: Site) -> list[str]:
    """Errors that no version should meet with the other one beside it."""
    return [
        f"replica {replica.number}: {line}"
        for replica in site.replicas
        for line in replica.log.read_text().splitlines()
        if line.startswith("Traceback")
    ]


def as_json(campaign: Campaign, calm: Played, upgraded: Played) -> dict[str, Any]:
    """Give the result as it is written."""
    run = upgraded.run
    return {
        "from": campaign.old.name,
        "to": campaign.new.name,
        "knows_schema": {campaign.old.name: campaign.old.schema, campaign.new.name: campaign.new.schema},
        **{name: getattr(campaign, name) for name in ("devices", "clients", "rounds", "seed")},
        "stages": [
            {**vars(stage), "schema": schema} for stage, schema in zip(upgraded.stages, upgraded.schemas, strict=True)
        ],
        "rounds_committed": len(run.digests),
        "updates_acknowledged": run.acknowledged,
        "told_more_than_once": run.sent_again,
        "times_led": run.leads,
        "calls_failed": run.errors,
        "seconds": run.seconds,
        "seconds_calm": calm.run.seconds,
        "final_digest": run.digests[-1] if run.digests else "",
        "is_as_calm": calm.run.digests == run.digests,
        "losses": vars(run.losses),
        "problems": run.problems,
    }


def table(result: Mapping[str, Any]) -> str:
    """Show the stages as Markdown."""
    lines = [
        "| step, in the middle of a round | then leads | is a door | schema | rounds | updates | of them at the door |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage in result["stages"]:
        cells = [stage[name] for name in ("step", "lead", "door", "schema", "rounds", "updates", "at_door")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)
