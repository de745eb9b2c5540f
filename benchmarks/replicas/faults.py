"""Replicas are killed and started again, PostgreSQL and the object store too, while devices go on; then all is counted.

What must hold: every round is committed; what a device was told is counted stands in the database, once; each round's
model is the mean of exactly the updates that its rows name, computed here beside the coordinators; and the weights have
the digests of a run in which nothing was killed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.fleet import wait_for
from benchmarks.replicas.accounts import Run
from benchmarks.replicas.fleet import Devices, read_ledger
from benchmarks.replicas.site import LIMIT_S, Replica, Site, small_job

_DOWN_S = 2.0
"""How long PostgreSQL and the object store are away."""


@dataclass(frozen=True)
class Campaign:
    """How much is done to whom.

    Attributes:
      replicas: how many.
      devices: how many, all of which every round needs.
      rounds: of the one job.
      kills: of replicas.
      postgres: what is done to PostgreSQL, spread over the kills: "fast" and "immediate" stop and start it, "kill" is
        ``SIGKILL`` of its first process.
      store_kills: of the object store's server.
      every_s: least seconds between kills.
      training_s: what a device takes for a round.
      seed: of updates, times and victims.
    """

    replicas: int = 3
    devices: int = 60
    rounds: int = 20
    kills: int = 30
    postgres: tuple[str, ...] = ("fast", "kill")
    store_kills: int = 1
    every_s: float = 4.0
    training_s: tuple[float, float] = (0.5, 8.0)
    seed: int = 0
    limit_s: float = 1500.0


def play(root: Path, campaign: Campaign, say: Callable[[str], None], *, is_calm: bool) -> Run:
    """Play the job, disturbed or not, and count."""
    run = Run()
    training_s = (0.0, 0.0) if is_calm else campaign.training_s
    with Site(root, campaign.replicas) as site:
        devices = Devices(
            site, campaign.devices, say, seed=campaign.seed, training_s=training_s,
            mischief=0.0 if is_calm else 0.15,
        )  # fmt: skip
        with devices:
            devices.hear("enrolled")
            job_id = site.create_job(small_job("replicas", campaign.rounds, campaign.devices))
            devices.tell()
            devices.hear("connected")
            began = time.monotonic()
            if not is_calm:
                _disturb(site, job_id, campaign, run, say)
            site.await_round(job_id, campaign.rounds, campaign.limit_s)
            run.seconds = time.monotonic() - began
            run.problems = devices.problems
            run.errors.update(devices.finish())
        told = read_ledger(devices.ledger)
        run.count(site, job_id, told, rounds=campaign.rounds, devices=campaign.devices, seed=campaign.seed)
        rows = site.postgres.query("SELECT fence FROM leases WHERE name = 'rounds'")
        run.leads = int(rows[0][0])
    return run


def _disturb(site: Site, job_id: str, campaign: Campaign, run: Run, say: Callable[[str], None]) -> None:
    rng = random.Random(campaign.seed)
    others = [*((_stop_postgres, mode) for mode in campaign.postgres), *[(_kill_store, "")] * campaign.store_kills]
    rng.shuffle(others)
    step = campaign.kills / (len(others) + 1)
    due = {round(step * (i + 1)): other for i, other in enumerate(others)}
    for number in range(1, campaign.kills + 1):
        time.sleep(rng.uniform(campaign.every_s, 1.5 * campaign.every_s))
        ready = wait_for("two replicas to be ready", lambda: _ready(site), LIMIT_S)  # one is left to go on with
        victim = rng.choice(ready)
        victim.kill()
        victim.start()
        run.done["replicas killed"] += 1
        say(f"kill {number}: replica {victim.number}; {site.committed(job_id)} rounds are committed")
        if number in due:
            action, how = due[number]
            action(site, how, run, say)


def _ready(site: Site) -> list[Replica]:
    """The replicas that serve, when there are two at least."""
    site.start_the_ended()
    ready = [replica for replica in site.replicas if replica.is_ready]
    return ready if len(ready) > 1 else []


def _stop_postgres(site: Site, how: str, run: Run, say: Callable[[str], None]) -> None:
    say(f"PostgreSQL: {how}")
    if how == "kill":
        site.postgres.kill()
    else:
        site.postgres.stop(how)
    time.sleep(_DOWN_S)
    site.postgres.start()
    run.done[f"PostgreSQL restarted ({how})"] += 1


def _kill_store(site: Site, how: str, run: Run, say: Callable[[str], None]) -> None:
    del how
    say("object store: kill")
    site.store.kill()
    time.sleep(_DOWN_S)
    site.store.start()
    run.done["object store killed"] += 1


def as_json(campaign: Campaign, calm: Run, disturbed: Run) -> dict[str, Any]:
    """Give the result as it is written."""
    return {
        **{name: getattr(campaign, name) for name in ("replicas", "devices", "rounds", "seed")},
        "done": disturbed.done,
        "rounds_committed": len(disturbed.digests),
        "updates_acknowledged": disturbed.acknowledged,
        "told_more_than_once": disturbed.sent_again,
        "times_led": disturbed.leads,
        "calls_failed": disturbed.errors,
        "seconds": disturbed.seconds,
        "seconds_calm": calm.seconds,
        "final_digest": disturbed.digests[-1] if disturbed.digests else "",
        "is_as_calm": calm.digests == disturbed.digests,
        "losses": vars(disturbed.losses),
        "problems": disturbed.problems,
    }
